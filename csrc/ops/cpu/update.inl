/* SPDX-License-Identifier: Apache-2.0
 *
 * The second half of a sweep (update.h) on the CPU.  A task walks the steps of one tile of one sample: states, ends
 * and Jacobians come from memory once, everything else stays in the first cache.
 */

/* Of an array: with those of d, A d and r, and five of the step's own, 32 KiB. */
enum { FN(TILE) = 4096 / REAL_BYTES };

static int64_t FN(update_tile)(const dpcr_update *u) {
    (void)u;
    return FN(TILE);
}

/* Of one task: d, A d and r. */
static size_t FN(update_task_bytes)(const struct update_pass *pass) {
    return dpcr_round_up(3 * (size_t)pass->tile * sizeof(REAL));
}

static int64_t FN(update_tasks)(const struct update_pass *pass, int64_t pieces) {
    return pass->update.B * pass->tiles * pieces;
}

static size_t FN(update_scratch)(const struct update_pass *pass) {
    const int64_t slots = dpcr_slots(pass->exec, FN(update_tasks)(pass, pass->pieces));
    return FN(update_task_bytes)(pass) * (size_t)slots;
}

static dpcr_status FN(run_update)(const struct update_pass *pass, void (*run)(const void *, int64_t, void *),
                                  int64_t tasks, double work) {
    const dpcr_update *u = &pass->update;
    const struct tasks all = {.run = run,
                              .pass = pass,
                              .count = tasks,
                              .work = work * (double)u->L * (double)u->B * (double)u->w,
                              .scratch = pass->scratch,
                              .scratch_bytes = FN(update_task_bytes)(pass)};
    dpcr_run_tasks(pass->exec, &all);
    return DPCR_OK;
}

/* A tile of a sample, and a piece of its steps. */
struct FN(piece) {
    const struct update_pass *pass;
    int64_t s, tile, k, first, n; /* its first element, its elements */
};

static struct FN(piece) FN(piece_of)(const struct update_pass *pass, int64_t task, int64_t pieces) {
    struct FN(piece) at = {.pass = pass, .k = task % pieces};
    at.tile = task / pieces % pass->tiles;
    at.s = task / pieces / pass->tiles;
    at.first = at.tile * pass->tile;
    at.n = dpcr_min(pass->tile, pass->update.w - at.first);
    return at;
}

/* The tile in row l of an array (-,B,w) */
static REAL *FN(tile_row)(const struct FN(piece) * at, const void *array, int64_t l) {
    const dpcr_update *u = &at->pass->update;
    return (REAL *)array + (l * u->B + at->s) * u->w + at->first;
}

static REAL *FN(size_at)(const struct FN(piece) * at, int which, int64_t l) {
    return (REAL *)at->pass->sizes + dpcr_size_index(at->pass, which, l, at->s, at->tile);
}

/* ---- residuals, where the recurrence is solved beforehand ------------------------------------ */

static void FN(residual_of)(int64_t n, const REAL *e, const REAL *x, REAL *r) {
    for (int64_t i = 0; i < n; i++) r[i] = e[i] - x[i];
}

static void FN(update_residuals_task)(const void *argument, int64_t task, void *memory) {
    (void)memory;
    const struct update_pass *pass = argument;
    const dpcr_update *u = &pass->update;
    const struct FN(piece) at = FN(piece_of)(pass, task, 1);
    for (int64_t l = 0; l < u->L; l++)
        FN(residual_of)(at.n, FN(tile_row)(&at, u->ends, l), FN(tile_row)(&at, u->states, l + 1),
                        FN(tile_row)(&at, pass->residuals, l));
}

static dpcr_status FN(update_residuals)(const struct update_pass *pass) {
    return FN(run_update)(pass, FN(update_residuals_task), FN(update_tasks)(pass, 1), 1);
}

/* ---- the walk -------------------------------------------------------------------------------- */

/* A_l d -> moved; 0 where d is, be A inf: element by element, but for dense A where all of d is. */
static void FN(move)(const struct FN(piece) * at, int64_t l, const REAL *d, REAL *moved) {
    const dpcr_update *u = &at->pass->update;
    const int64_t n = at->n;
    const REAL *A = u->jacobian ? (const REAL *)u->jacobian + dpcr_jacobian_index(u, l, at->s) : NULL;
    if (!d || u->structure == DPCR_P_ZERO || (u->structure == DPCR_P_DENSE && FN(is_zero)(n, d)))
        memset(moved, 0, (size_t)n * sizeof(REAL));
    else if (u->structure == DPCR_P_DENSE)
        FN(matvec)(n, n, &(struct FN(matrix)){A, n, 1}, d, NULL, moved);
    else if (u->structure == DPCR_P_DIAGONAL)
        for (int64_t i = 0; i < n; i++) moved[i] = d[i] == 0 ? 0 : A[at->first + i] * d[i];
    else if (u->structure == DPCR_P_SCALAR)
        for (int64_t i = 0; i < n; i++) moved[i] = d[i] == 0 ? 0 : A[0] * d[i];
    else
        memcpy(moved, d, (size_t)n * sizeof(REAL));
}

static REAL FN(finite_norm)(int64_t n, const REAL *x) {
    const double size = FN(norm)(n, x);
    return size < INFINITY ? (REAL)size : (REAL)INFINITY;
}

/* From d_{l-1} (NULL: 0) to d_l, which is there already where it was solved for. */
static void FN(walk_step)(const struct FN(piece) * at, int64_t l, const REAL *before, const REAL *solved,
                          REAL *scratch) {
    const dpcr_update *u = &at->pass->update;
    const int64_t n = at->n;
    REAL *d = scratch, *moved = scratch + at->pass->tile, *r = moved + at->pass->tile;
    const REAL *e = FN(tile_row)(at, u->ends, l);
    REAL *next = FN(tile_row)(at, u->updated, l + 1);
    FN(residual_of)(n, e, FN(tile_row)(at, u->states, l + 1), r);
    FN(move)(at, l, before, moved);
    for (int64_t i = 0; i < n; i++) next[i] = moved[i] == 0 ? e[i] : e[i] + moved[i];
    for (int64_t i = 0; i < n && !solved; i++) d[i] = moved[i] + r[i];
    *FN(size_at)(at, SIZE_END, l) = FN(finite_norm)(n, e);
    *FN(size_at)(at, SIZE_START, l) = FN(finite_norm)(n, next);
    *FN(size_at)(at, SIZE_ERROR, l) = FN(finite_norm)(n, solved ? solved : d);
    *FN(size_at)(at, SIZE_MOVED, l) = FN(finite_norm)(n, moved);
    *FN(size_at)(at, SIZE_RESIDUAL, l) = FN(finite_norm)(n, r);
}

static bool FN(all_finite)(const struct FN(piece) * at) {
    bool finite = true;
    for (int64_t l = 0; l < at->pass->update.L; l++)
        finite = finite && *FN(size_at)(at, SIZE_ERROR, l) < (REAL)INFINITY;
    return finite;
}

static void FN(update_walk_task)(const void *argument, int64_t task, void *scratch) {
    const struct update_pass *pass = argument;
    const dpcr_update *u = &pass->update;
    const struct FN(piece) at = FN(piece_of)(pass, task, pass->pieces);
    const int64_t first = dpcr_edge(at.k, u->L, pass->pieces), last = dpcr_edge(at.k + 1, u->L, pass->pieces);
    if (pass->again && FN(all_finite)(&at)) return;
    if (at.k == 0 && at.n > 0)
        memcpy(FN(tile_row)(&at, u->updated, 0), FN(tile_row)(&at, u->states, 0),
               (size_t)at.n * sizeof(REAL));
    for (int64_t l = first; l < last; l++) {
        const REAL *solved = pass->solved ? FN(tile_row)(&at, pass->solved, l) : NULL;
        const REAL *before = l == 0         ? NULL
                             : pass->solved ? FN(tile_row)(&at, pass->solved, l - 1)
                                            : (const REAL *)scratch;
        FN(walk_step)(&at, l, before, solved, scratch);
    }
}

static dpcr_status FN(update_walk)(const struct update_pass *pass) {
    const double width = pass->update.structure == DPCR_P_DENSE ? (double)pass->update.w : 0;
    return FN(run_update)(pass, FN(update_walk_task), FN(update_tasks)(pass, pass->pieces), 2 * width + 10);
}

/* ---- the verdict ----------------------------------------------------------------------------- */

/* Of all tiles. */
static double FN(whole_size)(const struct update_pass *pass, int which, int64_t l, int64_t s) {
    return FN(norm)(pass->tiles, (const REAL *)pass->sizes + dpcr_size_index(pass, which, l, s, 0));
}

static void FN(update_judge_task)(const void *argument, int64_t s, void *memory) {
    (void)memory;
    const struct update_pass *pass = argument;
    const dpcr_update *u = &pass->update;
    double largest = 0;
    for (int64_t l = 0; l < u->L; l++) {
        const double end = FN(whole_size)(pass, SIZE_END, l, s);
        if (end < INFINITY && end > largest) largest = end;
    }
    int64_t converged = 0;
    for (int64_t l = 0; l < u->L; l++) {
        const double end = FN(whole_size)(pass, SIZE_END, l, s);
        const bool guarded = !FN(is_believed)(FN(whole_size)(pass, SIZE_START, l, s), largest);
        double error = FN(whole_size)(pass, SIZE_ERROR, l, s);
        if (guarded) error = fmax(error, FN(whole_size)(pass, SIZE_MOVED, l, s));
        if (guarded) error = fmax(error, FN(whole_size)(pass, SIZE_RESIDUAL, l, s));
        const bool right = error < INFINITY && error <= u->tolerance[l] + u->rtol * end;
        converged += converged == l && right;
        pass->guarded[l * u->B + s] = guarded;
        ((REAL *)u->error)[l * u->B + s] = (REAL)error;
    }
    const bool finite = u->L == 0 || FN(whole_size)(pass, SIZE_END, 0, s) < INFINITY;
    u->converged[s] = finite ? converged : 1;
}

/* Of the guarded steps, e */
static void FN(update_guard_task)(const void *argument, int64_t task, void *memory) {
    (void)memory;
    const struct update_pass *pass = argument;
    const dpcr_update *u = &pass->update;
    const struct FN(piece) at = FN(piece_of)(pass, task, 1);
    for (int64_t l = 0; l < u->L; l++)
        if (pass->guarded[l * u->B + at.s])
            memcpy(FN(tile_row)(&at, u->updated, l + 1), FN(tile_row)(&at, u->ends, l),
                   (size_t)at.n * sizeof(REAL));
}

static dpcr_status FN(update_judge)(const struct update_pass *pass) {
    RETURN_IF(FN(run_update)(pass, FN(update_judge_task), pass->update.B, 10.0 / (double)pass->tile));
    return FN(run_update)(pass, FN(update_guard_task), FN(update_tasks)(pass, 1), 1);
}
