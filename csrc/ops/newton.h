/* SPDX-License-Identifier: Apache-2.0
 *
 * Newton's method on the start states of S segments (multiple shooting), written once over the device
 * table.  The problem is any chain of segment maps  s_{k+1} = F_k(s_k),  k = 0..S-1, s_0 given; forward
 * F_k runs the steps of segment k, backward (where segments are counted from the last) their adjoint.
 * One *sweep*:
 *
 *     propagate   e_k = F_k(s_k) for all k at once, and P_k ~ dF_k/ds where the sample wants it
 *     test        r_k = e_k - s_{k+1}
 *     solve       d_{k+1} = P_k d_k + r_k, d_0 = 0: cyclic reduction, ceil(log2 S) levels
 *     update      s_{k+1} = e_k + P_k d_k
 *
 * Whatever P is, after sweep j the first j segments are bit-equal to the sequential pass: d_k is exactly 0
 * there, and e_k is taken as it is.  P decides only how soon the others follow.
 *
 * A sample is *settled* in two stages.  It becomes a candidate when the error predicted to be left after
 * an update, q rho / (1 - rho) with q = max |d_{k+1}| / |e_k| and rho = q / q before, is at most rtol, or
 * when every r_k is rounding.  The next propagation, its final walk, must confirm that by its own q and r, or
 * the sample goes on sweeping.  Everything is decided per sample, from its own numbers alone.
 *
 * A dense P is the product of the segment's step Jacobians; a diagonal one is  v . (P v)  with v of +-1, drawn anew
 * at each sweep and for each segment, whose expectation is the diagonal of P.  Scalar, identity and zero are known
 * beforehand.
 *
 * P is kept from sweep to sweep (DPCR_ADAPTIVE) while q falls to a quarter; else it is computed again, of the
 * segments whose start has moved by more than a tenth since, or by a tenth of what the restless ones have.
 *
 * Cost per sweep and sample: states 2 L w^2 (MLP; without the exact prefix, in all but the final walk); where
 * P is computed, tangents 2 w^3 per step and cyclic reduction 2 w^3 per map that changes, 2 S w^3 for all;
 * 6 S w^2 for its vectors.  Memory per sample: 2 S w^2 + 4 S w.
 *
 * Method: DeepPCR (Danieli et al., NeurIPS 2023, arXiv 2309.16318) is S = L with P computed at every sweep.
 */
#ifndef DEEPPCR_NEWTON_H
#define DEEPPCR_NEWTON_H

#include "chain.h"
#include "pcr/cpu/kernels.h"

enum newton_phase {
    NEWTON_SWEEPING,
    NEWTON_CANDIDATE, /* its starts are accepted, its next propagation is the final walk */
    NEWTON_SETTLED    /* frozen */
};

/* One sample on its way. */
struct newton_sample {
    enum newton_phase phase;
    bool refresh;    /* P is computed at the next propagation */
    bool has_P;      /* it has been computed; until then P is `free` */
    double rounding; /* max |r_k| / (|e_k| + |P_k| |s_k|): 2 eps is the sequential pass's own */
    int64_t exact;   /* s_0..s_exact are those of the sequential pass, and e_k for k < exact */
    int64_t cleared; /* P_k for k < cleared meets only zeros and has been set to 0: it might be inf */
    int64_t sweeps;
    double tangent_sweeps; /* a sweep that computes P of a part of the segments counts as that part */
    double largest;        /* finite |e_k| */
    double error, before;  /* q of this sweep and of the last */
    double flops;
    int levels;
    dpcr_verdict verdict;
};

/* Rows (S, samples, w) of which a problem has those from `first` on. */
struct segment_rows {
    void *data;
    int64_t samples, first;
};

struct newton {
    dpcr_exec exec;
    dpcr_dtype dtype;
    dpcr_newton options;
    dpcr_structure free; /* what P is before, or without, being computed: identity, zero or scalar */
    bool computed;       /* this sweep solves with computed P; whoever has none takes d = r */
    bool once;           /* F is linear: P needs to be computed once only, at the first sweep */
    int64_t S, B, w, sweep;
    struct segment_rows starts, ends;
    struct newton_sample *samples; /* (B) */
    unsigned char *guarded;        /* (S,B): the guard acted at this start */
    float *moved;                  /* (S,B) how far s_k has moved since P_k, relative to it */
    unsigned char *stale; /* (S,B) P_k is due, if the sample's refresh is set; part of system.fresh */
    unsigned char *skip;  /* (B) samples that a solve leaves out; system.skip */
    struct walk
        system; /* its maps hold P_k as element k + 1 (a scalar one for all samples), its offsets r_k and
                             then d_{k+1} */
    double step_flops; /* per step of the chain and vector */
    char *scratch;     /* of the kernels below, for each thread */

    /* e_k (and P_k, into the maps) of the samples as their phases want it; and the sequential walk of
     * those that are not settled, from s_exact on. */
    void (*propagate)(const struct newton *newton);
    void (*finish)(const struct newton *newton);
    /* Steps of the segments k..S-1. */
    int64_t (*steps_from)(const struct newton *newton, int64_t k);
    /* P_k where it is scalar. */
    double (*factor)(const struct newton *newton, int64_t k);
    const void *problem; /* of these four */
};

/* What a device offers to the driver. */
struct newton_kernels {
    /* r_k into the offsets; exact, rounding, largest; counts the sweep. */
    void (*residuals)(const struct newton *newton);
    /* q from d; settles candidates that it confirms. */
    void (*confirm)(const struct newton *newton);
    /* s_{k+1} = e_k + P_k d_k, guarded. */
    void (*update)(const struct newton *newton);
    /* The samples that are done but for the final walk, and those that need a new P. */
    void (*judge)(const struct newton *newton);
};

/* Bytes of workspace; base may be NULL.  Fills the arrays of a newton whose sizes are set; where its
 * starts.data is set already, it keeps them. */
size_t dpcr_newton_carve(struct newton *newton, void *base);

/* Columns of tangents that P is computed from; 0: it is not computed. */
static inline DPCR_EVERYWHERE int64_t dpcr_P_columns(dpcr_structure structure, int64_t w) {
    return structure == DPCR_P_DENSE ? w : structure == DPCR_P_DIAGONAL ? 1 : 0;
}

/* Numbers that P of one segment is. */
static inline DPCR_EVERYWHERE int64_t dpcr_P_size(dpcr_structure structure, int64_t w) {
    switch (structure) {
    case DPCR_P_DENSE: return w * w;
    case DPCR_P_DIAGONAL: return w;
    case DPCR_P_SCALAR: return 1;
    default: return 0;
    }
}

/* Blocks of the linear system; with zero there is none. */
static inline dpcr_block dpcr_block_of(dpcr_structure structure) {
    switch (structure) {
    case DPCR_P_DENSE: return DPCR_DENSE;
    case DPCR_P_DIAGONAL: return DPCR_DIAGONAL;
    case DPCR_P_SCALAR: return DPCR_SCALAR;
    default: return DPCR_IDENTITY;
    }
}

/* Element i of the vector v of segment k at a sweep: 1 or -1, the same for all samples (splitmix64). */
static inline DPCR_EVERYWHERE bool dpcr_probe_is_negative(int64_t sweep, int64_t k, int64_t i) {
    uint64_t bits =
        ((uint64_t)sweep << 48) + ((uint64_t)k << 24) + (uint64_t)i + UINT64_C(0x9e3779b97f4a7c15);
    bits = (bits ^ (bits >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    bits = (bits ^ (bits >> 27)) * UINT64_C(0x94d049bb133111eb);
    return (bits ^ (bits >> 31)) & 1;
}

/* Bytes of scratch of one running task: two states. */
static inline size_t dpcr_newton_scratch(const struct newton *newton) {
    return dpcr_round_up(2 * (size_t)newton->w * dpcr_size_of(newton->dtype));
}

/* From the starts s_1..s_{S-1} given (s_0 is exact) to those of the solution, and their ends. */
void dpcr_newton_solve(struct newton *newton);

/* One column of a report (DPCR_REPORT,B) for each sample, from sample `first` on. */
void dpcr_newton_report(const struct newton *newton, double *report, int64_t B, int64_t first);

dpcr_status dpcr_check_newton(const dpcr_newton *options);

/* ---- the rules' numbers, on every device ---------------------------------------------------- */

#ifdef __cplusplus
#define NEWTON_RULE static constexpr /* kernels read it */
#else
#define NEWTON_RULE static const
#endif

/* Starts further out than this many times the largest end are not believed: 2 cost sweeps on chains that
 * converge, 10 none. */
NEWTON_RULE double kNewtonGuard = 10;
/* A sweep that leaves more than this share of the error asks for a new P, while there is error enough. */
NEWTON_RULE double kNewtonSlow = 0.25, kNewtonSmall = 1e3;
/* and only of the segments whose start has moved by more than this since their last. */
NEWTON_RULE float kNewtonFar = 0.1F;
/* Contraction from one sweep to the next, as far as it is believed: an error that fell by more has met its
 * rounding, one that falls by less with a good P has too. */
NEWTON_RULE double kNewtonFastest = 1e-3, kNewtonSlowest = 0.9;
/* A sweep after which more than this share of the error is left has met it, too. */
NEWTON_RULE double kNewtonStuck = 0.5;
/* What the final walk may find in units of rtol, which is a prediction of it. */
NEWTON_RULE double kNewtonSlack = 2;

/* Sweeps at most.  By default 40: of the chains that converge at all few need more than 25, whatever their length. */
static inline int64_t dpcr_sweep_limit(const dpcr_newton *options, int64_t S) {
    return options->max_sweeps < 0 ? dpcr_min(S, 40) : options->max_sweeps;
}

extern const struct newton_kernels dpcr_newton_generic[2], dpcr_newton_v3[2], dpcr_newton_v4[2];

const struct newton_kernels *dpcr_newton_kernels(const dpcr_device *device, dpcr_dtype dtype);

#endif
