/* SPDX-License-Identifier: Apache-2.0
 *
 * The CUDA device.  Link libdeeppcr_cuda for it.
 */
#ifndef DEEPPCR_PCR_CUDA_H
#define DEEPPCR_PCR_CUDA_H

#include "pcr.h"

#ifdef __cplusplus
extern "C" {
#endif

/* For dpcr_exec: the CUDA device that is current when a call is made.  All arrays (recomputed, reports and the
 * workspace, too; but not dpcr_pullback.frozen) are the device's; the call enqueues its kernels on exec.stream and
 * returns.  Chains are up to 4096 wide. */
DPCR_API const dpcr_device *dpcr_cuda_device(void);

/* cuBLAS, for whoever has it: this library neither links nor loads it.  With it in dpcr_exec.blas the gradients of
 * large matrices over several samples (ops/cuda/blas.h) are its products; without, a kernel's.  The functions are
 * cublasSgemmStridedBatched and cublasDgemmStridedBatched, whose enumerations are ints here:
 *
 *     cublasCreate(&handle), cublasSetStream(handle, stream);
 *     const struct dpcr_cuda_blas blas = {handle, (dpcr_cuda_sgemm)cublasSgemmStridedBatched,
 *                                         (dpcr_cuda_dgemm)cublasDgemmStridedBatched, false};
 *     exec.blas = &blas;
 *
 * The handle is the caller's, on exec.stream and with scalars in host memory; its mathematical mode decides how
 * exact products in float are (CUBLAS_DEFAULT_MATH: as exact as the kernel's).  A gradient's bits are then those of
 * cuBLAS: the same for the same call, but they may depend on how many steps a product is of, so on the segments,
 * the workspace's cap and which steps are frozen. */
typedef int (*dpcr_cuda_sgemm)(void *handle, int transpose_A, int transpose_B, int m, int n, int k,
                               const float *alpha, const float *A, int row_A, long long next_A,
                               const float *B, int row_B, long long next_B, const float *beta, float *C,
                               int row_C, long long next_C, int count);
typedef int (*dpcr_cuda_dgemm)(void *handle, int transpose_A, int transpose_B, int m, int n, int k,
                               const double *alpha, const double *A, int row_A, long long next_A,
                               const double *B, int row_B, long long next_B, const double *beta, double *C,
                               int row_C, long long next_C, int count);

struct dpcr_cuda_blas {
    void *handle; /* first argument of both */
    dpcr_cuda_sgemm sgemm;
    dpcr_cuda_dgemm dgemm;
    bool always; /* for small matrices and few samples, too: for tests, and to measure where it pays */
};

#ifdef __cplusplus
}
#endif
#endif
