/* SPDX-License-Identifier: Apache-2.0
 *
 * A CUDA device that is not one: kernels compiled as C++ run on the calling thread, one fiber per CUDA
 * thread, and every access of theirs to memory is looked at.
 *
 * How it sees them: the .cu files are compiled with -fsanitize=thread, which makes the compiler call
 * __tsan_read4(address) and the like; the functions of these names are in memory.cpp, and the
 * sanitizer's own library is not linked.  So a kernel needs no wrapped pointers, and what is compiled
 * here is what nvcc compiles, but for the one header pcr/cuda/intrinsics.cuh.
 *
 * A launch fails (the report says kernel, block, thread and line) on
 *   - an access outside every device array, shared array and the thread's own stack,
 *   - a read of shared memory that nobody wrote (filled with signalling NaNs, too),
 *   - two unordered accesses of different threads to 4 bytes, one of them a write and one not atomic:
 *     between the blocks of a launch, and in a block within one interval between barriers (or, in one
 *     warp, between two __syncwarp),
 *   - a barrier that some threads of the block do not reach, or reach at another line,
 *   - a shuffle, vote or __syncwarp whose mask names lanes that have returned, do not exist or wait
 *     elsewhere, or that reads a lane outside the mask,
 *   - the default stream.
 * A host access to a device array is seen where the host code is in a .cu file.
 *
 * Not simulated: time, caches, memory order weaker than program order, more than one device, streams
 * that run at once.  A __syncwarp with a partial mask counts as one of the whole warp.
 */
#ifndef DEEPPCR_CUDA_ON_HOST_H
#define DEEPPCR_CUDA_ON_HOST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "pcr/cuda/cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Device arrays, aligned to 256 bytes and fenced; they start uninitialised. */
void *cuda_on_host_allocate(size_t bytes);
void cuda_on_host_release(void *data);
void cuda_on_host_copy(void *to, const void *from, size_t bytes);
/* closed: accesses of kernels to these bytes (multiples of 4) are errors from now on. */
void cuda_on_host_fence(void *data, size_t bytes, bool closed);

/* A stream whose launches run their blocks, warps and lanes in an order drawn from the seed; 0: in
 * order.  Streams with equal seeds are the same one. */
void *cuda_on_host_stream(uint64_t seed);

/* What stands for cuBLAS (blas.cu); a handle is a stream. */
dpcr_cuda_sgemm cuda_on_host_sgemm(void);
dpcr_cuda_dgemm cuda_on_host_dgemm(void);

/* The first error since the last call of this function, or NULL. */
const char *cuda_on_host_report(void);

/* The launch after `launches` more fails as if the device refused it; negative: none. */
void cuda_on_host_refuse(int launches);
/* Launches that have run since the program began. */
int64_t cuda_on_host_launches(void);

#ifdef __cplusplus
}
#endif
#endif
