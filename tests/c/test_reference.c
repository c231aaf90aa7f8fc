/* SPDX-License-Identifier: Apache-2.0
 *
 * The oracles themselves, against their definitions: the reference of the recurrence satisfies its
 * equations, its gradients agree with central differences, the slopes of the activations with
 * differences of their values.  (The chains' reference is checked in test_chain_differences.c.)
 */
#include "support/activation_reference.h"
#include "support/check.h"
#include "support/numbers.h"
#include "support/recurrence_case.h"
#include "support/recurrence_reference.h"
#include "support/rng.h"

#include <stdlib.h>

static double *doubles(int64_t count) {
    return allocate((size_t)count * sizeof(double));
}

static recurrence_row row_of(dpcr_block block, int k) {
    return (recurrence_row){.block = block,
                            .shared = k & 1,
                            .summed = k >> 1 & 1,
                            .start = true,
                            .L = 5,
                            .B = 3,
                            .w = 4,
                            .S = 1,
                            .spectrum = CONTRACTING,
                            .layout = (k * 11) % IN_PLACE,
                            .seed = (uint64_t)k};
}

/* <c, x> of a case */
static double loss(const recurrence_case *c, const double *weight) {
    const int64_t count = c->row.L * c->row.B * c->row.w;
    double *x = doubles(count), sum = 0;
    reference_recurrence(&c->problem, x);
    for (int64_t i = 0; i < count; i++) sum += weight[i] * x[i];
    free(x);
    return sum;
}

/* The loss is affine in every single number of b, x0 and A: differences are exact but for rounding. */
static void check_number(const recurrence_case *c, const double *weight, void *data, int64_t index,
                         double gradient, const char *name) {
    const double was = number_get(DPCR_F64, data, index);
    number_set(DPCR_F64, data, index, was + 1);
    const double above = loss(c, weight);
    number_set(DPCR_F64, data, index, was - 1);
    const double below = loss(c, weight);
    number_set(DPCR_F64, data, index, was);
    CHECK_WITHIN(fabs(gradient - (above - below) / 2), 1e-12 * (1 + fabs(above)), "%s", name);
}

static void check_block_gradients(const recurrence_case *c, const double *weight, const double *gA) {
    const dpcr_recurrence *p = &c->problem;
    for (int64_t l = 0; l < p->L; l++)
        for (int64_t k = 0; k < block_elements(p); k++) {
            double sum = 0; /* over the samples, where the blocks have one number for all */
            for (int64_t s = 0; s < p->B; s++) {
                const double own = gA[(l * p->B + s) * block_elements(p) + k];
                sum += own;
                if (!c->row.shared)
                    check_number(c, weight, p->A.data, block_index(p, &p->A, l, s, k), own, "gA");
            }
            if (c->row.shared)
                check_number(c, weight, p->A.data, block_index(p, &p->A, l, 0, k), sum, "gA, shared");
        }
}

static void check_gradients(const recurrence_row *row) {
    recurrence_case c = recurrence_case_create(row, DPCR_F64);
    const dpcr_recurrence *p = &c.problem;
    const int64_t count = p->L * p->B * p->w;
    recurrence_row other = *row;
    other.seed += 100;
    recurrence_case incoming = recurrence_case_create(&other, DPCR_F64);
    double *weight = doubles(count), *x = doubles(count);
    for (int64_t k = 0; k < count; k++)
        weight[k] =
            reference_vector(DPCR_F64, &incoming.problem.b, k / (p->B * p->w), k / p->w % p->B, k % p->w);
    reference_gradients g = {doubles(count), doubles(p->L * p->B * block_elements(p)), doubles(p->B * p->w),
                             false};
    reference_recurrence(p, x);
    reference_recurrence_gradients(p, x, &incoming.problem.b, g);
    check_block_gradients(&c, weight, g.A);
    for (int64_t k = 0; k < count; k++)
        check_number(&c, weight, p->b.data,
                     vectors_index(&p->b, k / (p->B * p->w), k / p->w % p->B, k % p->w), g.y[k], "gb");
    for (int64_t k = 0; k < p->B * p->w; k++)
        check_number(&c, weight, p->x0.data, vectors_index(&p->x0, 0, k / p->w, k % p->w), g.x0[k], "gx0");
    free(weight);
    free(x);
    free(g.y);
    free(g.A);
    free(g.x0);
    recurrence_case_destroy(&incoming);
    recurrence_case_destroy(&c);
}

/* x_l - A_l x_{l-1} - b_l = 0 on dense copies of the blocks, so that their kinds are checked, too */
static void check_equations(const recurrence_row *row) {
    recurrence_case c = recurrence_case_create(row, DPCR_F64);
    const dpcr_recurrence *p = &c.problem;
    double *x = doubles(p->L * p->B * p->w);
    reference_recurrence(p, x);
    for (int64_t k = 0; k < p->L * p->B * p->w; k++) {
        const int64_t l = k / (p->B * p->w), s = k / p->w % p->B, i = k % p->w;
        double sum = reference_vector(DPCR_F64, &p->b, l, s, i);
        for (int64_t j = 0; j < p->w; j++)
            sum +=
                reference_block(p, l, s, i, j)
                * (l > 0 ? x[((l - 1) * p->B + s) * p->w + j] : reference_vector(DPCR_F64, &p->x0, 0, s, j));
        CHECK_WITHIN(fabs(x[k] - sum), 1e-14 * (1 + fabs(sum)), "step %d", (int)l);
    }
    free(x);
    recurrence_case_destroy(&c);
}

static void check_slopes(dpcr_activation kind, const double *p) {
    rng random = {kind};
    check_context("%s(%g,%g)", activation_name(kind), p[0], p[1]);
    for (int k = 0; k < 400; k++) {
        const double e = 1e-5, u = rng_uniform(&random, -8, 8);
        if (reference_branch(kind, p, u + e) != reference_branch(kind, p, u - e)) continue;
        const long double rise = reference_activation_long(kind, p, (long double)u + e)
                                 - reference_activation_long(kind, p, (long double)u - e);
        const double slope = reference_slope(kind, p, u);
        CHECK_WITHIN(fabs(slope - (double)(rise / (2 * e))), 1e-9, "at %g", u);
        CHECK_WITHIN(fabs((double)reference_slope_long(kind, p, u) - slope), 1e-14, "long double at %g", u);
        CHECK_WITHIN(fabs((double)reference_activation_long(kind, p, u) - reference_activation(kind, p, u)),
                     1e-14 * (1 + fabs(u)), "value at %g", u);
    }
}

int main(void) {
    for (int k = 0; k < 4 * 8; k++) {
        const recurrence_row row = row_of((dpcr_block)(k / 8), k % 8);
        char text[200];
        recurrence_row_text(&row, text, sizeof text);
        check_context("%s", text);
        check_equations(&row);
        check_gradients(&row);
    }
    for (int kind = 0; kind < DPCR_ACTIVATIONS; kind++) {
        check_slopes((dpcr_activation)kind, activation_default((dpcr_activation)kind));
        check_slopes((dpcr_activation)kind, activation_other((dpcr_activation)kind));
    }
    return check_finish();
}
