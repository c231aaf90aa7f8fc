/* SPDX-License-Identifier: Apache-2.0
 *
 * The rows of the chains' conformance table: a chain named completely (with the seed of its numbers).
 */
#ifndef DEEPPCR_TEST_CHAIN_ROWS_H
#define DEEPPCR_TEST_CHAIN_ROWS_H

#include "ops/chain.h"

typedef struct chain_row {
    dpcr_step step;
    dpcr_activation activation;
    double activation_parameter[2];
    dpcr_norm norm;
    double norm_eps, scale;
    int64_t layers; /* as skip: steps of layers only */
    bool skip;
    unsigned present; /* bit per dpcr_parameter: it is given; that of W1 (and W2) is always set */
    bool shifted;     /* arrays aligned to their elements only */
    bool undamped;    /* residual branches keep their size however many there are */
    int64_t L, B, w, h;
    double gain; /* |W z| is about gain |z| */
    uint64_t seed;
} chain_row;

/* The table; *count rows, to be freed. */
chain_row *chain_rows(int *count);

/* The kinds of chains: one layer, residual blocks with every norm, Euler steps, several layers with every norm. */
enum { CHAIN_FAMILIES = 2 + 2 * DPCR_NORMS };
dpcr_step chain_family_step(int family);
dpcr_norm chain_family_norm(int family);
/* Makes the row one of this family, with a hidden width where it has one; its w must be set.  `which` draws what
 * families have besides. */
void chain_row_join(chain_row *row, int family, int64_t hidden, int which);

/* Whether this kind of chain has the parameter at all, and its elements per step. */
bool chain_row_has(const chain_row *row, int parameter);
int64_t chain_row_size(const chain_row *row, int parameter);
/* Matrix products of one vector in a step, and its multiply-adds. */
int64_t chain_row_matrices(const chain_row *row);
double chain_row_work(const chain_row *row);

void chain_row_text(const chain_row *row, char *text, size_t size);

#endif
