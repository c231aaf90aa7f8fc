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
    int64_t layers;   /* steps of layers and denoising only */
    bool skip;        /* steps of layers only */
    unsigned present; /* bit per dpcr_parameter: it is given; those of CHAIN_WEIGHTS always are */
    bool shifted;     /* arrays aligned to their elements only */
    bool undamped;    /* residual branches keep their size however many there are */
    int64_t L, B, w, h;
    double gain; /* |W z| is about gain |z| */
    uint64_t seed;
} chain_row;

/* The table; *count rows, to be freed. */
chain_row *chain_rows(int *count);

/* What a chain cannot do without, of what its kind has. */
enum { CHAIN_WEIGHTS = 1 << DPCR_W1 | 1 << DPCR_W2 | 1 << DPCR_WH | 1 << DPCR_COEFFICIENTS };

/* The kinds of chains: one layer, residual blocks with every norm, Euler steps, several layers with every norm,
 * denoising. */
enum { CHAIN_FAMILIES = 3 + 2 * DPCR_NORMS };
dpcr_step chain_family_step(int family);
dpcr_norm chain_family_norm(int family);
/* Makes the row one of this family, with a hidden width where it has one; its w must be set.  `which` draws what
 * families have besides. */
void chain_row_join(chain_row *row, int family, int64_t hidden, int which);

/* Whether this kind of chain has the parameter at all; its pieces, one for each step or one for all, and the elements
 * of one. */
bool chain_row_has(const chain_row *row, int parameter);
bool chain_row_shares(const chain_row *row, int parameter);
int64_t chain_row_pieces(const chain_row *row, int parameter);
int64_t chain_row_size(const chain_row *row, int parameter);
extern const char *const chain_parameter_names[DPCR_PARAMETERS];
/* Whether h is free. */
bool chain_row_has_width(const chain_row *row);
/* Multiply-adds of the matrix products of one vector in a step; and about those of all a step does. */
int64_t chain_row_products(const chain_row *row);
double chain_row_work(const chain_row *row);

void chain_row_text(const chain_row *row, char *text, size_t size);

#endif
