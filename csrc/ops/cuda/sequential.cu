/* SPDX-License-Identifier: Apache-2.0
 * Launches of sequential.cuh. */
#include "ops/cuda/launch.cuh"

/* Of a block's two buffers: enough for the latency of device memory, and room for a second block. */
static const size_t kBuffers = 96 << 10;
enum { MOST_STEPS = 16, FEW_WARPS = 1, MANY_WARPS = 4, LOADERS = 96 };

struct sequential_shape {
    int chunk, compute, beside;
    int64_t tile;
    size_t bytes; /* of shared memory */
};

template <class TEAM>
static sequential_shape shape_of(const dpcr_chain &chain, const device_limits &limits, bool backward) {
    const int64_t samples = TEAM_WARP / TEAM::LANES; /* of a warp */
    const bool few = chain.B <= samples * limits.processors;
    sequential_shape shape = {0, TEAM_WARP * (few ? FEW_WARPS : MANY_WARPS), 0, 0, 0};
    shape.tile = dpcr_min(shape.compute / TEAM::LANES, chain.B);
    shape.beside = backward ? (int)dpcr_ceil_div(shape.tile * chain.w, TEAM::PACK) * TEAM::PACK : 0;
    const size_t step = (size_t)(slot_of<TEAM>(chain).size + shape.beside) * sizeof(typename TEAM::T);
    const size_t budget = limits.shared < kBuffers ? limits.shared : kBuffers;
    shape.chunk = (int)dpcr_min((int64_t)(budget / (2 * step)), MOST_STEPS);
    shape.bytes = 2 * (size_t)shape.chunk * step;
    return shape;
}

template <class TEAM>
static bool stages(const dpcr_chain &chain, const device_limits &limits, bool backward) {
    if constexpr (!TEAM::STAGES)
        return false;
    else
        return shape_of<TEAM>(chain, limits, backward).chunk > 0;
}

/* Few samples: a thread that has a vector of 4 for itself would compute its activations one by one. */
#define NEIGHBOURS(T) team<T, 4, 1>
#define FOR_SAMPLES(chain, RUN, ...)                                                         \
    ((chain).dtype == DPCR_F32 ? FOR_TEAM(chain, float, NEIGHBOURS(float), RUN, __VA_ARGS__) \
                               : FOR_TEAM(chain, double, NEIGHBOURS(double), RUN, __VA_ARGS__))

bool dpcr_cuda_stages(const dpcr_chain &chain, const device_limits &limits, bool backward) {
    return FOR_SAMPLES(chain, stages, chain, limits, backward);
}

template <class TEAM>
static dpcr_status run(dpcr_exec exec, sequential_pass pass, const device_limits &limits, bool backward) {
    if constexpr (!TEAM::STAGES) {
        return DPCR_UNSUPPORTED;
    } else {
        const sequential_shape shape = shape_of<TEAM>(pass.chain, limits, backward);
        const int64_t tiles = dpcr_ceil_div(pass.chain.B, shape.tile);
        const int threads = shape.compute + (shape.compute == TEAM_WARP ? LOADERS : 128);
        const launch_shape grid = {dpcr_min(tiles, kMaxBlocks), threads, shape.bytes, false};
        pass.slot = slot_of<TEAM>(pass.chain);
        pass.chunk = shape.chunk;
        pass.compute = shape.compute;
        pass.tile = shape.tile;
        pass.beside = shape.beside;
        return launched(
            backward ? launch<sequential_back_kernel<TEAM>>(grid, (cudaStream_t)exec.stream, tiles, pass)
                     : launch<sequential_kernel<TEAM>>(grid, (cudaStream_t)exec.stream, tiles, pass));
    }
}

dpcr_status dpcr_cuda_sequential(dpcr_exec exec, const sequential_pass &pass, const device_limits &limits,
                                 bool backward) {
    return FOR_SAMPLES(pass.chain, run, exec, pass, limits, backward);
}
