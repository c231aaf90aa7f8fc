/* SPDX-License-Identifier: Apache-2.0
 *
 * Vectors of more than 1024 elements, up to the 4096 that the CUDA device takes: forward and backward, one segment
 * and several, with every structure of P.  Chains without products of Jacobians must do without memory for them.
 * One of w and h is small wherever possible, so that the simulator has little to do.
 */
#include "support/activation_reference.h"
#include "support/chain_check.h"
#include "support/check.h"
#include "support/newton_answer.h"
#include "support/numbers.h"
#include "support/reduced.h"
#include "support/rng.h"

#include <stdlib.h>
#include <string.h>

enum { EVERY = WANT_STATES | WANT_REPORT, ALL = WANT_Z0 | ((1 << DPCR_PARAMETERS) - 1) };

typedef struct wide_row {
    int family; /* of chain_rows.h */
    dpcr_activation activation;
    int64_t L, B, w, h, S;
    dpcr_structure structure;
} wide_row;

/* The last ones are too much for the simulator. */
enum { DEAR = 2 };
static const wide_row rows[] = {
    {1, DPCR_TANH, 4, 2, 1025, 3, 3, DPCR_P_IDENTITY},
    {2, DPCR_SILU, 3, 2, 2048, 2, 3, DPCR_P_IDENTITY},
    {3, DPCR_GELU, 2, 2, 4096, 1, 2, DPCR_P_ZERO},
    {1, DPCR_TANH, 3, 2, 3, 4095, 3, DPCR_P_DENSE},
    {2, DPCR_ELU, 3, 2, 20, 1300, 3, DPCR_P_IDENTITY},
    {0, DPCR_TANH, 2, 1, 1025, 0, 2, DPCR_P_ZERO},
    {0, DPCR_TANH, 3, 2, 256, 0, 2, DPCR_P_ZERO}, /* read at four places at once, on a CPU */
    {3 + DPCR_NORMS, DPCR_SIGMOID, 2, 1, 1060, 0, 2, DPCR_P_IDENTITY},
    {CHAIN_FAMILIES - 1, DPCR_SILU, 3, 2, 1100, 3, 3, DPCR_P_IDENTITY},
    {1, DPCR_SILU, 3, 1, 1025, 1, 3, DPCR_P_DENSE}, /* its P_1 by 1025 columns */
};

static chain_row chain_of(const wide_row *r) {
    const double *p = activation_default(r->activation);
    chain_row row = {.activation = r->activation,
                     .activation_parameter = {p[0], p[1]},
                     .norm_eps = 1e-5,
                     .scale = 0.25,
                     .L = r->L,
                     .B = r->B,
                     .w = r->w,
                     .gain = 0.7,
                     .seed = 31};
    chain_row_join(&row, r->family, r->h, 3);
    row.layers = row.step == DPCR_LAYERS || row.step == DPCR_DENOISE ? 1 : 0;
    for (int i = 0; i < DPCR_PARAMETERS; i++)
        if (chain_row_has(&row, i)) row.present |= 1U << i;
    return row;
}

/* No w by w matrix for each segment and sample; where matrices themselves are large, gradients have scratch for them. */
static void check_memory(const wide_row *r, const chain_case *c, size_t bytes) {
    const size_t matrices = (size_t)(r->S * r->B * r->w * r->w) * number_size(c->dtype);
    CHECK(r->structure == DPCR_P_DENSE || r->w < 1024 || c->row.h > 3 || bytes < matrices,
          "%zu bytes of workspace", bytes);
}

static void check_forward(const wide_row *r, const chain_case *c, const dpcr_newton *newton,
                          const backend *at) {
    newton_answer answer = newton_answer_create(c, r->S, newton->rtol);
    const solve_input in = {NULL, newton};
    solve_run loop = solve_run_create(c, in, EVERY, at, MODE_ALONE, (dpcr_plan){.segments = 1});
    solve_run run = solve_run_create(c, in, EVERY, at, MODE_SHUFFLED, (dpcr_plan){.segments = r->S});
    check_contract(loop.status, loop.short_status, loop.intact);
    check_contract(run.status, run.short_status, run.intact);
    check_memory(r, c, run.bytes);
    for (int64_t s = 0; s < r->B; s++) {
        check_sample(c, &answer, &loop.states, s);
        check_verdict(c, &answer, newton, &run, &loop, s);
    }
    newton_answer_destroy(&answer);
    solve_run_destroy(&loop);
    solve_run_destroy(&run);
}

static void check_backward(const wide_row *r, const chain_case *c, const dpcr_newton *newton,
                           const backend *at) {
    const int64_t state = r->B * r->w;
    rng random = {9};
    chain_answer path = chain_answer_create(c, c->z0.value, 1, false);
    numbers states = numbers_rounded(c->dtype, r->L * state, path.states);
    numbers gz = numbers_random(c->dtype, state, 0, 1, &random);
    gradient_answer answer = gradient_answer_create(c, states.value, gz.value, NULL);
    const pullback_input in = {.states = states.data, .gz = gz.data, .newton = newton};
    const int64_t segments[] = {1, r->S};
    for (int k = 0; k < 2; k++) {
        const dpcr_plan plan = {.segments = segments[k]};
        pullback_run run = pullback_run_create(c, in, ALL, at, k ? MODE_POOL : MODE_ALONE, plan);
        check_contract(run.status, run.short_status, run.intact);
        check_close("gz0", &run.z0, c->dtype, answer.z0, &answer.z0_bound, 1, state);
        for (int i = 0; i < DPCR_PARAMETERS; i++)
            if (answer.parameter[i])
                check_close("gradient", &run.parameter[i], c->dtype, answer.parameter[i],
                            answer.parameter_bound[i], chain_row_pieces(&c->row, i),
                            chain_row_size(&c->row, i));
        if (k) check_memory(r, c, run.bytes);
        pullback_run_destroy(&run);
    }
    gradient_answer_destroy(&answer);
    chain_answer_destroy(&path);
    numbers_destroy(&states);
    numbers_destroy(&gz);
}

static void check_row(const wide_row *r, dpcr_dtype dtype, const backend *at) {
    const chain_row row = chain_of(r);
    char text[300];
    chain_row_text(&row, text, sizeof text);
    check_context("S=%d, P %d, %s, %s, %s", (int)r->S, (int)r->structure, text, number_name(dtype), at->name);
    chain_case c = chain_case_create(&row, dtype);
    dpcr_newton newton = dpcr_newton_default(dtype);
    newton.structure = r->structure;
    check_forward(r, &c, &newton, at);
    check_backward(r, &c, &newton, at);
    chain_case_destroy(&c);
}

/* One more than a device takes is refused by name, before memory is asked for. */
static void check_limit(const backend *at) {
    const double weight[1] = {0};
    size_t bytes;
    dpcr_chain chain = {.step = DPCR_MLP, .dtype = DPCR_F64, .L = 1, .B = 1, .w = 4097, .h = 4097};
    chain.activation = DPCR_TANH;
    chain.parameter[DPCR_W1] = weight;
    const dpcr_solution arrays = {.z0 = weight, .z = (void *)&bytes};
    const dpcr_plan plan = {.segments = 1};
    const dpcr_status status =
        dpcr_chain_solve_workspace(backend_exec(at, MODE_ALONE), &chain, &arrays, &plan, &bytes);
    check_context("w = 4097, %s", at->name);
    CHECK(status == DPCR_OK || (status == DPCR_UNSUPPORTED && strstr(dpcr_detail(), "4097")), "status %d: %s",
          (int)status, dpcr_detail());
    CHECK(status == DPCR_UNSUPPORTED || strncmp(at->name, "cuda", 4) != 0, "status %d", (int)status);
}

/* The best level alone of a processor: on it, this width is one among others. */
int main(void) {
    int count;
    const backend *list = backends(&count);
    const int all = (int)(sizeof rows / sizeof rows[0]) - (REDUCED > 1 ? DEAR : 0);
    while (count > 1 && !list[count - 1].device) count--;
    const backend *at = &list[count - 1];
    for (int k = 0; k < all && at->device; k++) check_row(&rows[k], k % 2 ? DPCR_F64 : DPCR_F32, at);
    if (at->device) check_limit(at);
    return check_finish();
}
