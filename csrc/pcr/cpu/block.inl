/* SPDX-License-Identifier: Apache-2.0
 *
 * What a block of each kind does to a group of samples: x' = M x + b.  Diagonal and scalar blocks are
 * elementwise products; shared dense ones act on the group as one panel (samples in lanes), own dense
 * ones by one matvec a sample.  All the differences between block kinds in a walk are here.
 */

/* A block of a step or of a segment map, and the vectors it acts on. */
struct FN(block) {
    struct FN(matrix) M;
    int64_t sample;
};

struct FN(rows) {
    REAL *data;
    int64_t sample;
};

static struct FN(block) FN(block_at)(const struct block_view *view, int64_t j, int64_t s) {
    const REAL *M = (const REAL *)view->data;
    if (M) M += view->first + j * view->step + s * view->sample;
    return (struct FN(block)){{M, view->row, view->column}, view->sample};
}

static struct FN(rows) FN(rows_at)(const struct vector_view *view, int64_t j, int64_t s) {
    return (struct FN(rows)){(REAL *)view->data + view->first + j * view->step + s * view->sample,
                             view->sample};
}

/* An element of the cyclic reduction, counted over all levels: its offset, its map. */
static REAL *FN(offset_at)(const struct walk *walk, int64_t element, int64_t s) {
    return (REAL *)walk->offsets + (element * walk->B + s) * walk->w;
}

static REAL *FN(map_at)(const struct walk *walk, int64_t element, int64_t s) {
    const REAL *maps = element < walk->S && walk->direct ? walk->direct : walk->maps;
    return (REAL *)maps
           + (walk->shared ? element : element * walk->B + s) * dpcr_map_size(walk->block, walk->w);
}

static struct FN(block) FN(map_block)(const struct walk *walk, int64_t element, int64_t s) {
    return (struct FN(block)){{FN(map_at)(walk, element, s), walk->w, 1},
                              walk->shared ? 0 : dpcr_map_size(walk->block, walk->w)};
}

/* ---- x' = M x + b for a group of n samples -------------------------------------------------- */

/* y_i = a x_i + b_i over count elements, a = a[i * stride]; b NULL: zero */
static void FN(scale_add)(int64_t count, const REAL *a, int64_t stride, const REAL *x, const REAL *b,
                          REAL *y) {
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
        FN(scale_add)(n * w, A.M.data, 0, x.data, b.data, y.data);
    else if (packed && A.sample == w && (stride == 1 || w == 1))
        FN(scale_add)(n * w, A.M.data, 1, x.data, b.data, y.data);
    else
        for (int64_t s = 0; s < n; s++)
            FN(scale_add)(w, A.M.data + s * A.sample, stride, x.data + s * x.sample,
                          b.data ? b.data + s * b.sample : NULL, y.data + s * y.sample);
}

static void FN(apply_identity)(int64_t w, int64_t n, struct FN(rows) x, struct FN(rows) b,
                               struct FN(rows) y) {
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
    FN(panel_product)(w, ld, w, &A.M, &(struct FN(panel)){X, ld}, NULL, Y, ld);
    for (int64_t s = 0; s < n; s++)
        for (int64_t i = 0; i < w; i++)
            y.data[s * y.sample + i] = b.data ? Y[i * ld + s] + b.data[s * b.sample + i] : Y[i * ld + s];
}

static void FN(apply)(const struct walk *walk, int64_t n, struct FN(block) A, struct FN(rows) x,
                      struct FN(rows) b, struct FN(rows) y, REAL *scratch) {
    const int64_t w = walk->w;
    if (walk->block == DPCR_IDENTITY)
        FN(apply_identity)(w, n, x, b, y);
    else if (walk->block != DPCR_DENSE)
        FN(apply_elementwise)(walk, n, A, x, b, y);
    else if (walk->wide)
        FN(apply_panel)(walk, n, A, x, b, y, scratch);
    else
        for (int64_t s = 0; s < n; s++)
            FN(matvec)(w, w, &(struct FN(matrix)){A.M.data + s * A.sample, A.M.row, A.M.column},
                       x.data + s * x.sample, b.data ? b.data + s * b.sample : NULL, y.data + s * y.sample);
}

static void FN(copy_rows)(int64_t w, int64_t n, struct FN(rows) from, struct FN(rows) to) {
    if (from.data == to.data) return;
    for (int64_t s = 0; s < n; s++)
        memcpy(to.data + s * to.sample, from.data + s * from.sample, (size_t)w * sizeof(REAL));
}
