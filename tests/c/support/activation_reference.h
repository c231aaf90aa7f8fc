/* SPDX-License-Identifier: Apache-2.0
 *
 * Activations and their derivatives by their definitions, arranged so that nothing cancels: in double
 * for the chains, in long double to measure errors of double kernels.
 */
#ifndef DEEPPCR_TEST_ACTIVATION_REFERENCE_H
#define DEEPPCR_TEST_ACTIVATION_REFERENCE_H

#include "ops/chain.h"

const char *activation_name(dpcr_activation kind);

/* PyTorch's default parameters, and others that no two formulas treat alike. */
const double *activation_default(dpcr_activation kind);
const double *activation_other(dpcr_activation kind);

double reference_activation(dpcr_activation kind, const double p[2], double u);
double reference_slope(dpcr_activation kind, const double p[2], double u);
long double reference_activation_long(dpcr_activation kind, const double p[2], long double u);
long double reference_slope_long(dpcr_activation kind, const double p[2], long double u);

/* Which side of its kink or step u lies on; the same for all u of a smooth kind. */
int reference_branch(dpcr_activation kind, const double p[2], double u);
/* Whether the derivative, or even the value, jumps between branches. */
bool activation_bends(dpcr_activation kind, const double p[2]);
bool activation_jumps(dpcr_activation kind, const double p[2]);

#endif
