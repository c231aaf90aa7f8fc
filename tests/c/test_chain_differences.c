/* SPDX-License-Identifier: Apache-2.0
 *
 * Derivatives against central differences of the very forward pass they belong to, in f64, with no
 * oracle in between: along random directions of z0 and of every parameter
 *
 *     <gradient, d> = (loss(. + e d) - loss(. - e d)) / 2e,     loss = <gz, z_L> + sum_l <gstates_l, z_l>,
 *
 * and tangents times a direction against differences of the segment's end.  The reference's own
 * derivatives are put to the same test.
 */
#include "support/activation_reference.h"
#include "support/chain_run.h"
#include "support/check.h"
#include "support/numbers.h"
#include "support/rng.h"

#include <stdlib.h>

enum { DIRECTIONS = 2 };

/* The difference quotient errs by about e^2 and u / e relative to the loss's own size. */
static const double kStep = 1e-5, kTolerance = 1e-8;

static double inner(const double *a, const double *b, int64_t count) {
    double sum = 0;
    for (int64_t i = 0; i < count; i++) sum += a[i] * b[i];
    return sum;
}

static double absolute(const double *a, const double *b, int64_t count) {
    double sum = 0;
    for (int64_t i = 0; i < count; i++) sum += fabs(a[i] * b[i]);
    return sum;
}

/* ---- the loss ------------------------------------------------------------------------------- */

/* A case (f64), the weights of its loss and where it runs; at NULL: on the reference. */
typedef struct problem {
    chain_case c;
    numbers gz, gstates;
    const backend *at;
} problem;

static void states_of(const problem *p, double *states, double *end) {
    if (!p->at) {
        noise none = {.roundoff = 0};
        reference_propagate(&p->c.exact, 0, p->c.row.L, p->c.z0.value, end, states, &none);
        return;
    }
    forward_run run =
        forward_run_create(&p->c, p->c.z0.data, WANT_STATES, p->at, MODE_ALONE, (dpcr_plan){.segments = 1});
    CHECK(run.status == DPCR_OK, "%s", dpcr_detail());
    memcpy(states, run.states.data, run.states.bytes);
    memcpy(end, run.ends.data, run.ends.bytes);
    forward_run_destroy(&run);
}

static double loss(const problem *p, double *size) {
    const int64_t state = p->c.row.B * p->c.row.w, L = p->c.row.L;
    double *states = allocate((size_t)(L * state) * sizeof(double)),
           *end = allocate((size_t)state * sizeof(double));
    states_of(p, states, end);
    const double value = inner(end, p->gz.value, state) + inner(states, p->gstates.value, L * state);
    *size = absolute(end, p->gz.value, state) + absolute(states, p->gstates.value, L * state);
    free(states);
    free(end);
    return value;
}

/* Moves an argument of the loss (z0 or a parameter) by e times a direction. */
static void move(numbers *argument, const double *from, const double *direction, double e) {
    for (int64_t i = 0; i < argument->count; i++) numbers_set(argument, i, from[i] + e * direction[i]);
}

static void check_direction(problem *p, numbers *argument, const double *gradient, const char *name) {
    const size_t bytes = (size_t)argument->count * sizeof(double);
    rng random = {p->c.row.seed + 17};
    double *from = allocate(bytes), *direction = allocate(bytes), size, ignored;
    memcpy(from, argument->value, bytes);
    for (int k = 0; k < DIRECTIONS; k++) {
        for (int64_t i = 0; i < argument->count; i++) direction[i] = rng_normal(&random);
        move(argument, from, direction, kStep);
        const double above = loss(p, &size);
        move(argument, from, direction, -kStep);
        const double below = loss(p, &ignored), expected = (above - below) / (2 * kStep);
        move(argument, from, direction, 0);
        const double slope = inner(gradient, direction, argument->count);
        const double scale = absolute(gradient, direction, argument->count) + size;
        CHECK_WITHIN(fabs(slope - expected), kTolerance * scale, "%s: %.12g, differences say %.12g", name,
                     slope, expected);
    }
    free(from);
    free(direction);
}

/* ---- gradients ------------------------------------------------------------------------------ */

typedef struct gradients {
    double *z0, *parameter[DPCR_PARAMETERS];
} gradients;

static gradients gradients_of(const problem *p, const double *states) {
    const chain_row *row = &p->c.row;
    gradients g = {.z0 = allocate((size_t)(row->B * row->w) * sizeof(double))};
    dpcr_pullback pass = {
        .z0 = p->c.z0.value, .states = states, .gz = p->gz.value, .gstates = p->gstates.value, .gz0 = g.z0};
    for (int i = 0; i < DPCR_PARAMETERS; i++)
        pass.gparameter[i] = g.parameter[i] =
            allocate((size_t)(chain_row_pieces(row, i) * chain_row_size(row, i)) * sizeof(double) + 8);
    if (!p->at) {
        noise none = {.roundoff = 0};
        for (int i = 0; i < DPCR_PARAMETERS; i++)
            if (!chain_row_has(row, i)) pass.gparameter[i] = NULL;
        reference_backward(&p->c.exact, &pass, &none);
        return g;
    }
    const pullback_input in = {.states = states, .gz = p->gz.data, .gstates = p->gstates.data};
    const int want = WANT_Z0 | ((1 << DPCR_PARAMETERS) - 1);
    pullback_run run = pullback_run_create(&p->c, in, want, p->at, MODE_ALONE, (dpcr_plan){.segments = 1});
    CHECK(run.status == DPCR_OK, "%s", dpcr_detail());
    memcpy(g.z0, run.z0.data, run.z0.bytes);
    for (int i = 0; i < DPCR_PARAMETERS; i++)
        if (run.parameter[i].data) memcpy(g.parameter[i], run.parameter[i].data, run.parameter[i].bytes);
    pullback_run_destroy(&run);
    return g;
}

static void check_gradients(problem *p) {
    const int64_t state = p->c.row.B * p->c.row.w;
    double *states = allocate((size_t)(p->c.row.L * state) * sizeof(double)),
           *end = allocate((size_t)state * sizeof(double));
    states_of(p, states, end);
    gradients g = gradients_of(p, states);
    check_direction(p, &p->c.z0, g.z0, "z0");
    for (int i = 0; i < DPCR_PARAMETERS; i++) {
        if (p->c.parameter[i].count > 0)
            check_direction(p, &p->c.parameter[i], g.parameter[i], chain_parameter_names[i]);
        free(g.parameter[i]);
    }
    free(g.z0);
    free(states);
    free(end);
}

/* ---- tangents ------------------------------------------------------------------------------- */

/* P d against the difference of the ends, one sample at a time */
static void check_tangents(problem *p) {
    const int64_t B = p->c.row.B, w = p->c.row.w, state = B * w;
    const size_t bytes = (size_t)state * sizeof(double);
    rng random = {p->c.row.seed + 23};
    double *from = allocate(bytes), *direction = allocate(bytes);
    memcpy(from, p->c.z0.value, bytes);
    for (int64_t i = 0; i < state; i++) direction[i] = rng_normal(&random);
    const dpcr_plan plan = {.segments = 1};
    forward_run here = forward_run_create(&p->c, p->c.z0.data, WANT_TANGENTS, p->at, MODE_ALONE, plan);
    move(&p->c.z0, from, direction, kStep);
    forward_run above = forward_run_create(&p->c, p->c.z0.data, 0, p->at, MODE_ALONE, plan);
    move(&p->c.z0, from, direction, -kStep);
    forward_run below = forward_run_create(&p->c, p->c.z0.data, 0, p->at, MODE_ALONE, plan);
    move(&p->c.z0, from, direction, 0);
    const double *P = here.tangents.data, *up = above.ends.data, *down = below.ends.data;
    for (int64_t k = 0; k < state; k++) {
        const double slope = inner(P + k * w, direction + k / w * w, w),
                     expected = (up[k] - down[k]) / (2 * kStep);
        const double scale = absolute(P + k * w, direction + k / w * w, w) + fabs(up[k]);
        CHECK_WITHIN(fabs(slope - expected), 10 * kTolerance * (scale + 1),
                     "element %d: %.12g, differences say %.12g", (int)k, slope, expected);
    }
    forward_run_destroy(&here);
    forward_run_destroy(&above);
    forward_run_destroy(&below);
    free(from);
    free(direction);
}

/* ---- rows ----------------------------------------------------------------------------------- */

/* Kinked kinds: a seed for which a step of kStep crosses no kink is one that noise as large keeps. */
static bool crosses(const chain_case *c) {
    const int64_t state = c->row.B * c->row.w;
    double *end = allocate((size_t)state * sizeof(double));
    noise none = {.roundoff = 0};
    bool crossed = false;
    reference_propagate(&c->exact, 0, c->row.L, c->z0.value, end, NULL, &none);
    for (uint64_t k = 0; k < 8; k++) {
        noise large = {.random = {k}, .roundoff = 4 * kStep};
        reference_propagate(&c->exact, 0, c->row.L, c->z0.value, end, NULL, &large);
        crossed = crossed || large.branches != none.branches;
    }
    free(end);
    return crossed;
}

static problem problem_create(chain_row row, const backend *at) {
    problem p = {.c = chain_case_create(&row, DPCR_F64), .at = at};
    for (int tries = 0; tries < 200 && crosses(&p.c); tries++) {
        chain_case_destroy(&p.c);
        row.seed++;
        p.c = chain_case_create(&row, DPCR_F64);
    }
    rng random = {row.seed};
    p.gz = numbers_random(DPCR_F64, row.B * row.w, 0, 1, &random);
    p.gstates = numbers_random(DPCR_F64, row.L * row.B * row.w, 0, 1, &random);
    return p;
}

static void check_row(chain_row row, const backend *at) {
    char text[300];
    problem p = problem_create(row, at);
    chain_row_text(&row, text, sizeof text);
    check_context("%s, %s", text, at ? at->name : "the reference");
    if (CHECK(!crosses(&p.c), "no seed keeps off the kinks")) {
        check_gradients(&p);
        if (at) check_tangents(&p);
    }
    numbers_destroy(&p.gz);
    numbers_destroy(&p.gstates);
    chain_case_destroy(&p.c);
}

/* Chain k of a family: all parameters, or only the weights. */
static void check_kind(int family, dpcr_activation activation, int k, const backend *at) {
    const double *p = k % 2 ? activation_other(activation) : activation_default(activation);
    chain_row row = {.activation = activation,
                     .activation_parameter = {p[0], p[1]},
                     .norm_eps = 0.05,
                     .scale = k % 3 ? 0.7 : 1,
                     .L = 4,
                     .B = 3,
                     .w = 5,
                     .gain = 1,
                     .seed = (uint64_t)(1000 + k)};
    chain_row_join(&row, family, 7, k / 4);
    if (row.step == DPCR_LAYERS && row.layers > 1)
        row.L = 2; /* every norm more bends the loss more, and differences are for straight lines */
    for (int i = 0; i < DPCR_PARAMETERS; i++)
        if (chain_row_has(&row, i) && (k % 2 == 0 || CHAIN_WEIGHTS >> i & 1)) row.present |= 1U << i;
    check_row(row, at);
}

/* Every kind of chain with every activation, both sets of parameters; denoising with every number of layers. */
static void check_kinds(const backend *at) {
    enum { OTHERS = CHAIN_FAMILIES - 1 };
    for (int k = 0; k < OTHERS * 2 * DPCR_ACTIVATIONS; k++)
        check_kind(k / 2 % OTHERS, (dpcr_activation)(k / (2 * OTHERS)), k, at);
    for (int k = 0; k < 12 * DPCR_ACTIVATIONS; k++)
        check_kind(OTHERS, (dpcr_activation)(k % DPCR_ACTIVATIONS), k / DPCR_ACTIVATIONS, at);
}

int main(void) {
    int count;
    const backend *list = backends(&count);
    check_kinds(NULL);
    for (int d = 0; d < count; d++)
        if (list[d].device) check_kinds(&list[d]);
    return check_finish();
}
