/* SPDX-License-Identifier: Apache-2.0
 * Newton in double precision. */
#include "ops/cuda/newton_launch.cuh"

dpcr_status dpcr_cuda_newton_f64(dpcr_exec exec, const newton_pass &pass, const device_limits &limits,
                                 bool backward) {
    return FOR_TEAM_OF(pass.chain, double, run, exec, pass, limits, backward);
}
