/* SPDX-License-Identifier: Apache-2.0
 *
 * The linear recurrence as a device offers it to recurrence.c.  A device sees one *walk*: either problem
 * of pcr.h brought to the form  x_j = M_j x_{j-1} + b_j,  j = 0..L-1,  by strides alone.
 */
#ifndef DEEPPCR_PCR_DEVICE_H
#define DEEPPCR_PCR_DEVICE_H

#include "pcr/internal.h"

/* Element strides; first: offset of step 0 from data.  M_0 lies outside the array where the problem
 * is transposed: it is not read, because those start from zero. */
struct block_view {
    const void *data;
    int64_t first, step, sample, row, column;
};

struct vector_view {
    void *data;
    int64_t first, step, sample;
};

struct walk {
    dpcr_exec exec;
    dpcr_dtype dtype;
    dpcr_block block;
    int64_t L, B, w, S;
    bool shared; /* blocks serve all samples */
    /* dense shared blocks act on panels of samples; set by the whole batch, so that tiling it changes no bit */
    bool wide;
    struct block_view M;
    struct vector_view b, x0, x; /* x0.data NULL: zero, M_0 is not read */
    double tolerance;            /* relative, of the check in repair */

    /* The CPU's workspace; S > 1 only, but for scratch.  All levels of the cyclic reduction lie one after another. */
    void *maps; /* (dpcr_level_elements(S), shared ? 1 : B, map): level 0 is the segments' maps */
    /* the blocks themselves where they are level 0: segments of one step, packed as the maps; else NULL */
    const void *direct;
    void *offsets; /* (dpcr_level_elements(S),B,w); after back substitution x at the end of every segment */
    double *gap;   /* (S,B) distance of each segment's end from its prediction, NaN where not finite */
    double *size;  /* (S,B) |x| + |b| there: what the gap is measured by */
    char *scratch;

    /* Own blocks only; NULL: every sample, all maps. */
    const unsigned char *skip; /* (B) samples that are not solved */
    /* (dpcr_level_elements(S),B) which maps are new since the last solve of the same system: of level 0 the
     * caller says it, of the others eliminate does, and multiplies only those. */
    unsigned char *fresh;
};

/* An array of zeros to be: element (i, j, k, l) at the sum of index * stride. */
struct strided {
    void *data;
    size_t element; /* bytes */
    int64_t count[4], stride[4];
};

/* Everything is enqueued on, or done by, the walk's exec; arrays are the device's. */
struct recurrence_solver {
    /* Bytes for the walk's B samples: grows with B. */
    size_t (*workspace)(const struct walk *walk);
    /* Writes x, flags samples in recomputed (B, or NULL), and says how many levels of cyclic reduction ran. */
    dpcr_status (*solve)(const struct walk *walk, void *workspace, int32_t *recomputed, int64_t *levels);
    /* gA_j = y_j x_{j-1}^T in the structure of the block, summed over the samples where the walk says shared;
     * the walk's x0 and x are the solution, its b is y. */
    dpcr_status (*gradient)(const struct walk *walk, void *workspace, struct block_view gradient);
    /* gx0 = M_0^T y_0 */
    dpcr_status (*start_gradient)(const struct walk *walk, void *workspace, struct vector_view gradient);
    dpcr_status (*clear)(dpcr_exec exec, const struct strided *array);
};

/* Elements of one segment map. */
static inline DPCR_EVERYWHERE int64_t dpcr_map_size(dpcr_block block, int64_t w) {
    return block == DPCR_DENSE ? w * w : block == DPCR_DIAGONAL ? w : block == DPCR_SCALAR ? 1 : 0;
}

#endif
