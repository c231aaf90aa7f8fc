/* SPDX-License-Identifier: Apache-2.0
 *
 * The table in four parts: every kind of chain, from contracting to chaotic, with dense, identity and zero P and
 * every refresh on drawn shapes; every batch with every width; every length with every number of segments; every
 * kind with diagonal and scalar P.
 */
#include "newton_rows.h"

#include "activation_reference.h"
#include "backend.h"
#include "check.h"
#include "reduced.h"
#include "rng.h"

#include <math.h>
#include <stdio.h>

/* Multiply-adds of a sweep at most: where the shape is drawn, and where half of it is given. */
enum {
    COST = REDUCED > 1 ? 25000
    : REDUCED          ? 50000
                       : 200000,
    LARGE = 1000000,
    KEEP = REDUCED > 1 ? 13
    : REDUCED          ? 4
                       : 1,
    CAPACITY = 1024
};

#define COUNT(table) ((int64_t)(sizeof(table) / sizeof((table)[0])))

static const int64_t lengths[] = {0, 1, 2, 3, 5, 31, 32, 33, 100};
static const int64_t batches[] = {0, 1, 2, 3, 4, 5, 17, 33, 70};
static const int64_t widths[] = {0, 1, 2, 3, 4, 5, 8, 16, 17, 32};

/* |f(z) - f(z')| is about gain |z - z'| for layers; for blocks the gain is that of either matrix. */
typedef struct kind {
    dpcr_step step;
    dpcr_activation activation;
    dpcr_norm norm;
    double gain, scale;
    int64_t layers;
    bool skip;
} kind;

static const kind kinds[] = {
    {DPCR_MLP, DPCR_TANH, DPCR_NO_NORM, 0.5, 0, 0, false},    /* contracting */
    {DPCR_MLP, DPCR_TANH, DPCR_NO_NORM, 1, 0, 0, false},      /* at the edge of it */
    {DPCR_MLP, DPCR_TANH, DPCR_NO_NORM, 1.5, 0, 0, false},    /* chaotic if wide */
    {DPCR_MLP, DPCR_TANH, DPCR_NO_NORM, 4, 0, 0, false},      /* chaotic */
    {DPCR_MLP, DPCR_RELU, DPCR_NO_NORM, 1.4142, 0, 0, false}, /* neither grows nor shrinks */
    {DPCR_MLP, DPCR_RELU, DPCR_NO_NORM, 2.2, 0, 0, false},    /* growing */
    {DPCR_MLP, DPCR_LINEAR, DPCR_NO_NORM, 1, 0, 0, false},    /* one sweep of Newton is exact */
    {DPCR_MLP, DPCR_LEAKY_RELU, DPCR_NO_NORM, 1.4, 0, 0, false},
    {DPCR_MLP, DPCR_ELU, DPCR_NO_NORM, 1.2, 0, 0, false},
    {DPCR_MLP, DPCR_SIGMOID, DPCR_NO_NORM, 3, 0, 0, false},
    {DPCR_MLP, DPCR_GELU, DPCR_NO_NORM, 1.4142, 0, 0, false},
    {DPCR_MLP, DPCR_GELU_TANH, DPCR_NO_NORM, 1, 0, 0, false},
    {DPCR_MLP, DPCR_SOFTPLUS, DPCR_NO_NORM, 0.7, 0, 0, false},
    {DPCR_RESIDUAL, DPCR_TANH, DPCR_NO_NORM, 0.6, 1, 0, false},
    {DPCR_RESIDUAL, DPCR_RELU, DPCR_NO_NORM, 0.6, 0.03125, 0, false}, /* nearly the identity */
    {DPCR_RESIDUAL, DPCR_RELU, DPCR_LAYER_NORM, 0.6, 1, 0, false},
    {DPCR_RESIDUAL, DPCR_SILU, DPCR_LAYER_NORM, 1, 1, 0, false},
    {DPCR_RESIDUAL, DPCR_GELU, DPCR_RMS_NORM, 0.6, -0.5, 0, false},
    {DPCR_EULER, DPCR_TANH, DPCR_NO_NORM, 1, 0.05, 0, false},
    {DPCR_EULER, DPCR_SILU, DPCR_NO_NORM, 1, -0.3, 0, false},
    {DPCR_LAYERS, DPCR_TANH, DPCR_LAYER_NORM, 1, 1, 1, false},
    {DPCR_LAYERS, DPCR_SILU, DPCR_LAYER_NORM, 1, 1, 3, true},
    {DPCR_LAYERS, DPCR_GELU, DPCR_RMS_NORM, 1, 0.1, 2, true},
    {DPCR_LAYERS, DPCR_ELU, DPCR_NO_NORM, 0.7, 0.5, 2, false},
    {DPCR_DENOISE, DPCR_SILU, DPCR_NO_NORM, 1, -0.1, 1, false}, /* as a sampler takes them */
    {DPCR_DENOISE, DPCR_GELU, DPCR_NO_NORM, 0.8, 0.4, 2, false},
    {DPCR_DENOISE, DPCR_TANH, DPCR_NO_NORM, 1.5, -1, 0, false},
};

typedef struct table {
    newton_row *row;
    int count, drawn;
    rng random;
} table;

static int64_t one_of(table *t, const int64_t *values, int64_t count) {
    return values[rng_below(&t->random, count)];
}

static newton_row draw_options(table *t, const kind *k) {
    const double *p = activation_default(k->activation);
    newton_row row = {.chain = {.step = k->step,
                                .activation = k->activation,
                                .activation_parameter = {p[0], p[1]},
                                .norm = k->norm,
                                .norm_eps = 1e-5,
                                .scale = k->scale,
                                .layers = k->layers,
                                .skip = k->skip,
                                .shifted = rng_below(&t->random, 4) == 0,
                                .undamped = true,
                                .gain = k->gain},
                      .structure = (dpcr_structure)rng_below(&t->random, DPCR_P_ZERO + 1),
                      .refresh = (dpcr_refresh)rng_below(&t->random, DPCR_REFRESHES),
                      .guess =
                          rng_below(&t->random, 2) ? GUESS_NONE : (guess_kind)rng_below(&t->random, GUESSES),
                      .rtol = rng_below(&t->random, 4) ? 1 : 64,
                      .max_sweeps = rng_below(&t->random, 4) ? -1 : rng_below(&t->random, 6),
                      .finish = rng_below(&t->random, 6) != 0};
    row.chain.present = CHAIN_WEIGHTS | (rng_below(&t->random, 4) ? (1U << DPCR_PARAMETERS) - 1 : 0U);
    for (int i = 0; i < DPCR_PARAMETERS; i++)
        if (!chain_row_has(&row.chain, i)) row.chain.present &= ~(1U << i);
    return row;
}

static double row_cost(const newton_row *row) {
    const chain_row *chain = &row->chain;
    const double columns = row->structure == DPCR_P_DENSE ? (double)chain->w + 1 : 1;
    return (double)(chain->L * chain->B) * chain_row_work(chain) * columns;
}

static int64_t draw_segments(table *t, int64_t L) {
    const int64_t choices[] = {1, 2, 3, 7, L / 2, L - 1, L, L};
    int64_t S = choices[rng_below(&t->random, COUNT(choices))];
    while (S < 1 || (S > L && L > 0)) S = choices[rng_below(&t->random, COUNT(choices))];
    return S;
}

/* Shape entries below 0 are drawn, all of them again until the row is cheap enough; a row that is too
 * dear whatever is drawn is left out. */
static void add(table *t, newton_row row, double most) {
    static const int64_t hidden[] = {0, 1, 5, 8, 16};
    const chain_row wish = row.chain;
    const int64_t S = row.S;
    for (int tries = 0; tries < 200; tries++) {
        row.chain.L = wish.L < 0 ? one_of(t, lengths, COUNT(lengths)) : wish.L;
        row.chain.B = wish.B < 0 ? one_of(t, batches, COUNT(batches)) : wish.B;
        row.chain.w = wish.w < 0 ? one_of(t, widths, COUNT(widths)) : wish.w;
        row.chain.h = chain_row_has_width(&wish) ? one_of(t, hidden, COUNT(hidden)) : row.chain.w;
        if (row_cost(&row) <= most) break;
    }
    if (row_cost(&row) > most) return;
    for (int i = 0; i < DPCR_PARAMETERS && row.chain.norm == DPCR_LAYER_NORM && row.chain.w == 1; i++)
        if (chain_row_has(&row.chain, i)) row.chain.present |= 1U << i; /* or ReLU would sit on its kink */
    row.S = S < 0 ? draw_segments(t, row.chain.L) : S;
    row.chain.seed = rng_bits(&t->random);
    if (t->drawn++ % KEEP == 0 && t->count < CAPACITY) t->row[t->count++] = row;
}

static void add_kinds(table *t) {
    for (int64_t k = 0; k < COUNT(kinds) * 8; k++) {
        newton_row row = draw_options(t, &kinds[k / 8]);
        row.structure = (dpcr_structure[]){DPCR_P_DENSE, DPCR_P_DENSE, DPCR_P_IDENTITY, DPCR_P_ZERO}[k % 4];
        row.refresh = k % 4 == 1 ? DPCR_ALWAYS : DPCR_ADAPTIVE;
        row.chain.L = one_of(t, lengths + 4, COUNT(lengths) - 4);
        row.chain.w = one_of(t, widths + 1, COUNT(widths) - 1);
        row.chain.B = row.S = -1;
        add(t, row, LARGE);
    }
}

static void add_shapes(table *t) {
    for (int64_t k = 0; k < COUNT(batches) * COUNT(widths); k++) {
        newton_row row = draw_options(t, &kinds[rng_below(&t->random, COUNT(kinds))]);
        row.chain.L = row.S = -1;
        row.chain.B = batches[k % COUNT(batches)];
        row.chain.w = widths[k / COUNT(batches)];
        add(t, row, row.chain.B * row.chain.w > 256 ? LARGE : COST);
    }
    for (int64_t k = 0; k < COUNT(lengths) * 7; k++) {
        const int64_t L = lengths[k / 7], choices[] = {1, 2, 3, 7, L / 2, L - 1, L};
        newton_row row = draw_options(t, &kinds[rng_below(&t->random, COUNT(kinds))]);
        row.S = choices[k % 7];
        if (row.S < 1 || (row.S > L && L > 0)) continue;
        row.chain.L = L;
        row.chain.B = row.chain.w = -1;
        add(t, row, COST);
    }
}

/* Those of them that all rows above leave out; small ones. */
static void add_structures(table *t) {
    for (int64_t k = 0; k < COUNT(kinds) * 3; k++) {
        newton_row row = draw_options(t, &kinds[k / 3]);
        row.structure = k % 3 == 2 ? DPCR_P_SCALAR : DPCR_P_DIAGONAL;
        row.refresh = k % 3 == 1 ? DPCR_ALWAYS : DPCR_ADAPTIVE;
        row.chain.L = row.chain.B = row.chain.w = row.S = -1;
        add(t, row, COST / 2);
    }
}

newton_row *newton_rows(int *count) {
    table t = {.row = allocate(CAPACITY * sizeof(newton_row)), .random = {4}};
    add_kinds(&t);
    add_shapes(&t);
    add_structures(&t);
    *count = t.count;
    check_context("the table of Newton's method");
    CHECK(t.count < CAPACITY, "rows were dropped");
    return t.row;
}

dpcr_newton newton_options(const newton_row *row, dpcr_dtype dtype) {
    dpcr_newton newton = dpcr_newton_default(dtype);
    newton.structure = row->structure;
    newton.refresh = row->refresh;
    newton.rtol *= row->rtol;
    newton.max_sweeps = row->max_sweeps;
    newton.finish = row->finish;
    return newton;
}

void newton_row_text(const newton_row *row, char *text, size_t size) {
    static const char *const structures[] = {"dense", "identity", "zero", "diagonal", "scalar"};
    static const char *const refreshes[] = {"adaptive", "always"};
    static const char *const guesses[] = {"", ", exact guess", ", near guess", ", far guess", ", NaN guess"};
    const int at = snprintf(text, size, "S=%d %s %s%s rtol x%g max_sweeps %d%s, ", (int)row->S,
                            structures[row->structure], refreshes[row->refresh], guesses[row->guess],
                            row->rtol, (int)row->max_sweeps, row->finish ? "" : " no finish");
    chain_row_text(&row->chain, text + at, size - (size_t)at);
}
