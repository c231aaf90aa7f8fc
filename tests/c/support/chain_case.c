/* SPDX-License-Identifier: Apache-2.0
 *
 * Numbers of a row of the chains' table.
 */
#include "chain_case.h"

#include "backend.h"
#include "numbers.h"

#include <math.h>
#include <stdlib.h>

static numbers numbers_create(dpcr_dtype dtype, int64_t count) {
    return (numbers){.dtype = dtype,
                     .count = count,
                     .data = allocate((size_t)count * number_size(dtype)),
                     .value = allocate((size_t)count * sizeof(double))};
}

void numbers_set(numbers *a, int64_t index, double value) {
    number_set(a->dtype, a->data, index, value);
    a->value[index] = number_get(a->dtype, a->data, index);
}

numbers numbers_random(dpcr_dtype dtype, int64_t count, double mean, double spread, rng *random) {
    numbers a = numbers_create(dtype, count);
    for (int64_t i = 0; i < count; i++) numbers_set(&a, i, mean + spread * rng_normal(random));
    return a;
}

numbers numbers_rounded(dpcr_dtype dtype, int64_t count, const double *value) {
    numbers a = numbers_create(dtype, count);
    for (int64_t i = 0; i < count; i++) numbers_set(&a, i, value[i]);
    return a;
}

void numbers_destroy(numbers *a) {
    free(a->data);
    free(a->value);
}

/* Unless undamped, what a step adds to its state shrinks with the depth, so that no chain leaves the range
 * of f32: by W2 and b2, or by the scale of other steps with a skip, or by the coefficients. */
static double damping_of(const chain_row *row) {
    return row->L > 4 && !row->undamped ? 4 / (double)row->L : 1;
}

static double scale_of(const chain_row *row) {
    const bool damped = row->step == DPCR_EULER || (row->step == DPCR_LAYERS && row->skip);
    return row->scale * (damped ? damping_of(row) : 1);
}

static double spread_of(const chain_row *row, int parameter) {
    const double fan_in = (double)(parameter == DPCR_W1 ? row->w : row->h), damping = damping_of(row);
    const double residual = row->step == DPCR_RESIDUAL ? damping : 1;
    switch (parameter) {
    case DPCR_W1: /* the gain is that of the step */
        return (row->step == DPCR_LAYERS ? pow(row->gain, 1 / (double)row->layers) : row->gain)
               / sqrt(fmax(fan_in, 1));
    case DPCR_WH: return row->gain / sqrt(fmax(fan_in, 1));
    case DPCR_W2: return row->gain / sqrt(fmax(fan_in, 1)) * residual;
    case DPCR_B2: return 0.3 * residual;
    case DPCR_NOISE: return 0.3 * damping;
    default: return 0.3;
    }
}

/* (L,2): a is about 1, c about the scale. */
static void make_coefficients(const chain_row *row, numbers *a) {
    for (int64_t i = 0; i < a->count; i++) {
        const double x = a->value[i], damping = damping_of(row);
        numbers_set(a, i, i % 2 ? row->scale * damping * (1 + x) : 1 + 0.3 * damping * x);
    }
}

chain_case chain_case_create(const chain_row *row, dpcr_dtype dtype) {
    rng random = {row->seed};
    chain_case c = {.row = *row, .dtype = dtype};
    c.chain =
        (dpcr_chain){.step = row->step,
                     .dtype = dtype,
                     .L = row->L,
                     .B = row->B,
                     .w = row->w,
                     .h = row->h,
                     .activation = row->activation,
                     .activation_parameter = {row->activation_parameter[0], row->activation_parameter[1]},
                     .norm = row->norm,
                     .norm_eps = row->norm_eps,
                     .scale = scale_of(row),
                     .layers = row->layers,
                     .skip = row->skip};
    c.exact = c.chain;
    c.exact.dtype = DPCR_F64;
    for (int i = 0; i < DPCR_PARAMETERS; i++) {
        const bool present = row->present >> i & 1;
        const int64_t count = present ? chain_row_pieces(row, i) * chain_row_size(row, i) : 0;
        c.parameter[i] = numbers_random(dtype, count, i == DPCR_GAMMA ? 1 : 0, spread_of(row, i), &random);
        if (i == DPCR_COEFFICIENTS) make_coefficients(row, &c.parameter[i]);
        c.chain.parameter[i] = present ? c.parameter[i].data : NULL;
        c.exact.parameter[i] = present ? c.parameter[i].value : NULL;
    }
    c.z0 = numbers_random(dtype, row->B * row->w, 0, 1, &random);
    return c;
}

void chain_case_destroy(chain_case *c) {
    for (int i = 0; i < DPCR_PARAMETERS; i++) numbers_destroy(&c->parameter[i]);
    numbers_destroy(&c->z0);
}

int64_t segment_edge(int64_t k, int64_t L, int64_t S) {
    return k * L / S;
}
