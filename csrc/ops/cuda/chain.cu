/* SPDX-License-Identifier: Apache-2.0
 *
 * The chains of a CUDA device: which kernels a call consists of.
 *
 *   solve      S = 1: sequential_kernel;  S > 1: newton_kernel
 *   backward   S = 1: sequential_back_kernel and gradient_kernel, in chunks of steps where the workspace has a cap;
 *              S > 1: newton_kernel, whose walks save as they go, and gradient_kernel
 *
 * before which, where forward has kept checkpoints, propagate_kernel computes the states again.  Nothing waits for
 * the device.
 */
#include "ops/cuda/chain.h"

#include "ops/cuda/launch.cuh"
#include "ops/device.h"

dpcr_status dpcr_cuda_limits(device_limits *limits) {
    int device = 0, shared = 0;
    RETURN_IF(launched(cudaGetDevice(&device)));
    RETURN_IF(launched(cudaDeviceGetAttribute(&limits->processors, cudaDevAttrMultiProcessorCount, device)));
    RETURN_IF(launched(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device)));
    limits->shared = (size_t)shared;
    return DPCR_OK;
}

static dpcr_status check_width(const dpcr_chain *chain) {
    if (widest_of(*chain) <= WIDEST) return DPCR_OK;
    return dpcr_fail(DPCR_UNSUPPORTED, "chain: w and h are %lld and %lld, the CUDA device takes up to %d",
                     (long long)chain->w, (long long)chain->h, (int)WIDEST);
}

static dpcr_status copy(dpcr_exec exec, void *to, const void *from, size_t bytes) {
    if (bytes == 0 || to == from) return DPCR_OK;
    return launched(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, (cudaStream_t)exec.stream));
}

static size_t state_bytes(const dpcr_chain *chain) {
    return (size_t)(chain->B * chain->w) * dpcr_size_of(chain->dtype);
}

static dpcr_status fits(const dpcr_plan *plan, size_t bytes) {
    if (plan->workspace_cap == 0 || bytes <= plan->workspace_cap) return DPCR_OK;
    return dpcr_fail(DPCR_BAD_ARGUMENT,
                     "plan.workspace_cap is %zu bytes, the least that this chain needs is %zu",
                     plan->workspace_cap, bytes);
}

static dpcr_status report(dpcr_exec exec, const dpcr_chain *chain, double *rows, double flops) {
    return rows ? run_elements<report_kernel<double>>(exec, chain->B, rows, flops) : DPCR_OK;
}

/* What both directions of Newton have in common. */
static newton_pass make_newton(const dpcr_chain *chain, const dpcr_plan *plan, const dpcr_newton *options) {
    newton_pass pass = {};
    pass.chain = canonical(chain);
    pass.S = plan->segments;
    pass.options = *options;
    pass.options.max_sweeps = dpcr_sweep_limit(options, pass.S);
    const dpcr_structure known = dpcr_has_skip(chain) ? DPCR_P_IDENTITY : DPCR_P_ZERO;
    if (options->structure == DPCR_P_SCALAR && chain->step != DPCR_DENOISE) /* then it is that, too */
        pass.options.structure = known;
    pass.free = dpcr_P_columns(pass.options.structure, chain->w) > 0 ? known : pass.options.structure;
    pass.step_flops = dpcr_step_flops(chain);
    return pass;
}

/* ---- forward ----------------------------------------------------------------------------------- */

static dpcr_status propagate(dpcr_exec exec, const dpcr_chain *chain, const dpcr_propagation *arrays,
                             int64_t segments) {
    RETURN_IF(check_width(chain));
    propagate_arguments a = {};
    a.chain = canonical(chain);
    a.S = segments;
    a.samples = chain->B;
    a.starts = {(void *)arrays->starts, chain->B, 0};
    a.ends = {arrays->ends, chain->B, 0};
    a.states = arrays->states;
    a.tangents = arrays->tangents;
    return dpcr_cuda_propagate(exec, a, segments);
}

/* S = 1 by teams of blocks: between checkpoints, where they are wanted, one launch a segment. */
static dpcr_status solve_by_blocks(dpcr_exec exec, const dpcr_chain *chain, const dpcr_solution *arrays) {
    const int64_t C = arrays->checkpoints ? dpcr_checkpoints(chain->L, 1) : 1;
    const size_t row = state_bytes(chain);
    propagate_arguments a = {};
    a.chain = canonical(chain);
    a.S = C;
    a.samples = chain->B;
    a.states = arrays->states;
    char *marks = (char *)arrays->checkpoints;
    if (marks) RETURN_IF(copy(exec, marks, arrays->z0, row));
    for (int64_t c = 0; c < C; c++) { /* rows of starts and ends are indexed by the segment */
        a.k0 = c;
        a.starts = {marks ? marks : (void *)arrays->z0, chain->B, 0};
        a.ends = {c + 1 < C ? marks + row : (char *)arrays->z - (size_t)c * row, chain->B, 0};
        RETURN_IF(dpcr_cuda_propagate(exec, a, 1));
    }
    return report(exec, chain, arrays->report, (double)chain->L * dpcr_step_flops(chain));
}

static dpcr_status solve_sequentially(dpcr_exec exec, const dpcr_chain *chain, const dpcr_solution *arrays,
                                      const device_limits &limits) {
    sequential_pass pass = {};
    pass.chain = canonical(chain);
    if (!dpcr_cuda_stages(pass.chain, limits, false)) return solve_by_blocks(exec, chain, arrays);
    pass.z0 = arrays->z0;
    pass.z = arrays->z;
    pass.states = arrays->states;
    pass.checkpoints = arrays->checkpoints;
    pass.checkpoint_count = dpcr_checkpoints(chain->L, 1);
    pass.report = arrays->report;
    pass.flops = (double)chain->L * dpcr_step_flops(chain);
    return dpcr_cuda_sequential(exec, pass, limits, false);
}

static dpcr_status solve(dpcr_exec exec, const dpcr_chain *chain, const dpcr_solution *arrays,
                         const dpcr_plan *plan, const dpcr_newton *options, void *workspace, size_t *bytes) {
    device_limits limits;
    RETURN_IF(check_width(chain));
    if (bytes) *bytes = 0;
    if (dpcr_no_states(chain) || chain->L == 0) {
        const size_t columns = (size_t)(DPCR_REPORT * chain->B) * sizeof(double);
        RETURN_IF(dpcr_cuda_zero(exec, arrays->report, columns));
        return chain->L == 0 ? copy(exec, arrays->z, arrays->z0, state_bytes(chain)) : DPCR_OK;
    }
    RETURN_IF(dpcr_cuda_limits(&limits));
    if (plan->segments == 1) return bytes ? DPCR_OK : solve_sequentially(exec, chain, arrays, limits);
    newton_pass pass = make_newton(chain, plan, options);
    dpcr_cuda_newton_shape(&pass, limits, plan->workspace_cap);
    RETURN_IF(fits(plan, dpcr_cuda_newton_workspace(pass)));
    if (bytes) *bytes = dpcr_cuda_newton_workspace(pass);
    if (bytes) return DPCR_OK;
    pass.start = arrays->z0;
    pass.guess = arrays->guess;
    pass.states = arrays->states;
    pass.checkpoints = arrays->checkpoints;
    pass.end = arrays->z;
    pass.report = arrays->report;
    return dpcr_cuda_newton(exec, pass, limits, false, workspace);
}

/* ---- backward ---------------------------------------------------------------------------------- */

struct backward {
    dpcr_exec exec;
    const dpcr_chain *chain;
    const dpcr_pullback *arrays;
    device_limits limits;
    int64_t S, units, chunk; /* a chunk is a run of that many of the units, pieces of the chain */
    bool recompute, parameters, saves;
    void *states, *saved, *g, *newton; /* states and saved of a chunk; g (B,w) */
};

static int64_t edge(const backward &b, int64_t unit) {
    return dpcr_edge(unit, b.chain->L, b.units);
}

static size_t carve(backward *b, const newton_pass *newton, void *base) {
    const dpcr_chain *chain = b->chain;
    const size_t element = dpcr_size_of(chain->dtype);
    const int64_t steps = dpcr_min(chain->L, b->chunk * dpcr_ceil_div(chain->L, dpcr_max(b->units, 1)));
    const size_t rows = (size_t)(steps * chain->B) * element;
    struct arena arena = {(char *)base, 0};
    b->states = b->recompute ? dpcr_take(&arena, rows * (size_t)chain->w) : NULL;
    b->saved = b->saves ? dpcr_take(&arena, rows * (size_t)saved_size(canonical(chain))) : NULL;
    b->g = b->S == 1 ? dpcr_take(&arena, state_bytes(chain)) : NULL;
    b->newton = newton ? dpcr_take(&arena, dpcr_cuda_newton_workspace(*newton)) : NULL;
    return arena.used;
}

/* States and saved rows of the units u0..u1-1. */
static dpcr_status provide(const backward &b, int64_t u0, int64_t u1, back_arrays *back) {
    const size_t row = state_bytes(b.chain);
    const dpcr_pullback *arrays = b.arrays;
    *back = {};
    back->first = edge(b, u0);
    back->gstates = arrays->gstates;
    back->saved = b.saved;
    if (!b.recompute) {
        const char *states = (const char *)arrays->states + (size_t)back->first * row;
        back->states = states;
        back->before = back->first == 0 ? arrays->z0 : states - row;
        return DPCR_OK;
    }
    propagate_arguments a = {};
    a.chain = canonical(b.chain);
    a.S = b.units;
    a.k0 = u0;
    a.samples = b.chain->B;
    a.starts = {(void *)arrays->checkpoints, b.chain->B, 0};
    a.states = b.states;
    a.origin = back->first;
    back->states = b.states;
    back->before = (const char *)arrays->checkpoints + (size_t)u0 * row;
    return dpcr_cuda_propagate(b.exec, a, u1 - u0);
}

/* The sequential walk, chunk by chunk from the last. */
static dpcr_status walk_chunks(const backward &b) {
    const dpcr_chain *chain = b.chain;
    const bool alone = b.parameters && !b.arrays->gz0,
               stages = dpcr_cuda_stages(canonical(chain), b.limits, true);
    const int64_t stop = alone ? dpcr_first_unfrozen(b.arrays, 0, chain->L) : 0;
    const void *g = b.arrays->gz;
    for (int64_t u1 = b.units; u1 > 0; u1 = dpcr_max(0, u1 - b.chunk)) {
        const int64_t u0 = dpcr_max(0, u1 - b.chunk), last = edge(b, u1);
        back_arrays back;
        if (last <= stop) break;
        RETURN_IF(provide(b, u0, u1, &back));
        const int64_t first = dpcr_max(back.first, stop);
        void *out = u0 == 0 && b.arrays->gz0 ? b.arrays->gz0 : b.g;
        if (stages) {
            sequential_pass pass = {};
            pass.chain = canonical(chain);
            pass.first = first;
            pass.last = last;
            pass.arrays = back;
            pass.gz = g;
            pass.g = out;
            RETURN_IF(dpcr_cuda_sequential(b.exec, pass, b.limits, true));
        } else {
            RETURN_IF(dpcr_cuda_pullback(b.exec, {canonical(chain), back, first, last, g, out}));
        }
        g = out;
        if (b.parameters) RETURN_IF(dpcr_cuda_gradients(b.exec, chain, b.arrays, back, first, last));
    }
    if (b.parameters) RETURN_IF(dpcr_cuda_clear_gradients(b.exec, chain, b.arrays, 0, stop));
    return report(b.exec, chain, b.arrays->report, (double)(chain->L - stop) * dpcr_step_flops(chain));
}

static dpcr_status walk_segments(const backward &b, newton_pass *pass) {
    RETURN_IF(provide(b, 0, b.units, &pass->back));
    pass->start = b.arrays->gz;
    pass->end = b.arrays->gz0;
    pass->report = b.arrays->report;
    RETURN_IF(dpcr_cuda_newton(b.exec, *pass, b.limits, true, b.newton));
    return b.parameters ? dpcr_cuda_gradients(b.exec, b.chain, b.arrays, pass->back, 0, b.chain->L) : DPCR_OK;
}

/* An empty chain, or one without samples: gradients are those of the end, and empty sums. */
static dpcr_status backward_of_nothing(dpcr_exec exec, const dpcr_chain *chain, const dpcr_pullback *arrays) {
    RETURN_IF(dpcr_cuda_zero(exec, arrays->report, (size_t)(DPCR_REPORT * chain->B) * sizeof(double)));
    RETURN_IF(dpcr_cuda_clear_sums(exec, chain, arrays));
    RETURN_IF(dpcr_cuda_clear_gradients(exec, chain, arrays, 0, chain->L));
    if (!arrays->gz0) return DPCR_OK;
    return arrays->gz ? copy(exec, arrays->gz0, arrays->gz, state_bytes(chain))
                      : dpcr_cuda_zero(exec, arrays->gz0, state_bytes(chain));
}

static dpcr_status backward_of(dpcr_exec exec, const dpcr_chain *chain, const dpcr_pullback *arrays,
                               const dpcr_plan *plan, const dpcr_newton *options, void *workspace,
                               size_t *bytes) {
    RETURN_IF(check_width(chain));
    if (bytes) *bytes = 0;
    if (dpcr_no_states(chain) || chain->L == 0)
        return bytes ? DPCR_OK : backward_of_nothing(exec, chain, arrays);
    backward b = {};
    b.exec = exec;
    b.chain = chain;
    b.arrays = arrays;
    RETURN_IF(dpcr_cuda_limits(&b.limits));
    for (int i = 0; i < DPCR_PARAMETERS; i++) b.parameters = b.parameters || arrays->gparameter[i];
    b.S = plan->segments;
    b.recompute = !arrays->states && arrays->checkpoints;
    b.saves = b.parameters || dpcr_step_layers(chain) > 1;
    b.units = b.S > 1 ? b.S : b.recompute ? dpcr_checkpoints(chain->L, 1) : chain->L;
    b.chunk = b.units;
    newton_pass pass = make_newton(chain, plan, options);
    pass.adjoint = true;
    newton_pass *newton = b.S > 1 ? &pass : NULL;
    const size_t cap = plan->workspace_cap;
    if (newton) {
        size_t others;
        pass.gangs = 0;
        pass.bytes = 0;
        others = carve(&b, &pass, NULL);
        dpcr_cuda_newton_shape(&pass, b.limits, cap == 0 ? 0 : cap > others ? cap - others : 1);
    } else { /* fewer steps at a time until they fit: bisect */
        int64_t low = 1, high = b.units;
        while (cap > 0 && low < high) {
            b.chunk = high - (high - low) / 2;
            if (carve(&b, NULL, NULL) <= cap)
                low = b.chunk;
            else
                high = b.chunk - 1;
        }
        b.chunk = cap > 0 ? low : b.units;
    }
    const size_t needed = carve(&b, newton, NULL);
    RETURN_IF(fits(plan, needed));
    if (bytes) *bytes = needed;
    if (bytes) return DPCR_OK;
    carve(&b, newton, workspace);
    RETURN_IF(dpcr_cuda_clear_sums(exec, chain, arrays));
    return newton ? walk_segments(b, newton) : walk_chunks(b);
}

/* ---- activation alone --------------------------------------------------------------------------- */

static dpcr_status activate(dpcr_exec exec, const dpcr_chain *chain, int64_t count, const void *u, void *y,
                            void *d) {
    return chain->dtype == DPCR_F32
               ? run_elements<activate_kernel<float>>(exec, count, *chain, (const float *)u, (float *)y,
                                                      (float *)d)
               : run_elements<activate_kernel<double>>(exec, count, *chain, (const double *)u, (double *)y,
                                                       (double *)d);
}

const struct chain_solver dpcr_cuda_chains = {propagate, solve, backward_of, activate, &dpcr_cuda_update};
