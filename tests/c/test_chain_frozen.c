/* SPDX-License-Identifier: Apache-2.0
 *
 * Frozen steps in dpcr_chain_backward, on every backend, step kind and number of segments: their rows of every
 * parameter gradient are zero, the other rows and gz0 have the bits of a backward without them; gradients of
 * parameters that all steps share are sums over the others; and steps that nobody needs are not walked: NaN in their
 * states goes unnoticed.
 */
#include "support/chain_check.h"
#include "support/check.h"
#include "support/numbers.h"
#include "support/reduced.h"
#include "support/rng.h"

#include <math.h>
#include <stdlib.h>

enum { L = 12, W = 5, PARAMETERS = (1 << DPCR_PARAMETERS) - 1, ALL = PARAMETERS | WANT_Z0, MASKS = 5 };

typedef struct subject {
    chain_case *c;
    const backend *at;
    void *states, *checkpoints; /* one of them NULL: not given */
    numbers gz, gstates;
    int64_t S;
} subject;

/* Which steps are frozen; the first that is not, or L. */
static int64_t fill_mask(int mask, unsigned char *frozen) {
    int64_t first = L;
    for (int64_t l = L - 1; l >= 0; l--) {
        const bool is[MASKS] = {false, l < 7, l >= 7, l % 3 != 1, true};
        frozen[l] = is[mask] ? 1 : 0;
        if (!is[mask]) first = l;
    }
    return first;
}

static pullback_run run_on(const subject *t, const unsigned char *frozen, const void *states, int want,
                           mode m) {
    const pullback_input in = {.states = states,
                               .checkpoints = states ? NULL : t->checkpoints,
                               .gz = t->gz.data,
                               .gstates = t->gstates.data,
                               .frozen = frozen};
    return pullback_run_create(t->c, in, want, t->at, m, (dpcr_plan){.segments = t->S});
}

static void check_rows(const subject *t, const unsigned char *frozen, const pullback_run *run,
                       const pullback_run *whole) {
    for (int i = 0; i < DPCR_PARAMETERS; i++) {
        if (!run->parameter[i].data || chain_row_shares(&t->c->row, i)) continue;
        const size_t row = (size_t)chain_row_size(&t->c->row, i) * number_size(t->c->dtype);
        char *zeros = calloc(1, row + 1);
        for (int64_t l = 0; l < L && CHECK(zeros != NULL, "no memory"); l++) {
            const char *own = (const char *)run->parameter[i].data + (size_t)l * row,
                       *expected =
                           frozen[l] ? zeros : (const char *)whole->parameter[i].data + (size_t)l * row;
            CHECK(memcmp(own, expected, row) == 0, "parameter %d, step %d, %s", i, (int)l,
                  frozen[l] ? "frozen" : "not frozen");
        }
        free(zeros);
    }
}

/* Shared parameters: what the steps of a mask give has the same bits in every run. */
static void check_shared_bits(const subject *t, const pullback_run *run, const pullback_run *other) {
    for (int i = 0; i < DPCR_PARAMETERS; i++)
        if (chain_row_shares(&t->c->row, i))
            CHECK(outputs_equal(&run->parameter[i], &other->parameter[i]), "%s", chain_parameter_names[i]);
}

/* Shared parameters: the steps of a mask and all others together give what all steps give. */
static void check_shared_sums(const subject *t, const unsigned char *frozen, const pullback_run *run,
                              const pullback_run *whole) {
    const dpcr_dtype dtype = t->c->dtype;
    unsigned char others[L];
    for (int64_t l = 0; l < L; l++) others[l] = !frozen[l];
    pullback_run rest = run_on(t, others, t->states, PARAMETERS, MODE_ALONE);
    for (int i = 0; i < DPCR_PARAMETERS; i++) {
        if (!chain_row_shares(&t->c->row, i)) continue;
        const int64_t count = chain_row_size(&t->c->row, i);
        double size = 0, error = 0;
        for (int64_t k = 0; k < count; k++) {
            const double own = number_get(dtype, run->parameter[i].data, k),
                         other = number_get(dtype, rest.parameter[i].data, k);
            size = fmax(size, fabs(own) + fabs(other));
            error = fmax(error, fabs(own + other - number_get(dtype, whole->parameter[i].data, k)));
        }
        CHECK_WITHIN(error, 100 * unit_roundoff(dtype) * size, "%s", chain_parameter_names[i]);
    }
    pullback_run_destroy(&rest);
}

/* Without gz0, with NaN in all states before that of the first step that is not frozen. */
static void check_poisoned(const subject *t, const unsigned char *frozen, int64_t first,
                           const pullback_run *masked, const pullback_run *whole) {
    const int64_t state = t->c->row.B * t->c->row.w;
    const size_t bytes = (size_t)(L * state) * number_size(t->c->dtype);
    void *poisoned = allocate(bytes);
    memcpy(poisoned, t->states, bytes);
    for (int64_t i = 0; i < (first - 1) * state; i++) number_set(t->c->dtype, poisoned, i, NAN);
    pullback_run run = run_on(t, frozen, poisoned, PARAMETERS | WANT_PULLBACK_REPORT, MODE_POOL);
    check_contract(run.status, run.short_status, run.intact);
    check_rows(t, frozen, &run, whole);
    check_shared_bits(t, &run, masked);
    const double step = 2 * (double)chain_row_products(&t->c->row);
    CHECK(report_get(&run.report, DPCR_FLOPS, 0, t->c->row.B) == step * (double)(L - first), "flops");
    pullback_run_destroy(&run);
    free(poisoned);
}

static void check_masks(const subject *t) {
    pullback_run whole = run_on(t, NULL, t->states, ALL | WANT_PULLBACK_REPORT, MODE_ALONE);
    check_contract(whole.status, whole.short_status, whole.intact);
    for (int mask = 0; mask < MASKS; mask++) {
        unsigned char frozen[L];
        const int64_t first = fill_mask(mask, frozen);
        pullback_run masked = run_on(t, frozen, t->states, PARAMETERS, MODE_ALONE);
        check_shared_sums(t, frozen, &masked, &whole);
        for (int k = 0; k < 4; k++) {
            if (reduced_skips()) continue;
            const mode modes[] = {MODE_ALONE, MODE_POOL, MODE_SHUFFLED, MODE_ALONE};
            const int want = k % 2 ? PARAMETERS : ALL | WANT_PULLBACK_REPORT;
            pullback_run run = run_on(t, frozen, t->states, want, modes[k]);
            check_contract(run.status, run.short_status, run.intact);
            check_rows(t, frozen, &run, &whole);
            check_shared_bits(t, &run, &masked);
            CHECK(k % 2 || outputs_equal(&run.z0, &whole.z0), "mask %d: gz0", mask);
            CHECK(k % 2 || outputs_equal(&run.report, &whole.report), "mask %d: report", mask);
            pullback_run_destroy(&run);
        }
        if (t->S == 1 && t->states) check_poisoned(t, frozen, first, &masked, &whole);
        pullback_run_destroy(&masked);
    }
    pullback_run_destroy(&whole);
}

static void check_case(chain_case *c, int64_t S, const backend *at) {
    const int64_t state = c->row.B * c->row.w;
    rng random = {c->row.seed + 5};
    const dpcr_plan plan = {.segments = S};
    solve_run forward =
        solve_run_create(c, (solve_input){0}, WANT_STATES | WANT_CHECKPOINTS, at, MODE_ALONE, plan);
    subject t = {.c = c,
                 .at = at,
                 .gz = numbers_random(c->dtype, state, 0, 1, &random),
                 .gstates = numbers_random(c->dtype, L * state, 0, 1, &random),
                 .S = S};
    for (int kept = 0; kept < 2; kept++) {
        char text[300];
        chain_row_text(&c->row, text, sizeof text);
        check_context("S=%d, %s, %s, %s, %s", (int)S, kept ? "checkpoints" : "states", text,
                      number_name(c->dtype), at->name);
        t.states = kept ? NULL : forward.states.data;
        t.checkpoints = kept ? forward.checkpoints.data : NULL;
        check_masks(&t);
    }
    solve_run_destroy(&forward);
    numbers_destroy(&t.gz);
    numbers_destroy(&t.gstates);
}

static void check_family(int family, int k, const backend *at) {
    static const int64_t segments[] = {1, 3, L};
    const bool dear = REDUCED > 1 && chain_family_step(family) == DPCR_DENOISE; /* a warp for each sample */
    chain_row row = {.activation = k % 2 ? DPCR_SILU : DPCR_TANH,
                     .norm_eps = 1e-5,
                     .scale = 0.3,
                     .L = L,
                     .B = k % 3 && !dear ? 6 : 2,
                     .w = W,
                     .gain = 0.8,
                     .seed = (uint64_t)(300 + k)};
    chain_row_join(&row, family, 7, k);
    for (int i = 0; i < DPCR_PARAMETERS; i++)
        if (chain_row_has(&row, i)) row.present |= 1U << i;
    chain_case c = chain_case_create(&row, k % 2 ? DPCR_F64 : DPCR_F32);
    for (int i = 0; i < 3; i++)
        if (REDUCED < 2 || i != k % 3) check_case(&c, segments[i], at);
    chain_case_destroy(&c);
}

int main(void) {
    int count;
    const backend *list = backends(&count);
    for (int d = 0; d < count; d++)
        for (int k = 0; k < CHAIN_FAMILIES * (REDUCED ? 1 : 4) && list[d].device; k++)
            check_family(k % CHAIN_FAMILIES, k + k / CHAIN_FAMILIES, &list[d]);
    return check_finish();
}
