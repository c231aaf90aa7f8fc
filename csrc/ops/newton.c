/* SPDX-License-Identifier: Apache-2.0
 * The driver of newton.h: sweeps over any device. */
#include "ops/newton.h"

#include <float.h>
#include <math.h>
#include <string.h>

dpcr_newton dpcr_newton_default(dpcr_dtype dtype) {
    return (dpcr_newton){.structure = DPCR_P_DENSE,
                         .refresh = DPCR_ADAPTIVE,
                         .rtol = 8 * (dtype == DPCR_F32 ? FLT_EPSILON : DBL_EPSILON),
                         .max_sweeps = -1,
                         .finish = true};
}

dpcr_status dpcr_check_newton(const dpcr_newton *options) {
    if (!options) return DPCR_OK;
    REQUIRE((int)options->structure >= 0 && options->structure < DPCR_STRUCTURES,
            "newton.structure %d is not a dpcr_structure", (int)options->structure);
    REQUIRE((int)options->refresh >= 0 && options->refresh < DPCR_REFRESHES,
            "newton.refresh %d is not a dpcr_refresh", (int)options->refresh);
    REQUIRE(options->rtol > 0 && options->rtol < INFINITY, "newton.rtol is %g, must be positive and finite",
            options->rtol);
    REQUIRE(options->atol >= 0 && options->atol < INFINITY,
            "newton.atol is %g, must be finite and not negative", options->atol);
    return DPCR_OK;
}

/* ---- workspace ------------------------------------------------------------------------------ */

size_t dpcr_newton_carve(struct newton *n, void *base) {
    struct arena arena = {base, 0};
    const size_t element = dpcr_size_of(n->dtype), rows = (size_t)(n->S * n->B * n->w) * element;
    const size_t levels = (size_t)dpcr_level_elements(n->S);
    struct walk *system = &n->system;
    *system = (struct walk){.exec = n->exec, .L = n->S, .B = n->B, .w = n->w, .S = n->S};
    n->samples = dpcr_take(&arena, (size_t)n->B * sizeof *n->samples);
    system->skip = n->skip = dpcr_take(&arena, (size_t)n->B);
    n->guarded = dpcr_take(&arena, (size_t)(n->S * n->B));
    n->scratch = dpcr_take(&arena, dpcr_newton_scratch(n) * (size_t)dpcr_slots(n->exec, n->B * n->S));
    if (!n->starts.data) n->starts = (struct segment_rows){dpcr_take(&arena, rows), n->B, 0};
    if (!n->ends.data) n->ends = (struct segment_rows){dpcr_take(&arena, rows), n->B, 0};
    if (n->S == 1 || n->options.max_sweeps == 0) return arena.used;
    const dpcr_structure structure = n->options.structure;
    const size_t maps = (size_t)(dpcr_P_size(structure, n->w) * (structure == DPCR_P_SCALAR ? 1 : n->B));
    n->moved = dpcr_take(&arena, (size_t)(n->S * n->B) * sizeof *n->moved);
    system->fresh = dpcr_take(&arena, levels * (size_t)n->B);
    if (base) n->stale = system->fresh + n->B; /* P_k is element k + 1 */
    system->maps = dpcr_take(&arena, levels * maps * element);
    system->offsets = dpcr_take(&arena, levels * (size_t)(n->B * n->w) * element);
    const struct recurrence_kernels *kernels = n->exec.device->recurrence[n->dtype];
    system->block =
        structure == DPCR_P_DENSE ? DPCR_DENSE : DPCR_IDENTITY; /* which asks for the most scratch */
    const int64_t tasks = n->S * dpcr_ceil_div(n->B, dpcr_max(kernels->group(system), 1));
    system->scratch = dpcr_take(&arena, kernels->scratch(system) * (size_t)dpcr_slots(n->exec, tasks));
    return arena.used;
}

/* ---- sweeps --------------------------------------------------------------------------------- */

/* The maps of a scalar P, which are those of all samples. */
static void set_factors(const struct newton *n) {
    for (int64_t k = 0; k < n->S - 1; k++) {
        const double factor = n->factor(n, k);
        if (n->dtype == DPCR_F32)
            ((float *)n->system.maps)[k + 1] = (float)factor;
        else
            ((double *)n->system.maps)[k + 1] = factor;
    }
}

static void begin(struct newton *n) {
    const bool computes = dpcr_P_columns(n->options.structure, n->w) > 0;
    if (!computes) n->free = n->options.structure;
    if (n->free == DPCR_P_SCALAR && n->system.maps) set_factors(n);
    n->options.max_sweeps = dpcr_sweep_limit(&n->options, n->S);
    n->computed = false;
    if (n->stale) memset(n->system.fresh, 1, (size_t)(dpcr_level_elements(n->S) * n->B));
    if (n->stale) memset(n->moved, 0, (size_t)(n->S * n->B) * sizeof *n->moved);
    for (int64_t s = 0; s < n->B; s++)
        n->samples[s] = (struct newton_sample){
            .phase = n->S == 1 ? NEWTON_CANDIDATE : NEWTON_SWEEPING,
            .refresh = computes && (n->once || n->options.refresh == DPCR_ALWAYS),
            .before = INFINITY,
            .verdict = n->options.finish || n->options.max_sweeps == 0 ? DPCR_SEQUENTIAL : DPCR_UNCONVERGED};
}

static bool settled(const struct newton *n) {
    for (int64_t s = 0; s < n->B; s++)
        if (n->samples[s].phase != NEWTON_SETTLED) return false;
    return true;
}

/* d from r, with the P that there is. */
static void solve(struct newton *n) {
    n->computed = dpcr_P_columns(n->options.structure, n->w) > 0
                  && (n->sweep > 1 || n->once || n->options.refresh == DPCR_ALWAYS);
    for (int64_t s = 0; s < n->B; s++) {
        const struct newton_sample *sample = &n->samples[s];
        const bool own = sample->phase != NEWTON_SETTLED && sample->has_P == n->computed;
        n->skip[s] = !own; /* without a P: d = r */
    }
    if (!n->computed && n->free == DPCR_P_ZERO) return; /* d = r */
    n->system.block = dpcr_block_of(n->computed ? n->options.structure : n->free);
    n->system.shared = n->system.block == DPCR_SCALAR;
    const int levels = dpcr_cyclic_reduction(&n->system, n->exec.device->recurrence[n->dtype]);
    for (int64_t s = 0; s < n->B; s++)
        if (!n->skip[s]) n->samples[s].levels = levels;
}

void dpcr_newton_solve(struct newton *n) {
    const struct newton_kernels *device = dpcr_newton_kernels(n->exec.device, n->dtype);
    begin(n);
    for (n->sweep = 1; n->sweep <= n->options.max_sweeps && !settled(n); n->sweep++) {
        n->propagate(n);        /* e = F(s), and P where it is due */
        device->residuals(n);   /* r = e - s */
        if (n->S > 1) solve(n); /* d = P d + r */
        device->confirm(n);     /* was that the final walk? */
        if (n->sweep == n->options.max_sweeps) break;
        device->update(n); /* s = e + P d */
        device->judge(n);  /* will the next be the final walk?  where is P due? */
    }
    if (settled(n) || (!n->options.finish && n->options.max_sweeps > 0)) return;
    for (int64_t s = 0; s < n->B; s++)
        if (n->samples[s].phase != NEWTON_SETTLED)
            n->samples[s].flops += (double)n->steps_from(n, n->samples[s].exact) * n->step_flops;
    n->finish(n);
}

void dpcr_newton_report(const struct newton *n, double *report, int64_t B, int64_t first) {
    for (int64_t s = 0; report && s < n->B; s++) {
        const struct newton_sample *sample = &n->samples[s];
        double *column = report + first + s;
        column[DPCR_SWEEPS * B] = (double)sample->sweeps;
        column[DPCR_TANGENT_SWEEPS * B] = sample->tangent_sweeps;
        column[DPCR_VERDICT * B] = (double)sample->verdict;
        column[DPCR_ERROR * B] = sample->error;
        column[DPCR_LEVELS * B] = sample->levels;
        column[DPCR_FLOPS * B] = sample->flops;
    }
}
