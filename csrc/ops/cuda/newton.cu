/* SPDX-License-Identifier: Apache-2.0
 * Newton's shape and workspace. */
#include "ops/cuda/newton_launch.cuh"

static size_t counters(int64_t gangs) {
    return dpcr_round_up((size_t)gangs * sizeof(unsigned));
}

size_t dpcr_cuda_newton_workspace(const newton_pass &pass) {
    return counters(pass.gangs) + (size_t)pass.gangs * pass.bytes;
}

template <class TEAM> static int set_shape(newton_pass *pass, const device_limits &limits) {
    pass->gang = gang_of<TEAM>(*pass, limits);
    return 0;
}

void dpcr_cuda_newton_shape(newton_pass *pass, const device_limits &limits, size_t cap) {
    newton_arrays none;
    FOR_DTYPE_AND_TEAM(pass->chain, set_shape, pass, limits);
    pass->bytes = carve_newton(*pass, NULL, &none);
    const int64_t together =
        pass->gang > 1 ? dpcr_max(limits.processors / pass->gang, 1) : 8 * limits.processors;
    pass->gangs = dpcr_min(pass->chain.B, together);
    while (cap > 0 && pass->gangs > 1 && dpcr_cuda_newton_workspace(*pass) > cap) pass->gangs--;
}

dpcr_status dpcr_cuda_newton(dpcr_exec exec, const newton_pass &given, const device_limits &limits,
                             bool backward, void *workspace) {
    newton_pass pass = given;
    pass.arrived = (unsigned *)workspace;
    pass.workspace = (char *)workspace + counters(pass.gangs);
    if (pass.gang > 1)
        RETURN_IF(launched(cudaMemsetAsync(pass.arrived, 0, (size_t)pass.gangs * sizeof(unsigned),
                                           (cudaStream_t)exec.stream)));
    return pass.chain.dtype == DPCR_F32 ? dpcr_cuda_newton_f32(exec, pass, limits, backward)
                                        : dpcr_cuda_newton_f64(exec, pass, limits, backward);
}
