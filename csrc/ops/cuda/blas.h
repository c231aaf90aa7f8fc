/* SPDX-License-Identifier: Apache-2.0
 *
 * Sums of outer products over the samples, of many steps at once, by the matrix products of dpcr_exec.blas:
 *
 *     C_l = sum_s x_{l,s} y_{l,s}^T,    C_l (rows,columns) row-major
 *
 * which column-major BLAS sees as  C_l^T = Y_l^T X_l  with Y_l, X_l (samples,.) row-major, and so as what it calls
 * Y_l times the transpose of X_l.  One call for all steps; 2 rows columns samples operations a step.
 */
#ifndef DEEPPCR_OPS_CUDA_BLAS_H
#define DEEPPCR_OPS_CUDA_BLAS_H

#include "pcr/cuda/cuda.h"
#include "pcr/internal.h"

/* From so many elements and samples on.  Not measured: below, one sum by each thread has few terms, or the launch
 * is most of it. */
enum { BLAS_ELEMENTS = 64 * 64, BLAS_SAMPLES = 8 };
/* Of one call: a grid's third dimension. */
enum { BLAS_STEPS = 65535 };

/* Vectors of a step lie `row` elements apart, those of the next step `step`. */
struct outer_vectors {
    const void *data;
    int64_t row, step;
};

struct outer_sums {
    int64_t steps, samples, rows, columns;
    struct outer_vectors x, y;
    void *C;
    int64_t C_step;
    bool adds; /* to what C_l is */
};

static inline bool blas_serves(dpcr_exec exec, int64_t samples, int64_t rows, int64_t columns, int64_t row) {
    const struct dpcr_cuda_blas *blas = exec.blas;
    if (!blas || samples > INT32_MAX || row > INT32_MAX) return false;
    return blas->always || (rows * columns >= BLAS_ELEMENTS && samples >= BLAS_SAMPLES);
}

template <class T>
static int gemm(const struct dpcr_cuda_blas *blas, const outer_sums &s, int64_t l, const T *x, const T *y,
                T *C) {
    enum { AS_IT_IS, TRANSPOSED };
    const T one = 1, before = s.adds ? 1 : 0;
    const auto call = [&]() {
        if constexpr (sizeof(T) == sizeof(float))
            return blas->sgemm;
        else
            return blas->dgemm;
    }();
    return call(blas->handle, AS_IT_IS, TRANSPOSED, (int)s.columns, (int)s.rows, (int)s.samples, &one,
                y + l * s.y.step, (int)s.y.row, s.y.step, x + l * s.x.step, (int)s.x.row, s.x.step, &before,
                C + l * s.C_step, (int)s.columns, s.C_step, (int)dpcr_min(s.steps - l, BLAS_STEPS));
}

static inline dpcr_status sum_outer(dpcr_exec exec, dpcr_dtype dtype, const outer_sums &s) {
    for (int64_t l = 0; l < s.steps; l += BLAS_STEPS) {
        const int status =
            dtype == DPCR_F32
                ? gemm(exec.blas, s, l, (const float *)s.x.data, (const float *)s.y.data, (float *)s.C)
                : gemm(exec.blas, s, l, (const double *)s.x.data, (const double *)s.y.data, (double *)s.C);
        if (status != 0) return dpcr_fail(DPCR_DEVICE, "cuBLAS: a product failed with status %d", status);
    }
    return DPCR_OK;
}

#endif
