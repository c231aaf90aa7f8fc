/* SPDX-License-Identifier: Apache-2.0
 * The twin of csrc/pcr/cuda/intrinsics.cuh for the simulator of cuda_on_host.h: same names, same contract. */
#ifndef DEEPPCR_PCR_CUDA_INTRINSICS_H
#define DEEPPCR_PCR_CUDA_INTRINSICS_H

#include <cuda_runtime.h>

#define SHARED(type, name, count)      \
    static const char name##_site = 0; \
    type *const name = (type *)cuda_on_host::shared_array(&name##_site, #name, sizeof(type) * (count))

#define DYNAMIC_SHARED(type, name) type *const name = (type *)cuda_on_host::shared_array(NULL, #name, 0)

#define THREADS(count)

#define NOT_INLINED __attribute__((noinline))

#define UNROLL _Pragma("GCC unroll 32")
#define UNROLL_BY(count) _Pragma("GCC unroll 4")

inline float fused(float a, float b, float c) {
    return __builtin_fmaf(a, b, c);
}

inline double fused(double a, double b, double c) {
    return __builtin_fma(a, b, c);
}

inline int bits_of_number(float a) {
    int bits;
    __builtin_memcpy(&bits, &a, sizeof bits);
    return bits;
}

inline long long bits_of_number(double a) {
    long long bits;
    __builtin_memcpy(&bits, &a, sizeof bits);
    return bits;
}

inline void grid_barrier(DPCR_HERE) {
    cuda_on_host::grid_barrier(at);
}

inline void gang_barrier(unsigned *, int blocks, DPCR_HERE) {
    cuda_on_host::gang_barrier(blocks, at);
}

template <int BYTES> struct alignas(BYTES) chunk {
    unsigned char bytes[BYTES];
};

/* Done at once: what is not waited for is found where it is read, as the barrier is missing, too. */
template <int BYTES> inline void copy_async(void *shared, const void *global) {
    *(chunk<BYTES> *)shared = *(const chunk<BYTES> *)global;
}

inline void await_copies() {
}

/* Few, so that blocks have several tasks here, too. */
static const int64_t kMaxBlocks = 61;

struct launch_shape {
    int64_t blocks;
    int threads;
    size_t shared;
    bool cooperative;
};

namespace cuda_on_host {

struct call { /* a kernel with its arguments; run copies the arguments, then calls */
    const char *kernel;
    void (*run)(const void *arguments);
    const void *arguments;
};

cudaError_t launch(const call &kernel, const launch_shape &shape, cudaStream_t stream);

template <class... A> struct pack;
template <> struct pack<> {
    template <auto KERNEL, class... B>
    __attribute__((no_sanitize("thread"))) static void apply(const pack &, B... arguments) {
        KERNEL(arguments...);
    }
};
template <class A, class... REST> struct pack<A, REST...> {
    A first;
    pack<REST...> rest;
    template <auto KERNEL, class... B>
    __attribute__((no_sanitize("thread"))) static void apply(const pack &p, B... arguments) {
        pack<REST...>::template apply<KERNEL>(p.rest, arguments..., p.first);
    }
};

inline pack<> pack_of() {
    return {};
}
template <class A, class... REST> pack<A, REST...> pack_of(A first, REST... rest) {
    return {first, pack_of(rest...)};
}

template <auto KERNEL, class PACK> void run_packed(const void *arguments) {
    PACK::template apply<KERNEL>(*(const PACK *)arguments);
}

} // namespace cuda_on_host

template <auto KERNEL, class... A>
cudaError_t launch(const launch_shape &shape, cudaStream_t stream, A... arguments) {
    const auto packed = cuda_on_host::pack_of(arguments...);
    const cuda_on_host::call call = {__PRETTY_FUNCTION__, cuda_on_host::run_packed<KERNEL, decltype(packed)>,
                                     &packed};
    return cuda_on_host::launch(call, shape, stream);
}

#endif
