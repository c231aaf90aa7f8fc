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

    /* workspace; S > 1 only, but for scratch.  All levels of the cyclic reduction lie one after another. */
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

/* Elements of a task of the cyclic reduction where they are narrow. */
enum { RUN = 64 };

struct recurrence_kernels {
    /* Samples of one task, and bytes of scratch it needs. */
    int64_t (*group)(const struct walk *walk);
    size_t (*scratch)(const struct walk *walk);
    /* The loop, from x0. */
    void (*sequential)(const struct walk *walk);
    /* Level 0: x at the end of segment k = map_k (x at its start) + offset_k; segment 0 starts from x0. */
    void (*reduce)(const struct walk *walk);
    /* Level + 1 from level: element m is element 2 m with element 2 m - 1 eliminated. */
    void (*eliminate)(const struct walk *walk, int level);
    /* The offsets of level become x, those of level + 1 being x already. */
    void (*back_substitute)(const struct walk *walk, int level);
    /* Walks every segment from the start found, writes x, and measures how far its end is from the one predicted. */
    void (*substitute)(const struct walk *walk);
    /* Recomputes the samples whose gaps are not rounding by the loop; flags them in recomputed (B) if not NULL. */
    void (*repair)(const struct walk *walk, int32_t *recomputed);
    /* gA_j = y_j x_{j-1}^T in the structure of the block; the walk's x0 and x are the solution, its b is y. */
    void (*gradient)(const struct walk *walk, struct block_view gradient);
    /* gx0 = M_0^T y_0 */
    void (*start_gradient)(const struct walk *walk, struct vector_view gradient);
};

/* Offsets of level 0 -> x at the end of every segment; returns the number of levels, ceil(log2 S). */
int dpcr_cyclic_reduction(const struct walk *walk, const struct recurrence_kernels *kernels);

/* Elements of one segment map. */
static inline int64_t dpcr_map_size(dpcr_block block, int64_t w) {
    return block == DPCR_DENSE ? w * w : block == DPCR_DIAGONAL ? w : block == DPCR_SCALAR ? 1 : 0;
}

/* Elements of level t of a cyclic reduction over S, and those of all levels before it. */
struct level {
    int64_t first, count;
};

static inline struct level dpcr_level(int64_t S, int level) {
    struct level at = {0, S};
    for (; level > 0; level--) {
        at.first += at.count;
        at.count = (at.count + 1) / 2;
    }
    return at;
}

/* ceil(log2 S) */
static inline int dpcr_levels(int64_t S) {
    int levels = 0;
    while (dpcr_level(S, levels).count > 1) levels++;
    return levels;
}

static inline int64_t dpcr_level_elements(int64_t S) {
    const struct level last = dpcr_level(S, dpcr_levels(S));
    return last.first + last.count;
}

/* [DPCR_F32], [DPCR_F64] of each level */
extern const struct recurrence_kernels dpcr_recurrence_generic[2], dpcr_recurrence_v3[2],
    dpcr_recurrence_v4[2];

#endif
