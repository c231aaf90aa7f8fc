/* SPDX-License-Identifier: Apache-2.0
 *
 * Conformance of dpcr_recurrence_solve: every row of the table on every backend, in f32 and f64, on
 * one thread and on three.  Against the reference in double, against the definition itself, and
 * against the contract (workspace, guards, levels, flags, bits).
 */
#include "support/backend.h"
#include "support/check.h"
#include "support/numbers.h"
#include "support/recurrence_reference.h"
#include "support/recurrence_run.h"
#include "support/reduced.h"

#include <stdlib.h>

static double solved(const recurrence_case *c, const recurrence_run *run, int64_t l, int64_t s, int64_t i) {
    dpcr_vectors x = c->problem.x;
    x.data = run->x.bytes + run->x.origin;
    return reference_vector(c->problem.dtype, &x, l, s, i);
}

static void check_error(const recurrence_case *c, const recurrence_run *run, const double *reference,
                        const double *size) {
    const dpcr_recurrence *p = &c->problem;
    for (int64_t l = 0; l < p->L; l++) {
        for (int64_t s = 0; s < p->B; s++) {
            double error = 0;
            for (int64_t i = 0; i < p->w; i++) {
                const double gap = solved(c, run, l, s, i) - reference[(l * p->B + s) * p->w + i];
                error += gap * gap;
            }
            CHECK_WITHIN(sqrt(error), recurrence_error_bound(p, size[l * p->B + s]), "step %d sample %d",
                         (int)l, (int)s);
        }
    }
}

/* One step of the definition, from the computed neighbour: |x_l - A_l x_{l-1} - b_l| against the
 * rounding of that one step, (w + 2) u (|A_l| |x_{l-1}| + |b_l|). */
static bool step_holds(const recurrence_case *c, const recurrence_run *run, int64_t l, int64_t s) {
    const dpcr_recurrence *p = &c->problem;
    const int64_t from = p->transposed ? l + 1 : l - 1, block = p->transposed ? l + 1 : l;
    const bool start = !p->transposed && l == 0,
               alone = p->transposed ? l + 1 == p->L : l == 0 && p->x0.data == NULL;
    for (int64_t i = 0; i < p->w; i++) {
        double sum = reference_vector(p->dtype, &p->b, l, s, i), size = fabs(sum);
        for (int64_t j = 0; j < p->w && !alone; j++) {
            if (p->block == DPCR_DENSE || i == j) {
                const double A =
                    p->transposed ? reference_block(p, block, s, j, i) : reference_block(p, block, s, i, j);
                const double term =
                    A * (start ? reference_vector(p->dtype, &p->x0, 0, s, j) : solved(c, run, from, s, j));
                sum += term;
                size += fabs(term);
            }
        }
        if (!(fabs(solved(c, run, l, s, i) - sum) <= (double)(p->w + 2) * unit_roundoff(p->dtype) * size)) {
            return false;
        }
    }
    return true;
}

/* Inside a segment every step holds to its own rounding; only where segments meet may it not. */
static void check_definition(const recurrence_case *c, const recurrence_run *run) {
    for (int64_t s = 0; s < c->row.B; s++) {
        int64_t broken = 0;
        for (int64_t l = 0; l < c->row.L; l++) {
            broken += !step_holds(c, run, l, s);
        }
        CHECK(broken <= c->row.S - 1, "%d steps of sample %d are off", (int)broken, (int)s);
    }
}

static int64_t levels_of(const recurrence_row *row) {
    int64_t levels = 0;
    while (row->L * row->B * row->w > 0 && (INT64_C(1) << levels) < row->S) {
        levels++;
    }
    return levels;
}

static void check_contract(const recurrence_case *c, const recurrence_run *run) {
    CHECK(run->status == DPCR_OK, "%d: %s", (int)run->status, dpcr_detail());
    CHECK(run->short_status == DPCR_SMALL_WORKSPACE, "%d with one byte less than %zu", (int)run->short_status,
          run->bytes);
    CHECK(run->intact, "bytes outside x were written");
    CHECK(run->levels == levels_of(&c->row), "%d levels", (int)run->levels);
    int64_t flagged = 0;
    for (int64_t s = 0; s < c->row.B; s++) {
        CHECK(run->recomputed[s] == 0 || run->recomputed[s] == 1, "flag %d", (int)run->recomputed[s]);
        flagged += run->recomputed[s];
    }
    CHECK(flagged <= false_alarms(&c->row), "%d healthy samples are flagged", (int)flagged);
}

static void check_on(const recurrence_case *c, const backend *at, const double *reference,
                     const double *size) {
    char text[200];
    recurrence_row_text(&c->row, text, sizeof text);
    const dpcr_plan plan = {.segments = c->row.S};
    recurrence_run alone = recurrence_run_create(c, at, MODE_ALONE, plan);
    check_context("%s, %s, %s", text, number_name(c->problem.dtype), at->name);
    check_contract(c, &alone);
    check_error(c, &alone, reference, size);
    check_definition(c, &alone);
    for (mode m = MODE_SHUFFLED; m < MODES; m++) {
        if (reduced_skips()) continue;
        recurrence_run other = recurrence_run_create(c, at, m, plan);
        check_context("%s, %s, %s, %s", text, number_name(c->problem.dtype), at->name, mode_name(m));
        check_contract(c, &other);
        CHECK(images_equal(&other.x, &alone.x), "other bits than on one thread");
        recurrence_run_destroy(&other);
    }
    recurrence_run_destroy(&alone);
}

static void check_row(const recurrence_row *row, dpcr_dtype dtype) {
    int devices;
    const backend *list = backends(&devices);
    recurrence_case c = recurrence_case_create(row, dtype);
    const size_t steps = (size_t)(row->L * row->B);
    double *x = allocate(steps * (size_t)row->w * sizeof(double)), *size = allocate(steps * sizeof(double));
    reference_recurrence(&c.problem, x);
    reference_recurrence_size(&c.problem, c.norm, size);
    for (int d = 0; d < devices; d++) {
        if (list[d].device != NULL) {
            check_on(&c, &list[d], x, size);
        }
    }
    free(x);
    free(size);
    recurrence_case_destroy(&c);
}

int main(void) {
    int rows;
    recurrence_row *table = recurrence_rows(&rows);
    for (int r = 0; r < rows; r++) {
        check_row(&table[r], DPCR_F32);
        check_row(&table[r], DPCR_F64);
    }
    free(table);
    return check_finish();
}
