/* SPDX-License-Identifier: Apache-2.0
 *
 * Conformance of dpcr_recurrence_backward: every forward row of the table on every backend, in f32 and
 * f64, against the reference in double; gradients that are not wanted change no bit of the others; the
 * same bits in every mode; a workspace cap tiles the adjoint solve and changes nothing.
 */
#include "support/backend.h"
#include "support/check.h"
#include "support/numbers.h"
#include "support/recurrence_reference.h"
#include "support/recurrence_run.h"
#include "support/reduced.h"

#include <stdlib.h>

/* The oracle of one row: reference solution and gradients, and how large they could be. */
typedef struct oracle {
    double *x, *x_size, *y_size;
    reference_gradients g;
    image incoming; /* in the layout of b */
} oracle;

static double *doubles(int64_t count) {
    return allocate((size_t)count * sizeof(double));
}

/* The incoming gradient is the right side of another case with the row's shape and layout. */
static oracle oracle_create(const recurrence_case *c) {
    const dpcr_recurrence *p = &c->problem;
    recurrence_row other = c->row;
    other.seed++;
    recurrence_case incoming = recurrence_case_create(&other, p->dtype);
    oracle o = {
        .x = doubles(p->L * p->B * p->w), .x_size = doubles(p->L * p->B), .y_size = doubles(p->L * p->B)};
    o.g.y = doubles(p->L * p->B * p->w);
    o.g.A = doubles(p->L * (c->row.summed ? 1 : p->B) * block_elements(p));
    o.g.summed = c->row.summed;
    o.g.x0 = doubles(p->B * p->w);
    reference_recurrence(p, o.x);
    reference_recurrence_size(p, c->norm, o.x_size);
    if (!c->row.start) {
        free(o.g.x0);
        o.g.x0 = NULL;
    }
    reference_recurrence_gradients(p, o.x, &incoming.problem.b, o.g);
    dpcr_recurrence adjoint = incoming.problem;
    adjoint.transposed = true;
    adjoint.x0.data = NULL;
    reference_recurrence_size(&adjoint, c->norm, o.y_size);
    o.incoming = incoming.b;
    incoming.b.bytes = NULL;
    recurrence_case_destroy(&incoming);
    return o;
}

static void oracle_destroy(oracle *o) {
    free(o->x);
    free(o->x_size);
    free(o->y_size);
    free(o->g.y);
    free(o->g.A);
    free(o->g.x0);
    free(o->incoming.bytes);
}

static void check_b(const recurrence_case *c, const gradient_run *run, const oracle *o) {
    const dpcr_recurrence *p = &c->problem;
    dpcr_vectors y = run->b_view;
    y.data = run->b.bytes + run->b.origin;
    for (int64_t l = 0; l < p->L; l++)
        for (int64_t s = 0; s < p->B; s++) {
            double error = 0;
            for (int64_t i = 0; i < p->w; i++) {
                const double gap =
                    reference_vector(p->dtype, &y, l, s, i) - o->g.y[(l * p->B + s) * p->w + i];
                error += gap * gap;
            }
            CHECK_WITHIN(sqrt(error), recurrence_error_bound(p, o->y_size[l * p->B + s]),
                         "gb, step %d sample %d", (int)l, (int)s);
        }
}

static void check_x0(const recurrence_case *c, const gradient_run *run, const oracle *o) {
    const dpcr_recurrence *p = &c->problem;
    dpcr_vectors g = run->x0_view;
    g.data = run->x0.bytes + run->x0.origin;
    for (int64_t s = 0; s < p->B && c->row.start; s++) {
        double error = 0;
        for (int64_t i = 0; i < p->w; i++) {
            const double gap = reference_vector(p->dtype, &g, 0, s, i) - o->g.x0[s * p->w + i];
            error += gap * gap;
        }
        const double size = p->L > 0 ? c->norm * o->y_size[s] : 0;
        CHECK_WITHIN(sqrt(error), recurrence_error_bound(p, size), "gx0, sample %d", (int)s);
    }
}

/* |x_{l-1}|, or |x0|, or 0 */
static double size_before(const recurrence_case *c, const oracle *o, int64_t l, int64_t s) {
    const dpcr_recurrence *p = &c->problem;
    double square = 0;
    if (l > 0) return o->x_size[(l - 1) * p->B + s];
    for (int64_t i = 0; i < p->w && p->x0.data; i++) {
        const double element = reference_vector(p->dtype, &p->x0, 0, s, i);
        square += element * element;
    }
    return sqrt(square);
}

/* One block of gA, s = 0 where it is the sum: both factors of every sample are off by their bounds. */
static void check_block(const recurrence_case *c, const gradient_run *run, const oracle *o, int64_t l,
                        int64_t s) {
    const dpcr_recurrence *p = &c->problem;
    const int64_t elements = block_elements(p), last = c->row.summed ? p->B : s + 1;
    const double *reference = o->g.A + (l * block_samples(p, &run->A_view) + s) * elements;
    const void *gA = run->A.bytes + run->A.origin;
    double bound = 0, error = 0;
    for (int64_t sample = s; sample < last; sample++)
        bound += 2 * recurrence_error_bound(p, o->y_size[l * p->B + sample]) * size_before(c, o, l, sample);
    for (int64_t k = 0; k < elements; k++) {
        const double gap = number_get(p->dtype, gA, block_index(p, &run->A_view, l, s, k)) - reference[k];
        error += gap * gap;
    }
    CHECK_WITHIN(sqrt(error), bound, "gA, step %d sample %d", (int)l, (int)s);
}

static void check_A(const recurrence_case *c, const gradient_run *run, const oracle *o) {
    for (int64_t l = 0; l < c->row.L && c->row.block != DPCR_IDENTITY; l++)
        for (int64_t s = 0; s < block_samples(&c->problem, &run->A_view); s++) check_block(c, run, o, l, s);
}

/* Once with every gradient, then without each: those that stay keep their bits, the others stay blank. */
static void check_wanted(const recurrence_case *c, const backend *at, const oracle *o, const image *x,
                         const gradient_run *all) {
    const int most = c->row.start ? WANT_A | WANT_X0 : WANT_A;
    for (int want = 0; want < most; want++) {
        gradient_run run = gradient_run_create(c, x, &o->incoming, want & most, at, MODE_POOL,
                                               (dpcr_plan){.segments = c->row.S});
        CHECK(run.status == DPCR_OK && run.intact, "want %d: %s", want, dpcr_detail());
        CHECK(images_equal(&run.b, &all->b), "want %d changes gb", want);
        CHECK(want & WANT_A ? images_equal(&run.A, &all->A) : image_blank(&run.A), "want %d: gA", want);
        CHECK(want & most & WANT_X0 ? images_equal(&run.x0, &all->x0) : image_blank(&run.x0), "want %d: gx0",
              want);
        gradient_run_destroy(&run);
    }
}

/* Another mode or a workspace cap (0: none): the same bits.  A cap that one sample does not fit is
 * refused; test_recurrence_properties.c knows when that is right. */
static void check_same(const recurrence_case *c, const backend *at, mode m, size_t cap, const oracle *o,
                       const image *x, const gradient_run *all) {
    if (reduced_skips()) return;
    const int want = WANT_A | (c->row.start ? WANT_X0 : 0);
    const dpcr_plan plan = {.segments = c->row.S, .workspace_cap = cap};
    gradient_run run = gradient_run_create(c, x, &o->incoming, want, at, m, plan);
    if (cap == 0 || run.status != DPCR_BAD_ARGUMENT) {
        CHECK(run.status == DPCR_OK, "%s, cap %zu: %d %s", mode_name(m), cap, (int)run.status, dpcr_detail());
        CHECK(run.intact, "%s, cap %zu: bytes outside the gradients were written", mode_name(m), cap);
        CHECK(images_equal(&run.b, &all->b), "%s, cap %zu: other bits of gb", mode_name(m), cap);
        CHECK(images_equal(&run.A, &all->A), "%s, cap %zu: other bits of gA", mode_name(m), cap);
        CHECK(images_equal(&run.x0, &all->x0), "%s, cap %zu: other bits of gx0", mode_name(m), cap);
    }
    gradient_run_destroy(&run);
}

static void check_on(const recurrence_case *c, const backend *at, const oracle *o) {
    char text[200];
    recurrence_row_text(&c->row, text, sizeof text);
    check_context("%s, %s, %s", text, number_name(c->problem.dtype), at->name);
    const dpcr_plan plan = {.segments = c->row.S};
    recurrence_run solved = recurrence_run_create(c, at, MODE_ALONE, plan);
    const int want = WANT_A | (c->row.start ? WANT_X0 : 0);
    gradient_run all = gradient_run_create(c, &solved.x, &o->incoming, want, at, MODE_ALONE, plan);
    CHECK(all.status == DPCR_OK, "%d: %s", (int)all.status, dpcr_detail());
    CHECK(all.intact, "bytes outside the gradients were written");
    check_b(c, &all, o);
    check_A(c, &all, o);
    check_x0(c, &all, o);
    check_wanted(c, at, o, &solved.x, &all);
    check_same(c, at, MODE_SHUFFLED, 0, o, &solved.x, &all);
    check_same(c, at, MODE_POOL, 0, o, &solved.x, &all);
    check_same(c, at, MODE_ALONE, all.bytes / 2, o, &solved.x, &all);
    check_same(c, at, MODE_POOL, all.bytes / 3, o, &solved.x, &all);
    gradient_run_destroy(&all);
    recurrence_run_destroy(&solved);
}

static void check_row(const recurrence_row *row, dpcr_dtype dtype) {
    int devices;
    const backend *list = backends(&devices);
    recurrence_case c = recurrence_case_create(row, dtype);
    oracle o = oracle_create(&c);
    for (int d = 0; d < devices; d++)
        if (list[d].device) check_on(&c, &list[d], &o);
    oracle_destroy(&o);
    recurrence_case_destroy(&c);
}

int main(void) {
    int rows;
    recurrence_row *table = recurrence_rows(&rows);
    for (int r = 0; r < rows; r++) {
        table[r].layout &= ~IN_PLACE;
        if (table[r].transposed) continue;
        check_row(&table[r], DPCR_F32);
        check_row(&table[r], DPCR_F64);
    }
    free(table);
    return check_finish();
}
