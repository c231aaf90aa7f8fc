/* SPDX-License-Identifier: Apache-2.0
 *
 * Views that no row of the conformance table has: arrays of one problem walked in different
 * directions, one block for all steps, one right side for all samples, one for all steps.
 */
#include "support/backend.h"
#include "support/check.h"
#include "support/numbers.h"
#include "support/recurrence_reference.h"
#include "support/recurrence_run.h"

#include <stdlib.h>

enum { L = 37, B = 6 };

typedef struct view {
    const char *name;
    void (*change)(recurrence_case *c);
} view;

/* Step l of an array becomes step L - 1 - l. */
static void turn(const recurrence_case *c, image *m, void **data, int64_t *step) {
    const int64_t size = (int64_t)number_size(c->problem.dtype);
    m->origin = (size_t)((int64_t)m->origin + (L - 1) * *step * size);
    *data = m->bytes + m->origin;
    *step = -*step;
}

static void turn_blocks(recurrence_case *c) {
    turn(c, &c->A, &c->problem.A.data, &c->problem.A.step);
}

static void turn_inputs(recurrence_case *c) {
    turn(c, &c->b, &c->problem.b.data, &c->problem.b.step);
}

static void turn_result(recurrence_case *c) {
    turn(c, &c->x, &c->problem.x.data, &c->problem.x.step);
}

static void one_block(recurrence_case *c) {
    c->problem.A.step = 0;
}

static void one_input_a_step(recurrence_case *c) {
    c->problem.b.sample = 0;
}

static void one_input_a_sample(recurrence_case *c) {
    c->problem.b.step = 0;
}

static const view views[] = {
    {"blocks reversed", turn_blocks},
    {"right side reversed", turn_inputs},
    {"result reversed", turn_result},
    {"one block for all steps", one_block},
    {"one right side for all samples", one_input_a_step},
    {"one right side for all steps", one_input_a_sample},
};

/* The reference reads the same strides. */
static void check_view(const recurrence_row *row, dpcr_dtype dtype, const view *v, const backend *at) {
    char text[200];
    recurrence_case c = recurrence_case_create(row, dtype);
    v->change(&c);
    recurrence_row_text(row, text, sizeof text);
    check_context("%s: %s, %s, %s", v->name, text, number_name(dtype), at->name);
    double *x = allocate((size_t)(L * B * row->w) * sizeof(double)), *size = allocate(L * B * sizeof(double));
    reference_recurrence(&c.problem, x);
    reference_recurrence_size(&c.problem, c.norm, size);
    recurrence_run run = recurrence_run_create(&c, at, MODE_POOL, (dpcr_plan){.segments = row->S});
    CHECK(run.status == DPCR_OK && run.intact, "%s", dpcr_detail());
    for (int64_t k = 0; k < L * B * row->w; k++) {
        const int64_t l = k / (B * row->w), s = k / row->w % B, i = k % row->w;
        const double value =
            number_get(dtype, run.x.bytes + run.x.origin, vectors_index(&c.problem.x, l, s, i));
        CHECK_WITHIN(fabs(value - x[k]), recurrence_error_bound(&c.problem, size[l * B + s]),
                     "step %d sample %d", (int)l, (int)s);
    }
    recurrence_run_destroy(&run);
    recurrence_case_destroy(&c);
    free(x);
    free(size);
}

int main(void) {
    static const int64_t segments[] = {1, 5, L}, widths[] = {1, 4, 17};
    int count;
    const backend *list = backends(&count);
    for (int k = 0; k < 4 * 2 * 2 * 9; k++) {
        const bool transposed = k / 2 % 2;
        /* with x0, and one-block views without a poisoned A_1 only: a transposed row has A_1 poisoned */
        const recurrence_row row = {.block = (dpcr_block)(k / 4 % 4),
                                    .shared = k % 2,
                                    .transposed = transposed,
                                    .start = !transposed,
                                    .L = L,
                                    .B = B,
                                    .w = widths[k / 16 % 3],
                                    .S = segments[k / 48 % 3],
                                    .spectrum = CONTRACTING,
                                    .layout = k % 5,
                                    .seed = (uint64_t)k};
        for (size_t v = 0; v < sizeof views / sizeof views[0]; v++)
            for (int d = 0; d < count; d++)
                if (list[d].device
                    && !(transposed && (views[v].change == one_block || views[v].change == turn_blocks)))
                    check_view(&row, v % 2 ? DPCR_F64 : DPCR_F32, &views[v], &list[d]);
    }
    return check_finish();
}
