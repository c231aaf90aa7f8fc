/* SPDX-License-Identifier: Apache-2.0
 *
 * The recurrence on the CPU:
 *     reduce      every segment to an affine map
 *     eliminate   every second segment, in each of ceil(log2 S) levels, and
 *     back-substitute, level by level: cyclic reduction over the maps
 *     substitute  from the start states so found, checking them
 *     repair      the samples that failed the check, by the loop
 * or, with S = 1, the loop alone.  Work of S > 1 relative to the loop: about w (dense) or 2 (diagonal)
 * for the maps, of which cyclic reduction multiplies S more; depth 2 L / S + 2 log2 S.  Parallel cyclic
 * reduction, which needs no way back because it never drops an equation, has half that depth for
 * S log2 S products: right for a device with a processor per equation, ten times the work on any other.
 */
#include "pcr/cpu/kernels.h"

#include <string.h>

static const struct recurrence_kernels *kernels_of(const struct walk *walk) {
    return walk->exec.device->recurrence[walk->dtype];
}

/* The blocks, where they lie as the maps of segments of one step would. */
static const void *packed_blocks(const struct walk *walk) {
    const struct block_view *M = &walk->M;
    const int64_t samples = walk->shared ? 1 : walk->B, size = walk->w * walk->w;
    const bool packed = walk->block == DPCR_DENSE && walk->S == walk->L && M->row == walk->w && M->column == 1
                        && M->step == samples * size && (samples == 1 || M->sample == size);
    return packed ? (const char *)M->data + M->first * (int64_t)dpcr_size_of(walk->dtype) : NULL;
}

/* Fills the walk's workspace pointers for its B samples; returns the bytes. */
static size_t carve(struct walk *walk, void *base) {
    const struct recurrence_kernels *kernels = kernels_of(walk);
    struct arena arena = {base, 0};
    const int64_t tasks = walk->S * dpcr_ceil_div(walk->B, dpcr_max(kernels->group(walk), 1));
    walk->scratch = dpcr_take(&arena, kernels->scratch(walk) * (size_t)dpcr_slots(walk->exec, tasks));
    if (walk->S == 1) return arena.used;
    const size_t element = dpcr_size_of(walk->dtype),
                 elements = (size_t)dpcr_level_elements(walk->S) * element;
    const int64_t maps = (walk->shared ? 1 : walk->B) * dpcr_map_size(walk->block, walk->w);
    walk->maps = dpcr_take(&arena, elements * (size_t)maps);
    walk->offsets = dpcr_take(&arena, elements * (size_t)(walk->B * walk->w));
    walk->gap = dpcr_take(&arena, (size_t)(walk->S * walk->B) * sizeof(double));
    walk->size = dpcr_take(&arena, (size_t)(walk->S * walk->B) * sizeof(double));
    return arena.used;
}

static size_t workspace_of(const struct walk *walk) {
    struct walk trial = *walk;
    return carve(&trial, NULL);
}

int dpcr_cyclic_reduction(const struct walk *walk, const struct recurrence_kernels *kernels) {
    int levels = 0;
    for (; dpcr_level(walk->S, levels).count > 1; levels++) kernels->eliminate(walk, levels);
    for (int level = levels; level-- > 0;) kernels->back_substitute(walk, level);
    return levels;
}

static dpcr_status solve(const struct walk *given, void *workspace, int32_t *recomputed, int64_t *levels) {
    const struct recurrence_kernels *kernels = kernels_of(given);
    struct walk walk = *given;
    carve(&walk, workspace);
    walk.direct = packed_blocks(&walk);
    *levels = 0;
    if (walk.S == 1) {
        kernels->sequential(&walk);
        for (int64_t s = 0; recomputed && s < walk.B; s++) recomputed[s] = 0;
        return DPCR_OK;
    }
    kernels->reduce(&walk);
    *levels = dpcr_cyclic_reduction(&walk, kernels);
    kernels->substitute(&walk);
    kernels->repair(&walk, recomputed);
    return DPCR_OK;
}

static dpcr_status gradient(const struct walk *given, void *workspace, struct block_view view) {
    struct walk walk = *given;
    walk.scratch = workspace; /* of one task: the solve has had at least that */
    kernels_of(given)->gradient(&walk, view);
    return DPCR_OK;
}

static dpcr_status start_gradient(const struct walk *given, void *workspace, struct vector_view view) {
    struct walk walk = *given;
    walk.scratch = workspace;
    kernels_of(given)->start_gradient(&walk, view);
    return DPCR_OK;
}

static dpcr_status clear(dpcr_exec exec, const struct strided *array) {
    (void)exec;
    const int64_t *n = array->count, *stride = array->stride;
    for (int64_t i = 0; i < n[0] * n[1]; i++)
        for (int64_t j = 0; j < n[2] * n[3]; j++)
            memset((char *)array->data
                       + (i / n[1] * stride[0] + i % n[1] * stride[1] + j / n[3] * stride[2]
                          + j % n[3] * stride[3])
                             * (int64_t)array->element,
                   0, array->element);
    return DPCR_OK;
}

const struct recurrence_solver dpcr_cpu_solver = {workspace_of, solve, gradient, start_gradient, clear};
