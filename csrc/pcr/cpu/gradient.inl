/* SPDX-License-Identifier: Apache-2.0
 *
 * Gradients of the recurrence once its adjoint y is solved: gA_l = y_l x_{l-1}^T in the structure of
 * the block, summed over the samples in their order where they share it, and gx0 = A_1^T y_1.
 */

struct FN(gradient_pass) {
    const struct walk *walk;
    struct block_view gradient;
};

/* The sum over n samples of y x^T -> gA (w,w) by its strides */
static void FN(outer)(int64_t w, int64_t n, struct FN(rows) y, struct FN(rows) x, REAL *gA, int64_t row,
                      int64_t column) {
    if (column == 1)
        FN(panel_product)(w, w, n, &(struct FN(matrix)){y.data, 1, y.sample},
                          &(struct FN(panel)){x.data, x.sample}, NULL, gA, row);
    else
        FN(panel_product)(w, w, n, &(struct FN(matrix)){x.data, 1, x.sample},
                          &(struct FN(panel)){y.data, y.sample}, NULL, gA, column);
}

/* The sum over n samples of y * x, elementwise (diagonal, w elements) or all of it (scalar, one) -> gA */
static void FN(inner)(const struct walk *walk, int64_t n, struct FN(rows) y, struct FN(rows) x, REAL *gA) {
    const int64_t w = walk->w;
    if (walk->block == DPCR_SCALAR) gA[0] = 0;
    for (int64_t s = 0; s < n; s++) {
        const REAL *ys = y.data + s * y.sample, *xs = x.data + s * x.sample;
        if (walk->block == DPCR_SCALAR)
            gA[0] += FN(row_dot)(w, ys, xs);
        else if (s == 0)
            for (int64_t i = 0; i < w; i++) gA[i] = ys[i] * xs[i];
        else
            for (int64_t i = 0; i < w; i++) gA[i] += ys[i] * xs[i];
    }
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
    const struct tasks tasks = {
        .run = FN(gradient_task), .pass = &pass, .count = walk->L, .work = FN(walk_work)(walk)};
    if (walk->block != DPCR_IDENTITY) dpcr_run_tasks(walk->exec, &tasks);
}

/* The walk is the solved one: M_0 with rows and columns exchanged. */
static void FN(start_gradient)(const struct walk *walk, struct vector_view gradient) {
    const int64_t group = FN(group)(walk);
    for (int64_t s0 = 0; s0 < walk->B; s0 += group) {
        struct FN(block) A = FN(block_at)(&walk->M, 0, s0);
        A.M = (struct FN(matrix)){A.M.data, A.M.column, A.M.row};
        FN(apply)(walk, dpcr_min(group, walk->B - s0), A, FN(rows_at)(&walk->b, 0, s0),
                  (struct FN(rows)){NULL, walk->w}, FN(rows_at)(&gradient, 0, s0), (REAL *)walk->scratch);
    }
}
