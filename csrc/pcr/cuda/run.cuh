/* SPDX-License-Identifier: Apache-2.0
 * Launches of one-dimensional grids over 64-bit numbers of tasks, and their errors as statuses. */
#ifndef DEEPPCR_PCR_CUDA_RUN_H
#define DEEPPCR_PCR_CUDA_RUN_H

#include "pcr/cuda/intrinsics.cuh"
#include "pcr/device.h"

/* Tasks of a block, one after another: any number of them fits any grid. */
#define FOR_TASKS(task, count) for (int64_t task = blockIdx.x; task < (count); task += gridDim.x)

/* The launch's own error is cleared: nothing of it is left for whoever asks next. */
static inline dpcr_status launched(cudaError_t error) {
    if (error == cudaSuccess) return DPCR_OK;
    cudaGetLastError();
    return dpcr_fail(DPCR_DEVICE, "CUDA: %s", cudaGetErrorString(error));
}

/* A block for every task, of kernels whose first parameter is the number of tasks. */
template <auto KERNEL, class... A>
static dpcr_status run_blocks(dpcr_exec exec, int64_t tasks, int threads, A... arguments) {
    const launch_shape shape = {dpcr_min(tasks, kMaxBlocks), threads, 0, false};
    return tasks == 0 ? DPCR_OK
                      : launched(launch<KERNEL>(shape, (cudaStream_t)exec.stream, tasks, arguments...));
}

/* A thread for every element, of kernels whose first parameter is the number of elements. */
enum { ELEMENT_THREADS = 128 };
#define FOR_ELEMENTS(e, count)                                                    \
    for (int64_t e = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; e < (count); \
         e += (int64_t)gridDim.x * blockDim.x)

template <auto KERNEL, class... A>
static dpcr_status run_elements(dpcr_exec exec, int64_t elements, A... arguments) {
    const int64_t blocks = dpcr_ceil_div(elements, ELEMENT_THREADS);
    const launch_shape shape = {dpcr_min(blocks, kMaxBlocks), ELEMENT_THREADS, 0, false};
    return elements == 0 ? DPCR_OK
                         : launched(launch<KERNEL>(shape, (cudaStream_t)exec.stream, elements, arguments...));
}

#endif
