/* SPDX-License-Identifier: Apache-2.0
 *
 * deeppcr, part 2: chains  z_l = f_l(z_{l-1}),  l = 1..L,  of equal steps with different parameters.
 *
 *     DPCR_MLP        f_l(z) = act(W1_l z + b1_l)
 *     DPCR_RESIDUAL   f_l(z) = z + scale * (W2_l act(W1_l norm(z) + b1_l) + b2_l)
 *     DPCR_EULER      f_l(z) = z + scale * act(W1_l z + b1_l)
 *     DPCR_LAYERS     f_l(z) = (skip ? z : 0) + scale * a_M,   a_0 = z,
 *                     a_m = act(norm(W1_lm a_{m-1} + b1_lm)),  m = 1..M = layers
 *     DPCR_DENOISE    f_l(z) = a_l z + c_l (W2 x_M + b2) + n_l,   x_0 = act(W1 z + b1_l0),
 *                     x_m = x_{m-1} + act(WH_m x_{m-1} + b1_lm),  m = 1..M = layers
 *
 * A step of denoising is that of a sampler around a network: its weights are the same in all steps, the time
 * embedding is in its biases, a, c and n are the sampler's coefficients and its noise, already scaled
 * (DDIM, arXiv 2010.02502; DDPM, arXiv 2006.11239).
 *
 * The L steps are cut into S = plan.segments segments; segment k = 1..S holds the steps
 * floor((k-1)L/S)+1 .. floor(kL/S).  dpcr_chain_solve runs the whole chain: with S = 1 in one fused pass,
 * a tile of samples staying in cache through all L steps; with S > 1 by Newton's method on the start
 * states of the segments (multiple shooting; S = L is DeepPCR), see newton.h.  dpcr_chain_backward is its
 * vector-Jacobian product, with the same choice.  dpcr_chain_propagate is the building block: every
 * segment from a given start state, with the products of the step Jacobians if asked for.
 *
 * The contract is that of pcr.h.  Arrays are contiguous and row-major.
 */
#ifndef DEEPPCR_CHAIN_H
#define DEEPPCR_CHAIN_H

#include "pcr.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum dpcr_step {
    DPCR_MLP,
    DPCR_RESIDUAL,
    DPCR_EULER,
    DPCR_LAYERS,
    DPCR_DENOISE,
    DPCR_STEPS
} dpcr_step;

/* The names, formulas and parameters of PyTorch's modules.  p, q: dpcr_chain.activation_parameter[0], [1]. */
typedef enum dpcr_activation {
    DPCR_LINEAR,     /* u */
    DPCR_RELU,       /* max(u, 0) */
    DPCR_LEAKY_RELU, /* u > 0 ? u : p u */
    DPCR_ELU,        /* u > 0 ? u : p (exp(u) - 1) */
    DPCR_TANH,       /* tanh(u) */
    DPCR_SIGMOID,    /* 1 / (1 + exp(-u)) */
    DPCR_SILU,       /* u sigmoid(u) */
    DPCR_GELU,       /* u (1 + erf(u / sqrt 2)) / 2 */
    DPCR_GELU_TANH,  /* u (1 + tanh(sqrt(2 / pi) (u + 0.044715 u^3))) / 2 */
    DPCR_SOFTPLUS,   /* p u > q ? u : log(1 + exp(p u)) / p */
    DPCR_ACTIVATIONS
} dpcr_activation;

/* Over the w elements of a state or pre-activation, biased variance, as PyTorch's modules. */
typedef enum dpcr_norm {
    DPCR_NO_NORM,
    DPCR_LAYER_NORM, /* (z - mean) / sqrt(var + eps) * gamma + beta */
    DPCR_RMS_NORM,   /* z / sqrt(mean(z^2) + eps) * gamma */
    DPCR_NORMS
} dpcr_norm;

/* Parameters, stacked over the steps, but for those that all steps share; in steps of layers over their M layers, too.
 * NULL: absent (biases, beta and noise 0, gamma 1); weights and coefficients must be there. */
typedef enum dpcr_parameter {
    DPCR_W1,           /* (L,h,w), h = w but for residual blocks; layers (L,M,w,w); denoising (h,w), shared */
    DPCR_B1,           /* (L,h); layers (L,M,w); denoising (L,M+1,h) */
    DPCR_W2,           /* residual (L,w,h); denoising (w,h), shared */
    DPCR_B2,           /* residual (L,w); denoising (w), shared */
    DPCR_GAMMA,        /* (L,w); layers (L,M,w); only where there is a norm */
    DPCR_BETA,         /* as GAMMA; LayerNorm only */
    DPCR_WH,           /* denoising only: (M,h,h), shared */
    DPCR_COEFFICIENTS, /* denoising only: (L,2), a_l and c_l */
    DPCR_NOISE,        /* denoising only: (L,B,w), n_l */
    DPCR_PARAMETERS
} dpcr_parameter;

typedef struct dpcr_chain {
    dpcr_step step;
    dpcr_dtype dtype;
    int64_t L, B, w, h; /* h: hidden width; w but for residual blocks and denoising */
    dpcr_activation activation;
    double activation_parameter[2];
    dpcr_norm norm; /* residual and layers, as norm_eps */
    double norm_eps;
    double scale;   /* residual, Euler and layers */
    int64_t layers; /* M; layers, at least 1, and denoising, at least 0 */
    bool skip;      /* layers only */
    const void *parameter[DPCR_PARAMETERS];
} dpcr_chain;

/* ---- forward -------------------------------------------------------------------------------- */

typedef struct dpcr_propagation {
    const void *starts; /* (S,B,w) */
    void *ends;         /* (S,B,w) */
    void *states;       /* (L,B,w) z_1..z_L, or NULL: not kept */
    void *tangents;     /* (S,B,w,w) product of the step Jacobians of each segment, or NULL */
} dpcr_propagation;

/* The query needs only which pointers are NULL. */
DPCR_API dpcr_status dpcr_chain_propagate_workspace(dpcr_exec exec, const dpcr_chain *chain,
                                                    const dpcr_propagation *pass, const dpcr_plan *plan,
                                                    size_t *bytes);
DPCR_API dpcr_status dpcr_chain_propagate(dpcr_exec exec, const dpcr_chain *chain,
                                          const dpcr_propagation *pass, const dpcr_plan *plan,
                                          dpcr_buffer workspace);

/* ---- the whole chain ------------------------------------------------------------------------ */

/* What stands for the product P of a segment's step Jacobians in Newton's linear system. */
typedef enum dpcr_structure {
    DPCR_P_DENSE,    /* itself: Newton */
    DPCR_P_IDENTITY, /* I: Picard's iteration, for chains of residual blocks */
    DPCR_P_ZERO,     /* 0: Jacobi's iteration */
    DPCR_P_DIAGONAL, /* a guess at its diagonal, v . (P v) with one random v of +-1: one tangent a segment */
    DPCR_P_SCALAR,   /* the product of what z itself is multiplied by in the steps: 1 with a skip, else 0 */
    DPCR_STRUCTURES
} dpcr_structure;

/* When a dense or diagonal P is computed: at every sweep from the first, or for each sample only when its last sweep
 * gained too little, and only of the segments that have changed. */
typedef enum dpcr_refresh { DPCR_ADAPTIVE, DPCR_ALWAYS, DPCR_REFRESHES } dpcr_refresh;

/* How segments are tied together; not read where plan.segments is 1. */
typedef struct dpcr_newton {
    dpcr_structure structure;
    dpcr_refresh refresh; /* of forward: in backward P is that of the final states */
    double rtol;          /* error of a start state relative to that state, > 0 */
    double atol;          /* absolute; a state smaller than atol / rtol counts as of that size */
    int64_t max_sweeps;   /* then the rest is walked sequentially; 0: at once; negative: min(S, 40) */
    bool finish;          /* false: what has not converged is left as it is */
} dpcr_newton;

/* Dense, adaptive, rtol 8 eps, atol 0, max_sweeps of its own, finish. */
DPCR_API dpcr_newton dpcr_newton_default(dpcr_dtype dtype);

/* The end of a sample. */
typedef enum dpcr_verdict {
    DPCR_CONVERGED,  /* to rtol (S = 1: exact) */
    DPCR_SEQUENTIAL, /* not in max_sweeps; finished by walking, bit-equal to S = 1 */
    DPCR_UNCONVERGED /* not in max_sweeps, and finish was false */
} dpcr_verdict;

/* What a solve tells of every sample: rows of an array (DPCR_REPORT,B) of doubles. */
typedef enum dpcr_report {
    DPCR_SWEEPS,         /* propagations, the final one included; 1 where S = 1, 0 where L, B or w is 0 */
    DPCR_TANGENT_SWEEPS, /* of these with tangents; one of a part of the segments counts as that part */
    DPCR_VERDICT,
    DPCR_ERROR,  /* estimated, relative: of the worst boundary after the last update */
    DPCR_LEVELS, /* of cyclic reduction in one solve: ceil(log2 S); 0 where none was solved, or not so */
    DPCR_FLOPS,  /* of matrix products: steps, tangents, cyclic reduction */
    DPCR_REPORT
} dpcr_report;

typedef struct dpcr_solution {
    const void *z0;            /* (B,w) */
    const void *guess;         /* (L,B,w) of z_1..z_L, or NULL: z0 everywhere; not read where S = 1 */
    void *z;                   /* (B,w) z_L */
    void *states;              /* (L,B,w) z_1..z_L, or NULL: not kept */
    void *checkpoints;         /* (C,B,w), C = dpcr_checkpoints(L, S), or NULL: not kept */
    double *report;            /* (DPCR_REPORT,B), or NULL */
    const dpcr_newton *newton; /* NULL: the default */
} dpcr_solution;

/* States that backward can do with: C of them, z before the steps floor(c L / C) + 1, c = 0..C-1.
 * C = S, or the root of L where S is 1. */
DPCR_API int64_t dpcr_checkpoints(int64_t L, int64_t S);

DPCR_API dpcr_status dpcr_chain_solve_workspace(dpcr_exec exec, const dpcr_chain *chain,
                                                const dpcr_solution *solution, const dpcr_plan *plan,
                                                size_t *bytes);
DPCR_API dpcr_status dpcr_chain_solve(dpcr_exec exec, const dpcr_chain *chain, const dpcr_solution *solution,
                                      const dpcr_plan *plan, dpcr_buffer workspace);

/* ---- backward ------------------------------------------------------------------------------- */

typedef struct dpcr_pullback {
    const void *z0;          /* (B,w) */
    const void *states;      /* (L,B,w), of the forward pass; or NULL, and then */
    const void *checkpoints; /* (C,B,w), of a forward pass with the same S: states are computed again */
    const void *gz;          /* (B,w) gradient of z_L, or NULL: zero */
    const void *gstates;     /* (L,B,w) gradients of all states, added to it, or NULL: zero */
    void *gz0;               /* (B,w), or NULL: not wanted */
    void *gparameter[DPCR_PARAMETERS]; /* shaped as the parameters, of shared ones the sum over all steps;
                                          NULL: not wanted, and costs nothing */
    const unsigned char *frozen; /* (L) nonzero: the parameters of step l want no gradient, their rows come
                                          back zero and cost nothing, shared ones sum over the others;
                                          NULL: none */
    double *report;              /* (DPCR_REPORT,B), or NULL */
    const dpcr_newton *newton;   /* NULL: the default */
} dpcr_pullback;

DPCR_API dpcr_status dpcr_chain_backward_workspace(dpcr_exec exec, const dpcr_chain *chain,
                                                   const dpcr_pullback *pass, const dpcr_plan *plan,
                                                   size_t *bytes);
DPCR_API dpcr_status dpcr_chain_backward(dpcr_exec exec, const dpcr_chain *chain, const dpcr_pullback *pass,
                                         const dpcr_plan *plan, dpcr_buffer workspace);

/* The activation and its derivative alone, elementwise on count elements: y = act(u), d = act'(u).
 * d may be NULL.  Error of each against fp64: see csrc/ops/cpu/activation.inl. */
DPCR_API dpcr_status dpcr_activate(dpcr_exec exec, dpcr_dtype dtype, dpcr_activation activation,
                                   const double parameter[2], int64_t count, const void *u, void *y, void *d);

#ifdef __cplusplus
}
#endif
#endif
