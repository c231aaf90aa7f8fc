/* SPDX-License-Identifier: Apache-2.0
 *
 * The rows of the recurrence's conformance table.  They name a problem completely (with the seed of
 * its numbers) and know nothing of where it runs.
 */
#ifndef DEEPPCR_TEST_RECURRENCE_ROWS_H
#define DEEPPCR_TEST_RECURRENCE_ROWS_H

#include "pcr/pcr.h"

/* What the blocks do to a vector: |A_l| is at most 0.9, 1, grow, 0.95, 0.95; only with orthogonal is
 * it 1 in every direction.  Singular blocks lose a direction, every third zero block is 0. */
typedef enum spectrum { CONTRACTING, ORTHOGONAL, GROWING, SINGULAR, ZERO_BLOCKS, SPECTRA } spectrum;

enum layout {
    BATCH_FIRST = 1, /* samples outside, steps inside */
    REVERSED = 2,    /* negative step strides */
    PADDED = 4,      /* gaps between vectors, between rows of a block, between blocks */
    BY_COLUMNS = 8,  /* the columns of dense blocks are contiguous, not the rows */
    SHIFTED = 16,    /* arrays aligned to their elements only */
    IN_PLACE = 32,   /* x is the array of b; S = 1 only */
    LAYOUTS = 64
};

typedef struct recurrence_row {
    dpcr_block block;
    bool shared;     /* blocks serve all samples */
    bool summed;     /* gA is one block a step, the sum over the samples */
    bool transposed; /* then no x0 */
    bool start;      /* x0 is given */
    int64_t L, B, w, S;
    spectrum spectrum;
    int layout;   /* a sum of enum layout */
    uint64_t mix; /* not 0: every array has its own of the layouts, drawn from this, but for the last two */
    uint64_t seed;
} recurrence_row;

/* The table; *count rows, to be freed. */
recurrence_row *recurrence_rows(int *count);

/* How many healthy samples of a row may be recomputed without need: none, but one where blocks grow.
 * There a state that came close to zero keeps the large relative error it had, and no check can tell
 * that from a product that went wrong. */
static inline int64_t false_alarms(const recurrence_row *row) {
    return row->spectrum == GROWING;
}

/* All of a row in one line of text, for check_context. */
void recurrence_row_text(const recurrence_row *row, char *text, size_t size);

#endif
