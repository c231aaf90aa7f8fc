/* SPDX-License-Identifier: Apache-2.0
 * The CUDA device: the recurrence of csrc/pcr/cuda and the chains of this folder. */
#include "ops/cuda/chain.h"
#include "pcr/cuda/cuda.h"
#include "pcr/cuda/solve.h"

static const struct dpcr_device cuda_device = {
    "cuda", -1, {NULL, NULL}, &dpcr_cuda_solver, &dpcr_cuda_chains};

const dpcr_device *dpcr_cuda_device(void) {
    return &cuda_device;
}
