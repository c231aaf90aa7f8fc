/* SPDX-License-Identifier: Apache-2.0 */
#include "cuda/device_memory.h"

#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>

static void expect(cudaError_t error, const char *what) {
    if (error == cudaSuccess) return;
    fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
    exit(3);
}

const char *device_memory_reason(void) {
    int count = 0;
    const cudaError_t error = cudaGetDeviceCount(&count);
    if (error != cudaSuccess) return cudaGetErrorString(error);
    return count > 0 ? NULL : "no CUDA device";
}

void *device_memory_stream(mode m) {
    static cudaStream_t stream;
    (void)m;
    if (stream) return stream;
    cudaMemPool_t pool;
    unsigned long long keep = ~0ULL;
    expect(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "a stream");
    expect(cudaDeviceGetDefaultMemPool(&pool, 0), "the memory pool");
    expect(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &keep), "the memory pool");
    return stream;
}

static cudaStream_t only_stream(void) {
    return device_memory_stream(MODE_ALONE);
}

void *device_memory_allocate(size_t bytes) {
    void *data = NULL;
    expect(cudaMallocAsync(&data, bytes > 0 ? bytes : 1, only_stream()), "allocate");
    return data;
}

void device_memory_release(void *data) {
    expect(cudaFreeAsync(data, only_stream()), "release");
}

static void copy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind) {
    expect(cudaMemcpyAsync(to, from, bytes, kind, only_stream()), "copy");
    expect(cudaStreamSynchronize(only_stream()), "copy, or a kernel before it");
}

void device_memory_to_device(void *device, const void *host, size_t bytes) {
    copy(device, host, bytes, cudaMemcpyHostToDevice);
}

void device_memory_to_host(void *host, const void *device, size_t bytes) {
    copy(host, device, bytes, cudaMemcpyDeviceToHost);
}

void device_memory_fence(void *data, size_t bytes, bool closed) {
    (void)data, (void)bytes, (void)closed;
}
