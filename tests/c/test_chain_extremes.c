/* SPDX-License-Identifier: Apache-2.0
 *
 * NaN and inf in one sample of a chain: they stay in that sample, forward, in tangents and backward,
 * and have there the pattern that the reference gives; the other samples keep their bits.
 */
#include "support/activation_reference.h"
#include "support/chain_check.h"
#include "support/check.h"
#include "support/numbers.h"
#include "support/reduced.h"
#include "support/rng.h"

#include <stdlib.h>

enum { STEPS = 5, SEGMENTS = 2 };

static const int64_t batches[] = {1, REDUCED > 1 ? 33 : 3, REDUCED > 1 ? 3 : 33,
                                  REDUCED > 1 ? 9 : 70}; /* few where wide */

/* ---- the pattern ---------------------------------------------------------------------------- */

/* 0 finite, 1 NaN, 2 inf, 3 -inf */
static int class_of(double value) {
    return isnan(value) ? 1 : isinf(value) ? (value > 0 ? 2 : 3) : 0;
}

/* Sample b of (pieces, B, size) has the reference's classes; the others have the bits of `healthy`. */
static void check_confined(const char *what, const chain_case *c, const output *result, const output *healthy,
                           const double *reference, int64_t odd, int64_t size) {
    const int64_t B = c->row.B, count = (int64_t)(result->bytes / number_size(c->dtype));
    int64_t wrong = 0, moved = 0;
    for (int64_t k = 0; k < count; k++) {
        const double value = number_get(c->dtype, result->data, k);
        if (k / size % B == odd)
            wrong += class_of(value) != class_of(number_round(c->dtype, reference[k]));
        else
            moved +=
                memcmp((const char *)result->data + (size_t)k * number_size(c->dtype),
                       (const char *)healthy->data + (size_t)k * number_size(c->dtype), number_size(c->dtype))
                != 0;
    }
    CHECK(wrong == 0, "%s: %d elements of the odd sample are not of the reference's class", what, (int)wrong);
    CHECK(moved == 0, "%s: %d elements of other samples have changed", what, (int)moved);
}

/* ---- forward and tangents ------------------------------------------------------------------- */

static void check_forward(chain_case *c, double bad, int64_t odd, const backend *at) {
    const int64_t B = c->row.B, w = c->row.w, at_z = odd * w + w / 2;
    const double was = c->z0.value[at_z];
    const dpcr_plan plan = {.segments = 1};
    const int want = WANT_STATES | WANT_TANGENTS;
    double *states = allocate((size_t)(STEPS * B * w) * sizeof(double)),
           *end = allocate((size_t)(B * w) * sizeof(double));
    double *tangents = allocate((size_t)(B * w * w) * sizeof(double));
    noise none = {.roundoff = 0};
    forward_run healthy = forward_run_create(c, c->z0.data, want, at, MODE_ALONE, plan);
    numbers_set(&c->z0, at_z, bad);
    forward_run run = forward_run_create(c, c->z0.data, want, at, MODE_POOL, plan);
    check_contract(run.status, run.short_status, run.intact);
    reference_propagate(&c->exact, 0, STEPS, c->z0.value, end, states, &none);
    reference_tangents(&c->exact, 0, STEPS, c->z0.value, states, tangents, &none);
    check_confined("states", c, &run.states, &healthy.states, states, odd, w);
    check_confined("ends", c, &run.ends, &healthy.ends, end, odd, w);
    for (int64_t k = 0; k < B * w * w;
         k++) /* whatever the odd sample's Jacobian is, the others keep theirs */
        if (k / (w * w) == odd) tangents[k] = number_get(c->dtype, run.tangents.data, k);
    check_confined("tangents", c, &run.tangents, &healthy.tangents, tangents, odd, w * w);
    numbers_set(&c->z0, at_z, was);
    forward_run_destroy(&healthy);
    forward_run_destroy(&run);
    free(states);
    free(end);
    free(tangents);
}

/* ---- backward ------------------------------------------------------------------------------- */

/* A bad incoming gradient of one sample, from healthy states. */
static void check_backward(const chain_case *c, double bad, int64_t odd, const backend *at) {
    const int64_t B = c->row.B, w = c->row.w, state = B * w;
    rng random = {c->row.seed};
    chain_answer a = chain_answer_create(c, c->z0.value, 1, false);
    numbers states = numbers_rounded(c->dtype, STEPS * state, a.states),
            gz = numbers_random(c->dtype, state, 0, 1, &random);
    double *gz0 = allocate((size_t)state * sizeof(double));
    const dpcr_plan plan = {.segments = 1};
    noise none = {.roundoff = 0};
    pullback_run healthy = pullback_run_create(c, (pullback_input){.states = states.data, .gz = gz.data},
                                               WANT_Z0, at, MODE_ALONE, plan);
    numbers_set(&gz, odd * w + w / 2, bad);
    pullback_run run = pullback_run_create(c, (pullback_input){.states = states.data, .gz = gz.data}, WANT_Z0,
                                           at, MODE_POOL, plan);
    check_contract(run.status, run.short_status, run.intact);
    const dpcr_pullback pass = {.z0 = c->z0.value, .states = states.value, .gz = gz.value, .gz0 = gz0};
    reference_backward(&c->exact, &pass, &none);
    check_confined("gz0", c, &run.z0, &healthy.z0, gz0, odd, w);
    pullback_run_destroy(&healthy);
    pullback_run_destroy(&run);
    free(gz0);
    numbers_destroy(&states);
    numbers_destroy(&gz);
    chain_answer_destroy(&a);
}

/* NaN states of one sample: its gradient is NaN where the slope at NaN is. */
static void check_bad_states(const chain_case *c, int64_t odd, const backend *at) {
    const int64_t B = c->row.B, w = c->row.w, state = B * w;
    rng random = {c->row.seed};
    chain_answer a = chain_answer_create(c, c->z0.value, 1, false);
    numbers states = numbers_rounded(c->dtype, STEPS * state, a.states);
    numbers gz = numbers_random(c->dtype, state, 0, 1, &random);
    double *gz0 = allocate((size_t)state * sizeof(double));
    const dpcr_plan plan = {.segments = 1};
    const pullback_input in = {.states = states.data, .gz = gz.data};
    noise none = {.roundoff = 0};
    pullback_run healthy = pullback_run_create(c, in, WANT_Z0, at, MODE_ALONE, plan);
    for (int64_t k = 0; k < STEPS * state; k++)
        if (k / w % B == odd) numbers_set(&states, k, NAN);
    pullback_run run = pullback_run_create(c, in, WANT_Z0, at, MODE_POOL, plan);
    const dpcr_pullback pass = {.z0 = c->z0.value, .states = states.value, .gz = gz.value, .gz0 = gz0};
    reference_backward(&c->exact, &pass, &none);
    check_confined("gz0 of NaN states", c, &run.z0, &healthy.z0, gz0, odd, w);
    pullback_run_destroy(&healthy);
    pullback_run_destroy(&run);
    free(gz0);
    numbers_destroy(&states);
    numbers_destroy(&gz);
    chain_answer_destroy(&a);
}

/* ---- rows ----------------------------------------------------------------------------------- */

static chain_row row_of(dpcr_activation activation, int family, int k) {
    static const int64_t widths[] = {1, 4, 5, 16, 17}, hidden[] = {3, 16, 20};
    const double *p = k % 2 ? activation_other(activation) : activation_default(activation);
    chain_row row = {.activation = activation,
                     .activation_parameter = {p[0], p[1]},
                     .norm_eps = 1e-5,
                     .scale = 0.5,
                     .L = STEPS,
                     .B = batches[k % 4],
                     .w = widths[k % 5],
                     .gain = 1,
                     .seed = (uint64_t)(7000 + k)};
    chain_row_join(&row, family, hidden[k % 3], k);
    for (int i = 0; i < DPCR_PARAMETERS; i++)
        if (chain_row_has(&row, i)) row.present |= 1U << i;
    return row;
}

static void check_row(const chain_row *row, dpcr_dtype dtype, const backend *at) {
    const double bad[] = {NAN, INFINITY, -INFINITY};
    char text[300];
    chain_row_text(row, text, sizeof text);
    chain_case c = chain_case_create(row, dtype);
    const int64_t odd[] = {0, row->B / 2, row->B - 1};
    for (int k = 0; k < 9; k += REDUCED ? 4 : 1) {
        check_context("%g in sample %d: %s, %s, %s", bad[k / 3], (int)odd[k % 3], text, number_name(dtype),
                      at->name);
        check_forward(&c, bad[k / 3], odd[k % 3], at);
        check_backward(&c, bad[k / 3], odd[k % 3], at);
        if (k < 3) check_bad_states(&c, odd[k % 3], at);
    }
    chain_case_destroy(&c);
}

int main(void) {
    int count;
    const backend *list = backends(&count);
    for (int d = 0; d < count; d++)
        for (int k = 0; k < CHAIN_FAMILIES * DPCR_ACTIVATIONS && list[d].device; k += REDUCED > 1 ? 19 : 1) {
            const chain_row row = row_of((dpcr_activation)(k / CHAIN_FAMILIES), k % CHAIN_FAMILIES, k + d);
            check_row(&row, DPCR_F32, &list[d]);
            check_row(&row, DPCR_F64, &list[d]);
        }
    return check_finish();
}
