/* SPDX-License-Identifier: Apache-2.0
 *
 * See the header.
 */
#include "trap_chains.h"

#include "activation_reference.h"

#include <math.h>

chain_row trap_layers(dpcr_activation activation, int64_t L, int64_t B, int64_t w, double gain) {
    const double *p = activation_default(activation);
    return (chain_row){.step = DPCR_MLP,
                       .activation = activation,
                       .activation_parameter = {p[0], p[1]},
                       .present = 1U << DPCR_W1,
                       .undamped = true,
                       .L = L,
                       .B = B,
                       .w = w,
                       .h = w,
                       .gain = gain,
                       .seed = 77};
}

static void scale_step(chain_case *c, int64_t l, double factor, double mean) {
    const int64_t size = c->row.w * c->row.w;
    for (int64_t i = l * size; i < (l + 1) * size; i++)
        numbers_set(&c->parameter[DPCR_W1], i, factor * (c->parameter[DPCR_W1].value[i] + mean));
}

/* Weights are positive in the mean, or a narrow ReLU chain without biases would soon be zero. */
chain_case trap_hourglass(dpcr_activation activation, int64_t L, int64_t B, int64_t w, dpcr_dtype dtype) {
    const chain_row row = trap_layers(activation, L, B, w, 0.5);
    chain_case c = chain_case_create(&row, dtype);
    const double down = dtype == DPCR_F32 ? -29 : -280, up = dtype == DPCR_F32 ? 43 : 320; /* decades */
    for (int64_t l = 0; l < L; l++) {
        const bool middle = l >= L / 3 && l < 2 * L / 3;
        scale_step(&c, l, pow(10, (middle ? up : down) * 3 / (double)L), 0.8 / (double)w);
    }
    for (int64_t i = 0; i < c.z0.count; i++) numbers_set(&c.z0, i, fabs(c.z0.value[i]));
    return c;
}

dpcr_newton trap_options(dpcr_dtype dtype, int way) {
    dpcr_newton newton = dpcr_newton_default(dtype);
    static const dpcr_structure structures[TRAP_WAYS] = {DPCR_P_DENSE,    DPCR_P_DENSE,    DPCR_P_ZERO,
                                                         DPCR_P_IDENTITY, DPCR_P_DIAGONAL, DPCR_P_SCALAR};
    newton.structure = structures[way];
    newton.refresh = way == 1 ? DPCR_ALWAYS : DPCR_ADAPTIVE;
    return newton;
}
