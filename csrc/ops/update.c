/* SPDX-License-Identifier: Apache-2.0
 * One call of update.h over any device: arguments checked once, then residuals and recurrence where there are
 * segments, the walk, the verdict. */
#include "ops/device.h"
#include "ops/update_kernels.h"

#include <math.h>

static const struct update_kernels *kernels_of(dpcr_exec exec, dpcr_dtype dtype) {
    return exec.device->chains ? exec.device->chains->update : dpcr_update_kernels(exec.device, dtype);
}

/* ---- checks --------------------------------------------------------------------------------- */

static dpcr_status check_shape(dpcr_exec exec, const dpcr_update *u) {
    RETURN_IF(dpcr_check_exec(exec));
    REQUIRE(u, "update is NULL");
    REQUIRE(u->dtype == DPCR_F32 || u->dtype == DPCR_F64, "dtype %d is not a dpcr_dtype", (int)u->dtype);
    REQUIRE((int)u->structure >= 0 && u->structure < DPCR_STRUCTURES, "structure %d is not a dpcr_structure",
            (int)u->structure);
    REQUIRE(u->L >= 0, "L is %lld, must not be negative", (long long)u->L);
    REQUIRE(u->B >= 0, "B is %lld, must not be negative", (long long)u->B);
    REQUIRE(u->w >= 0, "w is %lld, must not be negative", (long long)u->w);
    REQUIRE(u->segments >= 0 && (u->L == 0 || u->segments <= u->L),
            "segments is %lld, must be between 1 and L = %lld, or 0", (long long)u->segments,
            (long long)u->L);
    REQUIRE(u->rtol >= 0 && u->rtol < INFINITY, "rtol is %g, must be finite and not negative", u->rtol);
    REQUIRE(u->L < INT64_MAX, "states: L is too large");
    RETURN_IF(dpcr_check_size("states", u->L + 1, dpcr_max(u->B, 1), dpcr_max(u->w, 1)));
    return u->structure == DPCR_P_DENSE
               ? dpcr_check_size("jacobian", u->L * dpcr_max(u->shared ? 1 : u->B, 1), u->w, u->w)
               : DPCR_OK;
}

static dpcr_status check_arrays(const dpcr_update *u) {
    const bool wanted = u->structure != DPCR_P_IDENTITY && u->structure != DPCR_P_ZERO;
    REQUIRE(wanted || !u->jacobian, "jacobian is given, but identity and zero need none");
    REQUIRE(u->B == 0 || u->converged, "converged is NULL");
    if (u->B > 0 && u->w > 0) {
        REQUIRE(u->states, "states is NULL");
        REQUIRE(u->updated, "updated is NULL");
    }
    if (u->L == 0 || u->B == 0) return DPCR_OK;
    REQUIRE(u->tolerance, "tolerance is NULL");
    REQUIRE(u->error, "error is NULL");
    REQUIRE(u->w == 0 || u->ends, "ends is NULL");
    REQUIRE(u->w == 0 || !wanted || u->jacobian, "jacobian is NULL, only identity and zero need none");
    return DPCR_OK;
}

/* ---- the recurrence ------------------------------------------------------------------------- */

/* d from r; A_1 is not read, because x0 is NULL */
static dpcr_recurrence recurrence_of(const struct update_pass *pass) {
    const dpcr_update *u = &pass->update;
    const int64_t size = dpcr_P_size(u->structure, u->w), samples = u->shared ? 1 : u->B;
    return (dpcr_recurrence){
        .dtype = u->dtype,
        .block = dpcr_block_of(u->structure),
        .L = u->L,
        .B = u->B,
        .w = u->w,
        .A = {(void *)u->jacobian, samples * size, u->shared ? 0 : size, u->w, 1},
        .b = {pass->residuals, u->B * u->w, u->w},
        .x = {(void *)pass->solved, u->B * u->w, u->w},
    };
}

/* ---- workspace ------------------------------------------------------------------------------ */

/* Whether there are segments to tie together. */
static bool is_cut(const dpcr_update *u) {
    return u->segments > 1 && u->structure != DPCR_P_ZERO && u->L > 0 && u->w > 0;
}

static dpcr_status carve(struct update_pass *pass, void *base, dpcr_buffer *recurrence, size_t *bytes) {
    const dpcr_update *u = &pass->update;
    const struct update_kernels *kernels = kernels_of(pass->exec, u->dtype);
    struct arena arena = {base, 0};
    const size_t element = dpcr_size_of(u->dtype), steps = (size_t)(u->L * u->B);
    pass->tile = u->structure == DPCR_P_DENSE ? dpcr_max(u->w, 1) : kernels->tile(u);
    pass->tiles = dpcr_max(dpcr_ceil_div(u->w, pass->tile), 1);
    pass->pieces = is_cut(u) ? u->segments : 1;
    pass->sizes = dpcr_take(&arena, SIZES * steps * (size_t)pass->tiles * element);
    pass->guarded = dpcr_take(&arena, steps * sizeof *pass->guarded);
    pass->scratch = dpcr_take(&arena, kernels->scratch(pass));
    *recurrence = (dpcr_buffer){NULL, 0};
    if (is_cut(u)) {
        pass->residuals = dpcr_take(&arena, steps * (size_t)u->w * element);
        pass->solved = dpcr_take(&arena, steps * (size_t)u->w * element);
        const dpcr_recurrence problem = recurrence_of(pass);
        const dpcr_plan plan = {.segments = u->segments};
        RETURN_IF(dpcr_recurrence_workspace(pass->exec, &problem, &plan, &recurrence->bytes));
        recurrence->data = dpcr_take(&arena, recurrence->bytes);
    }
    *bytes = arena.used;
    return DPCR_OK;
}

dpcr_status dpcr_newton_update_workspace(dpcr_exec exec, const dpcr_update *update, size_t *bytes) {
    RETURN_IF(check_shape(exec, update));
    REQUIRE(bytes, "bytes is NULL");
    *bytes = 0;
    if (update->B == 0) return DPCR_OK;
    struct update_pass pass = {.exec = exec, .update = *update};
    dpcr_buffer recurrence;
    return carve(&pass, NULL, &recurrence, bytes);
}

/* ---- the call ------------------------------------------------------------------------------- */

/* d by cyclic reduction; where it is not finite, 0 has met inf or the loop overflows, too: by the loop. */
static dpcr_status walk_segments(struct update_pass *pass, dpcr_buffer recurrence) {
    const struct update_kernels *kernels = kernels_of(pass->exec, pass->update.dtype);
    const dpcr_recurrence problem = recurrence_of(pass);
    const dpcr_plan plan = {.segments = pass->update.segments};
    RETURN_IF(kernels->residuals(pass));
    RETURN_IF(dpcr_recurrence_solve(pass->exec, &problem, &plan, recurrence, NULL));
    RETURN_IF(kernels->walk(pass));
    pass->solved = NULL;
    pass->pieces = 1;
    pass->again = true;
    return kernels->walk(pass);
}

dpcr_status dpcr_newton_update(dpcr_exec exec, const dpcr_update *update, dpcr_buffer workspace) {
    RETURN_IF(check_shape(exec, update));
    RETURN_IF(check_arrays(update));
    if (update->B == 0) return DPCR_OK;
    struct update_pass pass = {.exec = exec, .update = *update};
    const struct update_kernels *kernels = kernels_of(exec, update->dtype);
    dpcr_buffer recurrence;
    size_t bytes;
    RETURN_IF(carve(&pass, workspace.data, &recurrence, &bytes));
    RETURN_IF(dpcr_check_workspace(workspace, bytes));
    RETURN_IF(is_cut(update) ? walk_segments(&pass, recurrence) : kernels->walk(&pass));
    return kernels->judge(&pass);
}
