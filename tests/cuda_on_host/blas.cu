/* SPDX-License-Identifier: Apache-2.0
 *
 * What takes cuBLAS's place on the simulator: cublas{S,D}gemmStridedBatched as a plain loop, a thread an element,
 * so that its accesses are looked at like those of any kernel.  Sums are in the order and with the rounding of
 * ops/cuda/gradient.cuh: which of the two a gradient comes from must not show in its bits.
 */
#include "cuda_on_host.h"
#include "pcr/cuda/cuda.h"
#include "pcr/cuda/run.cuh"

enum { INVALID_VALUE = 7, EXECUTION_FAILED = 13 };

/* Column-major: element (i, j) of a matrix at i + j row. */
template <class T> struct operand {
    T *data;
    int row, transposed;
    long long next;
};

template <class T> struct product {
    int m, n, k;
    T alpha, beta;
    operand<const T> A, B;
    operand<T> C;
};

template <class T> __device__ T element(const operand<const T> &from, int64_t l, int i, int j) {
    return from
        .data[l * from.next + (from.transposed ? (int64_t)i * from.row + j : (int64_t)j * from.row + i)];
}

template <class T>
__global__ void THREADS(ELEMENT_THREADS)
    product_kernel(int64_t elements, const __grid_constant__ product<T> p) {
    FOR_ELEMENTS(e, elements) {
        const int64_t l = e / ((int64_t)p.m * p.n);
        const int i = (int)(e % p.m), j = (int)(e / p.m % p.n);
        T sum = 0, *C = p.C.data + l * p.C.next + (int64_t)j * p.C.row + i;
        if (p.alpha == 1 && p.beta == 1) { /* a sum that goes on, from the last */
            sum = *C;
            for (int q = p.k - 1; q >= 0; q--) sum = fused(element(p.A, l, i, q), element(p.B, l, q, j), sum);
            *C = sum;
            continue;
        }
        for (int q = 0; q < p.k; q++) sum = fused(element(p.A, l, i, q), element(p.B, l, q, j), sum);
        *C = p.beta == 0 ? p.alpha * sum : p.alpha * sum + p.beta * *C;
    }
}

template <class T> static int multiply(void *handle, const product<T> &p, int count) {
    const int A_least = p.A.transposed ? p.k : p.m, B_least = p.B.transposed ? p.n : p.k;
    if (!handle || p.m < 0 || p.n < 0 || p.k < 0 || count < 0) return INVALID_VALUE;
    if (p.A.row < dpcr_max(A_least, 1) || p.B.row < dpcr_max(B_least, 1) || p.C.row < dpcr_max(p.m, 1))
        return INVALID_VALUE;
    dpcr_exec exec = {};
    exec.stream = handle;
    const int64_t elements = (int64_t)count * p.m * p.n;
    return run_elements<product_kernel<T>>(exec, elements, p) == DPCR_OK ? 0 : EXECUTION_FAILED;
}

static int sgemm(void *handle, int transpose_A, int transpose_B, int m, int n, int k, const float *alpha,
                 const float *A, int row_A, long long next_A, const float *B, int row_B, long long next_B,
                 const float *beta, float *C, int row_C, long long next_C, int count) {
    const product<float> p = {m,
                              n,
                              k,
                              *alpha,
                              *beta,
                              {A, row_A, transpose_A, next_A},
                              {B, row_B, transpose_B, next_B},
                              {C, row_C, 0, next_C}};
    return multiply(handle, p, count);
}

static int dgemm(void *handle, int transpose_A, int transpose_B, int m, int n, int k, const double *alpha,
                 const double *A, int row_A, long long next_A, const double *B, int row_B, long long next_B,
                 const double *beta, double *C, int row_C, long long next_C, int count) {
    const product<double> p = {m,
                               n,
                               k,
                               *alpha,
                               *beta,
                               {A, row_A, transpose_A, next_A},
                               {B, row_B, transpose_B, next_B},
                               {C, row_C, 0, next_C}};
    return multiply(handle, p, count);
}

dpcr_cuda_sgemm cuda_on_host_sgemm(void) {
    return sgemm;
}

dpcr_cuda_dgemm cuda_on_host_dgemm(void) {
    return dgemm;
}
