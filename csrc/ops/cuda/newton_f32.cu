/* SPDX-License-Identifier: Apache-2.0
 * Newton in single precision. */
#include "ops/cuda/newton_launch.cuh"

dpcr_status dpcr_cuda_newton_f32(dpcr_exec exec, const newton_pass &pass, const device_limits &limits,
                                 bool backward) {
    return FOR_TEAM_OF(pass.chain, float, run, exec, pass, limits, backward);
}
