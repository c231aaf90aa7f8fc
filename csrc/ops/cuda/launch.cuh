/* SPDX-License-Identifier: Apache-2.0
 *
 * What the launchers of the chains' kernels share: the team of a chain, the device's limits; and their list.
 */
#ifndef DEEPPCR_OPS_CUDA_LAUNCH_H
#define DEEPPCR_OPS_CUDA_LAUNCH_H

#include "ops/cuda/gradient.cuh"
#include "ops/cuda/newton.cuh"
#include "ops/cuda/sequential.cuh"

enum { WIDEST = BLOCK_LANES * WIDE_ROWS };

/* A thread holds a column of 32 floats, but not of 32 doubles. */
template <class T> struct widest_in_warp {
    typedef team<T, 32, 1> type;
};
template <> struct widest_in_warp<double> {
    typedef team<double, BLOCK_LANES, BLOCK_ROWS> type;
};

/* Calls RUN<team>(...) for the team of a chain; NARROW: that of vectors of up to 4. */
#define FOR_TEAM(chain, T, NARROW, RUN, ...)                                                             \
    ((chain).step == DPCR_DENOISE                   ? FOR_DENOISING_TEAM(chain, T, RUN, __VA_ARGS__)     \
     : widest_of(chain) <= 4                        ? RUN<NARROW>(__VA_ARGS__)                           \
     : widest_of(chain) <= 8                        ? RUN<team<T, 8, 1>>(__VA_ARGS__)                    \
     : widest_of(chain) <= 16                       ? RUN<team<T, 16, 1>>(__VA_ARGS__)                   \
     : widest_of(chain) <= 32                       ? RUN<typename widest_in_warp<T>::type>(__VA_ARGS__) \
     : widest_of(chain) <= BLOCK_LANES * BLOCK_ROWS ? RUN<team<T, BLOCK_LANES, BLOCK_ROWS>>(__VA_ARGS__) \
                                                    : RUN<team<T, BLOCK_LANES, WIDE_ROWS>>(__VA_ARGS__))
#define THREAD_TEAM(T) team<T, 1, 4>
#define FOR_DENOISING_TEAM(chain, T, RUN, ...)                                     \
    (widest_of(chain) <= TEAM_WARP ? RUN<team<T, TEAM_WARP, 1, true>>(__VA_ARGS__) \
     : widest_of(chain) <= BLOCK_LANES * BLOCK_ROWS                                \
         ? RUN<team<T, BLOCK_LANES, BLOCK_ROWS, true>>(__VA_ARGS__)                \
         : RUN<team<T, BLOCK_LANES, WIDE_ROWS, true>>(__VA_ARGS__))

#define FOR_TEAM_OF(chain, T, RUN, ...) FOR_TEAM(chain, T, THREAD_TEAM(T), RUN, __VA_ARGS__)

#define FOR_DTYPE_AND_TEAM(chain, RUN, ...)                                  \
    ((chain).dtype == DPCR_F32 ? FOR_TEAM_OF(chain, float, RUN, __VA_ARGS__) \
                               : FOR_TEAM_OF(chain, double, RUN, __VA_ARGS__))

struct device_limits {
    int processors;
    size_t shared; /* bytes that a block may have */
};

dpcr_status dpcr_cuda_limits(device_limits *limits);

/* ---- launchers; the passes come without what follows from the team -------------------------------- */

/* Whether a chain fits sequential_kernel, forward or backward; else propagate and pullback serve. */
bool dpcr_cuda_stages(const dpcr_chain &chain, const device_limits &limits, bool backward);
dpcr_status dpcr_cuda_sequential(dpcr_exec exec, const sequential_pass &pass, const device_limits &limits,
                                 bool backward);
/* bytes of zeros; data may be NULL */
dpcr_status dpcr_cuda_zero(dpcr_exec exec, void *data, size_t bytes);
/* Parameter gradients of steps first..last-1 from what step_back() has saved, added to what all steps share; zeros for
 * the latter, and for all others of steps first..last-1. */
dpcr_status dpcr_cuda_gradients(dpcr_exec exec, const dpcr_chain *chain, const dpcr_pullback *arrays,
                                const back_arrays &back, int64_t first, int64_t last);
dpcr_status dpcr_cuda_clear_sums(dpcr_exec exec, const dpcr_chain *chain, const dpcr_pullback *arrays);
dpcr_status dpcr_cuda_clear_gradients(dpcr_exec exec, const dpcr_chain *chain, const dpcr_pullback *arrays,
                                      int64_t first, int64_t last);
dpcr_status dpcr_cuda_propagate(dpcr_exec exec, const propagate_arguments &arguments, int64_t segments);
dpcr_status dpcr_cuda_pullback(dpcr_exec exec, const pullback_arguments &arguments);
/* Sets gang, gangs, bytes of a pass; the workspace is gangs pieces of bytes, and before them their counters. */
void dpcr_cuda_newton_shape(newton_pass *pass, const device_limits &limits, size_t cap);
size_t dpcr_cuda_newton_workspace(const newton_pass &pass);
dpcr_status dpcr_cuda_newton(dpcr_exec exec, const newton_pass &pass, const device_limits &limits,
                             bool backward, void *workspace);
dpcr_status dpcr_cuda_newton_f32(dpcr_exec exec, const newton_pass &pass, const device_limits &limits,
                                 bool backward);
dpcr_status dpcr_cuda_newton_f64(dpcr_exec exec, const newton_pass &pass, const device_limits &limits,
                                 bool backward);

#endif
