/* SPDX-License-Identifier: Apache-2.0
 *
 * The table in two parts: every step kind, norm and activation (with default and with other
 * parameters) on drawn shapes; every batch with every width, every length, on drawn kinds.
 */
#include "chain_rows.h"

#include "activation_reference.h"
#include "backend.h"
#include "check.h"
#include "reduced.h"
#include "rng.h"

#include <math.h>
#include <stdio.h>

/* Multiply-adds of a forward pass at most; far fewer where a kink makes gradients jump: such a chain
 * is only usable as long as no pre-activation falls on a kink. */
enum {
    COST = REDUCED > 1 ? 40000
    : REDUCED          ? 100000
                       : 3000000,
    BENT = 200000,
    KEEP = REDUCED > 1 ? 17
    : REDUCED          ? 4
                       : 1, /* one row in KEEP; no factor of what they are drawn by */
    CAPACITY = 2048,
    DRAWS = 10
};

#define COUNT(table) ((int64_t)(sizeof(table) / sizeof((table)[0])))

static const int64_t lengths[] = {0, 1, 2, 33, 100};
static const int64_t batches[] = {0, 1, 2, 3, 4, 31, 32, 33, 70};
static const int64_t widths[] = {0, 1, 3, 4, 5, 8, 16, 17, 64, 100};
static const int64_t hidden[] = {0, 1, 5, 16, 40};

typedef struct table {
    chain_row *row;
    int count, drawn;
    rng random;
} table;

dpcr_step chain_family_step(int family) {
    return family == 0                   ? DPCR_MLP
           : family <= DPCR_NORMS        ? DPCR_RESIDUAL
           : family == 1 + DPCR_NORMS    ? DPCR_EULER
           : family < CHAIN_FAMILIES - 1 ? DPCR_LAYERS
                                         : DPCR_DENOISE;
}

dpcr_norm chain_family_norm(int family) {
    const dpcr_step step = chain_family_step(family);
    return step == DPCR_RESIDUAL ? (dpcr_norm)(family - 1)
           : step == DPCR_LAYERS ? (dpcr_norm)(family - 2 - DPCR_NORMS)
                                 : DPCR_NO_NORM;
}

void chain_row_join(chain_row *row, int family, int64_t hidden, int which) {
    row->step = chain_family_step(family);
    row->norm = chain_family_norm(family);
    row->h = chain_row_has_width(row) ? hidden : row->w;
    row->layers = row->step == DPCR_LAYERS ? 1 + which % 3 : row->step == DPCR_DENOISE ? which % 3 : 0;
    row->skip = row->step == DPCR_LAYERS && which % 2;
}

const char *const chain_parameter_names[DPCR_PARAMETERS] = {"W1",   "b1", "W2",           "b2",   "gamma",
                                                            "beta", "WH", "coefficients", "noise"};

bool chain_row_has_width(const chain_row *row) {
    return row->step == DPCR_RESIDUAL || row->step == DPCR_DENOISE;
}

bool chain_row_has(const chain_row *row, int parameter) {
    const bool normed = row->step == DPCR_RESIDUAL || row->step == DPCR_LAYERS;
    switch (parameter) {
    case DPCR_W1:
    case DPCR_B1: return true;
    case DPCR_W2:
    case DPCR_B2: return chain_row_has_width(row);
    case DPCR_GAMMA: return normed && row->norm != DPCR_NO_NORM;
    case DPCR_BETA: return normed && row->norm == DPCR_LAYER_NORM;
    default: return row->step == DPCR_DENOISE;
    }
}

bool chain_row_shares(const chain_row *row, int parameter) {
    return row->step == DPCR_DENOISE
           && (parameter == DPCR_W1 || parameter == DPCR_WH || parameter == DPCR_W2 || parameter == DPCR_B2);
}

int64_t chain_row_pieces(const chain_row *row, int parameter) {
    return chain_row_shares(row, parameter) ? 1 : row->L;
}

int64_t chain_row_size(const chain_row *row, int parameter) {
    const int64_t w = row->w, h = row->h, M = row->step == DPCR_LAYERS ? row->layers : 1;
    const int64_t biases = row->step == DPCR_DENOISE ? row->layers + 1 : M;
    const int64_t sizes[DPCR_PARAMETERS] = {M * h * w, biases * h,          w * h, w,         M * w,
                                            M * w,     row->layers * h * h, 2,     row->B * w};
    return chain_row_has(row, parameter) ? sizes[parameter] : 0;
}

int64_t chain_row_products(const chain_row *row) {
    const int64_t w = row->w, h = row->h;
    if (row->step == DPCR_DENOISE) return 2 * w * h + row->layers * h * h;
    return (row->step == DPCR_RESIDUAL ? 2 : row->step == DPCR_LAYERS ? row->layers : 1) * w * h;
}

double chain_row_work(const chain_row *row) {
    return (double)(chain_row_products(row) + (row->layers + 2) * row->w);
}

static int64_t one_of(table *t, const int64_t *values, int64_t count) {
    return values[rng_below(&t->random, count)];
}

/* The kinds of a row; shapes come after. */
static chain_row draw(table *t, int family, dpcr_activation activation, bool other) {
    static const double gains[] = {0.5, 1, 1.4};
    const double *p = other ? activation_other(activation) : activation_default(activation);
    chain_row row = {.activation = activation,
                     .activation_parameter = {p[0], p[1]},
                     .norm_eps = rng_below(&t->random, 2) ? 1e-5 : 0.25,
                     .scale = rng_below(&t->random, 2) ? 1 : -0.3,
                     .shifted = rng_below(&t->random, 4) == 0,
                     .gain = gains[rng_below(&t->random, COUNT(gains))]};
    chain_row_join(&row, family, 0, (int)rng_below(&t->random, 6));
    if (row.step == DPCR_LAYERS && !row.skip && row.scale < 0) row.scale = -0.9; /* or nothing is left */
    row.present = CHAIN_WEIGHTS | (unsigned)rng_below(&t->random, 1 << DPCR_PARAMETERS);
    for (int i = 0; i < DPCR_PARAMETERS; i++)
        if (!chain_row_has(&row, i)) row.present &= ~(1U << i);
    return row;
}

static double row_cost(const chain_row *row) {
    return (double)(row->L * row->B) * chain_row_work(row);
}

/* Shape entries below 0 are drawn, all of them again until the row is cheap enough. */
static void add(table *t, chain_row row) {
    const chain_row wish = row;
    const double most =
        activation_bends(row.activation, row.activation_parameter) && BENT < COST ? BENT : COST;
    do {
        row.L = wish.L < 0 ? one_of(t, lengths, COUNT(lengths)) : wish.L;
        row.B = wish.B < 0 ? one_of(t, batches, COUNT(batches)) : wish.B;
        row.w = wish.w < 0 ? one_of(t, widths, COUNT(widths)) : wish.w;
        row.h = chain_row_has_width(&row) ? one_of(t, hidden, COUNT(hidden)) : row.w;
    } while (row_cost(&row) > most && (wish.L < 0 || wish.B < 0 || wish.w < 0));
    if (row.step == DPCR_LAYERS && row.w == 1 && chain_row_has(&row, DPCR_BETA))
        row.present |= 1U << DPCR_BETA; /* or ReLU would sit on its kink */
    row.seed = rng_bits(&t->random);
    if (t->drawn++ % KEEP == 0 && t->count < CAPACITY) t->row[t->count++] = row;
}

static void add_kinds(table *t, int family) {
    for (int k = 0; k < DRAWS * DPCR_ACTIVATIONS; k++) {
        chain_row row = draw(t, family, (dpcr_activation)(k / DRAWS), k % 2);
        row.L = row.B = row.w = -1;
        add(t, row);
    }
}

static chain_row draw_kind(table *t) {
    const int family = (int)rng_below(&t->random, CHAIN_FAMILIES);
    const dpcr_activation activation = (dpcr_activation)rng_below(&t->random, DPCR_ACTIVATIONS);
    return draw(t, family, activation, rng_below(&t->random, 2));
}

static void add_shapes(table *t) {
    for (int64_t k = 0; k < COUNT(batches) * COUNT(widths); k++) {
        chain_row row = draw_kind(t);
        row.L = -1;
        row.B = batches[k % COUNT(batches)];
        row.w = widths[k / COUNT(batches)];
        add(t, row);
    }
    for (int64_t k = 0; k < 4 * COUNT(lengths); k++) {
        chain_row row = draw_kind(t);
        row.L = lengths[k % COUNT(lengths)];
        row.B = row.w = -1;
        add(t, row);
    }
}

chain_row *chain_rows(int *count) {
    table t = {.row = allocate(CAPACITY * sizeof(chain_row)), .random = {7}};
    for (int k = 0; k < CHAIN_FAMILIES; k++) add_kinds(&t, k);
    add_shapes(&t);
    *count = t.count;
    check_context("the table of the chains");
    CHECK(t.count < CAPACITY, "rows were dropped");
    return t.row;
}

void chain_row_text(const chain_row *row, char *text, size_t size) {
    static const char *const steps[DPCR_STEPS] = {"mlp", "residual", "euler", "layers", "denoise"};
    static const char *const norms[DPCR_NORMS] = {"", " layer_norm", " rms_norm"};
    int at = snprintf(text, size, "%s %s(%g,%g)%s L=%d B=%d w=%d h=%d gain %g scale %g eps %g%s, with",
                      steps[row->step], activation_name(row->activation), row->activation_parameter[0],
                      row->activation_parameter[1], norms[row->norm], (int)row->L, (int)row->B, (int)row->w,
                      (int)row->h, row->gain, row->scale, row->norm_eps, row->shifted ? ", shifted" : "");
    if (row->step == DPCR_LAYERS || row->step == DPCR_DENOISE)
        at += snprintf(text + at, size - (size_t)at, " M=%d%s", (int)row->layers, row->skip ? " skip" : "");
    for (int i = 0; i < DPCR_PARAMETERS; i++)
        if (row->present >> i & 1)
            at += snprintf(text + at, size - (size_t)at, " %s", chain_parameter_names[i]);
}
