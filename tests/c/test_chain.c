/* SPDX-License-Identifier: Apache-2.0
 *
 * Conformance of dpcr_chain_propagate over a whole chain (S = 1): every row of the table on every
 * backend, in f32 and f64, in every mode, with and without states, and under workspace caps.
 */
#include "support/activation_reference.h"
#include "support/chain_check.h"
#include "support/check.h"
#include "support/numbers.h"
#include "support/reduced.h"

#include <math.h>
#include <stdlib.h>

static void check_same(const chain_case *c, const backend *at, mode m, int want, size_t cap,
                       const forward_run *whole) {
    if (reduced_skips()) return;
    forward_run run =
        forward_run_create(c, c->z0.data, want, at, m, (dpcr_plan){.segments = 1, .workspace_cap = cap});
    if (check_cap(run.status, run.bytes, cap, whole->bytes)) {
        check_contract(run.status, run.short_status, run.intact);
        CHECK(outputs_equal(&run.ends, &whole->ends), "%s, want %d, cap %zu: other bits", mode_name(m), want,
              cap);
        CHECK(!(want & WANT_STATES) || outputs_equal(&run.states, &whole->states),
              "%s, cap %zu: other bits of states", mode_name(m), cap);
    }
    forward_run_destroy(&run);
}

static void check_on(const chain_case *c, const backend *at, const chain_answer *a) {
    const int64_t L = c->row.L, state = c->row.B * c->row.w;
    forward_run run =
        forward_run_create(c, c->z0.data, WANT_STATES, at, MODE_ALONE, (dpcr_plan){.segments = 1});
    check_contract(run.status, run.short_status, run.intact);
    check_close("step", &run.states, c->dtype, a->states, a->state_bound, L, state);
    check_close("end", &run.ends, c->dtype, a->ends, a->end_bound, 1, state);
    const char *last =
        (const char *)run.states.data + (L > 0 ? (size_t)((L - 1) * state) * number_size(c->dtype) : 0);
    CHECK(memcmp(run.ends.data, L > 0 ? last : c->z0.data, run.ends.bytes) == 0,
          "the end is not the last state");
    check_same(c, at, MODE_ALONE, 0, 0, &run);
    check_same(c, at, MODE_SHUFFLED, WANT_STATES, 0, &run);
    check_same(c, at, MODE_POOL, WANT_STATES, 0, &run);
    check_same(c, at, MODE_POOL, 0, 0, &run);
    check_same(c, at, MODE_ALONE, WANT_STATES, run.bytes, &run);
    check_same(c, at, MODE_POOL, WANT_STATES, run.bytes, &run);
    check_same(c, at, MODE_POOL, 0, 1, &run);
    forward_run_destroy(&run);
}

/* The numbers of the row, drawn again while a pre-activation sits where rounding decides between two
 * values of the activation. */
static chain_case draw(const chain_row *row, dpcr_dtype dtype, chain_answer *answer) {
    chain_row next = *row;
    for (int tries = 0;; tries++) {
        chain_case c = chain_case_create(&next, dtype);
        *answer = chain_answer_create(&c, c.z0.value, 1, false);
        if (answer->steady || !activation_jumps(row->activation, row->activation_parameter) || tries == 20)
            return c;
        chain_answer_destroy(answer);
        chain_case_destroy(&c);
        next.seed++;
    }
}

static void check_row(const chain_row *row, dpcr_dtype dtype) {
    int devices;
    const backend *list = backends(&devices);
    char text[300];
    chain_row_text(row, text, sizeof text);
    chain_answer answer;
    chain_case c = draw(row, dtype, &answer);
    const bool usable = answer.steady || !activation_jumps(row->activation, row->activation_parameter);
    check_context("%s, %s", text, number_name(dtype));
    CHECK(usable, "no seed keeps off the steps of this activation: make the row smaller");
    for (int d = 0; d < devices && usable; d++) {
        if (!list[d].device) continue;
        check_context("%s, %s, %s", text, number_name(dtype), list[d].name);
        check_on(&c, &list[d], &answer);
    }
    chain_answer_destroy(&answer);
    chain_case_destroy(&c);
}

int main(void) {
    int rows;
    chain_row *table = chain_rows(&rows);
    for (int r = 0; r < rows; r++) {
        if (reduced_has(r, DPCR_F32)) check_row(&table[r], DPCR_F32);
        if (reduced_has(r, DPCR_F64)) check_row(&table[r], DPCR_F64);
    }
    free(table);
    return check_finish();
}
