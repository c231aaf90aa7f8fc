/* SPDX-License-Identifier: Apache-2.0
 * The recurrence of the CUDA device: its table, and the calls that need one launch each. */
#include "pcr/cuda/gradient.cuh"
#include "pcr/cuda/solve.h"

static size_t workspace_of(const struct walk *walk) {
    return dpcr_cuda_narrow(walk) ? dpcr_cuda_narrow_workspace(walk) : dpcr_cuda_wide_workspace(walk);
}

static dpcr_status solve(const struct walk *walk, void *workspace, int32_t *recomputed, int64_t *levels) {
    return dpcr_cuda_narrow(walk) ? dpcr_cuda_narrow_solve(walk, workspace, recomputed, levels)
                                  : dpcr_cuda_wide_solve(walk, workspace, recomputed, levels);
}

template <int BLOCK, class T>
static dpcr_status gradient_of(const struct walk *walk, struct block_view view) {
    const int64_t blocks = walk->shared ? 1 : walk->B, size = dpcr_map_size((dpcr_block)BLOCK, walk->w);
    return run_elements<gradient_kernel<BLOCK, T>>(walk->exec, walk->L * blocks * size, *walk, view);
}

template <class T> static dpcr_status gradient_any(const struct walk *walk, struct block_view view) {
    switch (walk->block) {
    case DPCR_DENSE: return gradient_of<DPCR_DENSE, T>(walk, view);
    case DPCR_DIAGONAL: return gradient_of<DPCR_DIAGONAL, T>(walk, view);
    case DPCR_SCALAR: return gradient_of<DPCR_SCALAR, T>(walk, view);
    default: return DPCR_OK; /* the identity has none */
    }
}

static dpcr_status gradient(const struct walk *walk, void *, struct block_view view) {
    return walk->dtype == DPCR_F32 ? gradient_any<float>(walk, view) : gradient_any<double>(walk, view);
}

template <class T> static dpcr_status start_gradient_any(const struct walk *walk, struct vector_view view) {
    const int64_t elements = walk->B * walk->w;
    switch (walk->block) {
    case DPCR_DENSE:
        return run_elements<start_gradient_kernel<DPCR_DENSE, T>>(walk->exec, elements, *walk, view);
    case DPCR_DIAGONAL:
        return run_elements<start_gradient_kernel<DPCR_DIAGONAL, T>>(walk->exec, elements, *walk, view);
    case DPCR_SCALAR:
        return run_elements<start_gradient_kernel<DPCR_SCALAR, T>>(walk->exec, elements, *walk, view);
    default: return run_elements<start_gradient_kernel<DPCR_IDENTITY, T>>(walk->exec, elements, *walk, view);
    }
}

static dpcr_status start_gradient(const struct walk *walk, void *, struct vector_view view) {
    return walk->dtype == DPCR_F32 ? start_gradient_any<float>(walk, view)
                                   : start_gradient_any<double>(walk, view);
}

static dpcr_status clear(dpcr_exec exec, const struct strided *array) {
    const int64_t *count = array->count, elements = count[0] * count[1] * count[2] * count[3];
    return array->element == sizeof(float) ? run_elements<clear_kernel<float>>(exec, elements, *array)
                                           : run_elements<clear_kernel<double>>(exec, elements, *array);
}

const struct recurrence_solver dpcr_cuda_solver = {workspace_of, solve, gradient, start_gradient, clear};
