/* SPDX-License-Identifier: Apache-2.0
 *
 * dpcr_chain_backward over S segments: every row of Newton's table on every backend, in f32 and f64,
 * against the reference from the same states, relative to each step's own gradients; what was finished
 * sequentially, and whatever takes no sweeps, has the bits of S = 1; checkpoints give the bits of the
 * states they stand for; modes, caps, mates and gradients that nobody wants change nothing.
 */
#include "support/activation_reference.h"
#include "support/chain_check.h"
#include "support/check.h"
#include "support/newton_answer.h"
#include "support/newton_rows.h"
#include "support/numbers.h"
#include "support/reduced.h"
#include "support/rng.h"

#include <stdio.h>
#include <stdlib.h>

enum {
    TRIES = 40,
    GRADIENTS = WANT_Z0 | ((1 << DPCR_PARAMETERS) - 1),
    ALL = GRADIENTS | WANT_PULLBACK_REPORT
};

typedef struct subject {
    const newton_row *row;
    chain_case *c;
    numbers states, gz, gstates;
    bool end, every; /* gz is given, gstates is given */
    gradient_answer answer;
    const backend *at;
    dpcr_newton newton;
    pullback_run sequential, all;
} subject;

static pullback_run run_on(const subject *t, int64_t S, const dpcr_newton *newton, int want, mode m,
                           size_t cap) {
    const pullback_input in = {.states = t->states.data,
                               .gz = t->end ? t->gz.data : NULL,
                               .gstates = t->every ? t->gstates.data : NULL,
                               .newton = newton};
    return pullback_run_create(t->c, in, want, t->at, m, (dpcr_plan){.segments = S, .workspace_cap = cap});
}

static double reported(const pullback_run *run, int what, const subject *t, int64_t sample) {
    return report_get(&run->report, what, sample, t->c->row.B);
}

/* The gradients that a run was asked for have the bits of another. */
static void check_equal(const char *what, int want, const pullback_run *run, const pullback_run *other) {
    check_contract(run->status, run->short_status, run->intact);
    CHECK(!(want & WANT_Z0) || outputs_equal(&run->z0, &other->z0), "%s: gz0", what);
    for (int i = 0; i < DPCR_PARAMETERS; i++)
        CHECK(!(want >> i & 1) || outputs_equal(&run->parameter[i], &other->parameter[i]), "%s: %s", what,
              chain_parameter_names[i]);
    CHECK(!(want & WANT_PULLBACK_REPORT) || outputs_equal(&run->report, &other->report), "%s: report", what);
}

/* ---- what came out -------------------------------------------------------------------------- */

static void check_accuracy(const subject *t) {
    const gradient_answer *a = &t->answer;
    check_close("gz0", &t->all.z0, t->c->dtype, a->z0, &a->z0_bound, 1, t->c->row.B * t->c->row.w);
    for (int i = 0; i < DPCR_PARAMETERS; i++)
        if (a->parameter[i])
            check_close(chain_parameter_names[i], &t->all.parameter[i], t->c->dtype, a->parameter[i],
                        a->parameter_bound[i], chain_row_pieces(&t->c->row, i),
                        chain_row_size(&t->c->row, i));
}

static void check_verdicts(const subject *t) {
    const int64_t B = t->c->row.B;
    bool all_sequential = true, some_unconverged = false;
    for (int64_t s = 0; s < B; s++) {
        const double verdict = reported(&t->all, DPCR_VERDICT, t, s);
        CHECK(verdict == DPCR_CONVERGED || verdict == DPCR_SEQUENTIAL
                  || (verdict == DPCR_UNCONVERGED && !t->row->finish),
              "sample %d: verdict %g", (int)s, verdict);
        CHECK(verdict != DPCR_SEQUENTIAL || sample_equal(t->c, &t->all.z0, &t->sequential.z0, s, t->c->row.w),
              "sample %d: finished, but not in the bits of S = 1", (int)s);
        all_sequential = all_sequential && verdict == DPCR_SEQUENTIAL;
        some_unconverged = some_unconverged || verdict == DPCR_UNCONVERGED;
    }
    if (B > 0 && all_sequential) check_equal("all samples finished", GRADIENTS, &t->all, &t->sequential);
    if (!some_unconverged) check_accuracy(t);
}

/* ---- what changes nothing ------------------------------------------------------------------- */

static void check_same(const subject *t, int want, mode m, size_t cap) {
    if (reduced_skips()) return;
    char what[80];
    snprintf(what, sizeof what, "%s, want %#x, cap %zu", mode_name(m), (unsigned)want, cap);
    pullback_run run = run_on(t, t->row->S, &t->newton, want, m, cap);
    if (check_cap(run.status, run.bytes, cap, t->all.bytes)) check_equal(what, want, &run, &t->all);
    pullback_run_destroy(&run);
}

static void check_no_sweeps(const subject *t) {
    dpcr_newton newton = t->newton;
    newton.max_sweeps = 0;
    newton.finish = true;
    pullback_run run = run_on(t, t->row->S, &newton, GRADIENTS, MODE_ALONE, 0);
    check_equal("no sweeps", GRADIENTS, &run, &t->sequential);
    pullback_run_destroy(&run);
}

/* States of this backend and the checkpoints among them: the same gradients. */
static void check_checkpoints(const subject *t, int64_t S) {
    const int64_t L = t->c->row.L, state = t->c->row.B * t->c->row.w, C = dpcr_checkpoints(L, S);
    const size_t bytes = (size_t)state * number_size(t->c->dtype);
    const dpcr_plan plan = {.segments = S};
    forward_run own =
        forward_run_create(t->c, t->c->z0.data, WANT_STATES, t->at, MODE_ALONE, (dpcr_plan){.segments = 1});
    char *checkpoints = allocate((size_t)C * bytes), *from = own.states.data;
    for (int64_t c = 0; c < C; c++) {
        const int64_t first = segment_edge(c, L, C);
        memcpy(checkpoints + (size_t)c * bytes,
               first > 0 ? from + (size_t)(first - 1) * bytes : t->c->z0.data, bytes);
    }
    pullback_input in = {.states = own.states.data,
                         .gz = t->end ? t->gz.data : NULL,
                         .gstates = t->every ? t->gstates.data : NULL,
                         .newton = &t->newton};
    pullback_run kept = pullback_run_create(t->c, in, ALL, t->at, MODE_ALONE, plan);
    in.states = NULL;
    in.checkpoints = checkpoints;
    pullback_run again = pullback_run_create(t->c, in, ALL, t->at, MODE_POOL, plan);
    check_equal("from checkpoints", GRADIENTS, &again, &kept);
    for (int64_t s = 0; s < t->c->row.B; s++)
        CHECK(reported(&again, DPCR_VERDICT, t, s) == reported(&kept, DPCR_VERDICT, t, s),
              "S=%d: sample %d has another verdict from checkpoints", (int)S, (int)s);
    pullback_run_destroy(&kept);
    pullback_run_destroy(&again);
    forward_run_destroy(&own);
    free(checkpoints);
}

/* Incoming gradients of all samples but one become NaN, inf, huge or zero. */
static void check_mates(subject *t, int how) {
    const double values[] = {NAN, INFINITY, 1e30, 0};
    const int64_t B = t->c->row.B, w = t->c->row.w;
    rng random = {t->c->row.seed + 9};
    const int64_t sample = rng_below(&random, B);
    numbers gz = t->gz, gstates = t->gstates;
    t->gz = numbers_rounded(t->c->dtype, gz.count, gz.value);
    t->gstates = numbers_rounded(t->c->dtype, gstates.count, gstates.value);
    for (int64_t i = 0; i < gz.count; i++)
        if (i / w % B != sample) numbers_set(&t->gz, i, values[how]);
    for (int64_t i = 0; i < gstates.count; i++)
        if (i / w % B != sample) numbers_set(&t->gstates, i, values[how]);
    pullback_run run = run_on(t, t->row->S, &t->newton, ALL, MODE_ALONE, 0);
    CHECK(sample_equal(t->c, &run.z0, &t->all.z0, sample, w), "mates of %g change sample %d", values[how],
          (int)sample);
    for (int what = 0; what < DPCR_REPORT; what++) {
        const double now = reported(&run, what, t, sample), before = reported(&t->all, what, t, sample);
        CHECK(memcmp(&now, &before, sizeof now) == 0,
              "mates of %g change the report of sample %d, row %d: %g, was %g", values[how], (int)sample,
              what, now, before);
    }
    pullback_run_destroy(&run);
    numbers_destroy(&t->gz);
    numbers_destroy(&t->gstates);
    t->gz = gz;
    t->gstates = gstates;
}

static void check_on(subject *t, int turn) {
    const int64_t S = t->row->S;
    const bool any = t->c->row.L > 0 && t->c->row.B > 0 && t->c->row.w > 0;
    t->sequential = run_on(t, 1, &t->newton, ALL, MODE_ALONE, 0);
    t->all = run_on(t, S, &t->newton, ALL, MODE_ALONE, 0);
    check_contract(t->all.status, t->all.short_status, t->all.intact);
    if (any) check_verdicts(t);
    check_same(t, ALL & ~(1 << turn % DPCR_PARAMETERS), MODE_ALONE, 0);
    check_same(t, 1 << turn % DPCR_PARAMETERS, MODE_POOL, 0);
    check_same(t, ALL & ~WANT_Z0, MODE_SHUFFLED, 0);
    check_same(t, WANT_Z0, MODE_ALONE, 0);
    check_same(t, 0, MODE_ALONE, 0);
    check_same(t, ALL | WANT_PULLBACK_USED, MODE_POOL, 0);
    check_same(t, ALL, MODE_POOL, t->all.bytes);
    check_same(t, ALL, MODE_ALONE, t->all.bytes / 2);
    check_same(t, ALL, MODE_ALONE, t->all.bytes / 2 + t->all.bytes / 4);
    check_no_sweeps(t);
    check_checkpoints(t, S);
    if (any) check_checkpoints(t, 1);
    if (any && t->c->row.B > 1) check_mates(t, turn % 4);
    pullback_run_destroy(&t->sequential);
    pullback_run_destroy(&t->all);
}

/* ---- rows ----------------------------------------------------------------------------------- */

static void subject_destroy(subject *t) {
    numbers_destroy(&t->states);
    numbers_destroy(&t->gz);
    numbers_destroy(&t->gstates);
    gradient_answer_destroy(&t->answer);
}

/* States of the reference, as the dtype has them, and incoming gradients. */
static subject subject_create(const newton_row *row, chain_case *c, int turn) {
    const int64_t L = c->row.L, state = c->row.B * c->row.w;
    rng random = {c->row.seed + 5};
    chain_answer a = chain_answer_create(c, c->z0.value, 1, false);
    subject t = {.row = row, .c = c, .end = turn % 4 != 0, .every = turn % 4 < 2};
    t.newton = newton_options(row, c->dtype);
    t.states = numbers_rounded(c->dtype, L * state, a.states);
    t.gz = numbers_random(c->dtype, state, 0, 1, &random);
    t.gstates = numbers_random(c->dtype, L * state, 0, 1, &random);
    t.answer = gradient_answer_create(c, t.states.value, t.end ? t.gz.value : NULL,
                                      t.every ? t.gstates.value : NULL);
    chain_answer_destroy(&a);
    if (row->structure != DPCR_P_DENSE) { /* sweeps may leave rtol at every boundary */
        t.answer.z0_bound *= row->rtol;
        for (int i = 0; i < DPCR_PARAMETERS; i++)
            for (int64_t k = 0; k < chain_row_pieces(&c->row, i); k++)
                t.answer.parameter_bound[i][k] *= row->rtol;
    }
    return t;
}

/* Numbers of the row, drawn again while a kink of the activation is within rounding. */
static bool draw(const newton_row *row, dpcr_dtype dtype, int turn, chain_case *c, subject *t) {
    chain_row next = row->chain;
    for (int tries = 0; tries < TRIES; tries++, next.seed++) {
        *c = chain_case_create(&next, dtype);
        *t = subject_create(row, c, turn);
        if (t->answer.steady || !activation_bends(next.activation, next.activation_parameter)) return true;
        subject_destroy(t);
        chain_case_destroy(c);
    }
    return CHECK(false, "no seed keeps off the kinks of this activation: make the row smaller");
}

static void check_row(const newton_row *row, dpcr_dtype dtype, int turn) {
    int devices;
    const backend *list = backends(&devices);
    char text[400];
    chain_case c;
    subject t;
    newton_row_text(row, text, sizeof text);
    check_context("%s, %s", text, number_name(dtype));
    if (!draw(row, dtype, turn, &c, &t)) return;
    for (int d = 0; d < devices; d++) {
        if (!list[d].device) continue;
        t.at = &list[d];
        check_context("%s, %s%s%s, %s", text, number_name(dtype), t.end ? ", gz" : "",
                      t.every ? ", gstates" : "", list[d].name);
        check_on(&t, turn + d);
    }
    subject_destroy(&t);
    chain_case_destroy(&c);
}

int main(void) {
    int rows;
    newton_row *table = newton_rows(&rows);
    for (int r = 0; r < rows; r++) {
        if (reduced_has(r, DPCR_F32)) check_row(&table[r], DPCR_F32, r);
        if (reduced_has(r, DPCR_F64)) check_row(&table[r], DPCR_F64, r + 1);
    }
    free(table);
    return check_finish();
}
