/* SPDX-License-Identifier: Apache-2.0
 *
 * Gradients of the recurrence once its adjoint y is solved: gA_l = y_l x_{l-1}^T in the structure of the
 * block, summed over the samples in their order where they share it, and gx0 = A_1^T y_1.  A thread an
 * element; work 2 a product, bytes about those of gA.
 */
#ifndef DEEPPCR_PCR_CUDA_GRADIENT_H
#define DEEPPCR_PCR_CUDA_GRADIENT_H

#include "pcr/cuda/affine.cuh"

/* x_{j-1} of sample s; NULL: zero */
template <class T> __device__ const T *state_before(const struct walk &walk, int64_t j, int64_t s) {
    if (j > 0) return vector_at<T>(walk.x, j - 1, s);
    return walk.x0.data ? vector_at<T>(walk.x0, 0, s) : NULL;
}

/* elements: L x (1 or B) x elements of a block; the walk's b is y */
template <int BLOCK, class T>
__global__ void THREADS(ELEMENT_THREADS)
    gradient_kernel(int64_t elements, struct walk walk, struct block_view gradient) {
    const int64_t w = walk.w, size = dpcr_map_size((dpcr_block)BLOCK, w), blocks = walk.shared ? 1 : walk.B;
    FOR_ELEMENTS(e, elements) {
        const int64_t k = e % size, s0 = e / size % blocks, j = e / size / blocks;
        const int64_t row = BLOCK == DPCR_DENSE ? k / w : BLOCK == DPCR_DIAGONAL ? k : 0;
        const int64_t column = BLOCK == DPCR_DENSE ? k % w : row, terms = BLOCK == DPCR_SCALAR ? w : 1;
        T sum = 0;
        for (int64_t s = s0; s < (walk.shared ? walk.B : s0 + 1); s++) {
            const T *y = vector_at<T>(walk.b, j, s), *x = state_before<T>(walk, j, s);
            for (int64_t i = 0; i < terms && x; i++) sum = fused(y[row + i], x[column + i], sum);
        }
        const int64_t inside = BLOCK == DPCR_DENSE ? row * gradient.row + column * gradient.column : row;
        ((T *)gradient.data)[gradient.first + j * gradient.step + s0 * gradient.sample + inside] = sum;
    }
}

/* elements: B x w; M_0 with rows and columns exchanged */
template <int BLOCK, class T>
__global__ void THREADS(ELEMENT_THREADS)
    start_gradient_kernel(int64_t elements, struct walk walk, struct vector_view gradient) {
    const int64_t w = walk.w;
    FOR_ELEMENTS(e, elements) {
        const int64_t s = e / w, i = e % w;
        const T *y = vector_at<T>(walk.b, 0, s),
                *M = BLOCK == DPCR_IDENTITY ? NULL : block_at<T>(walk.M, 0, s);
        T sum = 0;
        for (int64_t r = 0; r < w && BLOCK == DPCR_DENSE; r++)
            sum = fused(M[r * walk.M.row + i * walk.M.column], y[r], sum);
        if (BLOCK == DPCR_DIAGONAL) sum = M[i] * y[i];
        if (BLOCK == DPCR_SCALAR) sum = M[0] * y[i];
        if (BLOCK == DPCR_IDENTITY) sum = y[i];
        vector_at<T>(gradient, 0, s)[i] = sum;
    }
}

/* elements of a strided array become 0; T: of its size */
template <class T>
__global__ void THREADS(ELEMENT_THREADS) clear_kernel(int64_t elements, struct strided array) {
    FOR_ELEMENTS(e, elements) {
        int64_t rest = e, at = 0;
        UNROLL for (int d = 3; d >= 0; d--) {
            at += rest % array.count[d] * array.stride[d];
            rest /= array.count[d];
        }
        ((T *)array.data)[at] = 0;
    }
}

#endif
