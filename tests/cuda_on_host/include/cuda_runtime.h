/* SPDX-License-Identifier: Apache-2.0
 *
 * What the project's kernels and launchers use of CUDA, for the simulator of cuda_on_host.h: found in
 * place of NVIDIA's header of this name.  Anything that is missing here does not compile, which is how
 * one notices.
 */
#ifndef DEEPPCR_CUDA_ON_HOST_RUNTIME_H
#define DEEPPCR_CUDA_ON_HOST_RUNTIME_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>

#define __global__
#define __grid_constant__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {
    }
};

/* ---- host side ------------------------------------------------------------------------------ */

enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorNoKernelImageForDevice = 209,
    cudaErrorLaunchFailure = 719
};
enum cudaMemcpyKind { cudaMemcpyDeviceToDevice = 3 };
enum cudaDeviceAttr {
    cudaDevAttrMaxSharedMemoryPerBlock = 8,
    cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
    cudaDevAttrMultiProcessorCount = 16,
    cudaDevAttrComputeCapabilityMajor = 75,
    cudaDevAttrComputeCapabilityMinor = 76
};

typedef struct CUstream_st *cudaStream_t;

cudaError_t cudaGetLastError();
/* Of cudaErrorLaunchFailure: what the simulator has found. */
const char *cudaGetErrorString(cudaError_t error);
cudaError_t cudaMemsetAsync(void *data, int value, size_t bytes, cudaStream_t stream);
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream);
cudaError_t cudaGetDevice(int *device);
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int device);

/* ---- device side ---------------------------------------------------------------------------- */

namespace cuda_on_host {

struct place { /* in the source */
    const char *file;
    int line;
};

enum warp_operation { SYNC, SHUFFLE, SHUFFLE_UP, SHUFFLE_DOWN, SHUFFLE_XOR, BALLOT, ANY, ALL };

dim3 thread_index();
dim3 block_index();
dim3 block_shape();
dim3 grid_shape();

/* Number of threads whose predicate holds. */
int block_barrier(int predicate, place at);
void grid_barrier(place at);
/* Of so many neighbouring blocks. */
void gang_barrier(int blocks, place at);
uint64_t warp(warp_operation operation, unsigned mask, uint64_t value, int source, int width, place at);
/* Storage of the block's array that is declared at `site`; count 0: the dynamic one. */
void *shared_array(const void *site, const char *name, size_t bytes);
/* Marks an atomic access; alignment and size as of the operation. */
void atomic(const void *address, size_t bytes);

template <class T> uint64_t bits_of(T value) {
    static_assert(sizeof(T) <= sizeof(uint64_t), "shuffles move at most 8 bytes");
    uint64_t bits = 0;
    __builtin_memcpy(&bits, &value, sizeof value);
    return bits;
}

template <class T>
T shuffle(warp_operation operation, unsigned mask, T value, int source, int width, place at) {
    const uint64_t bits = warp(operation, mask, bits_of(value), source, width, at);
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
}

/* Not instrumented: the access is reported by atomic() alone. */
template <class T, class F> __attribute__((no_sanitize("thread"))) T atomically(T *address, F next) {
    atomic(address, sizeof *address);
    const T before = *address;
    *address = next(before);
    return before;
}

} // namespace cuda_on_host

#define threadIdx (cuda_on_host::thread_index())
#define blockIdx (cuda_on_host::block_index())
#define blockDim (cuda_on_host::block_shape())
#define gridDim (cuda_on_host::grid_shape())
static const int warpSize = 32;

/* Where a call stands: the last parameter of everything that waits. */
#define DPCR_HERE cuda_on_host::place at = {__builtin_FILE(), __builtin_LINE()}

inline void __syncthreads(DPCR_HERE) {
    cuda_on_host::block_barrier(0, at);
}
inline int __syncthreads_count(int predicate, DPCR_HERE) {
    return cuda_on_host::block_barrier(predicate, at);
}
inline int __syncthreads_or(int predicate, DPCR_HERE) {
    return cuda_on_host::block_barrier(predicate, at) > 0;
}
inline int __syncthreads_and(int predicate, DPCR_HERE) {
    const dim3 shape = cuda_on_host::block_shape();
    return cuda_on_host::block_barrier(predicate, at) == (int)(shape.x * shape.y * shape.z);
}
inline void __syncwarp(unsigned mask = 0xffffffffu, DPCR_HERE) {
    cuda_on_host::warp(cuda_on_host::SYNC, mask, 0, 0, 32, at);
}

template <class T> T __shfl_sync(unsigned mask, T value, int lane, int width = 32, DPCR_HERE) {
    return cuda_on_host::shuffle(cuda_on_host::SHUFFLE, mask, value, lane, width, at);
}
template <class T> T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, DPCR_HERE) {
    return cuda_on_host::shuffle(cuda_on_host::SHUFFLE_UP, mask, value, (int)delta, width, at);
}
template <class T> T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, DPCR_HERE) {
    return cuda_on_host::shuffle(cuda_on_host::SHUFFLE_DOWN, mask, value, (int)delta, width, at);
}
template <class T> T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, DPCR_HERE) {
    return cuda_on_host::shuffle(cuda_on_host::SHUFFLE_XOR, mask, value, lanes, width, at);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, DPCR_HERE) {
    return (unsigned)cuda_on_host::warp(cuda_on_host::BALLOT, mask, predicate != 0, 0, 32, at);
}
inline int __any_sync(unsigned mask, int predicate, DPCR_HERE) {
    return (int)cuda_on_host::warp(cuda_on_host::ANY, mask, predicate != 0, 0, 32, at);
}
inline int __all_sync(unsigned mask, int predicate, DPCR_HERE) {
    return (int)cuda_on_host::warp(cuda_on_host::ALL, mask, predicate != 0, 0, 32, at);
}

template <class T> T atomicAdd(T *address, T value) {
    return cuda_on_host::atomically(address, [=](T was) { return was + value; });
}
template <class T> T atomicMax(T *address, T value) {
    return cuda_on_host::atomically(address, [=](T was) { return was > value ? was : value; });
}
template <class T> T atomicMin(T *address, T value) {
    return cuda_on_host::atomically(address, [=](T was) { return was < value ? was : value; });
}
template <class T> T atomicOr(T *address, T value) {
    return cuda_on_host::atomically(address, [=](T was) { return was | value; });
}
template <class T> T atomicExch(T *address, T value) {
    return cuda_on_host::atomically(address, [=](T) { return value; });
}
template <class T> T atomicCAS(T *address, T compare, T value) {
    return cuda_on_host::atomically(address, [=](T was) { return was == compare ? value : was; });
}

#endif
