/* SPDX-License-Identifier: Apache-2.0
 *
 * One sample whose state fits a register has a walk of its own (walk.inl): in which chains, and which one.
 */

/* Steps first..last-1 of one sample: z (w) in and out, states: its row of the first, or NULL. */
struct FN(walk) {
    int64_t first, last;
    REAL *z, *states;
    int64_t stride;
};

/* The same back: g (w) in and out. */
struct FN(walk_back) {
    int64_t first, last, sample;
    REAL *g;
};

/* Of one width: [0] through steps of one layer, [1] through residual blocks, forward alone. */
struct FN(walks) {
    void (*forward)(const dpcr_chain *chain, const struct FN(walk) * walk);
    /* also Q (w,w), rows of `stride` <- product of the step Jacobians Q */
    void (*tangents)(const dpcr_chain *chain, const struct FN(walk) * walk, REAL *Q, int64_t stride);
    void (*back)(const struct pullback_pass *pass, const struct FN(walk_back) * walk);
};

#if 4 * REAL_BYTES <= VECTOR_BYTES
#define WIDTH 4
#define SIZED(name) FN(name##_4)
#include "ops/cpu/walk.inl"
#else
static const struct FN(walks) FN(walks_4)[2] = {{NULL, NULL, NULL}};
#endif

#if 8 * REAL_BYTES <= VECTOR_BYTES
#define WIDTH 8
#define SIZED(name) FN(name##_8)
#include "ops/cpu/walk.inl"
#else
static const struct FN(walks) FN(walks_8)[2] = {{NULL, NULL, NULL}};
#endif

#if 16 * REAL_BYTES <= VECTOR_BYTES
#define WIDTH 16
#define SIZED(name) FN(name##_16)
#include "ops/cpu/walk.inl"
#else
static const struct FN(walks) FN(walks_16)[2] = {{NULL, NULL, NULL}};
#endif

/* NULL: none for tiles of n lanes of this chain.  blocks: one of residual blocks would do. */
static const struct FN(walks) * FN(walks_of)(const dpcr_chain *chain, int64_t n, bool blocks) {
    const struct FN(walks) *walks = chain->w == 4    ? FN(walks_4)
                                    : chain->w == 8  ? FN(walks_8)
                                    : chain->w == 16 ? FN(walks_16)
                                                     : NULL;
    const bool layer = chain->step == DPCR_MLP || chain->step == DPCR_EULER;
    const bool block = blocks && chain->step == DPCR_RESIDUAL && chain->h == chain->w;
    return n == 1 && (layer || block) && walks && walks->forward ? &walks[block] : NULL;
}
