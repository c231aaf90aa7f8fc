/* SPDX-License-Identifier: Apache-2.0
 *
 * Kernels of the linear recurrence on the CPU (see kernels.h for what each does).
 *
 * A task is a segment and a *group* of samples, of a size that depends on the problem alone.  Blocks
 * that are diagonal or scalar are elementwise products; shared dense ones act on a group as one panel
 * (samples in lanes), own dense ones by one matvec a sample.
 *
 * Work per step and sample: 2 w^2 (dense) or 2 w in every walk; reduce adds 2 w^3 or w per own block;
 * a level of combine the same per segment.
 */

/* A block of a step or of a segment map, and the vectors it acts on. */
struct FN(block) {
    const REAL *M;
    int64_t sample, row, column;
};

struct FN(rows) {
    REAL *data;
    int64_t sample;
};

static struct FN(block) FN(block_at)(const struct block_view *view, int64_t j, int64_t s) {
    const REAL *M = (const REAL *)view->data;
    if (M) M += view->first + j * view->step + s * view->sample;
    return (struct FN(block)){M, view->sample, view->row, view->column};
}

static struct FN(rows) FN(rows_at)(const struct vector_view *view, int64_t j, int64_t s) {
    return (struct FN(rows)){(REAL *)view->data + view->first + j * view->step + s * view->sample, view->sample};
}

static REAL *FN(offset_at)(const struct walk *walk, int buffer, int64_t k, int64_t s) {
    return (REAL *)walk->offsets[buffer] + (k * walk->B + s) * walk->w;
}

static REAL *FN(map_at)(const struct walk *walk, int buffer, int64_t k, int64_t s) {
    const int64_t size = dpcr_map_size(walk->block, walk->w);
    return (REAL *)walk->maps[buffer] + (walk->shared ? k : k * walk->B + s) * size;
}

static struct FN(block) FN(map_block)(const struct walk *walk, int buffer, int64_t k, int64_t s) {
    return (struct FN(block)){FN(map_at)(walk, buffer, k, s),
                              walk->shared ? 0 : dpcr_map_size(walk->block, walk->w), walk->w, 1};
}

/* ---- x' = M x + b for a group of n samples -------------------------------------------------- */

/* y_i = a x_i + b_i over count elements, a = a[i * stride]; b NULL: zero */
static void FN(scale_add)(int64_t count, const REAL *a, int64_t stride, const REAL *x, const REAL *b, REAL *y) {
    if (stride == 0 && b)
        for (int64_t i = 0; i < count; i++) y[i] = a[0] * x[i] + b[i];
    else if (stride == 0)
        for (int64_t i = 0; i < count; i++) y[i] = a[0] * x[i];
    else if (b)
        for (int64_t i = 0; i < count; i++) y[i] = a[i] * x[i] + b[i];
    else
        for (int64_t i = 0; i < count; i++) y[i] = a[i] * x[i];
}

static void FN(apply_elementwise)(const struct walk *walk, int64_t n, struct FN(block) A, struct FN(rows) x,
                                  struct FN(rows) b, struct FN(rows) y) {
    const int64_t w = walk->w, stride = walk->block == DPCR_DIAGONAL && w > 1;
    const bool packed = x.sample == w && b.sample == w && y.sample == w;
    /* one loop over the group where its rows and coefficients are contiguous; a loop of one element is slow */
    if (packed && A.sample == 0 && stride == 0)
        FN(scale_add)(n * w, A.M, 0, x.data, b.data, y.data);
    else if (packed && A.sample == w && (stride == 1 || w == 1))
        FN(scale_add)(n * w, A.M, 1, x.data, b.data, y.data);
    else
        for (int64_t s = 0; s < n; s++)
            FN(scale_add)(w, A.M + s * A.sample, stride, x.data + s * x.sample, b.data ? b.data + s * b.sample : NULL,
                          y.data + s * y.sample);
}

static void FN(apply_identity)(int64_t w, int64_t n, struct FN(rows) x, struct FN(rows) b, struct FN(rows) y) {
    for (int64_t s = 0; s < n; s++)
        for (int64_t i = 0; i < w; i++)
            y.data[s * y.sample + i] =
                b.data ? x.data[s * x.sample + i] + b.data[s * b.sample + i] : x.data[s * x.sample + i];
}

/* One block for the whole group: X in lanes, M X, back and + b.  scratch: 2 panels (w, group). */
static void FN(apply_panel)(const struct walk *walk, int64_t n, struct FN(block) A, struct FN(rows) x,
                            struct FN(rows) b, struct FN(rows) y, REAL *scratch) {
    const int64_t w = walk->w, ld = (n + LANES - 1) / LANES * LANES;
    REAL *X = scratch, *Y = scratch + w * ld;
    FN(load_panel)(w, n, x.data, x.sample, X, ld);
    FN(panel_product)(w, ld, w, A.M, A.row, A.column, X, ld, NULL, Y, ld);
    for (int64_t s = 0; s < n; s++)
        for (int64_t i = 0; i < w; i++)
            y.data[s * y.sample + i] = b.data ? Y[i * ld + s] + b.data[s * b.sample + i] : Y[i * ld + s];
}

static void FN(apply)(const struct walk *walk, int64_t n, struct FN(block) A, struct FN(rows) x, struct FN(rows) b,
                      struct FN(rows) y, REAL *scratch) {
    const int64_t w = walk->w;
    if (walk->block == DPCR_IDENTITY)
        FN(apply_identity)(w, n, x, b, y);
    else if (walk->block != DPCR_DENSE)
        FN(apply_elementwise)(walk, n, A, x, b, y);
    else if (walk->wide)
        FN(apply_panel)(walk, n, A, x, b, y, scratch);
    else
        for (int64_t s = 0; s < n; s++)
            FN(matvec)(w, w, A.M + s * A.sample, A.row, A.column, x.data + s * x.sample,
                       b.data ? b.data + s * b.sample : NULL, y.data + s * y.sample);
}

static void FN(copy_rows)(int64_t w, int64_t n, struct FN(rows) from, struct FN(rows) to) {
    if (from.data == to.data) return;
    for (int64_t s = 0; s < n; s++)
        memcpy(to.data + s * to.sample, from.data + s * from.sample, (size_t)w * sizeof(REAL));
}

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
    const struct tasks tasks = {.run = run, .pass = pass, .count = outer * dpcr_ceil_div(walk->B, FN(group)(walk)),
                                .work = work, .scratch = walk->scratch, .scratch_bytes = FN(scratch)(walk)};
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

/* map <- M map; `spare` is as large as a map and swapped in */
static void FN(extend_map)(const struct walk *walk, struct FN(block) A, REAL **map, REAL **spare) {
    const int64_t w = walk->w, size = dpcr_map_size(walk->block, w);
    if (walk->block == DPCR_DENSE) {
        FN(panel_product)(w, w, w, A.M, A.row, A.column, *map, w, NULL, *spare, w);
        REAL *swap = *map;
        *map = *spare, *spare = swap;
    } else {
        for (int64_t i = 0; i < size; i++) (*map)[i] *= A.M[i];
    }
}

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

/* maps[0] of segment k and sample s (or of all samples, where they share it), and its damping */
static void FN(segment_map)(const struct walk *walk, int64_t k, int64_t s) {
    const int64_t w = walk->w, size = dpcr_map_size(walk->block, w);
    const int64_t first = dpcr_edge(k, walk->L, walk->S), last = dpcr_edge(k + 1, walk->L, walk->S);
    REAL *map = FN(map_at)(walk, 0, k, s), *spare = FN(map_at)(walk, 1, k, s);
    const struct FN(block) A = FN(block_at)(&walk->M, first, s);
    if (walk->block == DPCR_DENSE)
        for (int64_t i = 0; i < w; i++)
            for (int64_t c = 0; c < w; c++) map[i * w + c] = A.M[i * A.row + c * A.column];
    else if (size > 0)
        memcpy(map, A.M, (size_t)size * sizeof(REAL));
    for (int64_t j = first + 1; j < last; j++) FN(extend_map)(walk, FN(block_at)(&walk->M, j, s), &map, &spare);
    if (map != FN(map_at)(walk, 0, k, s)) memcpy(spare, map, (size_t)size * sizeof(REAL));
    walk->damping[walk->shared ? k : k * walk->B + s] = FN(damping)(walk, FN(map_at)(walk, 0, k, s));
}

static void FN(reduce_task)(const void *pass, int64_t task, void *scratch) {
    const struct walk *walk = pass;
    int64_t s0, n;
    const int64_t k = FN(task_group)(walk, task, &s0, &n);
    const int64_t first = dpcr_edge(k, walk->L, walk->S), last = dpcr_edge(k + 1, walk->L, walk->S);
    const struct FN(rows) to = {FN(offset_at)(walk, 0, k, s0), walk->w};
    /* the walk writes into x, which is free until substitute; its end is the offset */
    FN(walk_steps)(walk, first, last, s0, n, k == 0 ? FN(start)(walk, s0) : (struct FN(rows)){NULL, 0}, scratch);
    FN(copy_rows)(walk->w, n, FN(rows_at)(&walk->x, last - 1, s0), to);
    if (k == 0) { /* starts from x0 itself: its map is never used, and M_0 may not exist */
        for (int64_t s = s0; s < s0 + n && !(walk->shared && s > 0); s++) walk->damping[s] = 0;
        return;
    }
    for (int64_t s = s0; s < s0 + n && !(walk->shared && s > 0); s++) FN(segment_map)(walk, k, s);
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
    const struct FN(rows) own = {FN(offset_at)(walk, from, k, s0), w}, next = {FN(offset_at)(walk, to, k, s0), w};
    if (k < d) { /* final since the last level: only there is it missing in the other buffer */
        if (k >= d / 2) FN(copy_rows)(w, n, own, next);
        return;
    }
    const struct FN(rows) before = {FN(offset_at)(walk, from, k - d, s0), w};
    FN(apply)(walk, n, FN(map_block)(walk, from, k, s0), before, own, next, scratch);
    if (k < 2 * d) return;
    for (int64_t s = s0; s < s0 + n && !(walk->shared && s > 0); s++) {
        REAL *map = FN(map_at)(walk, to, k, s);
        const REAL *left = FN(map_at)(walk, from, k, s), *right = FN(map_at)(walk, from, k - d, s);
        if (walk->block == DPCR_DENSE)
            FN(panel_product)(w, w, w, left, w, 1, right, w, NULL, map, w);
        else
            for (int64_t i = 0; i < dpcr_map_size(walk->block, w); i++) map[i] = left[i] * right[i];
    }
}

static void FN(combine)(const struct walk *walk, int64_t distance) {
    const struct FN(level) level = {walk, distance};
    const double maps = (double)dpcr_map_size(walk->block, walk->w);
    const double work = 2.0 * (double)walk->S * (double)walk->B * maps * (walk->block == DPCR_DENSE ? (double)walk->w : 1);
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
        const REAL *end = FN(rows_at)(&walk->x, last - 1, s).data, *b = FN(rows_at)(&walk->b, last - 1, s).data;
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
        const double size = walk->size[k * walk->B + s], damped = scale * walk->damping[walk->shared ? k : k * walk->B + s];
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

/* ---- gradients ------------------------------------------------------------------------------ */

struct FN(gradient_pass) {
    const struct walk *walk;
    struct block_view gradient;
};

/* The sum over n samples of y x^T -> gA (w,w) by its strides */
static void FN(outer)(int64_t w, int64_t n, struct FN(rows) y, struct FN(rows) x, REAL *gA, int64_t row,
                      int64_t column) {
    if (column == 1)
        FN(panel_product)(w, w, n, y.data, 1, y.sample, x.data, x.sample, NULL, gA, row);
    else
        FN(panel_product)(w, w, n, x.data, 1, x.sample, y.data, y.sample, NULL, gA, column);
}

/* count (1 or w) elements of the sum over samples of y * x */
static void FN(inner)(const struct walk *walk, int64_t n, struct FN(rows) y, struct FN(rows) x, REAL *gA) {
    const int64_t stride = walk->block == DPCR_DIAGONAL;
    memset(gA, 0, (size_t)dpcr_map_size(walk->block, walk->w) * sizeof(REAL));
    for (int64_t s = 0; s < n; s++)
        for (int64_t i = 0; i < walk->w; i++)
            gA[i * stride] += y.data[s * y.sample + i] * x.data[s * x.sample + i];
}

static void FN(clear_block)(const struct walk *walk, REAL *gA, int64_t row, int64_t column) {
    const int64_t w = walk->w, columns = walk->block == DPCR_DENSE ? w : 1;
    for (int64_t i = 0; i < (walk->block == DPCR_SCALAR ? 1 : w); i++)
        for (int64_t c = 0; c < columns; c++) gA[i * (columns > 1 ? row : 1) + c * column] = 0;
}

/* One step: shared blocks sum over all samples, in their order. */
static void FN(gradient_task)(const void *pass, int64_t j, void *scratch) {
    (void)scratch;
    const struct FN(gradient_pass) *gradient = pass;
    const struct walk *walk = gradient->walk;
    const struct block_view *view = &gradient->gradient;
    const int64_t count = walk->shared ? 1 : walk->B, n = walk->shared ? walk->B : 1;
    for (int64_t s = 0; s < count; s++) {
        REAL *gA = (REAL *)view->data + view->first + j * view->step + s * view->sample;
        const struct FN(rows) y = FN(rows_at)(&walk->b, j, s);
        const struct FN(rows) x = j > 0 ? FN(rows_at)(&walk->x, j - 1, s) : FN(start)(walk, s);
        if (!x.data)
            FN(clear_block)(walk, gA, view->row, view->column);
        else if (walk->block == DPCR_DENSE)
            FN(outer)(walk->w, n, y, x, gA, view->row, view->column);
        else
            FN(inner)(walk, n, y, x, gA);
    }
}

static void FN(gradient)(const struct walk *walk, struct block_view gradient) {
    const struct FN(gradient_pass) pass = {walk, gradient};
    const struct tasks tasks = {.run = FN(gradient_task), .pass = &pass, .count = walk->L, .work = FN(walk_work)(walk)};
    if (walk->block != DPCR_IDENTITY) dpcr_run_tasks(walk->exec, &tasks);
}

/* The walk is the solved one: M_0 with rows and columns exchanged. */
static void FN(start_gradient)(const struct walk *walk, struct vector_view gradient) {
    const int64_t group = FN(group)(walk);
    for (int64_t s0 = 0; s0 < walk->B; s0 += group) {
        struct FN(block) A = FN(block_at)(&walk->M, 0, s0);
        A = (struct FN(block)){A.M, A.sample, A.column, A.row};
        FN(apply)(walk, dpcr_min(group, walk->B - s0), A, FN(rows_at)(&walk->b, 0, s0), (struct FN(rows)){NULL, walk->w},
                  FN(rows_at)(&gradient, 0, s0), (REAL *)walk->scratch);
    }
}
