/* SPDX-License-Identifier: Apache-2.0
 *
 * Conformance of dpcr_chain_solve: every row of the table on every backend, in f32 and f64.
 *
 *     S = 1 is dpcr_chain_propagate, bit for bit; so is a sample that was finished sequentially
 *     a converged sample is right, step by step, relative to its own state
 *     after k sweeps the states of the first k segments have the bits of S = 1
 *     a sample's bits and report do not depend on what its mates are
 *     modes, workspace caps and what is kept change no bit
 *
 * What the report says of work and depth is test_newton_report.c's.
 */
#include "support/chain_check.h"
#include "support/check.h"
#include "support/newton_answer.h"
#include "support/newton_rows.h"
#include "support/numbers.h"
#include "support/reduced.h"
#include "support/rng.h"

#include <stdlib.h>

enum { EVERY = WANT_STATES | WANT_CHECKPOINTS | WANT_REPORT };

/* One row on one backend. */
typedef struct subject {
    const newton_row *row;
    chain_case *c;
    const newton_answer *answer;
    const backend *at;
    dpcr_newton newton;
    numbers guess; /* data NULL where there is none */
    solve_run sequential, all;
} subject;

static solve_run solve_on(const subject *t, const dpcr_newton *newton, int want, mode m, size_t cap) {
    const dpcr_plan plan = {.segments = t->row->S, .workspace_cap = cap};
    return solve_run_create(t->c, (solve_input){t->guess.data, newton}, want, t->at, m, plan);
}

static double reported(const solve_run *run, int what, const subject *t, int64_t sample) {
    return report_get(&run->report, what, sample, t->c->row.B);
}

/* ---- the sequential pass -------------------------------------------------------------------- */

static void check_sequential(subject *t) {
    const dpcr_plan plan = {.segments = 1};
    const solve_input in = {t->guess.data, &t->newton};
    forward_run pass = forward_run_create(t->c, t->c->z0.data, WANT_STATES, t->at, MODE_ALONE, plan);
    t->sequential = solve_run_create(t->c, in, EVERY, t->at, MODE_ALONE, plan);
    solve_run *run = &t->sequential, bare = solve_run_create(t->c, in, 0, t->at, MODE_POOL, plan);
    check_contract(run->status, run->short_status, run->intact);
    check_contract(bare.status, bare.short_status, bare.intact);
    CHECK(outputs_equal(&run->z, &pass.ends), "S = 1: not the end of propagate");
    CHECK(outputs_equal(&bare.z, &pass.ends), "S = 1, nothing kept: not the end of propagate");
    CHECK(outputs_equal(&run->states, &pass.states), "S = 1: not the states of propagate");
    forward_run_destroy(&pass);
    solve_run_destroy(&bare);
}

/* The guess of the row, from what the backend itself computes. */
static numbers make_guess(const subject *t, const output *states) {
    const int64_t count = t->c->row.L * t->c->row.B * t->c->row.w;
    rng random = {t->c->row.seed + 3};
    if (t->row->guess == GUESS_NONE) return (numbers){.data = NULL};
    numbers guess = numbers_random(t->c->dtype, count, 0, 1, &random);
    for (int64_t i = 0; i < count; i++) {
        const double bad[] = {NAN, INFINITY, 1e30}, z = number_get(t->c->dtype, states->data, i);
        if (t->row->guess == GUESS_EXACT) numbers_set(&guess, i, z);
        if (t->row->guess == GUESS_NEAR) numbers_set(&guess, i, z * (1 + 1e-3 * guess.value[i]));
        if (t->row->guess == GUESS_NAN && rng_below(&random, 3) == 0)
            numbers_set(&guess, i, bad[rng_below(&random, 3)]);
    }
    return guess;
}

/* ---- what came out -------------------------------------------------------------------------- */

/* The states of the first `segments` segments of a sample have the bits of S = 1. */
static void check_prefix(const subject *t, const output *states, int64_t sample, int64_t segments) {
    const int64_t L = t->c->row.L, B = t->c->row.B;
    const size_t bytes = (size_t)t->c->row.w * number_size(t->c->dtype);
    const int64_t steps = segment_edge(segments < t->row->S ? segments : t->row->S, L, t->row->S);
    const char *a = states->data, *b = t->sequential.states.data;
    int64_t same = 0;
    while (same < steps
           && memcmp(a + (size_t)(same * B + sample) * bytes, b + (size_t)(same * B + sample) * bytes, bytes)
                  == 0)
        same++;
    CHECK(same == steps, "sample %d: step %d of the first %d is not that of S = 1", (int)sample, (int)same,
          (int)steps);
}

static void check_outcome(const subject *t, const solve_run *run, int64_t sample) {
    const int64_t w = t->c->row.w;
    const double sweeps = reported(run, DPCR_SWEEPS, t, sample);
    const bool same = sample_equal(t->c, &run->states, &t->sequential.states, sample, w);
    check_verdict(t->c, t->answer, &t->newton, run, &t->sequential, sample);
    CHECK(sweeps >= 0 && sweeps <= 100, "sample %d: %g sweeps", (int)sample, sweeps);
    CHECK(same || t->row->guess != GUESS_EXACT || t->newton.max_sweeps == 0,
          "sample %d leaves an exact guess", (int)sample);
    check_prefix(t, &run->states, sample, (int64_t)sweeps);
}

/* z is the last state; checkpoints are states, exactly so where they are those of the S = 1 pass. */
static void check_kept(const subject *t, const solve_run *run) {
    const int64_t L = t->c->row.L, B = t->c->row.B, w = t->c->row.w, C = dpcr_checkpoints(L, t->row->S);
    const size_t bytes = (size_t)(B * w) * number_size(t->c->dtype);
    const char *states = run->states.data;
    const void *last = L > 0 ? states + (size_t)(L - 1) * bytes : t->c->z0.data;
    CHECK(bytes == 0 || memcmp(run->z.data, last, bytes) == 0, "z is not the last state");
    CHECK(L == 0 || t->row->S == 1 || C == t->row->S, "%d checkpoints", (int)C);
    for (int64_t c = 0; c < C && L > 0; c++) {
        const int64_t first = segment_edge(c, L, C);
        const output there = {bytes, first > 0 ? (char *)run->states.data + (size_t)(first - 1) * bytes
                                               : t->c->z0.data};
        const output kept = {bytes, (char *)run->checkpoints.data + (size_t)c * bytes};
        for (int64_t s = 0; s < B; s++)
            CHECK(reported(run, DPCR_VERDICT, t, s) != DPCR_SEQUENTIAL
                      || sample_equal(t->c, &there, &kept, s, w),
                  "checkpoint %d of sample %d is not the state before step %d", (int)c, (int)s, (int)first);
    }
}

/* ---- what changes nothing ------------------------------------------------------------------- */

static void check_same(const subject *t, int want, mode m, size_t cap) {
    if (reduced_skips()) return;
    solve_run run = solve_on(t, &t->newton, want, m, cap);
    if (check_cap(run.status, run.bytes, cap, t->all.bytes)) {
        check_contract(run.status, run.short_status, run.intact);
        CHECK(outputs_equal(&run.z, &t->all.z), "%s, want %d, cap %zu: z", mode_name(m), want, cap);
        CHECK(!(want & WANT_STATES) || outputs_equal(&run.states, &t->all.states),
              "%s, want %d, cap %zu: states", mode_name(m), want, cap);
        CHECK(!(want & WANT_CHECKPOINTS) || outputs_equal(&run.checkpoints, &t->all.checkpoints),
              "%s, want %d, cap %zu: checkpoints", mode_name(m), want, cap);
        CHECK(!(want & WANT_REPORT) || outputs_equal(&run.report, &t->all.report),
              "%s, want %d, cap %zu: report", mode_name(m), want, cap);
    }
    solve_run_destroy(&run);
}

static size_t query(const subject *t, size_t cap) {
    const dpcr_plan plan = {.segments = t->row->S, .workspace_cap = cap};
    char any;
    const dpcr_solution solution = {.z0 = &any,
                                    .guess = t->guess.data ? &any : NULL,
                                    .z = &any,
                                    .states = &any,
                                    .checkpoints = &any,
                                    .report = (double *)(void *)&plan,
                                    .newton = &t->newton};
    size_t bytes = 0;
    const dpcr_status status =
        dpcr_chain_solve_workspace(backend_exec(t->at, MODE_ALONE), &t->c->chain, &solution, &plan, &bytes);
    return status == DPCR_OK ? bytes : SIZE_MAX;
}

/* The least cap that is accepted: whoever tiles the batch must do so here. */
static void check_least_cap(const subject *t) {
    size_t refused = 0, taken = t->all.bytes;
    if (taken < 2) return;
    CHECK(query(t, taken) == taken, "a cap of what is taken without one");
    while (taken - refused > 1) {
        const size_t middle = refused + (taken - refused) / 2, bytes = query(t, middle);
        CHECK(bytes == SIZE_MAX || bytes <= middle, "%zu bytes, cap %zu", bytes, middle);
        *(bytes == SIZE_MAX ? &refused : &taken) = middle;
    }
    check_same(t, EVERY, MODE_ALONE, taken);
    if (refused > 0) check_same(t, EVERY, MODE_ALONE, refused);
}

/* ---- fewer sweeps --------------------------------------------------------------------------- */

/* Left alone after k sweeps. */
static void check_sweeps(const subject *t, int64_t k) {
    dpcr_newton newton = t->newton;
    newton.max_sweeps = k;
    newton.finish = false;
    solve_run run = solve_on(t, &newton, WANT_STATES | WANT_REPORT, MODE_ALONE, 0);
    check_contract(run.status, run.short_status, run.intact);
    for (int64_t s = 0; s < t->c->row.B; s++) {
        const double verdict = reported(&run, DPCR_VERDICT, t, s), sweeps = reported(&run, DPCR_SWEEPS, t, s);
        CHECK(sweeps <= (double)k, "sample %d: %g sweeps, at most %d were asked for", (int)s, sweeps, (int)k);
        CHECK(verdict == DPCR_CONVERGED || verdict == DPCR_UNCONVERGED, "sample %d: %g", (int)s, verdict);
        CHECK(verdict == DPCR_CONVERGED || sweeps == (double)k, "sample %d: %g of %d sweeps", (int)s, sweeps,
              (int)k);
        check_prefix(t, &run.states, s, (int64_t)sweeps);
        if (verdict == DPCR_CONVERGED) check_sample(t->c, t->answer, &run.states, s);
    }
    solve_run_destroy(&run);
}

/* Finished at once. */
static void check_no_sweeps(const subject *t) {
    dpcr_newton newton = t->newton;
    newton.max_sweeps = 0;
    newton.finish = true;
    solve_run run = solve_on(t, &newton, EVERY, MODE_ALONE, 0);
    check_contract(run.status, run.short_status, run.intact);
    CHECK(outputs_equal(&run.z, &t->sequential.z), "no sweeps: not the z of S = 1");
    CHECK(outputs_equal(&run.states, &t->sequential.states), "no sweeps: not the states of S = 1");
    check_kept(t, &run);
    solve_run_destroy(&run);
}

/* ---- mates ---------------------------------------------------------------------------------- */

/* All samples but one become others. */
static void spoil(numbers *a, int64_t B, int64_t w, int64_t sample, int how, rng *random) {
    const double values[] = {NAN, INFINITY, 1e30, 0};
    for (int64_t i = 0; i < a->count; i++)
        if (i / w % B != sample) numbers_set(a, i, how < 4 ? values[how] : rng_normal(random));
}

static void check_mates(subject *t, int how) {
    const int64_t B = t->c->row.B, w = t->c->row.w;
    const size_t bytes = (size_t)t->c->z0.count * sizeof(double);
    rng random = {t->c->row.seed + 7};
    const int64_t sample = rng_below(&random, B);
    double *z0 = allocate(bytes);
    memcpy(z0, t->c->z0.value, bytes);
    numbers guess = t->guess;
    if (guess.data) t->guess = numbers_rounded(t->c->dtype, guess.count, guess.value);
    spoil(&t->c->z0, B, w, sample, how, &random);
    if (guess.data) spoil(&t->guess, B, w, sample, how, &random);
    solve_run run = solve_on(t, &t->newton, EVERY, MODE_ALONE, 0);
    check_contract(run.status, run.short_status, run.intact);
    CHECK(sample_equal(t->c, &run.z, &t->all.z, sample, w), "mates %d change z of sample %d", how,
          (int)sample);
    CHECK(sample_equal(t->c, &run.states, &t->all.states, sample, w), "mates %d change states of sample %d",
          how, (int)sample);
    CHECK(sample_equal(t->c, &run.checkpoints, &t->all.checkpoints, sample, w),
          "mates %d change checkpoints of sample %d", how, (int)sample);
    for (int what = 0; what < DPCR_REPORT; what++) {
        const double now = reported(&run, what, t, sample), before = reported(&t->all, what, t, sample);
        CHECK(memcmp(&now, &before, sizeof now) == 0,
              "mates %d change the report of sample %d, row %d: %g, was %g", how, (int)sample, what, now,
              before);
    }
    for (int64_t i = 0; i < t->c->z0.count; i++) numbers_set(&t->c->z0, i, z0[i]);
    if (guess.data) numbers_destroy(&t->guess);
    t->guess = guess;
    free(z0);
    solve_run_destroy(&run);
}

/* ---- rows ----------------------------------------------------------------------------------- */

static void check_on(subject *t, int turn) {
    const int64_t L = t->c->row.L, B = t->c->row.B, w = t->c->row.w;
    check_sequential(t);
    t->guess = make_guess(t, &t->sequential.states);
    t->all = solve_on(t, &t->newton, EVERY, MODE_ALONE, 0);
    check_contract(t->all.status, t->all.short_status, t->all.intact);
    for (int64_t s = 0; s < B && w > 0 && L > 0; s++) check_outcome(t, &t->all, s);
    check_kept(t, &t->all);
    check_same(t, 0, MODE_ALONE, 0);
    check_same(t, WANT_STATES, MODE_POOL, 0);
    check_same(t, WANT_CHECKPOINTS | WANT_REPORT, MODE_SHUFFLED, 0);
    check_same(t, EVERY | WANT_USED, MODE_ALONE, 0);
    check_same(t, EVERY, MODE_POOL, t->all.bytes);
    check_least_cap(t);
    if (t->row->S > 1 && w > 0 && B > 0) {
        check_sweeps(t, 1 + turn % 3);
        check_sweeps(t, t->row->S);
    }
    check_no_sweeps(t);
    if (B > 1 && w > 0 && L > 0) {
        check_mates(t, turn % 5);
        check_mates(t, (turn + 1) % 5);
    }
    numbers_destroy(&t->guess);
    solve_run_destroy(&t->sequential);
    solve_run_destroy(&t->all);
}

static void check_row(const newton_row *row, dpcr_dtype dtype, int turn) {
    int devices;
    const backend *list = backends(&devices);
    char text[400];
    newton_row_text(row, text, sizeof text);
    chain_case c = chain_case_create(&row->chain, dtype);
    const dpcr_newton newton = newton_options(row, dtype);
    newton_answer answer = newton_answer_create(&c, row->S, newton.rtol);
    for (int d = 0; d < devices; d++) {
        if (!list[d].device) continue;
        subject t = {.row = row, .c = &c, .answer = &answer, .at = &list[d], .newton = newton};
        check_context("%s, %s, %s", text, number_name(dtype), list[d].name);
        check_on(&t, turn + d);
    }
    newton_answer_destroy(&answer);
    chain_case_destroy(&c);
}

int main(void) {
    int rows;
    newton_row *table = newton_rows(&rows);
    for (int r = 0; r < rows; r++) {
        if (reduced_has(r, DPCR_F32)) check_row(&table[r], DPCR_F32, r);
        if (reduced_has(r, DPCR_F64)) check_row(&table[r], DPCR_F64, r);
    }
    free(table);
    return check_finish();
}
