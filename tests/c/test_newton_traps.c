/* SPDX-License-Identifier: Apache-2.0
 *
 * Chains that fooled a convergence test, or would fool a careless one, over many segments: whatever is
 * said of them must be true, sample by sample and step by step, relative to each step's own size, and
 * where the loop has numbers there must be numbers.
 *
 *     states that shrink, grow so much that any other start overflows, and shrink again
 *     states that shrink to 1e-30, and below what the dtype holds
 *     a drift of little more than a rounding per segment, which no single segment shows
 *     NaN, inf and hopeless samples among healthy ones
 */
#include "support/activation_reference.h"
#include "support/chain_check.h"
#include "support/check.h"
#include "support/newton_answer.h"
#include "support/numbers.h"
#include "support/reduced.h"
#include "support/trap_chains.h"

#include <stdlib.h>

/* ---- one chain, every way ------------------------------------------------------------------- */

typedef struct ways {
    int64_t segments[6]; /* 0: no more */
    bool identity;       /* worth trying P = I */
} ways;

/* 0 finite, 1 NaN, 2 inf, 3 -inf */
static int class_of(double value) {
    return isnan(value) ? 1 : isinf(value) ? (value > 0 ? 2 : 3) : 0;
}

/* Everywhere finite or not as the loop is. */
static void check_classes(const chain_case *c, const output *a, const output *loop) {
    const int64_t count = (int64_t)(a->bytes / number_size(c->dtype));
    int64_t other = 0;
    for (int64_t i = 0; i < count; i++)
        other += class_of(number_get(c->dtype, a->data, i)) != class_of(number_get(c->dtype, loop->data, i));
    CHECK(other == 0, "%d numbers are not of the loop's class", (int)other);
}

static solve_run solve_at(const chain_case *c, const void *guess, const dpcr_newton *newton, int64_t S,
                          const backend *at) {
    const dpcr_plan plan = {.segments = S};
    return solve_run_create(c, (solve_input){guess, newton}, WANT_STATES | WANT_REPORT, at, MODE_ALONE, plan);
}

/* A solve and its verdicts; counts them, and leaves the run to who asks. */
static solve_run check_solve(const chain_case *c, const newton_answer *a, const dpcr_newton *newton,
                             int64_t S, const backend *at, int64_t verdicts[3]) {
    solve_run sequential = solve_at(c, NULL, NULL, 1, at), run = solve_at(c, NULL, newton, S, at);
    check_contract(run.status, run.short_status, run.intact);
    check_classes(c, &run.states, &sequential.states);
    for (int64_t s = 0; s < c->row.B; s++) {
        const double verdict = report_get(&run.report, DPCR_VERDICT, s, c->row.B);
        check_verdict(c, a, newton, &run, &sequential, s);
        if (verdict >= 0 && verdict <= 2) verdicts[(int)verdict]++;
    }
    solve_run_destroy(&sequential);
    return run;
}

static void each_way(const chain_case *c, const char *name, ways w, const backend *at, int64_t verdicts[3]) {
    for (int k = 0; k < 6 && w.segments[k] > 0; k++)
        for (int way = 0; way < TRAP_WAYS; way++) {
            if ((way == 3 && !w.identity) || trap_is_left_out(way, k)) continue;
            const dpcr_newton newton = trap_options(c->dtype, way);
            newton_answer a = newton_answer_create(c, w.segments[k], newton.rtol);
            check_context("%s, %s, L=%d B=%d w=%d S=%d, structure %d refresh %d, %s", name,
                          number_name(c->dtype), (int)c->row.L, (int)c->row.B, (int)c->row.w,
                          (int)w.segments[k], (int)newton.structure, (int)newton.refresh, at->name);
            solve_run run = check_solve(c, &a, &newton, w.segments[k], at, verdicts);
            solve_run_destroy(&run);
            newton_answer_destroy(&a);
        }
}

/* ---- chains --------------------------------------------------------------------------------- */

/* Of loops over chains; no factor of what they alternate by. */
enum { STRIDE = REDUCED > 1 ? 3 : 1 };

static void check_hourglass(const backend *at, dpcr_dtype dtype) {
    static const int64_t shapes[][2] = {{1, 4}, {5, 4}, {3, 8}, {33, 3}, {2, 16}};
    int64_t verdicts[3] = {0};
    for (int k = 0; k < 5; k += REDUCED > 1 ? 2 : 1) {
        chain_case c =
            trap_hourglass(k % 2 ? DPCR_LEAKY_RELU : DPCR_RELU, 96, shapes[k][0], shapes[k][1], dtype);
        each_way(&c, "shrinks, grows, shrinks", (ways){{96, 48, 13, 3}, false}, at, verdicts);
        chain_case_destroy(&c);
    }
}

/* |z_l| falls by 0.83 a step at width 4: to 1e-31 at 384 steps, below the least float at 700. */
static void check_vanishing(const backend *at, dpcr_dtype dtype) {
    int64_t verdicts[3] = {0};
    for (int k = 0; k < 4; k += STRIDE) {
        const chain_row row = trap_layers(DPCR_TANH, k % 2 ? 700 : 384, (k < 2 ? 3 : 5) / STRIDE, 4, 0.95);
        chain_case c = chain_case_create(&row, dtype);
        each_way(&c, "vanishing tanh", (ways){{row.L, 96, 50, 7}, false}, at, verdicts);
        chain_case_destroy(&c);
    }
    CHECK(verdicts[DPCR_CONVERGED] > 0, "nothing converged");
}

/* z_l = z_{l-1} + b where b is a few units in the last place of z: every residual is at the floor of its
 * rounding while their sum is not, and every sum is exact. */
static void check_drift(const backend *at, dpcr_dtype dtype) {
    static const double places[] = {1, 2, 3, 10};
    int64_t verdicts[3] = {0};
    for (int k = 0; k < 4; k += STRIDE) {
        chain_row row = trap_layers(DPCR_LINEAR, 600, k % 2 || REDUCED > 1 ? 2 : 5, 4, 0);
        row.step = DPCR_RESIDUAL;
        row.present |= 1U << DPCR_W2 | 1U << DPCR_B2;
        row.scale = 1;
        chain_case c = chain_case_create(&row, dtype);
        for (int64_t i = 0; i < c.parameter[DPCR_B2].count; i++)
            numbers_set(&c.parameter[DPCR_B2], i, places[k] * 2 * unit_roundoff(dtype));
        for (int64_t i = 0; i < c.z0.count; i++) numbers_set(&c.z0, i, 1.25);
        each_way(&c, "drift", (ways){{600, 300, 7}, true}, at, verdicts);
        chain_case_destroy(&c);
    }
}

/* As long as a chain of the paper: contracting, so that a few sweeps must do, whatever S is. */
static void check_long(const backend *at, dpcr_dtype dtype) {
    int64_t verdicts[3] = {0};
    chain_row row = trap_layers(DPCR_TANH, 1025, 2, 4, 1);
    row.present |= 1U << DPCR_B1;
    chain_case c = chain_case_create(&row, dtype);
    each_way(&c, "long", (ways){{1025, 1024, 256, 33}, false}, at, verdicts);
    CHECK(verdicts[DPCR_CONVERGED] >= (REDUCED > 1 ? 10 : 16), "%d converged", (int)verdicts[DPCR_CONVERGED]);
    chain_case_destroy(&c);
}

/* Steps that forget their input, and steps that are the identity or its negative. */
static void check_degenerate(const backend *at, dpcr_dtype dtype) {
    static const double diagonal[] = {0, 1, -1};
    for (int k = 0; k < 3; k++) {
        int64_t verdicts[3] = {0};
        chain_row row = trap_layers(DPCR_LINEAR, 40, 5, 3, 0);
        row.present |= 1U << DPCR_B1;
        chain_case c = chain_case_create(&row, dtype);
        for (int64_t i = 0; i < c.parameter[DPCR_W1].count; i++)
            numbers_set(&c.parameter[DPCR_W1], i, i % 9 % 4 == 0 ? diagonal[k] : 0);
        each_way(&c, "a multiple of the identity", (ways){{40, 20, 7, 2}, true}, at, verdicts);
        chain_case_destroy(&c);
    }
}

/* Unguarded, Newton's method overflows on these; the loop does not. */
static void check_wild(const backend *at, dpcr_dtype dtype) {
    static const dpcr_activation activations[] = {DPCR_RELU, DPCR_GELU, DPCR_SILU};
    for (int k = 0; k < 6; k += STRIDE) {
        int64_t verdicts[3] = {0};
        chain_row row = trap_layers(activations[k % 3], 192, k % 2 ? 2 : 4, 4, 1.5);
        row.step = DPCR_RESIDUAL;
        row.norm = k < 3 ? DPCR_LAYER_NORM : DPCR_RMS_NORM;
        row.norm_eps = 1e-5;
        row.scale = 1;
        for (int i = 0; i < DPCR_PARAMETERS; i++)
            if (chain_row_has(&row, i)) row.present |= 1U << i;
        chain_case c = chain_case_create(&row, dtype);
        each_way(&c, "pre-norm blocks", (ways){{192, 64, 25}, true}, at, verdicts);
        chain_case_destroy(&c);
    }
}

/* ---- one batch, many fates ------------------------------------------------------------------ */

/* Zero stays zero under tanh without biases, and converges; its mates are chaotic. */
static void check_mixed(const backend *at, dpcr_dtype dtype) {
    for (int k = 0; k < 6; k += STRIDE) {
        int64_t verdicts[3] = {0};
        const int64_t B = k % 2 ? 3 : 9;
        const chain_row row = trap_layers(DPCR_TANH, 100, B, 16, 3);
        chain_case c = chain_case_create(&row, dtype);
        for (int64_t i = 0; i < c.z0.count; i++)
            if (i / row.w % 2 == 0) numbers_set(&c.z0, i, 0);
        const dpcr_newton newton = trap_options(dtype, k / 2);
        newton_answer a = newton_answer_create(&c, 100, newton.rtol);
        check_context("zeros among chaotic samples, %s, B=%d, structure %d refresh %d, %s",
                      number_name(dtype), (int)B, (int)newton.structure, (int)newton.refresh, at->name);
        solve_run run = check_solve(&c, &a, &newton, 100, at, verdicts);
        for (int64_t s = 0; s < B; s++) {
            const double verdict = report_get(&run.report, DPCR_VERDICT, s, B),
                         sweeps = report_get(&run.report, DPCR_SWEEPS, s, B);
            CHECK(verdict == (s % 2 ? DPCR_SEQUENTIAL : DPCR_CONVERGED), "sample %d: verdict %g", (int)s,
                  verdict);
            CHECK(s % 2 || sweeps < 10, "sample %d: %g sweeps", (int)s, sweeps);
        }
        solve_run_destroy(&run);
        newton_answer_destroy(&a);
        chain_case_destroy(&c);
    }
}

/* A bad sample is as the loop has it; the others do not notice, in bits, sweeps and verdict. */
static void check_bad_sample(chain_case *c, double bad, int64_t S, const dpcr_newton *newton,
                             const backend *at) {
    const int64_t B = c->row.B, w = c->row.w, odd = B / 2, place = odd * w + w / 2;
    const double was = c->z0.value[place];
    solve_run healthy = solve_at(c, NULL, newton, S, at);
    numbers_set(&c->z0, place, bad);
    solve_run sequential = solve_at(c, NULL, newton, 1, at), run = solve_at(c, NULL, newton, S, at);
    check_contract(run.status, run.short_status, run.intact);
    check_classes(c, &run.states, &sequential.states);
    for (int64_t s = 0; s < B; s++) {
        if (s == odd) continue;
        CHECK(sample_equal(c, &run.states, &healthy.states, s, w), "states of sample %d changed", (int)s);
        for (int what = 0; what < DPCR_REPORT; what++)
            CHECK(report_get(&run.report, what, s, B) == report_get(&healthy.report, what, s, B),
                  "row %d of the report of sample %d changed", what, (int)s);
    }
    numbers_set(&c->z0, place, was);
    solve_run_destroy(&healthy);
    solve_run_destroy(&sequential);
    solve_run_destroy(&run);
}

static void check_bad_samples(const backend *at, dpcr_dtype dtype) {
    static const double bad[] = {NAN, INFINITY, -INFINITY, 1e38};
    static const dpcr_activation activations[] = {DPCR_TANH, DPCR_RELU, DPCR_GELU};
    for (int k = 0; k < 6 * CHAIN_FAMILIES; k += REDUCED > 1 ? 7 : 1) {
        const int family = k % CHAIN_FAMILIES;
        chain_row row = trap_layers(activations[k % 3], 24, k % 2 ? 3 : 7, 4, 1);
        chain_row_join(&row, family, row.w, k);
        for (int i = 0; i < DPCR_PARAMETERS; i++)
            if (chain_row_has(&row, i) && (CHAIN_WEIGHTS | 1 << DPCR_B2) >> i & 1) row.present |= 1U << i;
        row.scale = 0.3;
        row.norm_eps = 1e-5;
        const dpcr_newton newton = trap_options(dtype, k % TRAP_WAYS);
        chain_case c = chain_case_create(&row, dtype);
        for (int j = 0; j < 4; j++) {
            check_context("%g in one sample, step %d norm %d %s, %s, B=%d, structure %d, %s", bad[j],
                          (int)row.step, (int)row.norm, activation_name(row.activation), number_name(dtype),
                          (int)row.B, (int)newton.structure, at->name);
            check_bad_sample(&c, bad[j], k % 2 ? 24 : 5, &newton, at);
        }
        chain_case_destroy(&c);
    }
}

int main(void) {
    int count;
    const backend *list = backends(&count);
    for (int d = 0; d < count; d++)
        for (int dtype = DPCR_F32; dtype <= (REDUCED > 1 ? DPCR_F32 : DPCR_F64) && list[d].device; dtype++) {
            check_hourglass(&list[d], (dpcr_dtype)dtype);
            check_vanishing(&list[d], (dpcr_dtype)dtype);
            check_drift(&list[d], (dpcr_dtype)dtype);
            check_long(&list[d], (dpcr_dtype)dtype);
            check_degenerate(&list[d], (dpcr_dtype)dtype);
            check_wild(&list[d], (dpcr_dtype)dtype);
            check_mixed(&list[d], (dpcr_dtype)dtype);
            check_bad_samples(&list[d], (dpcr_dtype)dtype);
        }
    return check_finish();
}
