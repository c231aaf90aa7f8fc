/* SPDX-License-Identifier: Apache-2.0
 *
 * dpcr_chain_propagate over S segments with tangents, as a parallel driver uses it: ends, states and
 * products of Jacobians from arbitrary starts against the reference; and from the states of the
 * S = 1 pass exactly that pass again, bit for bit, whatever S is and whether tangents are carried.
 */
#include "support/activation_reference.h"
#include "support/chain_check.h"
#include "support/check.h"
#include "support/numbers.h"
#include "support/reduced.h"
#include "support/rng.h"

#include <stdlib.h>

/* Multiply-adds of the reference's tangents at most (w times those of a pass), and seeds to try for a
 * chain whose derivatives no rounding can flip. */
static const double kCost = 6e5;
enum { TRIES = 20 };

static bool affordable(const chain_row *row) {
    return (double)(row->L * row->B) * chain_row_work(row) * (double)row->w <= kCost;
}

/* ---- the S = 1 pass again ------------------------------------------------------------------- */

/* The state before segment k of a run from z0. */
static const char *state_before(const chain_case *c, const forward_run *run, int64_t k, int64_t S) {
    const int64_t first = segment_edge(k, c->row.L, S);
    const size_t bytes = (size_t)(c->row.B * c->row.w) * number_size(c->dtype);
    return first == 0 ? c->z0.data : (const char *)run->states.data + (size_t)(first - 1) * bytes;
}

static void check_again(const chain_case *c, const forward_run *whole, int64_t S, int want, const backend *at,
                        mode m) {
    const size_t bytes = (size_t)(c->row.B * c->row.w) * number_size(c->dtype);
    char *starts = allocate((size_t)S * bytes);
    for (int64_t k = 0; k < S; k++) memcpy(starts + (size_t)k * bytes, state_before(c, whole, k, S), bytes);
    forward_run run = forward_run_create(c, starts, want | WANT_STATES, at, m, (dpcr_plan){.segments = S});
    check_contract(run.status, run.short_status, run.intact);
    CHECK(outputs_equal(&run.states, &whole->states), "S=%d, want %d: not the bits of S = 1", (int)S, want);
    for (int64_t k = 0; k < S; k++) {
        const char *end = (const char *)run.ends.data + (size_t)k * bytes;
        CHECK(memcmp(end, state_before(c, whole, k + 1, S), bytes) == 0, "S=%d: end of segment %d", (int)S,
              (int)k);
    }
    forward_run_destroy(&run);
    free(starts);
}

/* ---- arbitrary starts ----------------------------------------------------------------------- */

static void check_variant(const chain_case *c, const numbers *starts, int64_t S, int want, const backend *at,
                          mode m, size_t cap, const forward_run *all) {
    if (reduced_skips()) return;
    const dpcr_plan plan = {.segments = S, .workspace_cap = cap};
    forward_run run = forward_run_create(c, starts->data, want, at, m, plan);
    if (check_cap(run.status, run.bytes, cap, all->bytes)) {
        check_contract(run.status, run.short_status, run.intact);
        CHECK(outputs_equal(&run.ends, &all->ends), "%s, want %d, cap %zu: ends", mode_name(m), want, cap);
        CHECK(!(want & WANT_STATES) || outputs_equal(&run.states, &all->states), "%s, cap %zu: states",
              mode_name(m), cap);
        CHECK(!(want & WANT_TANGENTS) || outputs_equal(&run.tangents, &all->tangents),
              "%s, cap %zu: tangents", mode_name(m), cap);
    }
    forward_run_destroy(&run);
}

static void check_starts(const chain_case *c, const numbers *starts, int64_t S, const chain_answer *a,
                         const backend *at) {
    const int64_t state = c->row.B * c->row.w;
    const int every = WANT_STATES | WANT_TANGENTS;
    forward_run all = forward_run_create(c, starts->data, every, at, MODE_ALONE, (dpcr_plan){.segments = S});
    check_contract(all.status, all.short_status, all.intact);
    check_close("end of segment", &all.ends, c->dtype, a->ends, a->end_bound, S, state);
    check_close("step", &all.states, c->dtype, a->states, a->state_bound, c->row.L, state);
    check_close("tangents of segment", &all.tangents, c->dtype, a->tangents, a->tangent_bound, S,
                state * c->row.w);
    check_variant(c, starts, S, WANT_TANGENTS, at, MODE_ALONE, 0, &all);
    check_variant(c, starts, S, WANT_STATES, at, MODE_ALONE, 0, &all);
    check_variant(c, starts, S, 0, at, MODE_POOL, 0, &all);
    check_variant(c, starts, S, every, at, MODE_SHUFFLED, 0, &all);
    check_variant(c, starts, S, every, at, MODE_POOL, 0, &all);
    check_variant(c, starts, S, every, at, MODE_POOL, all.bytes, &all);
    check_variant(c, starts, S, every, at, MODE_POOL, 1, &all);
    forward_run_destroy(&all);
}

/* ---- rows ----------------------------------------------------------------------------------- */

/* Numbers and starts of a row, drawn again while a kink or step of the activation is within rounding. */
static bool draw(const chain_row *row, dpcr_dtype dtype, int64_t S, chain_case *c, numbers *starts,
                 chain_answer *a) {
    chain_row next = *row;
    for (int tries = 0; tries < TRIES; tries++, next.seed++) {
        rng random = {next.seed + 99};
        *c = chain_case_create(&next, dtype);
        *starts = numbers_random(dtype, S * row->B * row->w, 0, 1, &random);
        *a = chain_answer_create(c, starts->value, S, true);
        if (a->steady || !activation_bends(row->activation, row->activation_parameter)) return true;
        chain_answer_destroy(a);
        numbers_destroy(starts);
        chain_case_destroy(c);
    }
    return CHECK(false, "no seed keeps off the kinks of this activation: make the row smaller");
}

static void check_segments(const chain_row *row, dpcr_dtype dtype, int64_t S) {
    int devices;
    const backend *list = backends(&devices);
    char text[300];
    chain_case c;
    numbers starts;
    chain_answer answer;
    chain_row_text(row, text, sizeof text);
    check_context("S=%d, %s, %s", (int)S, text, number_name(dtype));
    if (!draw(row, dtype, S, &c, &starts, &answer)) return;
    for (int d = 0; d < devices; d++) {
        if (!list[d].device) continue;
        check_context("S=%d, %s, %s, %s", (int)S, text, number_name(dtype), list[d].name);
        check_starts(&c, &starts, S, &answer, &list[d]);
        forward_run whole =
            forward_run_create(&c, c.z0.data, WANT_STATES, &list[d], MODE_ALONE, (dpcr_plan){.segments = 1});
        check_again(&c, &whole, S, 0, &list[d], MODE_POOL);
        check_again(&c, &whole, S, WANT_TANGENTS, &list[d], MODE_ALONE);
        forward_run_destroy(&whole);
    }
    chain_answer_destroy(&answer);
    numbers_destroy(&starts);
    chain_case_destroy(&c);
}

int main(void) {
    int rows;
    chain_row *table = chain_rows(&rows);
    for (int r = 0; r < rows; r++) {
        const int64_t L = table[r].L, choices[] = {1, 2, 3, 7, L / 2, L - 1, L};
        const int64_t S = choices[r % 7];
        if (!affordable(&table[r]) || S < 1 || (S > L && L > 0)) continue;
        if (reduced_has(r, DPCR_F32)) check_segments(&table[r], DPCR_F32, S);
        if (reduced_has(r, DPCR_F64)) check_segments(&table[r], DPCR_F64, S);
    }
    free(table);
    return check_finish();
}
