/* SPDX-License-Identifier: Apache-2.0
 *
 * Reference answers of a chain and error bounds: a few runs with the noise of NOISE roundings, and the
 * largest of what they do to any sample at a step or at its neighbours.
 */
#include "chain_case.h"

#include "activation_reference.h"
#include "backend.h"
#include "numbers.h"

#include <math.h>
#include <stdlib.h>

enum { RUNS = 3, NOISE = 2 };

/* Errors allowed: per deviation seen; where those happen to be small, in roundings of the largest
 * element; and where there is nothing left but denormals. */
static const double kAllowed = 2, kFloor = 4;

static double underflow(dpcr_dtype dtype) {
    return dtype == DPCR_F32 ? 0x1p-130 : 0x1p-1040;
}

static double *doubles(int64_t count) {
    return allocate((size_t)count * sizeof(double));
}

static noise noise_of(const chain_case *c, int run) {
    return (noise){.random = {c->row.seed + (uint64_t)run},
                   .roundoff = run == 0 ? 0 : NOISE * unit_roundoff(c->dtype)};
}

static double largest(const double *a, int64_t count) {
    double most = 0;
    for (int64_t i = 0; i < count; i++) most = fmax(most, fabs(a[i]));
    return most;
}

static double furthest(const double *a, const double *b, int64_t count) {
    double most = 0;
    for (int64_t i = 0; i < count; i++) most = fmax(most, fabs(a[i] - b[i]));
    return most;
}

/* Pieces of `size` elements: bound (pieces) grows to what the noisy run shows. */
static void observe(double *bound, const double *exact, const double *noisy, int64_t pieces, int64_t size) {
    for (int64_t k = 0; k < pieces; k++)
        bound[k] = fmax(bound[k], furthest(exact + k * size, noisy + k * size, size));
}

/* Deviations (pieces) -> errors allowed: a piece that came off lightly by chance takes its neighbours'. */
static double *finish(double *deviation, const double *exact, int64_t pieces, int64_t size,
                      dpcr_dtype dtype) {
    double *bound = doubles(pieces);
    for (int64_t k = 0; k < pieces; k++) {
        double most = deviation[k];
        for (int64_t j = k - 2; j <= k + 2; j++)
            if (j >= 0 && j < pieces) most = fmax(most, deviation[j]);
        bound[k] = kAllowed * most + kFloor * unit_roundoff(dtype) * largest(exact + k * size, size)
                   + underflow(dtype);
    }
    free(deviation);
    return bound;
}

static double *zeros(int64_t count) {
    double *a = doubles(count);
    for (int64_t i = 0; i < count; i++) a[i] = 0;
    return a;
}

/* One run, exact or noisy, over all segments. */
static uint64_t run_forward(const chain_case *c, const double *starts, int64_t S, int run,
                            const chain_answer *to) {
    const int64_t L = c->row.L, state = c->row.B * c->row.w;
    noise n = noise_of(c, run);
    for (int64_t k = 0; k < S; k++) {
        const int64_t first = segment_edge(k, L, S), last = segment_edge(k + 1, L, S);
        double *states = to->states + first * state;
        reference_propagate(&c->exact, first, last, starts + k * state, to->ends + k * state, states, &n);
        if (to->tangents)
            reference_tangents(&c->exact, first, last, starts + k * state, states,
                               to->tangents + k * state * c->row.w, &n);
    }
    return n.branches;
}

static chain_answer answer_blank(const chain_case *c, int64_t S, bool tangents) {
    const int64_t state = c->row.B * c->row.w;
    return (chain_answer){.states = doubles(c->row.L * state),
                          .ends = doubles(S * state),
                          .tangents = tangents ? doubles(S * state * c->row.w) : NULL};
}

chain_answer chain_answer_create(const chain_case *c, const double *starts, int64_t S, bool tangents) {
    const int64_t L = c->row.L, state = c->row.B * c->row.w, tangent = state * c->row.w;
    chain_answer a = answer_blank(c, S, tangents), noisy = answer_blank(c, S, tangents);
    double *states = zeros(L), *ends = zeros(S), *products = zeros(S);
    const uint64_t branches = run_forward(c, starts, S, 0, &a);
    a.steady = true;
    for (int run = 1; run <= RUNS; run++) {
        a.steady = run_forward(c, starts, S, run, &noisy) == branches && a.steady;
        observe(states, a.states, noisy.states, L, state);
        observe(ends, a.ends, noisy.ends, S, state);
        if (tangents) observe(products, a.tangents, noisy.tangents, S, tangent);
    }
    a.state_bound = finish(states, a.states, L, state, c->dtype);
    a.end_bound = finish(ends, a.ends, S, state, c->dtype);
    a.tangent_bound = tangents ? finish(products, a.tangents, S, tangent, c->dtype) : products;
    chain_answer_destroy(&noisy);
    return a;
}

void chain_answer_destroy(chain_answer *a) {
    free(a->states);
    free(a->ends);
    free(a->tangents);
    free(a->state_bound);
    free(a->end_bound);
    free(a->tangent_bound);
}

static uint64_t run_backward(const chain_case *c, dpcr_pullback pass, int run, const gradient_answer *to) {
    noise n = noise_of(c, run);
    pass.z0 = c->z0.value;
    pass.gz0 = to->z0;
    for (int i = 0; i < DPCR_PARAMETERS; i++) pass.gparameter[i] = to->parameter[i];
    reference_backward(&c->exact, &pass, &n);
    return n.branches;
}

/* Also the gradients of parameters that are absent (biases 0, gamma 1), as they may be asked for. */
static gradient_answer gradients_blank(const chain_case *c) {
    gradient_answer a = {.z0 = doubles(c->row.B * c->row.w)};
    for (int i = 0; i < DPCR_PARAMETERS; i++)
        a.parameter[i] = chain_row_has(&c->row, i)
                             ? doubles(chain_row_pieces(&c->row, i) * chain_row_size(&c->row, i))
                             : NULL;
    return a;
}

gradient_answer gradient_answer_create(const chain_case *c, const double *states, const double *gz,
                                       const double *gstates) {
    const int64_t state = c->row.B * c->row.w;
    const dpcr_pullback pass = {.states = states, .gz = gz, .gstates = gstates};
    gradient_answer a = gradients_blank(c), noisy = gradients_blank(c);
    double *z0 = zeros(1), *parameter[DPCR_PARAMETERS];
    for (int i = 0; i < DPCR_PARAMETERS; i++) parameter[i] = zeros(chain_row_pieces(&c->row, i));
    const uint64_t branches = run_backward(c, pass, 0, &a);
    a.steady = true;
    for (int run = 1; run <= RUNS; run++) {
        a.steady = run_backward(c, pass, run, &noisy) == branches && a.steady;
        observe(z0, a.z0, noisy.z0, 1, state);
        for (int i = 0; i < DPCR_PARAMETERS; i++)
            if (a.parameter[i])
                observe(parameter[i], a.parameter[i], noisy.parameter[i], chain_row_pieces(&c->row, i),
                        chain_row_size(&c->row, i));
    }
    double *bound = finish(z0, a.z0, 1, state, c->dtype);
    a.z0_bound = bound[0];
    free(bound);
    for (int i = 0; i < DPCR_PARAMETERS; i++)
        a.parameter_bound[i] = a.parameter[i]
                                   ? finish(parameter[i], a.parameter[i], chain_row_pieces(&c->row, i),
                                            chain_row_size(&c->row, i), c->dtype)
                                   : parameter[i];
    gradient_answer_destroy(&noisy);
    return a;
}

void gradient_answer_destroy(gradient_answer *a) {
    free(a->z0);
    for (int i = 0; i < DPCR_PARAMETERS; i++) {
        free(a->parameter[i]);
        free(a->parameter_bound[i]);
    }
}
