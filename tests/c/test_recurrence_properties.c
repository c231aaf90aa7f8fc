/* SPDX-License-Identifier: Apache-2.0
 *
 * What the recurrence is, without an oracle: exact where the arithmetic is exact, linear, causal, the
 * transposed problem its adjoint, and the same bits however the workspace cap tiles the batch.
 */
#include "support/backend.h"
#include "support/check.h"
#include "support/numbers.h"
#include "support/recurrence_reference.h"
#include "support/recurrence_run.h"
#include "support/reduced.h"
#include "support/rng.h"

#include <stdlib.h>

/* ---- the arrays of a case, element by element ------------------------------------------------ */

static double get(const recurrence_case *c, const dpcr_vectors *view, int64_t l, int64_t s, int64_t i) {
    return reference_vector(c->problem.dtype, view, l, s, i);
}

static void set(const recurrence_case *c, const dpcr_vectors *view, int64_t l, int64_t s, int64_t i,
                double value) {
    number_set(c->problem.dtype, view->data, vectors_index(view, l, s, i), value);
}

static dpcr_vectors result(const recurrence_case *c, const recurrence_run *run) {
    dpcr_vectors x = c->problem.x;
    x.data = run->x.bytes + run->x.origin;
    return x;
}

static recurrence_run solve(const recurrence_case *c, const backend *at, int64_t S) {
    recurrence_run run = recurrence_run_create(c, at, MODE_ALONE, (dpcr_plan){.segments = S});
    CHECK(run.status == DPCR_OK && run.intact, "%s", dpcr_detail());
    return run;
}

/* A row of this file: the rest by chance. */
static recurrence_row row_of(dpcr_block block, bool transposed, int64_t L, int64_t S, uint64_t seed) {
    static const int64_t widths[] = {1, 2, 3, 5, 8, 16, 17, 33};
    rng random = {seed};
    return (recurrence_row){
        .block = block,
        .transposed = transposed,
        .start = !transposed && rng_below(&random, 2),
        .shared = rng_below(&random, 2),
        .L = L,
        .B = 1 + rng_below(&random, 40),
        .w = widths[rng_below(&random, 8)],
        .S = S,
        .spectrum = ORTHOGONAL,
        .layout = (int)rng_below(&random, IN_PLACE),
        .mix = seed % 2 ? seed : 0,
        .seed = seed,
    };
}

static void context(const recurrence_case *c, const backend *at, const char *property) {
    char text[200];
    recurrence_row_text(&c->row, text, sizeof text);
    check_context("%s: %s, %s, %s", property, text, number_name(c->problem.dtype), at->name);
}

/* ---- exact arithmetic ----------------------------------------------------------------------- */

/* Block (l, s) becomes +-1: a signed permutation of the basis where it is dense. */
static void sign_block(const recurrence_case *c, int64_t l, int64_t s, rng *random) {
    const dpcr_recurrence *p = &c->problem;
    const int64_t turn = rng_below(random, p->w);
    for (int64_t k = 0; k < block_elements(p); k++) {
        const bool off = p->block == DPCR_DENSE && k % p->w != (k / p->w + turn) % p->w;
        const double sign = rng_below(random, 2) ? 1 : -1;
        number_set(p->dtype, p->A.data, block_index(p, &p->A, l, s, k), off ? 0 : sign);
    }
}

/* Small integers everywhere: every sum and product of any order is an integer below 2^24. */
static void make_exact(const recurrence_case *c, uint64_t seed) {
    const dpcr_recurrence *p = &c->problem;
    rng random = {seed};
    for (int64_t l = p->x0.data == NULL; l < p->L; l++)
        for (int64_t s = 0; s < block_samples(p, &p->A); s++) sign_block(c, l, s, &random);
    for (int64_t s = 0; s < p->B; s++)
        for (int64_t i = 0; i < p->w; i++) {
            for (int64_t l = 0; l < p->L; l++) set(c, &p->b, l, s, i, (double)rng_below(&random, 9) - 4);
            if (p->x0.data) set(c, &p->x0, 0, s, i, (double)rng_below(&random, 9) - 4);
        }
}

/* Every S gives the numbers of the loop in double, to the last bit. */
static void check_exact(const recurrence_case *c, const backend *at) {
    const dpcr_recurrence *p = &c->problem;
    double *x = allocate((size_t)(p->L * p->B * p->w) * sizeof(double));
    reference_recurrence(p, x);
    recurrence_run run = solve(c, at, c->row.S);
    const dpcr_vectors solved = result(c, &run);
    int64_t wrong = 0;
    for (int64_t k = 0; k < p->L * p->B * p->w; k++)
        wrong += get(c, &solved, k / (p->B * p->w), k / p->w % p->B, k % p->w) != x[k];
    CHECK(wrong == 0, "%d elements are not exact", (int)wrong);
    recurrence_run_destroy(&run);
    free(x);
}

/* ---- linearity ------------------------------------------------------------------------------ */

/* factor * (b, x0) in place */
static void scale_inputs(const recurrence_case *c, double factor) {
    const dpcr_recurrence *p = &c->problem;
    for (int64_t s = 0; s < p->B; s++)
        for (int64_t i = 0; i < p->w; i++) {
            for (int64_t l = 0; l < p->L; l++) set(c, &p->b, l, s, i, factor * get(c, &p->b, l, s, i));
            if (p->x0.data) set(c, &p->x0, 0, s, i, factor * get(c, &p->x0, 0, s, i));
        }
}

/* (b, x0) + (b, x0) of another case of the same shape, in place */
static void add_inputs(const recurrence_case *c, const recurrence_case *other) {
    const dpcr_recurrence *p = &c->problem, *q = &other->problem;
    for (int64_t s = 0; s < p->B; s++)
        for (int64_t i = 0; i < p->w; i++) {
            for (int64_t l = 0; l < p->L; l++)
                set(c, &p->b, l, s, i, get(c, &p->b, l, s, i) + get(other, &q->b, l, s, i));
            if (p->x0.data) set(c, &p->x0, 0, s, i, get(c, &p->x0, 0, s, i) + get(other, &q->x0, 0, s, i));
        }
}

/* S(4 b) = 4 S(b) bit for bit on any blocks: scaling by a power of two commutes with rounding. */
static void check_scaling(const recurrence_case *c, const backend *at) {
    recurrence_run once = solve(c, at, c->row.S);
    scale_inputs(c, 4);
    recurrence_run four = solve(c, at, c->row.S);
    scale_inputs(c, 0.25);
    const dpcr_vectors x1 = result(c, &once), x4 = result(c, &four);
    int64_t wrong = 0;
    for (int64_t k = 0; k < c->row.L * c->row.B * c->row.w; k++) {
        const int64_t l = k / (c->row.B * c->row.w), s = k / c->row.w % c->row.B, i = k % c->row.w;
        wrong += get(c, &x4, l, s, i) != 4 * get(c, &x1, l, s, i);
    }
    CHECK(wrong == 0, "%d elements of S(4b) are not 4 S(b)", (int)wrong);
    recurrence_run_destroy(&once);
    recurrence_run_destroy(&four);
}

/* S(b + b') = S(b) + S(b') where all is exact */
static void check_additivity(const recurrence_case *c, const backend *at) {
    recurrence_case other = recurrence_case_create(&c->row, c->problem.dtype),
                    sum = recurrence_case_create(&c->row, c->problem.dtype);
    make_exact(&other, c->row.seed + 1);
    memcpy(other.A.bytes, c->A.bytes, c->A.size);
    memcpy(sum.A.bytes, c->A.bytes, c->A.size);
    memcpy(sum.b.bytes, c->b.bytes, c->b.size);
    memcpy(sum.x0.bytes, c->x0.bytes, c->x0.size);
    add_inputs(&sum, &other);
    recurrence_run one = solve(c, at, c->row.S), two = solve(&other, at, c->row.S),
                   both = solve(&sum, at, c->row.S);
    const dpcr_vectors x1 = result(c, &one), x2 = result(&other, &two), x3 = result(&sum, &both);
    int64_t wrong = 0;
    for (int64_t k = 0; k < c->row.L * c->row.B * c->row.w; k++) {
        const int64_t l = k / (c->row.B * c->row.w), s = k / c->row.w % c->row.B, i = k % c->row.w;
        wrong += get(c, &x3, l, s, i) != get(c, &x1, l, s, i) + get(c, &x2, l, s, i);
    }
    CHECK(wrong == 0, "%d elements of S(b + b') are not S(b) + S(b')", (int)wrong);
    recurrence_run_destroy(&one);
    recurrence_run_destroy(&two);
    recurrence_run_destroy(&both);
    recurrence_case_destroy(&other);
    recurrence_case_destroy(&sum);
}

/* ---- causality ------------------------------------------------------------------------------ */

/* A change of b at step l of sample s moves that state and no earlier one (later, if transposed) and
 * no other sample. */
static void check_causality(const recurrence_case *c, const backend *at, int64_t l, int64_t s) {
    const dpcr_recurrence *p = &c->problem;
    recurrence_run before = solve(c, at, c->row.S);
    const double was = get(c, &p->b, l, s, 0);
    set(c, &p->b, l, s, 0, was + 8);
    recurrence_run after = solve(c, at, c->row.S);
    set(c, &p->b, l, s, 0, was);
    const dpcr_vectors x = result(c, &before), y = result(c, &after);
    int64_t leaked = 0;
    for (int64_t k = 0; k < p->L * p->B * p->w; k++) {
        const int64_t at_l = k / (p->B * p->w), at_s = k / p->w % p->B, i = k % p->w;
        const bool reached = at_s == s && (p->transposed ? at_l <= l : at_l >= l);
        leaked += !reached && get(c, &x, at_l, at_s, i) != get(c, &y, at_l, at_s, i);
    }
    CHECK(leaked == 0, "%d elements moved by step %d of sample %d", (int)leaked, (int)l, (int)s);
    CHECK(get(c, &x, l, s, 0) != get(c, &y, l, s, 0), "step %d of sample %d did not move its own state",
          (int)l, (int)s);
    recurrence_run_destroy(&before);
    recurrence_run_destroy(&after);
}

/* ---- adjoint -------------------------------------------------------------------------------- */

/* <b of one, x of the other> and how far off it may be */
static double inner(const recurrence_case *c, const dpcr_vectors *b, const dpcr_vectors *x,
                    const double *size, double *slack) {
    double sum = 0;
    for (int64_t l = 0; l < c->row.L; l++)
        for (int64_t s = 0; s < c->row.B; s++) {
            double square = 0;
            for (int64_t i = 0; i < c->row.w; i++) {
                sum += get(c, b, l, s, i) * get(c, x, l, s, i);
                square += get(c, b, l, s, i) * get(c, b, l, s, i);
            }
            *slack += sqrt(square) * recurrence_error_bound(&c->problem, size[l * c->row.B + s]);
        }
    return sum;
}

/* <c, S b> = <S^T c, b>: the transposed case has the blocks of c and a right side of its own. */
static void check_adjoint(const recurrence_case *c, const backend *at) {
    recurrence_row turned = c->row;
    turned.transposed = true;
    turned.start = false;
    turned.seed++;
    recurrence_case t = recurrence_case_create(&turned, c->problem.dtype);
    memcpy(t.A.bytes, c->A.bytes, c->A.size);
    double *size = allocate((size_t)(c->row.L * c->row.B) * sizeof(double)), slack = 0;
    recurrence_run forward = solve(c, at, c->row.S), adjoint = solve(&t, at, c->row.S);
    const dpcr_vectors x = result(c, &forward), y = result(&t, &adjoint);
    reference_recurrence_size(&c->problem, c->norm, size);
    const double left = inner(c, &t.problem.b, &x, size, &slack);
    reference_recurrence_size(&t.problem, t.norm, size);
    const double right = inner(&t, &c->problem.b, &y, size, &slack);
    CHECK_WITHIN(fabs(left - right), slack, "<c, S b> = %.17g, <S^T c, b> = %.17g", left, right);
    free(size);
    recurrence_run_destroy(&forward);
    recurrence_run_destroy(&adjoint);
    recurrence_case_destroy(&t);
}

/* ---- workspace cap -------------------------------------------------------------------------- */

/* Bytes that one sample needs, which is what the smallest cap must allow. */
static size_t one_sample(const recurrence_case *c, dpcr_exec exec) {
    dpcr_recurrence one = c->problem;
    const dpcr_plan plan = {.segments = c->row.S};
    size_t bytes = 0;
    one.B = 1;
    CHECK(dpcr_recurrence_workspace(exec, &one, &plan, &bytes) == DPCR_OK, "%s", dpcr_detail());
    return bytes;
}

static void check_cap(const recurrence_case *c, const recurrence_run *whole, const backend *at, mode m,
                      size_t cap) {
    const size_t least = one_sample(c, backend_exec(at, m));
    recurrence_run tiled =
        recurrence_run_create(c, at, m, (dpcr_plan){.segments = c->row.S, .workspace_cap = cap});
    if (tiled.status == DPCR_OK) {
        CHECK(tiled.bytes <= cap, "%zu bytes, cap %zu", tiled.bytes, cap);
        CHECK(tiled.intact && images_equal(&tiled.x, &whole->x), "cap %zu of %zu changes x", cap,
              whole->bytes);
        CHECK(tiled.levels == whole->levels, "%d levels", (int)tiled.levels);
    } else {
        CHECK(tiled.status == DPCR_BAD_ARGUMENT, "%d", (int)tiled.status);
        CHECK(strstr(dpcr_detail(), "workspace_cap"), "%s", dpcr_detail());
        CHECK(cap < least, "a cap of %zu is refused, one sample needs %zu", cap, least);
    }
    recurrence_run_destroy(&tiled);
}

static void check_tiling(const recurrence_case *c, const backend *at) {
    recurrence_run whole = solve(c, at, c->row.S);
    const size_t caps[] = {whole.bytes,
                           whole.bytes - 1,
                           whole.bytes / 2,
                           whole.bytes / 5,
                           one_sample(c, backend_exec(at, MODE_ALONE)),
                           1};
    for (size_t k = 0; k < sizeof caps / sizeof caps[0] && whole.bytes > 0; k++) {
        check_cap(c, &whole, at, MODE_ALONE, caps[k]);
        check_cap(c, &whole, at, MODE_POOL, caps[k]);
    }
    recurrence_run_destroy(&whole);
}

/* ---- all of it ------------------------------------------------------------------------------ */

static void check_exactness(const recurrence_row *row, dpcr_dtype dtype, const backend *at) {
    recurrence_case c = recurrence_case_create(row, dtype);
    make_exact(&c, row->seed);
    context(&c, at, "exact arithmetic");
    check_exact(&c, at);
    context(&c, at, "additivity");
    check_additivity(&c, at);
    recurrence_case_destroy(&c);
}

static void check_properties(const recurrence_row *row, dpcr_dtype dtype, const backend *at) {
    recurrence_case c = recurrence_case_create(row, dtype);
    context(&c, at, "scaling");
    check_scaling(&c, at);
    context(&c, at, "causality");
    check_causality(&c, at, 0, row->B - 1);
    check_causality(&c, at, row->L / 2, 0);
    check_causality(&c, at, row->L - 1, row->B / 2);
    context(&c, at, "tiling");
    check_tiling(&c, at);
    recurrence_case_destroy(&c);
    if (row->transposed || row->start) return; /* of the homogeneous problem */
    c = recurrence_case_create(row, dtype);
    context(&c, at, "adjoint");
    check_adjoint(&c, at);
    recurrence_case_destroy(&c);
}

static void check_block(dpcr_block block, bool transposed, const backend *at) {
    static const int64_t lengths[] = {1, 2, 3, 31, 33, 128};
    for (size_t k = 0; k < sizeof lengths / sizeof lengths[0]; k += REDUCED ? 2 : 1) {
        const int64_t L = lengths[k], segments[] = {1, 2, 3, 7, L / 2, L - 1, L};
        for (size_t j = 0; j < sizeof segments / sizeof segments[0]; j++) {
            if (segments[j] < 1 || segments[j] > L) continue;
            const recurrence_row row = row_of(block, transposed, L, segments[j], 100 * k + j);
            const dpcr_dtype dtype = j % 2 ? DPCR_F64 : DPCR_F32;
            check_exactness(&row, dtype, at);
            check_properties(&row, dtype, at);
        }
    }
}

/* Where a group of samples ends moves with the tile: short chains of many shapes. */
static void check_tiles(dpcr_block block, bool transposed, const backend *at) {
    for (uint64_t seed = 1000; seed < (REDUCED ? 1005 : 1040); seed++) {
        rng random = {seed};
        const int64_t L = 1 + rng_below(&random, 12), S = 1 + rng_below(&random, L);
        recurrence_row row = row_of(block, transposed, L, S, seed);
        row.shared = seed % 3;
        recurrence_case c = recurrence_case_create(&row, seed % 2 ? DPCR_F64 : DPCR_F32);
        context(&c, at, "tiling");
        check_tiling(&c, at);
        recurrence_case_destroy(&c);
    }
}

static void check_device(const backend *at) {
    for (int k = 0; k < 8; k++) {
        check_block((dpcr_block)(k / 2), k % 2, at);
        check_tiles((dpcr_block)(k / 2), k % 2, at);
    }
}

int main(void) {
    int count;
    const backend *list = backends(&count);
    for (int d = 0; d < count; d++)
        if (list[d].device) check_device(&list[d]);
    return check_finish();
}
