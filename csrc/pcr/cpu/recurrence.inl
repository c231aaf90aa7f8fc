/* SPDX-License-Identifier: Apache-2.0
 *
 * Kernels of the linear recurrence on the CPU (see kernels.h for what each does).
 *
 * A task is a segment and a *group* of samples, of a size that depends on the problem alone.
 *
 * Work per step and sample: 2 w^2 (dense) or 2 w in every walk; reduce adds 2 w^3 or w per own block;
 * a level of combine the same per segment.
 */

/* ---- walks ---------------------------------------------------------------------------------- */

/* Steps first..last-1 of samples s0..s0+n-1 from x; x.data NULL: from zero, whose block is not read. */
static void FN(walk_steps)(const struct walk *walk, int64_t first, int64_t last, int64_t s0, int64_t n,
                           struct FN(rows) x, REAL *scratch) {
    for (int64_t j = first; j < last; j++) {
        const struct FN(rows) b = FN(rows_at)(&walk->b, j, s0), next = FN(rows_at)(&walk->x, j, s0);
        if (x.data)
            FN(apply)(walk, n, FN(block_at)(&walk->M, j, s0), x, b, next, scratch);
        else
            FN(copy_rows)(walk->w, n, b, next);
        x = next;
    }
}

static struct FN(rows) FN(start)(const struct walk *walk, int64_t s0) {
    return walk->x0.data ? FN(rows_at)(&walk->x0, 0, s0) : (struct FN(rows)){NULL, 0};
}

static int64_t FN(group)(const struct walk *walk) {
    return walk->block == DPCR_DENSE ? 2 * LANES : dpcr_max(32, 4096 / dpcr_max(walk->w, 1));
}

static size_t FN(scratch)(const struct walk *walk) {
    const int64_t panels = walk->block == DPCR_DENSE ? 2 * walk->w * FN(group)(walk) : 0;
    return dpcr_round_up((size_t)panels * sizeof(REAL));
}

/* Calls run for every group of samples of each of `outer` segments or steps. */
static void FN(for_groups)(const struct walk *walk, void (*run)(const void *, int64_t, void *), int64_t outer,
                           double work, const void *pass) {
    const struct tasks tasks = {.run = run,
                                .pass = pass,
                                .count = outer * dpcr_ceil_div(walk->B, FN(group)(walk)),
                                .work = work,
                                .scratch = walk->scratch,
                                .scratch_bytes = FN(scratch)(walk)};
    dpcr_run_tasks(walk->exec, &tasks);
}

/* task -> outer index, first sample and number of samples */
static int64_t FN(task_group)(const struct walk *walk, int64_t task, int64_t *s0, int64_t *n) {
    const int64_t group = FN(group)(walk), groups = dpcr_ceil_div(walk->B, group);
    *s0 = task % groups * group;
    *n = dpcr_min(group, walk->B - *s0);
    return task / groups;
}

/* Operations of one walk over all steps and samples. */
static double FN(walk_work)(const struct walk *walk) {
    const double width = (double)walk->w;
    return 2.0 * (double)walk->L * (double)walk->B * (walk->block == DPCR_DENSE ? width * width : width);
}

static void FN(sequential_task)(const void *pass, int64_t task, void *scratch) {
    const struct walk *walk = pass;
    int64_t s0, n;
    FN(task_group)(walk, task, &s0, &n);
    FN(walk_steps)(walk, 0, walk->L, s0, n, FN(start)(walk, s0), scratch);
}

static void FN(sequential)(const struct walk *walk) {
    FN(for_groups)(walk, FN(sequential_task), 1, FN(walk_work)(walk), walk);
}

/* ---- reduce --------------------------------------------------------------------------------- */

/* How much of an error at the start of the segment survives: the largest row sum of |map|, at most 1. */
static double FN(damping)(const struct walk *walk, const REAL *map) {
    const int64_t w = walk->w, columns = walk->block == DPCR_DENSE ? w : 1;
    double most = walk->block == DPCR_IDENTITY ? 1 : 0;
    for (int64_t i = 0; i < dpcr_map_size(walk->block, w) / dpcr_max(columns, 1); i++) {
        double sum = 0;
        for (int64_t c = 0; c < columns; c++) sum += fabs((double)map[i * columns + c]);
        most = sum > most ? sum : most;
    }
    return most < 1 ? most : 1;
}

/* maps[0] of steps first..last-1 of one sample (or of all, where they share it): M_last-1 ... M_first */
static void FN(dense_map)(const struct walk *walk, int64_t k, int64_t s, int64_t first, int64_t last) {
    const int64_t w = walk->w;
    REAL *map = FN(map_at)(walk, 0, k, s), *spare = FN(map_at)(walk, 1, k, s);
    const struct FN(matrix) A = FN(block_at)(&walk->M, first, s).M;
    for (int64_t i = 0; i < w; i++)
        for (int64_t c = 0; c < w; c++) map[i * w + c] = A.data[i * A.row + c * A.column];
    for (int64_t j = first + 1; j < last; j++) {
        const struct FN(block) next = FN(block_at)(&walk->M, j, s);
        FN(square_product)(w, &next.M, map, spare);
        REAL *swap = map;
        map = spare, spare = swap;
    }
    if (map != FN(map_at)(walk, 0, k, s)) memcpy(spare, map, (size_t)(w * w) * sizeof(REAL));
}

/* The same of n samples for diagonal and scalar blocks; one loop where the blocks of the samples are contiguous */
static void FN(elementwise_maps)(const struct walk *walk, int64_t k, int64_t s0, int64_t n, int64_t first,
                                 int64_t last) {
    const int64_t size = dpcr_map_size(walk->block, walk->w);
    const bool packed = walk->M.sample == size;
    const int64_t count = packed ? n * size : size, times = packed ? 1 : n;
    for (int64_t j = first; j < last; j++)
        for (int64_t s = 0; s < times; s++) {
            REAL *map = FN(map_at)(walk, 0, k, s0 + s);
            const REAL *M = FN(block_at)(&walk->M, j, s0 + s).M.data;
            if (j == first)
                memcpy(map, M, (size_t)count * sizeof(REAL));
            else
                for (int64_t i = 0; i < count; i++) map[i] *= M[i];
        }
}

/* maps[0] and damping of segment k for samples s0..s0+n-1 */
static void FN(segment_maps)(const struct walk *walk, int64_t k, int64_t s0, int64_t n) {
    const int64_t first = dpcr_edge(k, walk->L, walk->S), last = dpcr_edge(k + 1, walk->L, walk->S);
    if (walk->block == DPCR_DENSE)
        for (int64_t s = s0; s < s0 + n; s++) FN(dense_map)(walk, k, s, first, last);
    else if (walk->block != DPCR_IDENTITY)
        FN(elementwise_maps)(walk, k, s0, n, first, last);
    for (int64_t s = s0; s < s0 + n; s++)
        walk->damping[walk->shared ? k : k * walk->B + s] = FN(damping)(walk, FN(map_at)(walk, 0, k, s));
}

/* Of n samples from s0, those whose maps this task makes: shared ones are made once, by the first group. */
static int64_t FN(own_maps)(const struct walk *walk, int64_t s0, int64_t n) {
    return !walk->shared ? n : s0 == 0 ? 1 : 0;
}

static void FN(reduce_task)(const void *pass, int64_t task, void *scratch) {
    const struct walk *walk = pass;
    int64_t s0, n;
    const int64_t k = FN(task_group)(walk, task, &s0, &n);
    const int64_t first = dpcr_edge(k, walk->L, walk->S), last = dpcr_edge(k + 1, walk->L, walk->S);
    const struct FN(rows) to = {FN(offset_at)(walk, 0, k, s0), walk->w};
    /* the walk writes into x, which is free until substitute; its end is the offset */
    FN(walk_steps)(walk, first, last, s0, n, k == 0 ? FN(start)(walk, s0) : (struct FN(rows)){NULL, 0},
                   scratch);
    FN(copy_rows)(walk->w, n, FN(rows_at)(&walk->x, last - 1, s0), to);
    const int64_t maps = FN(own_maps)(walk, s0, n);
    if (k > 0)
        FN(segment_maps)(walk, k, s0, maps);
    else /* starts from x0 itself: its map is never used, and M_0 may not exist */
        for (int64_t s = s0; s < s0 + maps; s++) walk->damping[s] = 0;
}

static void FN(reduce)(const struct walk *walk) {
    const double maps = 2.0 * (double)walk->L * (double)(walk->shared ? 1 : walk->B)
                        * (double)dpcr_map_size(walk->block, walk->w)
                        * (walk->block == DPCR_DENSE ? (double)walk->w : 1);
    FN(for_groups)(walk, FN(reduce_task), walk->S, FN(walk_work)(walk) + maps, walk);
}

/* ---- combine -------------------------------------------------------------------------------- */

struct FN(level) {
    const struct walk *walk;
    int64_t distance;
};

/* Element k of this level, from k and k - distance of the last:
 *   offset' = map_k offset_{k-d} + offset_k,   map' = map_k map_{k-d}.
 * Elements below 2 d have now taken in segment 0, which starts from x0: they need no map any more. */
static void FN(combine_task)(const void *pass, int64_t task, void *scratch) {
    const struct FN(level) *level = pass;
    const struct walk *walk = level->walk;
    const int64_t w = walk->w, d = level->distance;
    const int from = walk->current, to = 1 - from;
    int64_t s0, n;
    const int64_t k = FN(task_group)(walk, task, &s0, &n);
    const struct FN(rows) own = {FN(offset_at)(walk, from, k, s0), w},
                          next = {FN(offset_at)(walk, to, k, s0), w};
    if (k < d) { /* final since the last level: only there is it missing in the other buffer */
        if (k >= d / 2) FN(copy_rows)(w, n, own, next);
        return;
    }
    const struct FN(rows) before = {FN(offset_at)(walk, from, k - d, s0), w};
    FN(apply)(walk, n, FN(map_block)(walk, from, k, s0), before, own, next, scratch);
    if (k < 2 * d) return;
    const int64_t maps = FN(own_maps)(walk, s0, n), size = dpcr_map_size(walk->block, w);
    if (maps == 0) return;
    REAL *map = FN(map_at)(walk, to, k, s0); /* those of a group lie one after another */
    const REAL *left = FN(map_at)(walk, from, k, s0), *right = FN(map_at)(walk, from, k - d, s0);
    if (walk->block == DPCR_DENSE)
        for (int64_t s = 0; s < maps; s++)
            FN(square_product)(w, &(struct FN(matrix)){left + s * size, w, 1}, right + s * size,
                               map + s * size);
    else
        for (int64_t i = 0; i < maps * size; i++) map[i] = left[i] * right[i];
}

static void FN(combine)(const struct walk *walk, int64_t distance) {
    const struct FN(level) level = {walk, distance};
    const double maps = (double)dpcr_map_size(walk->block, walk->w);
    const double work =
        2.0 * (double)walk->S * (double)walk->B * maps * (walk->block == DPCR_DENSE ? (double)walk->w : 1);
    FN(for_groups)(walk, FN(combine_task), walk->S, work, &level);
}

/* ---- substitute and check ------------------------------------------------------------------- */

static double FN(largest)(int64_t w, const REAL *x) {
    double most = 0;
    for (int64_t i = 0; i < w; i++) most = fabs((double)x[i]) > most ? fabs((double)x[i]) : most;
    return most;
}

/* Largest |x - y|; NaN where anything is not finite. */
static double FN(gap)(int64_t w, const REAL *x, const REAL *y) {
    double most = 0, poison = 0;
    for (int64_t i = 0; i < w; i++) {
        const double difference = fabs((double)x[i] - (double)y[i]);
        most = difference > most ? difference : most;
        poison += difference - difference;
    }
    return most + poison;
}

/* The end of segment k was predicted by the maps and is now walked to from its own start. */
static void FN(substitute_task)(const void *pass, int64_t task, void *scratch) {
    const struct walk *walk = pass;
    const int64_t w = walk->w;
    int64_t s0, n;
    const int64_t k = FN(task_group)(walk, task, &s0, &n);
    const int64_t first = dpcr_edge(k, walk->L, walk->S), last = dpcr_edge(k + 1, walk->L, walk->S);
    const struct FN(rows) start =
        k == 0 ? FN(start)(walk, s0) : (struct FN(rows)){FN(offset_at)(walk, walk->current, k - 1, s0), w};
    FN(walk_steps)(walk, first, last, s0, n, start, scratch);
    for (int64_t s = s0; s < s0 + n; s++) {
        const REAL *end = FN(rows_at)(&walk->x, last - 1, s).data,
                   *b = FN(rows_at)(&walk->b, last - 1, s).data;
        walk->gap[k * walk->B + s] = FN(gap)(w, end, FN(offset_at)(walk, walk->current, k, s));
        walk->size[k * walk->B + s] = FN(largest)(w, end) + FN(largest)(w, b);
    }
}

static void FN(substitute)(const struct walk *walk) {
    FN(for_groups)(walk, FN(substitute_task), walk->S, FN(walk_work)(walk), walk);
}

struct FN(repair_pass) {
    const struct walk *walk;
    int32_t *recomputed;
};

/* Is every gap explained by rounding?  The loop's own error at the end of a segment is relative to the
 * state there (and to b, where M x and b cancel), or to an earlier state as far as the maps have not
 * damped it since.  Never to the largest state of the chain: one that shrinks, then grows again would
 * hide garbage behind it. */
static bool FN(agrees)(const struct walk *walk, int64_t s) {
    double scale = 0;
    for (int64_t k = 0; k < walk->S; k++) {
        const double size = walk->size[k * walk->B + s],
                     damped = scale * walk->damping[walk->shared ? k : k * walk->B + s];
        scale = size > damped ? size : damped;
        if (!(walk->gap[k * walk->B + s] <= walk->tolerance * scale)) return false;
    }
    return true;
}

static void FN(repair_task)(const void *pass, int64_t task, void *scratch) {
    const struct FN(repair_pass) *repair = pass;
    const struct walk *walk = repair->walk;
    int64_t s0, n;
    FN(task_group)(walk, task, &s0, &n);
    for (int64_t s = s0; s < s0 + n; s++) {
        const bool failed = !FN(agrees)(walk, s);
        if (failed) FN(walk_steps)(walk, 0, walk->L, s, 1, FN(start)(walk, s), scratch);
        if (repair->recomputed) repair->recomputed[s] = failed;
    }
}

static void FN(repair)(const struct walk *walk, int32_t *recomputed) {
    const struct FN(repair_pass) pass = {walk, recomputed};
    FN(for_groups)(walk, FN(repair_task), 1, (double)walk->S * (double)walk->B, &pass);
}
