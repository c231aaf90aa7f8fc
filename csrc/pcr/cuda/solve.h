/* SPDX-License-Identifier: Apache-2.0
 * The two ways of the CUDA device to solve a walk; in both, the workspace query is the carve. */
#ifndef DEEPPCR_PCR_CUDA_SOLVE_H
#define DEEPPCR_PCR_CUDA_SOLVE_H

#include "pcr/device.h"

/* What the device offers. */
extern const struct recurrence_solver dpcr_cuda_solver;

/* A segment map fits a thread's registers: everything but dense blocks above this width. */
enum { NARROW_WIDTH = 4 };

static inline bool dpcr_cuda_narrow(const struct walk *walk) {
    return walk->block != DPCR_DENSE || walk->w <= NARROW_WIDTH;
}

size_t dpcr_cuda_narrow_workspace(const struct walk *walk);
dpcr_status dpcr_cuda_narrow_solve(const struct walk *walk, void *workspace, int32_t *recomputed,
                                   int64_t *levels);
size_t dpcr_cuda_wide_workspace(const struct walk *walk);
dpcr_status dpcr_cuda_wide_solve(const struct walk *walk, void *workspace, int32_t *recomputed,
                                 int64_t *levels);

/* ceil(log2 count) */
static inline int dpcr_log2_up(int64_t count) {
    int levels = 0;
    while ((INT64_C(1) << levels) < count) levels++;
    return levels;
}

#endif
