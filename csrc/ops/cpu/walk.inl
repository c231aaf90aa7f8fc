/* SPDX-License-Identifier: Apache-2.0
 *
 * One sample of WIDTH elements through steps of one layer, z' = act(u) or z + s act(u), u = W z + b, or through
 * residual blocks as wide inside, without leaving the registers: such a chain is latency and nothing else.  The
 * operations, and so the bits, are those of mlp.inl, euler.inl, residual.inl.  Included once for each width whose
 * rows are one register or part of one; SIZED(name) makes their names.
 */

/* Between a row and a vector whose other lanes nobody looks at: the compiler is right that they have no value. */
#pragma GCC diagnostic push
#ifndef __clang__
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
INLINE VEC SIZED(widen)(SIZED(row) x) {
#if WIDTH * REAL_BYTES == VECTOR_BYTES
    return (VEC)x;
#elif WIDTH == 8
    return (VEC)FN(WIDEN_8)(x);
#else
    return (VEC)FN(WIDEN_4)(x);
#endif
}

INLINE SIZED(row) SIZED(narrow)(VEC x) {
#if WIDTH * REAL_BYTES == VECTOR_BYTES
    return (SIZED(row))x;
#elif WIDTH == 8
    return (SIZED(row))FN(NARROW_8)(x);
#else
    return (SIZED(row))FN(NARROW_4)(x);
#endif
}

/* u -> act(u), act'(u) */
INLINE void SIZED(act)(dpcr_activation kind, struct FN(act) act, SIZED(row) u, SIZED(row) * y,
                       SIZED(row) * d) {
    VEC value = {0}, slope = {0};
    const VEC wide = SIZED(widen)(u);
    switch (kind) {
    case DPCR_LINEAR: FN(act_value)(DPCR_LINEAR, act, wide, &value, &slope); break;
    case DPCR_RELU: FN(act_value)(DPCR_RELU, act, wide, &value, &slope); break;
    case DPCR_LEAKY_RELU: FN(act_value)(DPCR_LEAKY_RELU, act, wide, &value, &slope); break;
    case DPCR_ELU: FN(act_value)(DPCR_ELU, act, wide, &value, &slope); break;
    case DPCR_TANH: FN(act_value)(DPCR_TANH, act, wide, &value, &slope); break;
    case DPCR_SIGMOID: FN(act_value)(DPCR_SIGMOID, act, wide, &value, &slope); break;
    case DPCR_SILU: FN(act_value)(DPCR_SILU, act, wide, &value, &slope); break;
    case DPCR_GELU: FN(act_value)(DPCR_GELU, act, wide, &value, &slope); break;
    case DPCR_GELU_TANH: FN(act_value)(DPCR_GELU_TANH, act, wide, &value, &slope); break;
    case DPCR_SOFTPLUS: FN(act_value)(DPCR_SOFTPLUS, act, wide, &value, &slope); break;
    case DPCR_ACTIVATIONS: break;
    }
    *y = SIZED(narrow)(value), *d = SIZED(narrow)(slope);
}

/* y -> act'(u), of the kinds of slope_from_value */
INLINE SIZED(row) SIZED(slope)(dpcr_activation kind, SIZED(row) y) {
    const SIZED(row) zero = {0}, one = (REAL)1 - zero;
    switch (kind) {
    case DPCR_TANH: return one - y * y;
    case DPCR_SIGMOID: return y * (one - y);
    case DPCR_RELU: return (SIZED(row))(~(y <= zero) & (SIZED(order))one);
    default: return one;
    }
}

/* W (WIDTH,WIDTH), b (WIDTH) or NULL, of one step of many: b and W are moved on */
INLINE SIZED(row) SIZED(affine)(const REAL **W, const REAL **b, SIZED(row) x) {
    SIZED(row) y = SIZED(apply)(*W, WIDTH, x);
    *W += (int64_t)WIDTH * WIDTH;
    if (*b) y += SIZED(load)(*b), *b += WIDTH;
    return y;
}

INLINE SIZED(row) SIZED(norm)(const dpcr_chain *chain, SIZED(row) z, const REAL **gamma, const REAL **beta) {
    const REAL share = (REAL)1 / WIDTH;
    if (chain->norm == DPCR_LAYER_NORM) z -= SIZED(total)(z) * share;
    z *= FN(inverse_deviation)(SIZED(total)(z * z)[0], share, (REAL)chain->norm_eps);
    SIZED(row) a = (REAL)1 - (SIZED(row)){0}, b = {0};
    if (*gamma) a = SIZED(load)(*gamma), *gamma += WIDTH;
    if (*beta) b = SIZED(load)(*beta), *beta += WIDTH;
    return a * z + b;
}

static void SIZED(walk_blocks)(const dpcr_chain *chain, const struct FN(walk) * walk) {
    const REAL scale = (REAL)chain->scale, *at[DPCR_B2 + 1], *gamma, *beta;
    const struct FN(act) act = FN(act_of)(chain->activation_parameter);
    for (int i = 0; i <= DPCR_B2; i++) at[i] = FN(parameter)(chain, (dpcr_parameter)i, walk->first);
    gamma = FN(parameter)(chain, DPCR_GAMMA, walk->first),
    beta = FN(parameter)(chain, DPCR_BETA, walk->first);
    REAL *state = walk->states;
    SIZED(row) z = SIZED(load)(walk->z), slope;
    for (int64_t l = walk->first; l < walk->last; l++) {
        SIZED(row) a = z;
        if (chain->norm != DPCR_NO_NORM) a = SIZED(norm)(chain, z, &gamma, &beta);
        a = SIZED(affine)(&at[DPCR_W1], &at[DPCR_B1], a);
        SIZED(act)(chain->activation, act, a, &a, &slope);
        z += scale * SIZED(affine)(&at[DPCR_W2], &at[DPCR_B2], a);
        if (state) *(SIZED(row) *)state = z, state += walk->stride;
    }
    *(SIZED(row) *)walk->z = z;
}

/* Rows first..last-1, constants at every call, of W Q -> product. */
INLINE void SIZED(tangent_rows)(const int first, const int last, const REAL *W, const SIZED(row) * Q,
                                SIZED(row) * product) {
#pragma GCC unroll 16
    for (int r = first; r < last; r++) product[r] = (SIZED(row)){0};
#pragma GCC unroll 16
    for (int i = 0; i < WIDTH; i++)
#pragma GCC unroll 16
        for (int r = first; r < last; r++) product[r] += W[r * WIDTH + i] * Q[i];
}

/* Q (WIDTH,WIDTH) <- J Q of one step: J = diag(slope) W, with a skip I + scale diag(slope) W.  16 rows in halves:
 * with Q they are more than the registers, and a step took a third longer. */
INLINE void SIZED(move_tangents)(const REAL *W, SIZED(row) slope, bool skip, REAL scale, SIZED(row) * Q) {
    SIZED(row) product[WIDTH];
    const int half = WIDTH > 8 ? WIDTH / 2 : WIDTH;
    SIZED(tangent_rows)(0, half, W, Q, product);
    if (half < WIDTH) SIZED(tangent_rows)(half, WIDTH, W, Q, product);
#pragma GCC unroll 16
    for (int r = 0; r < WIDTH; r++) {
        product[r] *= slope[r];
        if (skip)
            Q[r] += scale * product[r];
        else
            Q[r] = product[r];
    }
}

/* tangents is a constant at every call: data (WIDTH,WIDTH), rows of `stride`, is multiplied by the step Jacobians. */
INLINE void SIZED(walk_layers)(const bool tangents, const dpcr_chain *chain, const struct FN(walk) * walk,
                               REAL *data, int64_t stride) {
    const bool skip = chain->step == DPCR_EULER;
    const REAL scale = (REAL)chain->scale;
    const struct FN(act) act = FN(act_of)(chain->activation_parameter);
    const REAL *W = FN(parameter)(chain, DPCR_W1, walk->first),
               *b = FN(parameter)(chain, DPCR_B1, walk->first);
    REAL *state = walk->states;
    SIZED(row) z = SIZED(load)(walk->z), slope, Q[WIDTH];
#pragma GCC unroll 16
    for (int i = 0; i < WIDTH && tangents; i++) Q[i] = SIZED(load)(data + i * stride);
    for (int64_t l = walk->first; l < walk->last; l++) {
        const REAL *own = W;
        SIZED(row) a = SIZED(affine)(&W, &b, z);
        SIZED(act)(chain->activation, act, a, &a, &slope);
        if (skip)
            z += scale * a;
        else
            z = a;
        if (state) *(SIZED(row) *)state = z, state += walk->stride;
        if (tangents) SIZED(move_tangents)(own, slope, skip, scale, Q);
    }
    *(SIZED(row) *)walk->z = z;
#pragma GCC unroll 16
    for (int i = 0; i < WIDTH && tangents; i++) *(SIZED(row) *)(data + i * stride) = Q[i];
}

static void SIZED(walk)(const dpcr_chain *chain, const struct FN(walk) * walk) {
    SIZED(walk_layers)(false, chain, walk, NULL, 0);
}

static void SIZED(walk_tangents)(const dpcr_chain *chain, const struct FN(walk) * walk, REAL *Q,
                                 int64_t stride) {
    SIZED(walk_layers)(true, chain, walk, Q, stride);
}

/* One step back: g, z_{l-1}, z_l -> gu; g becomes the gradient of z_{l-1} */
INLINE SIZED(row) SIZED(step_back)(const dpcr_chain *chain, struct FN(act) act, const REAL *W, const REAL *b,
                                   const REAL *before, const REAL *after, SIZED(row) * g) {
    SIZED(row) slope, value, gz;
    if (chain->step == DPCR_MLP && FN(slope_from_value)(chain->activation)) {
        slope = SIZED(slope)(chain->activation, SIZED(load)(after));
    } else {
        SIZED(row) u = SIZED(apply)(W, WIDTH, SIZED(load)(before));
        if (b) u += SIZED(load)(b);
        SIZED(act)(chain->activation, act, u, &value, &slope);
    }
    SIZED(row) gu = *g;
    if (chain->step == DPCR_EULER) gu *= (REAL)chain->scale;
    gu *= slope;
    gz = SIZED(apply_transposed)(W, WIDTH, (const REAL *)&gu);
    if (chain->step == DPCR_EULER)
        *g += gz;
    else
        *g = gz;
    return gu;
}

/* Of the parameters of step l, where there is one sample: a pass of its own would take longer than the walk. */
INLINE void SIZED(gradient)(const struct pullback_pass *pass, int64_t l, SIZED(row) gu) {
    REAL *gW = pass->arrays->gparameter[DPCR_W1], *gb = pass->arrays->gparameter[DPCR_B1];
    const SIZED(row) z = SIZED(load)(FN(before)(pass, l, 0));
#pragma GCC unroll 16
    for (int i = 0; i < WIDTH && gW; i++) *(SIZED(row) *)(gW + (l * WIDTH + i) * WIDTH) = gu[i] * z;
    if (gb) *(SIZED(row) *)(gb + l * WIDTH) = gu;
}

static void SIZED(walk_back)(const struct pullback_pass *pass, const struct FN(walk_back) * walk) {
    const dpcr_chain *chain = pass->chain;
    const struct FN(act) act = FN(act_of)(chain->activation_parameter);
    const REAL *W = chain->parameter[DPCR_W1], *b = chain->parameter[DPCR_B1];
    const REAL *gstates = FN(row)(pass->arrays->gstates, 0, walk->sample, chain);
    SIZED(row) g = SIZED(load)(walk->g);
    for (int64_t l = walk->last - 1; l >= walk->first; l--) {
        if (gstates) g += SIZED(load)(gstates + l * chain->B * WIDTH);
        const SIZED(row) gu = SIZED(step_back)(
            chain, act, W + l * WIDTH * WIDTH, b ? b + l * WIDTH : NULL, FN(before)(pass, l, walk->sample),
            FN(row)(pass->states, l - pass->states_first, walk->sample, chain), &g);
        REAL *saved = FN(saved_row)(pass, l, walk->sample);
        if (saved && chain->B == 1)
            SIZED(gradient)(pass, l, gu);
        else if (saved)
            *(SIZED(row) *)saved = gu;
    }
    *(SIZED(row) *)walk->g = g;
}

static const struct FN(walks) SIZED(walks)[2] = {{SIZED(walk), SIZED(walk_tangents), SIZED(walk_back)},
                                                 {SIZED(walk_blocks), NULL, NULL}};

#pragma GCC diagnostic pop
#undef WIDTH
#undef SIZED
