/* SPDX-License-Identifier: Apache-2.0
 *
 * All that kernels and launchers use of the machine beyond the CUDA language itself, so that a twin of
 * this header (tests/cuda_on_host) can stand for it.
 */
#ifndef DEEPPCR_PCR_CUDA_INTRINSICS_H
#define DEEPPCR_PCR_CUDA_INTRINSICS_H

#include <cooperative_groups.h>
#include <cuda_pipeline.h>
#include <cuda_runtime.h>
#include <stdint.h>

/* An array of the block; the one whose size the launch says, at most one a kernel. */
#define SHARED(type, name, count) __shared__ type name[count]
#define DYNAMIC_SHARED(type, name)                                       \
    extern __shared__ __align__(16) unsigned char dpcr_dynamic_shared[]; \
    type *const name = (type *)dpcr_dynamic_shared

/* Of a block, at most.  The 1 asks for no second block on a multiprocessor; without it ptxas 13.0 spills up to
 * 20 words, of 36 of the 528 kernels, to make room for more. */
#define THREADS(count) __launch_bounds__(count, 1)

/* Before a loop whose arrays are to live in registers. */
#define UNROLL _Pragma("unroll")
/* The same for `count` turns at a time, a constant of any kind; 1: the loop stays one. */
#define UNROLL_BY(count) DPCR_PRAGMA(unroll(count))
#define DPCR_PRAGMA(text) _Pragma(#text)

/* Of a function: called, wherever it is used. */
#define NOT_INLINED __noinline__

/* a b + c, rounded once.  Named, so that no kernel depends on what a compiler contracts: the loop and the
 * walks must agree to the bit. */
__device__ __forceinline__ float fused(float a, float b, float c) {
    return __fmaf_rn(a, b, c);
}

__device__ __forceinline__ double fused(double a, double b, double c) {
    return __fma_rn(a, b, c);
}

__device__ __forceinline__ int bits_of_number(float a) {
    return __float_as_int(a);
}

__device__ __forceinline__ long long bits_of_number(double a) {
    return __double_as_longlong(a);
}

/* Of all threads of a cooperative launch. */
__device__ __forceinline__ void grid_barrier() {
    cooperative_groups::this_grid().sync();
}

/* Of the blocks of a gang, that many neighbours of a cooperative launch (or one of any); `arrived` starts from 0 and
 * serves this gang alone, 2^31 / blocks times.  What its threads wrote before, all of them see afterwards. */
__device__ __forceinline__ void gang_barrier(unsigned *arrived, int blocks) {
    __syncthreads();
    if (blocks == 1) return;
    if (threadIdx.x == 0) {
        __threadfence();
        const unsigned n = (unsigned)blocks, goal = (atomicAdd(arrived, 1u) / n + 1) * n;
        while ((int)(*(volatile unsigned *)arrived - goal) < 0) {
        }
        __threadfence();
    }
    __syncthreads();
}

/* Copies 4, 8 or 16 bytes, aligned to as many, from global to shared memory without waiting for them. */
template <int BYTES> __device__ __forceinline__ void copy_async(void *shared, const void *global) {
    __pipeline_memcpy_async(shared, global, BYTES);
}

/* Until all copies of this thread are done; a barrier makes them known to others. */
__device__ __forceinline__ void await_copies() {
    __pipeline_commit();
    __pipeline_wait_prior(0);
}

/* Of a grid; whoever has more tasks gives each block several. */
static const int64_t kMaxBlocks = INT32_MAX;

/* Dynamic shared memory from which on a launch asks for it: with its static arrays a block has 48 KiB without. */
static const size_t kPlainShared = 16 << 10;

struct launch_shape {
    int64_t blocks;
    int threads;
    size_t shared; /* bytes of DYNAMIC_SHARED */
    bool cooperative;
};

template <auto KERNEL, class... A>
cudaError_t launch(const launch_shape &shape, cudaStream_t stream, A... arguments) {
    cudaLaunchAttribute together = {};
    together.id = cudaLaunchAttributeCooperative;
    together.val.cooperative = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((unsigned)shape.blocks);
    config.blockDim = dim3((unsigned)shape.threads);
    config.dynamicSmemBytes = shape.shared;
    config.stream = stream;
    config.attrs = &together;
    config.numAttrs = shape.cooperative;
    if (shape.shared > kPlainShared) {
        const cudaError_t error =
            cudaFuncSetAttribute(KERNEL, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shape.shared);
        if (error != cudaSuccess) return error;
    }
    return cudaLaunchKernelEx(&config, KERNEL, arguments...);
}

#endif
