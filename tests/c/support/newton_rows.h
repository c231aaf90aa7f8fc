/* SPDX-License-Identifier: Apache-2.0
 *
 * The rows of the tests of Newton's method over segments: a chain of chain_rows.h, how it is cut, the
 * options of the solve, and what the caller's guess of the states is like.
 */
#ifndef DEEPPCR_TEST_NEWTON_ROWS_H
#define DEEPPCR_TEST_NEWTON_ROWS_H

#include "chain_rows.h"

typedef enum guess_kind {
    GUESS_NONE,
    GUESS_EXACT, /* the states of the S = 1 pass, in the bits of the backend */
    GUESS_NEAR,  /* those, wrong by a thousandth */
    GUESS_FAR,   /* random */
    GUESS_NAN,   /* NaN, inf and 1e30 among random ones */
    GUESSES
} guess_kind;

typedef struct newton_row {
    chain_row chain;
    int64_t S;
    dpcr_structure structure;
    dpcr_refresh refresh;
    guess_kind guess;
    double rtol;        /* in units of the default's */
    int64_t max_sweeps; /* negative: the default */
    bool finish;
} newton_row;

/* The table; *count rows, to be freed. */
newton_row *newton_rows(int *count);

/* The options of the row in this dtype. */
dpcr_newton newton_options(const newton_row *row, dpcr_dtype dtype);

void newton_row_text(const newton_row *row, char *text, size_t size);

#endif
