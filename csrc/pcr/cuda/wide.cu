/* SPDX-License-Identifier: Apache-2.0
 * Launches of wide.cuh: eliminate up, PCR, back-substitute down, substitute, repair. */
#include "pcr/cuda/wide.cuh"

#include "pcr/cuda/repair.cuh"
#include "pcr/cuda/solve.h"

enum { LEVELS = 60 };

struct wide_space {
    wide_shape shape;
    wide_level level[LEVELS]; /* 0: the segments; the last has at most GROUPS elements */
    int eliminations;
    wide_level twin; /* of the last level: PCR goes back and forth */
    void *spare;     /* as the maps of level 0; where a segment has more than one step */
    void *damping;   /* (S,map_samples) */
};

static int tile_of(int64_t w) {
    return w <= 8 ? 8 : w <= 16 ? 16 : 32;
}

static wide_level take_level(struct arena *arena, const wide_shape *shape, int64_t count, size_t element) {
    const size_t elements = (size_t)count * element;
    wide_level at = {count, NULL, NULL};
    at.maps = dpcr_take(arena, elements * (size_t)(shape->map_samples * shape->w * shape->w));
    at.offsets = dpcr_take(arena, elements * (size_t)(shape->B * shape->w));
    return at;
}

static size_t carve(const struct walk *walk, void *base, wide_space *space) {
    struct arena arena = {(char *)base, 0};
    const size_t element = dpcr_size_of(walk->dtype);
    *space = {};
    wide_shape *shape = &space->shape;
    *shape = {walk->w, walk->B, walk->shared ? 1 : walk->B, dpcr_ceil_div(walk->w, tile_of(walk->w))};
    if (walk->S == 1) return 0;
    int64_t count = walk->S;
    for (; count > GROUPS; count = (count + 1) / 2)
        space->level[space->eliminations++] = take_level(&arena, shape, count, element);
    space->level[space->eliminations] = take_level(&arena, shape, count, element);
    space->twin = take_level(&arena, shape, count, element);
    const size_t maps = (size_t)(walk->S * shape->map_samples) * element;
    if (walk->S < walk->L) space->spare = dpcr_take(&arena, maps * (size_t)(walk->w * walk->w));
    space->damping = dpcr_take(&arena, maps);
    return arena.used;
}

size_t dpcr_cuda_wide_workspace(const struct walk *walk) {
    wide_space space;
    return carve(walk, NULL, &space);
}

/* ---- launches ------------------------------------------------------------------------------- */

/* The x of the last level end up in it or in its twin: `last` says where. */
template <class T, int TILE>
static dpcr_status pcr(const struct walk *walk, const wide_space *space, wide_level *last, int64_t *levels) {
    const wide_shape shape = space->shape;
    wide_level at = space->level[space->eliminations], to = space->twin;
    for (int64_t d = 1; d < at.count; d *= 2, ++*levels) {
        RETURN_IF((run_blocks<wide_pcr_kernel<T, TILE>>(walk->exec, wide_tasks(shape, at.count), TILE * ROWS,
                                                        shape, at, to, d)));
        const wide_level swap = at;
        at = to;
        to = swap;
    }
    *last = at;
    return DPCR_OK;
}

/* -> level 0, whose offsets are x at the end of every segment */
template <class T, int TILE>
static dpcr_status reduce(const struct walk *walk, const wide_space *space, wide_level *ends,
                          int64_t *levels) {
    const wide_shape shape = space->shape;
    const int top = space->eliminations, threads = TILE * ROWS;
    RETURN_IF((run_blocks<wide_reduce_kernel<T, TILE>>(walk->exec, wide_tasks(shape, walk->S), threads, *walk,
                                                       shape, space->level[0], (T *)space->spare)));
    RETURN_IF((run_blocks<wide_damping_kernel<T, TILE>>(walk->exec, walk->S * shape.map_samples, threads,
                                                        shape, space->level[0], (T *)space->damping)));
    for (int t = 0; t < top; t++, ++*levels)
        RETURN_IF((run_blocks<wide_eliminate_kernel<T, TILE>>(
            walk->exec, wide_tasks(shape, space->level[t + 1].count), threads, shape, space->level[t],
            space->level[t + 1])));
    RETURN_IF((pcr<T, TILE>(walk, space, ends, levels)));
    for (int t = top; t-- > 0; *ends = space->level[t])
        RETURN_IF((run_blocks<wide_back_kernel<T, TILE>>(walk->exec, space->level[t].count * shape.B, threads,
                                                         shape, space->level[t], *ends)));
    return DPCR_OK;
}

template <class T, int TILE>
static dpcr_status repair(const struct walk *walk, const wide_space *space, const wide_level *ends,
                          int32_t *recomputed) {
    const int64_t maps = space->shape.map_samples;
    const repair_args args = {ends->offsets, space->damping, maps, 1, maps > 1, recomputed};
    return run_blocks<repair_kernel<DPCR_DENSE, T, 0>>(walk->exec, walk->B, TILE * ROWS, *walk, args);
}

template <class T, int TILE>
static dpcr_status solve(const struct walk *walk, void *workspace, int32_t *recomputed, int64_t *levels) {
    wide_space space;
    wide_level ends;
    carve(walk, workspace, &space);
    *levels = 0;
    if (walk->S == 1) {
        const struct strided flags = {recomputed, sizeof *recomputed, {walk->B, 1, 1, 1}, {1, 0, 0, 0}};
        RETURN_IF((run_blocks<wide_sequential_kernel<T, TILE>>(walk->exec, walk->B, TILE * ROWS, *walk)));
        return recomputed ? walk->exec.device->solver->clear(walk->exec, &flags) : DPCR_OK;
    }
    RETURN_IF((reduce<T, TILE>(walk, &space, &ends, levels)));
    RETURN_IF((run_blocks<wide_substitute_kernel<T, TILE>>(walk->exec, walk->S * walk->B, TILE * ROWS, *walk,
                                                           space.shape, ends)));
    return repair<T, TILE>(walk, &space, &ends, recomputed);
}

template <class T>
static dpcr_status solve_any(const struct walk *walk, void *workspace, int32_t *recomputed, int64_t *levels) {
    switch (tile_of(walk->w)) {
    case 8: return solve<T, 8>(walk, workspace, recomputed, levels);
    case 16: return solve<T, 16>(walk, workspace, recomputed, levels);
    default: return solve<T, 32>(walk, workspace, recomputed, levels);
    }
}

dpcr_status dpcr_cuda_wide_solve(const struct walk *walk, void *workspace, int32_t *recomputed,
                                 int64_t *levels) {
    return walk->dtype == DPCR_F32 ? solve_any<float>(walk, workspace, recomputed, levels)
                                   : solve_any<double>(walk, workspace, recomputed, levels);
}
