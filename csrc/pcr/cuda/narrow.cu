/* SPDX-License-Identifier: Apache-2.0
 * Launches of narrow.cuh: levels up, levels down, substitute, repair. */
#include "pcr/cuda/narrow.cuh"

#include "pcr/cuda/repair.cuh"
#include "pcr/cuda/solve.h"

enum { LEVELS = 9, PACKED_THREADS = 128 }; /* 256^8 segments and one more */

struct narrow_space {
    narrow_level level[LEVELS];
    int levels;
    void *damping; /* (S,channels) */
};

static narrow_level make_level(int64_t count, int64_t channels) {
    narrow_level at = {};
    at.count = count;
    at.channels = channels;
    at.lanes = 1 << dpcr_log2_up(dpcr_min(count, WARP));
    at.threads =
        count <= WARP ? PACKED_THREADS : (int)dpcr_ceil_div(dpcr_min(count, NARROW_THREADS), WARP) * WARP;
    at.tiles = count <= WARP ? 1 : dpcr_ceil_div(count, at.threads);
    return at;
}

static size_t carve(const struct walk *walk, void *base, narrow_space *space) {
    struct arena arena = {(char *)base, 0};
    const bool dense = walk->block == DPCR_DENSE;
    const int64_t channels = dense ? walk->B : walk->B * walk->w, W = dense ? walk->w : 1;
    const size_t element = dpcr_size_of(walk->dtype);
    *space = {};
    if (walk->S == 1) return 0;
    for (int64_t count = walk->S; space->levels == 0 || count > 1; space->levels++) {
        narrow_level *at = &space->level[space->levels];
        *at = make_level(count, channels);
        const size_t elements = (size_t)(count * channels) * element;
        if (at->tiles > 1 || space->levels > 0) at->maps = dpcr_take(&arena, elements * (size_t)(W * W));
        at->offsets = dpcr_take(&arena, elements * (size_t)W);
        count = at->tiles;
    }
    if (walk->block != DPCR_IDENTITY)
        space->damping = dpcr_take(&arena, (size_t)(walk->S * channels) * element);
    return arena.used;
}

size_t dpcr_cuda_narrow_workspace(const struct walk *walk) {
    narrow_space space;
    return carve(walk, NULL, &space);
}

/* ---- launches ------------------------------------------------------------------------------- */

static int64_t prefix_tasks(const narrow_level *at) {
    return at->count <= WARP ? dpcr_ceil_div(at->channels, at->threads / at->lanes)
                             : at->channels * at->tiles;
}

/* Levels of the parallel cyclic reduction: within warps, among warps */
static int64_t reduction_levels(const narrow_level *at) {
    return dpcr_log2_up(dpcr_min(at->count, WARP))
           + (at->count > WARP ? dpcr_log2_up(at->threads / WARP) : 0);
}

template <int BLOCK, class T, int W>
static dpcr_status reduce(const struct walk *walk, const narrow_space *space, int64_t *levels) {
    for (int t = 0; t < space->levels; t++) {
        const narrow_level at = space->level[t],
                           next = t + 1 < space->levels ? space->level[t + 1] : narrow_level{};
        T *damping = t == 0 ? (T *)space->damping : NULL;
        *levels += reduction_levels(&at);
        if (t == 0)
            RETURN_IF((run_blocks<prefix_kernel<BLOCK, T, W, true>>(walk->exec, prefix_tasks(&at), at.threads,
                                                                    *walk, at, next, damping)));
        else
            RETURN_IF((run_blocks<prefix_kernel<DPCR_DENSE, T, W, false>>(
                walk->exec, prefix_tasks(&at), at.threads, *walk, at, next, damping)));
    }
    for (int t = space->levels - 1; t-- > 0;) {
        const narrow_level at = space->level[t], next = space->level[t + 1];
        RETURN_IF(
            (run_elements<carry_kernel<T, W>>(walk->exec, (at.count - at.threads) * at.channels, at, next)));
    }
    return DPCR_OK;
}

template <int BLOCK, class T, int W>
static dpcr_status repair(const struct walk *walk, const narrow_space *space, int32_t *recomputed) {
    const int64_t own = BLOCK == DPCR_DENSE ? 1 : walk->w;
    const repair_args args = {space->level[0].offsets, space->damping, walk->B * own, own, own, recomputed};
    const int threads = (int)dpcr_min(dpcr_ceil_div(walk->S, WARP) * WARP, NARROW_THREADS);
    return run_blocks<repair_kernel<BLOCK, T, W>>(walk->exec, walk->B, threads, *walk, args);
}

static dpcr_status clear_flags(const struct walk *walk, int32_t *recomputed) {
    const struct strided flags = {recomputed, sizeof *recomputed, {walk->B, 1, 1, 1}, {1, 0, 0, 0}};
    return recomputed ? walk->exec.device->solver->clear(walk->exec, &flags) : DPCR_OK;
}

template <int BLOCK, class T, int W>
static dpcr_status solve(const struct walk *walk, void *workspace, int32_t *recomputed, int64_t *levels) {
    narrow_space space;
    carve(walk, workspace, &space);
    *levels = 0;
    if (walk->S == 1) {
        const int64_t channels = BLOCK == DPCR_DENSE ? walk->B : walk->B * walk->w;
        RETURN_IF((run_elements<sequential_kernel<BLOCK, T, W>>(walk->exec, channels, *walk)));
        return clear_flags(walk, recomputed);
    }
    RETURN_IF((reduce<BLOCK, T, W>(walk, &space, levels)));
    const narrow_level segments = space.level[0];
    RETURN_IF((run_elements<substitute_kernel<BLOCK, T, W>>(walk->exec, segments.count * segments.channels,
                                                            *walk, segments)));
    return repair<BLOCK, T, W>(walk, &space, recomputed);
}

template <class T>
static dpcr_status solve_any(const struct walk *walk, void *workspace, int32_t *recomputed, int64_t *levels) {
    switch (walk->block) {
    case DPCR_DIAGONAL: return solve<DPCR_DIAGONAL, T, 1>(walk, workspace, recomputed, levels);
    case DPCR_SCALAR: return solve<DPCR_SCALAR, T, 1>(walk, workspace, recomputed, levels);
    case DPCR_IDENTITY: return solve<DPCR_IDENTITY, T, 1>(walk, workspace, recomputed, levels);
    default: break;
    }
    switch (walk->w) {
    case 1: return solve<DPCR_DENSE, T, 1>(walk, workspace, recomputed, levels);
    case 2: return solve<DPCR_DENSE, T, 2>(walk, workspace, recomputed, levels);
    case 3: return solve<DPCR_DENSE, T, 3>(walk, workspace, recomputed, levels);
    default: return solve<DPCR_DENSE, T, NARROW_WIDTH>(walk, workspace, recomputed, levels);
    }
}

dpcr_status dpcr_cuda_narrow_solve(const struct walk *walk, void *workspace, int32_t *recomputed,
                                   int64_t *levels) {
    return walk->dtype == DPCR_F32 ? solve_any<float>(walk, workspace, recomputed, levels)
                                   : solve_any<double>(walk, workspace, recomputed, levels);
}
