/* SPDX-License-Identifier: Apache-2.0
 * Launches of segment.cuh. */
#include "ops/cuda/launch.cuh"

/* A grid of teams for so many tasks. */
template <class TEAM> static launch_shape teams_for(const dpcr_chain &chain, int64_t tasks) {
    const int threads = TEAM::BLOCK ? BLOCK_LANES : 128;
    const int64_t blocks = dpcr_ceil_div(tasks, threads / TEAM::LANES);
    return {dpcr_min(blocks, kMaxBlocks), threads, exchange_bytes<TEAM>(chain), false};
}

template <class TEAM>
static dpcr_status propagate(dpcr_exec exec, const propagate_arguments &a, int64_t tasks) {
    return launched(
        launch<propagate_kernel<TEAM>>(teams_for<TEAM>(a.chain, tasks), (cudaStream_t)exec.stream, tasks, a));
}

dpcr_status dpcr_cuda_propagate(dpcr_exec exec, const propagate_arguments &a, int64_t segments) {
    const int64_t tasks = segments * a.samples;
    return tasks == 0 ? DPCR_OK : FOR_DTYPE_AND_TEAM(a.chain, propagate, exec, a, tasks);
}

template <class TEAM> static dpcr_status pullback(dpcr_exec exec, const pullback_arguments &a) {
    return launched(launch<pullback_kernel<TEAM>>(teams_for<TEAM>(a.chain, a.chain.B),
                                                  (cudaStream_t)exec.stream, a.chain.B, a));
}

dpcr_status dpcr_cuda_pullback(dpcr_exec exec, const pullback_arguments &a) {
    return FOR_DTYPE_AND_TEAM(a.chain, pullback, exec, a);
}
