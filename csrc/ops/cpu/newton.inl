/* SPDX-License-Identifier: Apache-2.0
 *
 * The driver's own kernels (newton.h) on the CPU.  Boundary k lies between segments k and k + 1; its r, and
 * then d, is element k + 1 of the linear system, as P_k is.
 */

static const double FN(epsilon) = sizeof(REAL) == sizeof(float) ? FLT_EPSILON : DBL_EPSILON;
/* Below it there are denormals. */
static const double FN(tiny) = sizeof(REAL) == sizeof(float) ? 1e-37 : 1e-307;

/* run(w) with w a constant where states are narrow: loops over a few elements cost more than the elements. */
#ifndef AT_WIDTH
#define AT_WIDTH(w, run)     \
    switch (w) {             \
    case 4: run(4); break;   \
    case 8: run(8); break;   \
    case 16: run(16); break; \
    default: run(w); break;  \
    }
#endif

/* fmax and fmin where b is a number, without a call. */
INLINE double FN(larger)(double a, double b) {
    return a > b ? a : b;
}

INLINE double FN(smaller)(double a, double b) {
    return a < b ? a : b;
}

static REAL *FN(start_of)(const struct newton *n, int64_t k, int64_t s) {
    return FN(segment_row)(&n->starts, k, s, n->w);
}

static REAL *FN(end_of)(const struct newton *n, int64_t k, int64_t s) {
    return FN(segment_row)(&n->ends, k, s, n->w);
}

static REAL *FN(element)(const struct newton *n, int64_t k, int64_t s) {
    return (REAL *)n->system.offsets + (k * n->B + s) * n->w;
}

/* Of a sample that has one. */
static REAL *FN(P_of)(const struct newton *n, int64_t k, int64_t s) {
    return (REAL *)n->system.maps + ((k + 1) * n->B + s) * dpcr_P_size(n->options.structure, n->w);
}

/* P_k where it is known: identity, zero or scalar */
static REAL FN(free_P)(const struct newton *n, int64_t k) {
    if (n->free == DPCR_P_SCALAR) return ((const REAL *)n->system.maps)[k + 1];
    return n->free == DPCR_P_IDENTITY ? 1 : 0;
}

/* out = P_k d + b, where d is not zero: P might be inf; out may be b */
INLINE void FN(times_P)(const struct newton *n, int64_t k, int64_t s, const REAL *d, const REAL *b, REAL *out,
                        int64_t w) {
    const bool own = n->samples[s].has_P;
    const REAL *P = own ? FN(P_of)(n, k, s) : NULL, a = own ? 0 : FN(free_P)(n, k);
    if (own && n->options.structure == DPCR_P_DENSE)
        FN(matvec)(w, w, &(struct FN(matrix)){P, w, 1}, d, b, out);
    else
        for (int64_t i = 0; i < w; i++) {
            const REAL p = own ? P[i] : a;
            out[i] = p == 0 || d[i] == 0 ? b[i] : p * d[i] + b[i];
        }
}

/* Largest |x|, NaN where there is one.  As integers, in whose order NaN comes last: compilers put those into vectors. */
INLINE double FN(norm)(int64_t w, const REAL *x) {
    const INT magnitude = ((((INT)1 << (8 * REAL_BYTES - 2)) - 1) * 2) + 1; /* all but the sign */
    INT most = 0;
    for (int64_t i = 0; i < w; i++) {
        INT bits;
        memcpy(&bits, x + i, sizeof bits);
        bits &= magnitude;
        most = bits > most ? bits : most;
    }
    REAL largest;
    memcpy(&largest, &most, sizeof largest);
    return (double)largest;
}

/* work: operations per element of the boundary states */
static void FN(each_sample)(const struct newton *n, void (*run)(const void *, int64_t, void *), double work) {
    const struct tasks tasks = {.run = run,
                                .pass = n,
                                .count = n->B,
                                .work = work * (double)n->S * (double)n->B * (double)n->w,
                                .scratch = n->scratch,
                                .scratch_bytes = dpcr_newton_scratch(n)};
    dpcr_run_tasks(n->exec, &tasks);
}

/* States smaller than this count as of this size. */
static double FN(smallest)(const struct newton *n) {
    return FN(larger)(n->options.atol / n->options.rtol, FN(tiny));
}

/* ---- 2. r = e - s --------------------------------------------------------------------------- */

/* |r_k| in units of what is added up at boundary k: e_k, and s_k carried on to it. */
INLINE double FN(relative_residual)(const struct newton *n, int64_t k, int64_t s, double r, int64_t w) {
    double P = fabs((double)FN(free_P)(n, k));
    if (n->samples[s].has_P) {
        const REAL *p = FN(P_of)(n, k, s);
        const int64_t columns = dpcr_P_columns(n->options.structure, w);
        P = 0;
        for (int64_t i = 0; i < w; i++) {
            double sum = 0;
            for (int64_t c = 0; c < columns; c++) sum += fabs((double)p[i * columns + c]);
            P = sum > P ? sum : P;
        }
    }
    const double scale = FN(norm)(w, FN(end_of)(n, k, s)) + P * FN(norm)(w, FN(start_of)(n, k, s));
    const double ratio = r / FN(larger)(scale, FN(smallest)(n));
    return ratio >= 0 ? ratio : INFINITY; /* NaN */
}

/* Matrix products of the propagation: states, and tangents of the segments whose P was due. */
static void FN(count_walk)(const struct newton *n, int64_t s) {
    struct newton_sample *sample = &n->samples[s];
    sample->sweeps++;
    sample->flops += (double)n->steps_from(n, sample->exact) * n->step_flops;
    if (!sample->refresh) return;
    double tangents = 0, all = 0;
    int64_t rest = n->steps_from(n, sample->exact + 1);
    for (int64_t k = sample->exact + 1; k < n->S - 1; k++) {
        const int64_t next = n->steps_from(n, k + 1);
        const double own = (double)(rest - next);
        rest = next;
        all += own;
        if (!n->stale[k * n->B + s]) continue;
        tangents += own;
        n->moved[k * n->B + s] = 0;
    }
    if (all > 0) sample->tangent_sweeps += tangents / all;
    sample->flops += tangents * (double)dpcr_P_columns(n->options.structure, n->w) * n->step_flops;
}

/* Those of the cyclic reduction and of the update. */
static void FN(count_solve)(const struct newton *n, int64_t s) {
    const double columns = (double)dpcr_P_columns(n->options.structure, n->w), size = columns * (double)n->w;
    double products = 0, vectors = (double)(n->S - 1);
    for (int t = 0; dpcr_level(n->S, t).count > 1; t++) {
        const struct level at = dpcr_level(n->S, t), next = dpcr_level(n->S, t + 1);
        const int64_t others = at.count / 2;
        vectors += (double)(next.count - 1 + others);
        for (int64_t m = 1; m < next.count; m++) products += n->system.fresh[(next.first + m) * n->B + s];
    }
    n->samples[s].flops += 2 * size * (vectors + columns * products);
}

static void FN(clear_P)(const struct newton *n, int64_t s) {
    struct newton_sample *sample = &n->samples[s];
    const int64_t size = dpcr_P_columns(n->options.structure, n->w) * n->w;
    if (size == 0) return;
    for (; sample->cleared < dpcr_min(sample->exact + 1, n->S - 1); sample->cleared++)
        memset(FN(P_of)(n, sample->cleared, s), 0, (size_t)size * sizeof(REAL));
}

INLINE void FN(residuals_of)(const struct newton *n, int64_t s, int64_t w) {
    struct newton_sample *sample = &n->samples[s];
    sample->largest = 0;
    sample->rounding = 0;
    if (n->S > 1) memset(FN(element)(n, 0, s), 0, (size_t)w * sizeof(REAL));
    int64_t equal = 0;
    for (int64_t k = 0; k < n->S; k++) {
        const REAL *e = FN(end_of)(n, k, s);
        const double size = FN(norm)(w, e);
        if (size < INFINITY && size > sample->largest) sample->largest = size;
        if (k == n->S - 1) break;
        const REAL *next = FN(start_of)(n, k + 1, s);
        REAL *r = FN(element)(n, k + 1, s);
        if (memcmp(e, next, (size_t)w * sizeof(REAL)) == 0) { /* NaN, too */
            memset(r, 0, (size_t)w * sizeof(REAL));
            equal += equal == k;
            continue;
        }
        for (int64_t i = 0; i < w; i++) r[i] = e[i] - next[i];
        if (sample->rounding <= kNewtonSlack * n->options.rtol)
            sample->rounding =
                FN(larger)(sample->rounding, FN(relative_residual)(n, k, s, FN(norm)(w, r), w));
    }
    sample->exact = dpcr_min(equal + 1, n->S - 1);
}

static void FN(residuals_task)(const void *argument, int64_t s, void *memory) {
    (void)memory;
    const struct newton *n = argument;
    struct newton_sample *sample = &n->samples[s];
    if (sample->phase == NEWTON_SETTLED) return;
    FN(clear_P)(n, s); /* those that this propagation has not computed */
    sample->has_P = sample->has_P || sample->refresh;
    FN(count_walk)(n, s);
#define RESIDUALS(width) FN(residuals_of)(n, s, width)
    AT_WIDTH(n->w, RESIDUALS);
#undef RESIDUALS
}

static void FN(residuals)(const struct newton *n) {
    FN(each_sample)(n, FN(residuals_task), 4);
}

/* ---- 5. the verdict -------------------------------------------------------------------------- */

/* r_k as it was before d took its place */
INLINE void FN(residual_at)(const struct newton *n, int64_t k, int64_t s, REAL *r, int64_t w) {
    const REAL *e = FN(end_of)(n, k, s), *next = FN(start_of)(n, k + 1, s);
    const bool equal = memcmp(e, next, (size_t)w * sizeof(REAL)) == 0;
    for (int64_t i = 0; i < w; i++) r[i] = equal ? 0 : e[i] - next[i];
}

/* q = max |d_{k+1}| / |e_k|, each boundary against its own state; inf where d is not finite.  With a P that may be
 * too small d tells nothing of errors that add up from boundary to boundary: then the running sum of r counts, too.
 * scratch: 2 states */
INLINE double FN(relative_error_of)(const struct newton *n, int64_t s, REAL *scratch, int64_t w) {
    const bool add = n->options.structure != DPCR_P_DENSE && n->options.structure != DPCR_P_IDENTITY;
    REAL *sum = scratch, *r = scratch + w;
    double q = 0;
    memset(sum, 0, (size_t)w * sizeof(REAL));
    for (int64_t k = 0; k < n->S - 1; k++) {
        double size = FN(norm)(w, FN(element)(n, k + 1, s));
        if (!(size < INFINITY)) return INFINITY;
        if (add) {
            FN(residual_at)(n, k, s, r, w);
            for (int64_t i = 0; i < w; i++) sum[i] += r[i];
            const double drift = FN(norm)(w, sum);
            size = drift <= size ? size : drift; /* NaN, too */
        }
        const double ratio = size / FN(larger)(FN(norm)(w, FN(end_of)(n, k, s)), FN(smallest)(n));
        if (!(ratio < INFINITY)) return INFINITY;
        q = ratio > q ? ratio : q;
    }
    return q;
}

static double FN(relative_error)(const struct newton *n, int64_t s, REAL *scratch) {
    double q;
#define ERROR(width) q = FN(relative_error_of)(n, s, scratch, width)
    AT_WIDTH(n->w, ERROR);
#undef ERROR
    return q;
}

/* The error that is left is small; or it is rounding's, carried far, and no sweep makes it smaller.  Without
 * a true P, q is a guess: every r must be rounding, too, and q what roundings add up to. */
static bool FN(is_right)(const struct newton *n, const struct newton_sample *sample) {
    const double rtol = n->options.rtol, slack = kNewtonSlack * rtol, q = sample->error, r = sample->rounding;
    if (n->options.structure != DPCR_P_DENSE)
        return r <= rtol / 2 && q <= slack * FN(larger)(1, sqrt((double)n->S) / 8);
    const bool stuck = q >= kNewtonStuck * sample->before || r <= 2 * FN(epsilon);
    return q <= slack || (stuck && r <= slack && q < INFINITY);
}

INLINE bool FN(is_zero)(int64_t w, const REAL *x) {
    bool zero = true;
    for (int64_t i = 0; i < w; i++) zero = zero && x[i] == 0;
    return zero;
}

/* out = P_k d_k + r_k */
static void FN(equation)(const struct newton *n, int64_t k, int64_t s, REAL *out) {
    const REAL *d = FN(element)(n, k, s);
    FN(residual_at)(n, k, s, out, n->w);
    if (!FN(is_zero)(n->w, d)) FN(times_P)(n, k, s, d, out, out, n->w);
}

/* Does d solve the equations?  Products of the P_k may have over- or underflowed. */
static bool FN(is_solution)(const struct newton *n, int64_t s, REAL *scratch) {
    const int64_t w = n->w;
    const double tolerance = FN(epsilon) * (64 + 16 * sqrt((double)n->S));
    for (int64_t k = n->samples[s].exact; k < n->S - 1; k++) {
        const REAL *d = FN(element)(n, k + 1, s);
        const double size = FN(norm)(w, d);
        FN(equation)(n, k, s, scratch);
        for (int64_t i = 0; i < w; i++) scratch[i] -= d[i];
        if (!(FN(norm)(w, scratch) <= tolerance * size)
            && !(FN(norm)(w, scratch) <= FN(tiny) * FN(epsilon))) {
            const REAL *e = FN(end_of)(n, k, s), *next = FN(start_of)(n, k + 1, s);
            for (int64_t i = 0; i < w; i++) scratch[w + i] = e[i] - next[i];
            if (!(FN(norm)(w, scratch) <= tolerance * (size + FN(norm)(w, scratch + w)))) return false;
        }
    }
    return true;
}

/* d once more, by the loop. */
static void FN(solve_again)(const struct newton *n, int64_t s) {
    for (int64_t k = 0; k < n->S - 1; k++) FN(equation)(n, k, s, FN(element)(n, k + 1, s));
}

static void FN(confirm_task)(const void *argument, int64_t s, void *memory) {
    const struct newton *n = argument;
    struct newton_sample *sample = &n->samples[s];
    if (sample->phase == NEWTON_SETTLED) return;
    if (sample->has_P) FN(count_solve)(n, s);
    sample->error = FN(relative_error)(n, s, memory);
    /* a linear problem takes d for its error itself, others sweep on */
    const bool trivial = !sample->has_P && n->free != DPCR_P_SCALAR; /* there is nothing to overflow */
    const bool solved = trivial || (n->once ? FN(is_solution)(n, s, memory) : sample->error < INFINITY);
    if (!solved) {
        FN(solve_again)(n, s);
        sample->error = FN(relative_error)(n, s, memory);
    }
    if (sample->phase != NEWTON_CANDIDATE) return;
    const bool right = FN(is_right)(n, sample);
    sample->phase = right ? NEWTON_SETTLED : NEWTON_SWEEPING;
    if (right) sample->verdict = DPCR_CONVERGED;
}

static void FN(confirm)(const struct newton *n) {
    FN(each_sample)(n, FN(confirm_task), 4 + 2 * (double)n->w);
}

/* ---- 3. the update --------------------------------------------------------------------------- */

/* The guard: size is that of a new start, largest that of the ends. */
static bool FN(is_believed)(double size, double largest) {
    return size <= kNewtonGuard * largest;
}

/* s_{k+1} = e_k + P_k d_k -> next; false where the guard did not let it pass */
INLINE bool FN(next_start)(const struct newton *n, int64_t k, int64_t s, REAL *next, int64_t w) {
    const struct newton_sample *sample = &n->samples[s];
    const REAL *e = FN(end_of)(n, k, s), *d = FN(element)(n, k, s);
    memcpy(next, e, (size_t)w * sizeof(REAL));
    if (k < sample->exact || FN(is_zero)(w, d)) return true; /* P may be inf */
    FN(times_P)(n, k, s, d, e, next, w);
    if (FN(is_believed)(FN(norm)(w, next), sample->largest)) return true;
    memcpy(next, e, (size_t)w * sizeof(REAL));
    return false;
}

/* scratch: 2 states */
INLINE void FN(update_boundary)(const struct newton *n, int64_t k, int64_t s, REAL *scratch, int64_t w) {
    const int64_t at = (k + 1) * n->B + s;
    REAL *start = FN(start_of)(n, k + 1, s), *next = scratch, *step = scratch + w;
    n->guarded[at] = !FN(next_start)(n, k, s, next, w);
    for (int64_t i = 0; i < w; i++) step[i] = next[i] - start[i];
    const double moved = FN(norm)(w, step) / FN(larger)(FN(norm)(w, next), FN(smallest)(n));
    n->moved[at] += (float)FN(smaller)(moved, 1e30);
    memcpy(start, next, (size_t)w * sizeof(REAL));
}

enum { FN(BOUNDARIES) = 64 }; /* of one task */

static void FN(update_task)(const void *argument, int64_t task, void *memory) {
    const struct newton *n = argument;
    const int64_t s = task % n->B, first = task / n->B * FN(BOUNDARIES),
                  last = dpcr_min(first + FN(BOUNDARIES), n->S - 1);
    if (n->samples[s].phase != NEWTON_SWEEPING) return;
#define UPDATE(width) \
    for (int64_t k = first; k < last; k++) FN(update_boundary)(n, k, s, memory, width)
    AT_WIDTH(n->w, UPDATE);
#undef UPDATE
}

static void FN(update)(const struct newton *n) {
    const struct tasks tasks = {.run = FN(update_task),
                                .pass = n,
                                .count = dpcr_ceil_div(n->S - 1, FN(BOUNDARIES)) * n->B,
                                .work =
                                    2.0 * (double)n->S * (double)n->B * (double)n->w
                                    * (n->computed ? (double)dpcr_P_columns(n->options.structure, n->w) : 1),
                                .scratch = n->scratch,
                                .scratch_bytes = dpcr_newton_scratch(n)};
    dpcr_run_tasks(n->exec, &tasks);
}

/* ---- 4. what comes next ---------------------------------------------------------------------- */

/* Which segments compute their P at the next propagation. */
static void FN(plan_refresh)(const struct newton *n, int64_t s, double gain) {
    struct newton_sample *sample = &n->samples[s];
    sample->refresh = false;
    if (dpcr_P_columns(n->options.structure, n->w) == 0) return;
    const bool all = !sample->has_P || n->options.refresh == DPCR_ALWAYS;
    const bool poor = !(gain <= kNewtonSlow) && !(sample->error <= kNewtonSmall * FN(epsilon));
    const bool wanted = sample->phase == NEWTON_SWEEPING && !n->once && (all || poor);
    float most = 0;
    for (int64_t k = sample->exact + 1; k < n->S - 1; k++)
        most = n->moved[k * n->B + s] > most ? n->moved[k * n->B + s] : most;
    const float far = kNewtonFar * (most < 1 ? most : 1);
    for (int64_t k = 0; k < n->S - 1; k++) {
        const bool inexact = k > sample->exact;
        n->stale[k * n->B + s] = wanted && (all || (inexact && n->moved[k * n->B + s] > far));
        sample->refresh = sample->refresh || (inexact && n->stale[k * n->B + s]);
    }
}

static void FN(judge_task)(const void *argument, int64_t s, void *memory) {
    (void)memory;
    const struct newton *n = argument;
    struct newton_sample *sample = &n->samples[s];
    const bool dense = n->options.structure == DPCR_P_DENSE;
    if (sample->phase != NEWTON_SWEEPING) return;
    bool guarded = false;
    for (int64_t k = 1; k < n->S; k++) guarded = guarded || n->guarded[k * n->B + s];
    const double q = sample->error, gain = q / sample->before;
    const double rho = FN(smaller)(gain > kNewtonFastest ? gain : kNewtonFastest, kNewtonSlowest);
    const bool predicted =
        dense ? n->sweep > 2 && (q * rho / (1 - rho) <= n->options.rtol || FN(is_right)(n, sample))
              : FN(is_right)(n, sample);
    const bool solved = n->once && dense && q < INFINITY; /* of a linear problem by its own P */
    const bool exact = sample->exact == n->S - 1;         /* all starts are, now */
    const bool floor = dense && sample->rounding <= 2 * FN(epsilon);
    if (floor || exact || (!guarded && (predicted || solved))) sample->phase = NEWTON_CANDIDATE;
    FN(plan_refresh)(n, s, gain);
    sample->before = q;
}

static void FN(judge)(const struct newton *n) {
    FN(each_sample)(n, FN(judge_task), 1);
}
