/* SPDX-License-Identifier: Apache-2.0
 *
 * Kernels of the linear recurrence, as a device offers them to recurrence.c.  They see one *walk*:
 * either problem of pcr.h brought to the form  x_j = M_j x_{j-1} + b_j,  j = 0..L-1,  by strides alone.
 */
#ifndef DEEPPCR_PCR_KERNELS_H
#define DEEPPCR_PCR_KERNELS_H

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
    dpcr_block block;
    int64_t L, B, w, S;
    bool shared; /* blocks serve all samples */
    /* dense shared blocks act on panels of samples; set by the whole batch, so that tiling it changes no bit */
    bool wide;
    struct block_view M;
    struct vector_view b, x0, x; /* x0.data NULL: zero, M_0 is not read */
    double tolerance;            /* relative, of the check in repair */

    /* workspace; S > 1 only, but for scratch */
    void *maps[2];    /* (S, shared ? 1 : B, map) segment maps, double-buffered over the levels */
    void *offsets[2]; /* (S,B,w) */
    int current;      /* which of the two buffers holds the result of the last level */
    double *damping;  /* (S, shared ? 1 : B) norm of each segment map, at most 1 */
    double *gap;      /* (S,B) distance of each segment's end from its prediction, NaN where not finite */
    double *size;     /* (S,B) |x| + |b| there: what the gap is measured by */
    char *scratch;
};

struct recurrence_kernels {
    /* Samples of one task, and bytes of scratch it needs. */
    int64_t (*group)(const struct walk *walk);
    size_t (*scratch)(const struct walk *walk);
    /* The loop, from x0. */
    void (*sequential)(const struct walk *walk);
    /* maps[0], offsets[0]: x at the end of segment k = map_k (x at its start) + offset_k; segment 0 starts from x0. */
    void (*reduce)(const struct walk *walk);
    /* One level of cyclic reduction: element k takes in element k - distance, current to the other buffer. */
    void (*combine)(const struct walk *walk, int64_t distance);
    /* Walks every segment from the start found, writes x, and measures how far its end is from the one predicted. */
    void (*substitute)(const struct walk *walk);
    /* Recomputes the samples whose gaps are not rounding by the loop; flags them in recomputed (B) if not NULL. */
    void (*repair)(const struct walk *walk, int32_t *recomputed);
    /* gA_j = y_j x_{j-1}^T in the structure of the block; the walk's x0 and x are the solution, its b is y. */
    void (*gradient)(const struct walk *walk, struct block_view gradient);
    /* gx0 = M_0^T y_0 */
    void (*start_gradient)(const struct walk *walk, struct vector_view gradient);
};

/* Elements of one segment map. */
static inline int64_t dpcr_map_size(dpcr_block block, int64_t w) {
    return block == DPCR_DENSE ? w * w : block == DPCR_DIAGONAL ? w : block == DPCR_SCALAR ? 1 : 0;
}

/* [DPCR_F32], [DPCR_F64] of each level */
extern const struct recurrence_kernels dpcr_recurrence_generic[2], dpcr_recurrence_v3[2],
    dpcr_recurrence_v4[2];

#endif
