/* SPDX-License-Identifier: Apache-2.0
 * One launch of newton.cuh.  The kernels take long to compile: each dtype has a file of its own. */
#ifndef DEEPPCR_OPS_CUDA_NEWTON_LAUNCH_H
#define DEEPPCR_OPS_CUDA_NEWTON_LAUNCH_H

#include "ops/cuda/launch.cuh"

enum { TEAM_THREADS = 128 }; /* of a block, where teams are part of a warp: one warp for each scheduler */
/* Static shared memory of the kernel, and the system's own. */
static const size_t kReserved = 16 << 10;

template <class TEAM> static int threads_of(int64_t S) {
    if (TEAM::BLOCK) return BLOCK_LANES;
    if (TEAM::LANES > 1) return TEAM_THREADS;
    return (int)dpcr_min(dpcr_ceil_div(S, TEAM_WARP) * TEAM_WARP, NEWTON_THREADS);
}

/* Blocks of a gang: a team has one segment where there are processors enough. */
template <class TEAM> static int gang_of(const newton_pass &pass, const device_limits &limits) {
    const int64_t teams = threads_of<TEAM>(pass.S) / TEAM::LANES;
    return (int)dpcr_min(dpcr_ceil_div(pass.S, teams), limits.processors);
}

template <class TEAM, bool BACKWARD>
static dpcr_status run_way(dpcr_exec exec, newton_pass pass, const device_limits &limits) {
    typedef typename TEAM::T T;
    pass.slot = TEAM::STAGES ? slot_of<TEAM>(pass.chain) : slot_shape{};
    const size_t room = limits.shared > kReserved ? limits.shared - kReserved : 0,
                 slot = (size_t)pass.slot.size * sizeof(T);
    const int64_t steps = dpcr_ceil_div(pass.S, pass.gang) * dpcr_ceil_div(pass.chain.L, pass.S);
    pass.resident_steps = TEAM::STAGES && (size_t)steps * slot <= room ? steps : 0;
    const launch_shape shape = {pass.gangs * pass.gang, threads_of<TEAM>(pass.S),
                                (size_t)pass.resident_steps * slot + exchange_bytes<TEAM>(pass.chain),
                                pass.gang > 1};
    return launched(launch<newton_kernel<TEAM, BACKWARD>>(shape, (cudaStream_t)exec.stream, pass));
}

template <class TEAM>
static dpcr_status run(dpcr_exec exec, const newton_pass &pass, const device_limits &limits, bool backward) {
    return backward ? run_way<TEAM, true>(exec, pass, limits) : run_way<TEAM, false>(exec, pass, limits);
}

#endif
