/* SPDX-License-Identifier: Apache-2.0
 *
 * Conformance of dpcr_chain_backward: every row of the table on every backend, in f32 and f64, against
 * the reference from the same states; gradients of states added; no gradient wanted changes no bit of
 * the others; every mode and workspace cap gives the same bits.
 */
#include "support/activation_reference.h"
#include "support/chain_check.h"
#include "support/check.h"
#include "support/numbers.h"
#include "support/reduced.h"
#include "support/rng.h"

#include <stdlib.h>

enum { TRIES = 40, ALL = WANT_Z0 | ((1 << DPCR_PARAMETERS) - 1) };

/* What enters a pullback besides the chain. */
typedef struct incoming {
    numbers states, gz, gstates;
    bool end, every; /* gz is given, gstates is given */
} incoming;

/* States of the reference, as the dtype has them. */
static incoming incoming_create(const chain_case *c, bool end, bool every) {
    const int64_t state = c->row.B * c->row.w;
    rng random = {c->row.seed + 5};
    chain_answer a = chain_answer_create(c, c->z0.value, 1, false);
    const incoming in = {.states = numbers_rounded(c->dtype, c->row.L * state, a.states),
                         .gz = numbers_random(c->dtype, state, 0, 1, &random),
                         .gstates = numbers_random(c->dtype, c->row.L * state, 0, 1, &random),
                         .end = end,
                         .every = every};
    chain_answer_destroy(&a);
    return in;
}

static void incoming_destroy(incoming *in) {
    numbers_destroy(&in->states);
    numbers_destroy(&in->gz);
    numbers_destroy(&in->gstates);
}

static pullback_run run_on(const chain_case *c, const incoming *in, int want, const backend *at, mode m,
                           size_t cap) {
    const pullback_input input = {.states = in->states.data,
                                  .gz = in->end ? in->gz.data : NULL,
                                  .gstates = in->every ? in->gstates.data : NULL};
    return pullback_run_create(c, input, want, at, m, (dpcr_plan){.segments = 1, .workspace_cap = cap});
}

/* The gradients that a run was asked for have the bits of another. */
static void check_same(const chain_case *c, const incoming *in, int want, const backend *at, mode m,
                       size_t cap, const pullback_run *all) {
    if (reduced_skips()) return;
    pullback_run run = run_on(c, in, want, at, m, cap);
    if (check_cap(run.status, run.bytes, cap, all->bytes)) {
        check_contract(run.status, run.short_status, run.intact);
        CHECK(!(want & WANT_Z0) || outputs_equal(&run.z0, &all->z0), "%s, want %#x, cap %zu: gz0",
              mode_name(m), (unsigned)want, cap);
        for (int i = 0; i < DPCR_PARAMETERS; i++)
            CHECK(!(want >> i & 1) || outputs_equal(&run.parameter[i], &all->parameter[i]),
                  "%s, want %#x, cap %zu: %s", mode_name(m), (unsigned)want, cap, chain_parameter_names[i]);
    }
    pullback_run_destroy(&run);
}

static void check_on(const chain_case *c, const incoming *in, const gradient_answer *a, const backend *at) {
    pullback_run all = run_on(c, in, ALL, at, MODE_ALONE, 0);
    check_contract(all.status, all.short_status, all.intact);
    check_close("gz0", &all.z0, c->dtype, a->z0, &a->z0_bound, 1, c->row.B * c->row.w);
    for (int i = 0; i < DPCR_PARAMETERS; i++)
        if (a->parameter[i])
            check_close(chain_parameter_names[i], &all.parameter[i], c->dtype, a->parameter[i],
                        a->parameter_bound[i], chain_row_pieces(&c->row, i), chain_row_size(&c->row, i));
    for (int i = 0; i < DPCR_PARAMETERS; i++) {
        if (!chain_row_has(&c->row, i)) continue;
        check_same(c, in, ALL & ~(1 << i), at, MODE_ALONE, 0, &all);
        check_same(c, in, 1 << i, at, MODE_POOL, 0, &all);
    }
    check_same(c, in, ALL & ~WANT_Z0, at, MODE_ALONE, 0, &all);
    check_same(c, in, WANT_Z0, at, MODE_SHUFFLED, 0, &all);
    check_same(c, in, 0, at, MODE_ALONE, 0, &all);
    check_same(c, in, ALL, at, MODE_SHUFFLED, 0, &all);
    check_same(c, in, ALL, at, MODE_POOL, 0, &all);
    check_same(c, in, ALL, at, MODE_ALONE, all.bytes, &all);
    check_same(c, in, ALL, at, MODE_POOL, all.bytes / 2, &all);
    check_same(c, in, ALL, at, MODE_ALONE, all.bytes / 3, &all);
    pullback_run_destroy(&all);
}

/* Numbers of the row, drawn again while a kink of the activation is within rounding. */
static bool draw(const chain_row *row, dpcr_dtype dtype, bool end, bool every, chain_case *c, incoming *in,
                 gradient_answer *a) {
    chain_row next = *row;
    for (int tries = 0; tries < TRIES; tries++, next.seed++) {
        *c = chain_case_create(&next, dtype);
        *in = incoming_create(c, end, every);
        *a = gradient_answer_create(c, in->states.value, end ? in->gz.value : NULL,
                                    every ? in->gstates.value : NULL);
        if (a->steady || !activation_bends(row->activation, row->activation_parameter)) return true;
        gradient_answer_destroy(a);
        incoming_destroy(in);
        chain_case_destroy(c);
    }
    return CHECK(false, "no seed keeps off the kinks of this activation: make the row smaller");
}

static void check_row(const chain_row *row, dpcr_dtype dtype, bool end, bool every) {
    int devices;
    const backend *list = backends(&devices);
    char text[300];
    chain_case c;
    incoming in;
    gradient_answer answer;
    chain_row_text(row, text, sizeof text);
    check_context("%s, %s%s%s", text, number_name(dtype), end ? ", gz" : "", every ? ", gstates" : "");
    if (!draw(row, dtype, end, every, &c, &in, &answer)) return;
    for (int d = 0; d < devices; d++) {
        if (!list[d].device) continue;
        check_context("%s, %s%s%s, %s", text, number_name(dtype), end ? ", gz" : "", every ? ", gstates" : "",
                      list[d].name);
        check_on(&c, &in, &answer, &list[d]);
    }
    gradient_answer_destroy(&answer);
    incoming_destroy(&in);
    chain_case_destroy(&c);
}

int main(void) {
    int rows;
    chain_row *table = chain_rows(&rows);
    for (int r = 0; r < rows; r++) {
        if (reduced_has(r, DPCR_F32)) check_row(&table[r], DPCR_F32, r % 4 != 0, r % 4 < 2);
        if (reduced_has(r, DPCR_F64)) check_row(&table[r], DPCR_F64, r % 4 != 1, r % 4 > 0);
    }
    free(table);
    return check_finish();
}
