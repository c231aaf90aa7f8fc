/* SPDX-License-Identifier: Apache-2.0
 *
 * Kernels of the linear recurrence on the CPU (see kernels.h for what each does).
 *
 * A task is a segment and a *group* of samples, of a size that depends on the problem alone.
 *
 * Work per step and sample: 2 w^2 (dense) or 2 w in every walk; reduce adds 2 w^3 or w per own block,
 * the cyclic reduction the same per segment, all levels together.
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

#include "pcr/cpu/diagonal.inl"

static int64_t FN(group)(const struct walk *walk) {
    return walk->block == DPCR_DENSE ? 2 * LANES : dpcr_max(32, 4096 / dpcr_max(walk->w, 1));
}

static size_t FN(scratch)(const struct walk *walk) {
    const int64_t panels = walk->block == DPCR_DENSE ? dpcr_max(2 * FN(group)(walk), walk->w) * walk->w : 0;
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
    if (FN(is_packed_diagonal)(walk, n))
        FN(walk_diagonal)(walk, s0, n);
    else
        FN(walk_steps)(walk, 0, walk->L, s0, n, FN(start)(walk, s0), scratch);
}

/* ---- reduce --------------------------------------------------------------------------------- */

/* The map of steps first..last-1 of one sample (or of all, where they share it): M_last-1 ... M_first.
 * spare (w,w) */
static void FN(dense_map)(const struct walk *walk, int64_t k, int64_t s, int64_t first, int64_t last,
                          REAL *spare) {
    const int64_t w = walk->w;
    REAL *map = FN(map_at)(walk, k, s);
    if (walk->direct) return;
    const struct FN(matrix) A = FN(block_at)(&walk->M, first, s).M;
    if (A.row == w && A.column == 1)
        memcpy(map, A.data, (size_t)(w * w) * sizeof(REAL));
    else
        for (int64_t i = 0; i < w; i++)
            for (int64_t c = 0; c < w; c++) map[i * w + c] = A.data[i * A.row + c * A.column];
    for (int64_t j = first + 1; j < last; j++) {
        const struct FN(block) next = FN(block_at)(&walk->M, j, s);
        FN(square_product)(w, &next.M, map, spare);
        REAL *swap = map;
        map = spare, spare = swap;
    }
    if (map != FN(map_at)(walk, k, s)) memcpy(spare, map, (size_t)(w * w) * sizeof(REAL));
}

/* The same of n samples for diagonal and scalar blocks; one loop where the blocks of the samples are contiguous */
static void FN(elementwise_maps)(const struct walk *walk, int64_t k, int64_t s0, int64_t n, int64_t first,
                                 int64_t last) {
    const int64_t size = dpcr_map_size(walk->block, walk->w);
    const bool packed = walk->M.sample == size;
    const int64_t count = packed ? n * size : size, times = packed ? 1 : n;
    for (int64_t j = first; j < last; j++)
        for (int64_t s = 0; s < times; s++) {
            REAL *map = FN(map_at)(walk, k, s0 + s);
            const REAL *M = FN(block_at)(&walk->M, j, s0 + s).M.data;
            if (j == first)
                memcpy(map, M, (size_t)count * sizeof(REAL));
            else
                for (int64_t i = 0; i < count; i++) map[i] *= M[i];
        }
}

/* Maps of segment k for samples s0..s0+n-1 */
static void FN(segment_maps)(const struct walk *walk, int64_t k, int64_t s0, int64_t n, REAL *scratch) {
    const int64_t first = dpcr_edge(k, walk->L, walk->S), last = dpcr_edge(k + 1, walk->L, walk->S);
    if (walk->block == DPCR_DENSE)
        for (int64_t s = s0; s < s0 + n; s++) FN(dense_map)(walk, k, s, first, last, scratch);
    else if (walk->block != DPCR_IDENTITY)
        FN(elementwise_maps)(walk, k, s0, n, first, last);
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
    const struct FN(rows) to = {FN(offset_at)(walk, k, s0), walk->w};
    /* the walk writes into x, which is free until substitute; its end is the offset */
    FN(walk_steps)(walk, first, last, s0, n, k == 0 ? FN(start)(walk, s0) : (struct FN(rows)){NULL, 0},
                   scratch);
    FN(copy_rows)(walk->w, n, FN(rows_at)(&walk->x, last - 1, s0), to);
    const int64_t maps = FN(own_maps)(walk, s0, n);
    /* segment 0 starts from x0 itself: its map is never used, and M_0 may not exist */
    if (k > 0) FN(segment_maps)(walk, k, s0, maps, scratch);
}

/* ---- sizes ---------------------------------------------------------------------------------- */

/* Four chains in each of these, because one would wait for every comparison. */
INLINE double FN(largest)(int64_t w, const REAL *x) {
    REAL most[4] = {0};
    for (int64_t i = 0; i < w; i++) {
        const REAL size = (REAL)fabs((double)x[i]);
        most[i % 4] = size > most[i % 4] ? size : most[i % 4];
    }
    const REAL even = most[0] > most[2] ? most[0] : most[2], odd = most[1] > most[3] ? most[1] : most[3];
    return (double)(even > odd ? even : odd);
}

/* Largest |x - y|; NaN where anything is not finite. */
INLINE double FN(gap)(int64_t w, const REAL *x, const REAL *y) {
    REAL most[4] = {0}, poison[4] = {0};
    for (int64_t i = 0; i < w; i++) {
        const REAL difference = x[i] - y[i], size = (REAL)fabs((double)difference);
        most[i % 4] = size > most[i % 4] ? size : most[i % 4];
        poison[i % 4] += difference - difference;
    }
    const REAL even = most[0] > most[2] ? most[0] : most[2], odd = most[1] > most[3] ? most[1] : most[3];
    return (double)(even > odd ? even : odd) + (double)((poison[0] + poison[1]) + (poison[2] + poison[3]));
}

/* ---- cyclic reduction ----------------------------------------------------------------------- */

struct FN(level_pass) {
    const struct walk *walk;
    struct level level, next;
};

static bool FN(skipped)(const struct walk *walk, int64_t s) {
    return walk->skip && walk->skip[s];
}

/* to = map of element k of the level, applied to from, plus its offset */
static void FN(apply_map)(const struct FN(level_pass) * pass, int64_t k, int64_t s0, int64_t n,
                          struct FN(rows) from, struct FN(rows) to, REAL *scratch) {
    const struct walk *walk = pass->walk;
    const int64_t w = walk->w;
    const int64_t element = pass->level.first + k;
    const struct FN(block) map = FN(map_block)(walk, element, s0);
    const struct FN(rows) offset = {FN(offset_at)(walk, element, s0), w};
    if (!walk->skip) {
        FN(apply)(walk, n, map, from, offset, to, scratch);
        return;
    }
    for (int64_t s = 0; s < n; s++)
        if (!FN(skipped)(walk, s0 + s))
            FN(apply)(walk, 1, FN(map_block)(walk, element, s0 + s), (struct FN(rows)){from.data + s * w, w},
                      (struct FN(rows)){offset.data + s * w, w}, (struct FN(rows)){to.data + s * w, w},
                      scratch);
}

/* Whether map m of the next level has to be multiplied again, for sample s. */
static bool FN(is_fresh)(const struct FN(level_pass) * pass, int64_t m, int64_t s) {
    const struct walk *walk = pass->walk;
    if (FN(skipped)(walk, s)) return false;
    if (!walk->fresh) return true;
    const unsigned char *left = walk->fresh + (pass->level.first + 2 * m) * walk->B + s;
    const unsigned char fresh = left[0] | *(left - walk->B);
    walk->fresh[(pass->next.first + m) * walk->B + s] = fresh;
    return fresh;
}

/* Map m of the next level, of samples s0..s0+n-1: map_2m map_2m-1 */
static void FN(multiply_maps)(const struct FN(level_pass) * pass, int64_t m, int64_t s0, int64_t n) {
    const struct walk *walk = pass->walk;
    const int64_t w = walk->w, size = dpcr_map_size(walk->block, w);
    const int64_t element = pass->level.first + 2 * m;
    const REAL *left = FN(map_at)(walk, element, s0), *right = FN(map_at)(walk, element - 1, s0);
    REAL *map = FN(map_at)(walk, pass->next.first + m, s0); /* those of a group lie one after another */
    if (walk->block != DPCR_DENSE)
        for (int64_t i = 0; i < n * size; i++) map[i] = left[i] * right[i];
    else
        for (int64_t s = 0; s < n; s++)
            if (FN(is_fresh)(pass, m, s0 + s))
                FN(square_product)(w, &(struct FN(matrix)){left + s * size, w, 1}, right + s * size,
                                   map + s * size);
}

static void FN(eliminate_task)(const void *argument, int64_t task, void *scratch) {
    const struct FN(level_pass) *pass = argument;
    const struct walk *walk = pass->walk;
    int64_t s0, n;
    const int64_t m = FN(task_group)(walk, task, &s0, &n), w = walk->w;
    const struct FN(rows) to = {FN(offset_at)(walk, pass->next.first + m, s0), w};
    if (m == 0) { /* starts from x0: nothing before it, no map */
        FN(copy_rows)(w, n, (struct FN(rows)){FN(offset_at)(walk, pass->level.first, s0), w}, to);
        return;
    }
    FN(apply_map)(pass, 2 * m, s0, n,
                  (struct FN(rows)){FN(offset_at)(walk, pass->level.first + 2 * m - 1, s0), w}, to, scratch);
    FN(multiply_maps)(pass, m, s0, FN(own_maps)(walk, s0, n));
}

/* Operations of a level: a product of vectors, and one of maps, for every second element. */
static double FN(level_work)(const struct walk *walk, int64_t count, bool maps) {
    const double elements = (double)count, size = (double)dpcr_map_size(walk->block, walk->w),
                 columns = maps && walk->block == DPCR_DENSE ? (double)walk->w + 1 : 1;
    return 2.0 * elements * (double)walk->B * size * columns;
}

/* Elements 2 m and 2 m + 1 from x of element m of the next level. */
static void FN(back_substitute_task)(const void *argument, int64_t task, void *scratch) {
    const struct FN(level_pass) *pass = argument;
    const struct walk *walk = pass->walk;
    int64_t s0, n;
    const int64_t m = FN(task_group)(walk, task, &s0, &n), w = walk->w, k = 2 * m + 1;
    const struct FN(rows) x = {FN(offset_at)(walk, pass->next.first + m, s0), w};
    for (int64_t s = 0; s < n; s++)
        if (!FN(skipped)(walk, s0 + s))
            memcpy(FN(offset_at)(walk, pass->level.first + 2 * m, s0 + s), x.data + s * w,
                   (size_t)w * sizeof(REAL));
    if (k < pass->level.count)
        FN(apply_map)(pass, k, s0, n, x, (struct FN(rows)){FN(offset_at)(walk, pass->level.first + k, s0), w},
                      scratch);
}

/* The same for narrow blocks, by tasks of RUN elements each; and reduce and substitute for segments of one step. */
struct FN(narrow) {
    void (*sequential)(const void *pass, int64_t task, void *scratch); /* with few samples */
    void (*reduce)(const void *pass, int64_t task, void *scratch);
    void (*eliminate)(const void *pass, int64_t task, void *scratch);
    void (*back_substitute)(const void *pass, int64_t task, void *scratch);
    void (*substitute)(const void *pass, int64_t task, void *scratch);
};

#if 4 * REAL_BYTES <= VECTOR_BYTES
#define WIDTH 4
#define SIZED(name) FN(name##_4)
#include "pcr/cpu/narrow.inl"
#else
static const struct FN(narrow) FN(narrow_4) = {NULL, NULL, NULL, NULL, NULL};
#endif

#if 8 * REAL_BYTES <= VECTOR_BYTES
#define WIDTH 8
#define SIZED(name) FN(name##_8)
#include "pcr/cpu/narrow.inl"
#else
static const struct FN(narrow) FN(narrow_8) = {NULL, NULL, NULL, NULL, NULL};
#endif

#if 16 * REAL_BYTES <= VECTOR_BYTES
#define WIDTH 16
#define SIZED(name) FN(name##_16)
#include "pcr/cpu/narrow.inl"
#else
static const struct FN(narrow) FN(narrow_16) = {NULL, NULL, NULL, NULL, NULL};
#endif

/* NULL: these blocks are not narrow. */
static const struct FN(narrow) * FN(narrow_of)(const struct walk *walk) {
    const struct FN(narrow) *narrow = walk->w == 4    ? &FN(narrow_4)
                                      : walk->w == 8  ? &FN(narrow_8)
                                      : walk->w == 16 ? &FN(narrow_16)
                                                      : NULL;
    /* one sample's shared blocks are its own, unless it is a tile of a batch that goes in panels */
    const bool own = !walk->shared || (walk->B == 1 && !walk->wide);
    return narrow && narrow->eliminate && walk->block == DPCR_DENSE && own ? narrow : NULL;
}

static void FN(sequential)(const struct walk *walk) {
    /* More samples keep the memory busy, which likes them in its order, step by step. */
    const struct FN(narrow) *narrow = walk->B <= 4 ? FN(narrow_of)(walk) : NULL;
    FN(for_groups)(walk, narrow ? narrow->sequential : FN(sequential_task), 1, FN(walk_work)(walk), walk);
}

static void FN(reduce)(const struct walk *walk) {
    const double maps = 2.0 * (double)walk->L * (double)(walk->shared ? 1 : walk->B)
                        * (double)dpcr_map_size(walk->block, walk->w)
                        * (walk->block == DPCR_DENSE ? (double)walk->w : 1);
    const struct FN(narrow) *narrow = walk->S == walk->L ? FN(narrow_of)(walk) : NULL;
    FN(for_groups)(walk, narrow ? narrow->reduce : FN(reduce_task),
                   narrow ? dpcr_ceil_div(walk->S, RUN) : walk->S, FN(walk_work)(walk) + maps, walk);
}

static void FN(eliminate)(const struct walk *walk, int level) {
    const struct FN(level_pass) pass = {walk, dpcr_level(walk->S, level), dpcr_level(walk->S, level + 1)};
    const struct FN(narrow) *narrow = FN(narrow_of)(walk);
    FN(for_groups)(walk, narrow ? narrow->eliminate : FN(eliminate_task),
                   narrow ? dpcr_ceil_div(pass.next.count, RUN) : pass.next.count,
                   FN(level_work)(walk, pass.next.count, true), &pass);
}

static void FN(back_substitute)(const struct walk *walk, int level) {
    const struct FN(level_pass) pass = {walk, dpcr_level(walk->S, level), dpcr_level(walk->S, level + 1)};
    const struct FN(narrow) *narrow = FN(narrow_of)(walk);
    FN(for_groups)(walk, narrow ? narrow->back_substitute : FN(back_substitute_task),
                   narrow ? dpcr_ceil_div(pass.next.count, RUN) : pass.next.count,
                   FN(level_work)(walk, pass.next.count, false), &pass);
}

/* ---- substitute and check ------------------------------------------------------------------- */

/* The end of segment k was predicted by the maps and is now walked to from its own start. */
static void FN(substitute_task)(const void *pass, int64_t task, void *scratch) {
    const struct walk *walk = pass;
    const int64_t w = walk->w;
    int64_t s0, n;
    const int64_t k = FN(task_group)(walk, task, &s0, &n);
    const int64_t first = dpcr_edge(k, walk->L, walk->S), last = dpcr_edge(k + 1, walk->L, walk->S);
    const struct FN(rows) start =
        k == 0 ? FN(start)(walk, s0) : (struct FN(rows)){FN(offset_at)(walk, k - 1, s0), w};
    FN(walk_steps)(walk, first, last, s0, n, start, scratch);
    for (int64_t s = s0; s < s0 + n; s++) {
        const REAL *end = FN(rows_at)(&walk->x, last - 1, s).data,
                   *b = FN(rows_at)(&walk->b, last - 1, s).data;
        walk->gap[k * walk->B + s] = FN(gap)(w, end, FN(offset_at)(walk, k, s));
        walk->size[k * walk->B + s] = FN(largest)(w, end) + FN(largest)(w, b);
    }
}

static void FN(substitute)(const struct walk *walk) {
    const struct FN(narrow) *narrow = walk->S == walk->L ? FN(narrow_of)(walk) : NULL;
    FN(for_groups)(walk, narrow ? narrow->substitute : FN(substitute_task),
                   narrow ? dpcr_ceil_div(walk->S, RUN) : walk->S, FN(walk_work)(walk), walk);
}

struct FN(repair_pass) {
    const struct walk *walk;
    int32_t *recomputed;
};

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

/* Is every gap explained by rounding?  The loop's own error at the end of a segment is relative to the
 * state there (and to b, where M x and b cancel), or to an earlier state as far as the maps have not
 * damped it since.  Never to the largest state of the chain: one that shrinks, then grows again would
 * hide garbage behind it. */
static bool FN(agrees)(const struct walk *walk, int64_t s) {
    double scale = 0;
    bool close = true; /* relative to the states alone, as it nearly always is */
    for (int64_t k = 0; k < walk->S && close; k++)
        close = walk->gap[k * walk->B + s] <= walk->tolerance * walk->size[k * walk->B + s];
    for (int64_t k = 0; k < walk->S && !close; k++) {
        const double size = walk->size[k * walk->B + s],
                     damped = k > 0 ? scale * FN(damping)(walk, FN(map_at)(walk, k, s)) : 0;
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
