/* SPDX-License-Identifier: Apache-2.0
 *
 * A sweep's second half (update.h) as a device offers it to update.c.  The unit of work is a *tile*: so many
 * neighbouring elements of a state, all of it where A is dense.
 */
#ifndef DEEPPCR_OPS_UPDATE_KERNELS_H
#define DEEPPCR_OPS_UPDATE_KERNELS_H

#include "ops/newton.h"
#include "ops/update.h"

/* What is measured of a step: the largest element of each, inf where one is not finite. */
enum update_size {
    SIZE_END,      /* e_l */
    SIZE_START,    /* the new x_l, before the guard */
    SIZE_ERROR,    /* d_l */
    SIZE_MOVED,    /* A_l d_{l-1} */
    SIZE_RESIDUAL, /* r_l */
    SIZES
};

struct update_pass {
    dpcr_exec exec;
    dpcr_update update;
    int64_t tile, tiles; /* elements of a tile, tiles of a state */
    void *residuals;     /* (L,B,w) r; where the recurrence is solved beforehand */
    const void *solved;  /* (L,B,w) d, or NULL: the walk finds it on its way */
    int64_t pieces;      /* runs of steps that a walk takes apart: 1 where solved is NULL */
    bool again;          /* walk only where the last walk has met a d that is not finite */
    void *sizes;         /* (SIZES,L,B,tiles) */
    int32_t *guarded;    /* (L,B) */
    char *scratch;
};

struct update_kernels {
    int64_t (*tile)(const dpcr_update *update);
    size_t (*scratch)(const struct update_pass *pass); /* bytes of all of it */
    dpcr_status (*residuals)(const struct update_pass *pass);
    /* The new states before the guard, x_0 too, and the sizes. */
    dpcr_status (*walk)(const struct update_pass *pass);
    /* The guard and the test. */
    dpcr_status (*judge)(const struct update_pass *pass);
};

/* Of a size in (SIZES,L,B,tiles). */
static inline DPCR_EVERYWHERE int64_t dpcr_size_index(const struct update_pass *pass, int which, int64_t l,
                                                      int64_t s, int64_t tile) {
    const dpcr_update *u = &pass->update;
    return (((int64_t)which * u->L + l) * u->B + s) * pass->tiles + tile;
}

/* Of A_l in the Jacobians. */
static inline DPCR_EVERYWHERE int64_t dpcr_jacobian_index(const dpcr_update *u, int64_t l, int64_t s) {
    return (u->shared ? l : l * u->B + s) * dpcr_P_size(u->structure, u->w);
}

extern const struct update_kernels dpcr_update_generic[2], dpcr_update_v3[2], dpcr_update_v4[2];

const struct update_kernels *dpcr_update_kernels(const dpcr_device *device, dpcr_dtype dtype);

#endif
