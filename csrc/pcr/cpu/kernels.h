/* SPDX-License-Identifier: Apache-2.0
 *
 * The CPU's kernels of the linear recurrence, one table per instruction-set level and dtype: what
 * solver.c drives, and the driver of the chains its cyclic reduction of.
 */
#ifndef DEEPPCR_PCR_CPU_KERNELS_H
#define DEEPPCR_PCR_CPU_KERNELS_H

#include "pcr/device.h"

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

extern const struct recurrence_solver dpcr_cpu_solver;

#endif
