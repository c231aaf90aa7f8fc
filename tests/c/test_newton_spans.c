/* SPDX-License-Identifier: Apache-2.0
 *
 * Gradients that span 30 orders of magnitude along a chain, falling, rising, or both, where products of
 * Jacobians overflow that the loop never forms: over segments every step's gradients are right relative
 * to their own size.
 */
#include "support/chain_check.h"
#include "support/check.h"
#include "support/newton_answer.h"
#include "support/numbers.h"
#include "support/rng.h"
#include "support/trap_chains.h"

#include <stdlib.h>

static void check_pullback(const chain_case *c, const numbers *states, const numbers *gz, int64_t S, int way,
                           const gradient_answer *a, const backend *at) {
    const dpcr_newton newton = trap_options(c->dtype, way);
    const pullback_input in = {.states = states->data, .gz = gz->data, .newton = &newton};
    const int want = WANT_Z0 | 1 << DPCR_B1 | WANT_PULLBACK_REPORT;
    pullback_run run = pullback_run_create(c, in, want, at, MODE_ALONE, (dpcr_plan){.segments = S});
    pullback_run loop = pullback_run_create(c, in, want, at, MODE_ALONE, (dpcr_plan){.segments = 1});
    check_contract(run.status, run.short_status, run.intact);
    check_close("gb1", &run.parameter[DPCR_B1], c->dtype, a->parameter[DPCR_B1], a->parameter_bound[DPCR_B1],
                c->row.L, c->row.h);
    check_close("gz0", &run.z0, c->dtype, a->z0, &a->z0_bound, 1, c->row.B * c->row.w);
    for (int64_t s = 0; s < c->row.B; s++)
        CHECK(report_get(&run.report, DPCR_VERDICT, s, c->row.B) != DPCR_SEQUENTIAL
                  || sample_equal(c, &run.z0, &loop.z0, s, c->row.w),
              "sample %d: finished, but not in the bits of S = 1", (int)s);
    pullback_run_destroy(&run);
    pullback_run_destroy(&loop);
}

/* Every segmentation and way of one chain's gradients, from the loop's own states. */
static void check_gradients(const chain_case *c, const char *name, const backend *at) {
    const int64_t L = c->row.L, state = c->row.B * c->row.w, segments[] = {L, L / 2, 13, 3};
    rng random = {c->row.seed + 1};
    forward_run loop =
        forward_run_create(c, c->z0.data, WANT_STATES, at, MODE_ALONE, (dpcr_plan){.segments = 1});
    double *z = allocate((size_t)(L * state) * sizeof(double));
    for (int64_t i = 0; i < L * state; i++) z[i] = number_get(c->dtype, loop.states.data, i);
    numbers states = numbers_rounded(c->dtype, L * state, z);
    numbers gz = numbers_random(c->dtype, state, 0, 1, &random);
    gradient_answer a = gradient_answer_create(c, z, gz.value, NULL);
    for (int k = 0; k < 4; k++)
        for (int way = 0; way < TRAP_WAYS; way++) {
            if (trap_is_left_out(way, k)) continue;
            check_context("%s, %s, L=%d B=%d w=%d S=%d, way %d, %s", name, number_name(c->dtype), (int)L,
                          (int)c->row.B, (int)c->row.w, (int)segments[k], way, at->name);
            check_pullback(c, &states, &gz, segments[k], way, &a, at);
        }
    gradient_answer_destroy(&a);
    numbers_destroy(&states);
    numbers_destroy(&gz);
    forward_run_destroy(&loop);
    free(z);
}

/* Linear steps of gain g: gradients fall or rise by 30 orders of magnitude over the chain. */
static void check_spans(const backend *at, dpcr_dtype dtype) {
    static const double gains[] = {0.55, 2.2, 1.15};
    for (int k = 0; k < 6; k++) {
        chain_row row = trap_layers(DPCR_LINEAR, 96, k % 2 ? 1 : 5, 4, gains[k / 2]);
        chain_case c = chain_case_create(&row, dtype);
        check_gradients(&c, "gradients over many orders", at);
        chain_case_destroy(&c);
    }
    for (int k = 0; k < 3; k++) {
        static const int64_t shapes[][2] = {{1, 4}, {5, 3}, {1, 16}};
        chain_case c = trap_hourglass(DPCR_LINEAR, 96, shapes[k][0], shapes[k][1], dtype);
        check_gradients(&c, "gradients that shrink, grow, shrink", at);
        chain_case_destroy(&c);
    }
}

int main(void) {
    int count;
    const backend *list = backends(&count);
    for (int d = 0; d < count; d++)
        for (int dtype = DPCR_F32; dtype <= DPCR_F64 && list[d].device; dtype++)
            check_spans(&list[d], (dpcr_dtype)dtype);
    return check_finish();
}
