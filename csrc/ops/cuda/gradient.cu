/* SPDX-License-Identifier: Apache-2.0
 * Parameter gradients of a chain: large matrices over several samples by blas.h, where it is lent, all else by
 * gradient.cuh. */
#include "ops/cuda/blas.h"
#include "ops/cuda/launch.cuh"

dpcr_status dpcr_cuda_zero(dpcr_exec exec, void *data, size_t bytes) {
    if (!data || bytes == 0) return DPCR_OK;
    return launched(cudaMemsetAsync(data, 0, bytes, (cudaStream_t)exec.stream));
}

static void add_job(gradient_pass *pass, const dpcr_pullback *arrays, dpcr_parameter which,
                    const gradient_job &job) {
    pass->job[which] = job;
    pass->job[which].gradient = arrays->gparameter[which];
}

static void add_denoising(gradient_pass *pass, const dpcr_pullback *arrays) {
    const dpcr_chain &chain = pass->chain;
    const int64_t w = chain.w, h = chain.h, M = chain.layers, gu = w + 2, x = gu + (M + 1) * h;
    pass->layers = 1;
    add_job(pass, arrays, DPCR_W1, {NULL, GRADIENT_SHARED, h, w, gu, 0, true, h});
    add_job(pass, arrays, DPCR_B1, {NULL, GRADIENT_SUM, (M + 1) * h, 1, gu, 0, false});
    add_job(pass, arrays, DPCR_W2, {NULL, GRADIENT_SHARED, w, h, 0, x + M * h, false, w});
    add_job(pass, arrays, DPCR_B2, {NULL, GRADIENT_SHARED_SCALED, w, 1, 0, 0, false, w});
    add_job(pass, arrays, DPCR_WH, {NULL, GRADIENT_SHARED, M * h, h, gu + h, x, false, h});
    add_job(pass, arrays, DPCR_COEFFICIENTS, {NULL, GRADIENT_SUM, 2, 1, w, 0, false});
    add_job(pass, arrays, DPCR_NOISE, {NULL, GRADIENT_ITSELF, chain.B * w, 1, 0, 0, false});
}

/* From the rows of step_back()'s saved. */
static gradient_pass make_gradients(const dpcr_chain *chain, const dpcr_pullback *arrays,
                                    const back_arrays &back) {
    gradient_pass pass = {};
    pass.chain = canonical(chain);
    pass.arrays = back;
    const bool norm = pass.chain.norm != DPCR_NO_NORM;
    const int64_t w = chain->w, h = chain->h;
    if (chain->step == DPCR_DENOISE) {
        add_denoising(&pass, arrays);
    } else if (chain->step == DPCR_RESIDUAL) {
        pass.layers = 1;
        add_job(&pass, arrays, DPCR_W1, {NULL, GRADIENT_OUTER, h, w, w, 3 * w + 2 * h, !norm});
        add_job(&pass, arrays, DPCR_B1, {NULL, GRADIENT_SUM, h, 1, w, 0, false});
        add_job(&pass, arrays, DPCR_W2, {NULL, GRADIENT_OUTER, w, h, 0, w + h, false});
        add_job(&pass, arrays, DPCR_B2, {NULL, GRADIENT_SUM, w, 1, 0, 0, false});
        add_job(&pass, arrays, DPCR_GAMMA, {NULL, GRADIENT_PRODUCT, w, 1, w + 2 * h, 2 * w + 2 * h, false});
        add_job(&pass, arrays, DPCR_BETA, {NULL, GRADIENT_SUM, w, 1, w + 2 * h, 0, false});
    } else {
        pass.layers = pass.chain.layers;
        pass.piece = saved_pieces(pass.chain) * w;
        add_job(&pass, arrays, DPCR_W1, {NULL, GRADIENT_OUTER, w, w, 0, w - pass.piece, true});
        add_job(&pass, arrays, DPCR_B1, {NULL, GRADIENT_SUM, w, 1, 0, 0, false});
        add_job(&pass, arrays, DPCR_GAMMA, {NULL, GRADIENT_PRODUCT, w, 1, 3 * w, 4 * w, false});
        add_job(&pass, arrays, DPCR_BETA, {NULL, GRADIENT_SUM, w, 1, 3 * w, 0, false});
    }
    return pass;
}

static dpcr_status launch_gradients(dpcr_exec exec, const gradient_pass &pass, int64_t elements) {
    return pass.chain.dtype == DPCR_F32 ? run_elements<gradient_kernel<float>>(exec, elements, pass)
                                        : run_elements<gradient_kernel<double>>(exec, elements, pass);
}

/* A matrix by blas.h, layer by layer: what y is differs between the first and the others. */
static dpcr_status multiply(dpcr_exec exec, const gradient_pass &pass, const gradient_job &job, int64_t first,
                            int64_t last) {
    const dpcr_chain &chain = pass.chain;
    const back_arrays &arrays = pass.arrays;
    const size_t element = dpcr_size_of(chain.dtype);
    const int64_t width = saved_size(chain), state = chain.B * chain.w, matrix = job.rows * job.columns;
    const auto at = [=](const void *data, int64_t index) { return (char *)data + index * (int64_t)element; };
    /* the state before the first step that is kept may lie elsewhere than the others */
    const bool apart = first == arrays.first && at(arrays.before, state) != arrays.states;
    for (int64_t m = 0; m < pass.layers; m++) {
        const bool from_state = job.from_state && m == 0;
        for (int64_t l = first, end; l < last; l = end) {
            end = from_state && apart && l == first ? first + 1 : last;
            const void *saved = at(arrays.saved, (l - arrays.first) * chain.B * width + m * pass.piece);
            const void *before =
                l == arrays.first ? arrays.before : at(arrays.states, (l - 1 - arrays.first) * state);
            outer_sums s = {end - l, chain.B, job.rows, job.columns, {}, {}, NULL, pass.layers * matrix,
                            false};
            s.x = {at(saved, job.x), width, chain.B * width};
            s.y = {at(saved, job.y), width, chain.B * width};
            if (from_state) s.y = {before, chain.w, state};
            s.C = at(job.gradient, ((l - first) * pass.layers + m) * matrix);
            RETURN_IF(sum_outer(exec, chain.dtype, s));
        }
    }
    return DPCR_OK;
}

/* One that all steps share, block by block: all rows of steps first..last-1 are one product. */
static dpcr_status multiply_shared(dpcr_exec exec, const gradient_pass &pass, const gradient_job &job) {
    const dpcr_chain &chain = pass.chain;
    const back_arrays &arrays = pass.arrays;
    const size_t element = dpcr_size_of(chain.dtype);
    const int64_t width = saved_size(chain), state = chain.B * chain.w;
    const auto at = [=](const void *data, int64_t index) { return (char *)data + index * (int64_t)element; };
    const bool apart =
        job.from_state && pass.first == arrays.first && at(arrays.before, state) != arrays.states;
    for (int64_t row = 0; row < job.rows; row += job.block) {
        for (int64_t last = pass.last, l; last > pass.first; last = l) {
            l = apart && last > pass.first + 1 ? pass.first + 1 : pass.first;
            const void *saved = at(arrays.saved, (l - arrays.first) * chain.B * width);
            outer_sums s = {1, (last - l) * chain.B, job.block, job.columns, {}, {}, NULL, 0, true};
            s.x = {at(saved, job.x + row), width, 0};
            s.y = {at(saved, job.y + row / job.block * job.columns), width, 0};
            if (job.from_state)
                s.y = {l == arrays.first ? arrays.before : at(arrays.states, (l - 1 - arrays.first) * state),
                       chain.w, 0};
            s.C = at(job.gradient, row * job.columns);
            RETURN_IF(sum_outer(exec, chain.dtype, s));
        }
    }
    return DPCR_OK;
}

/* Of steps first..last-1, none of them frozen. */
static dpcr_status run_gradients(dpcr_exec exec, gradient_pass pass, int64_t first, int64_t last) {
    const int64_t samples = pass.chain.B, width = saved_size(pass.chain);
    int64_t elements = 0;
    pass.first = first;
    pass.last = last;
    for (int i = 0; i < DPCR_PARAMETERS; i++) {
        gradient_job *job = &pass.job[i];
        const int64_t step = pass.layers * job->rows * job->columns;
        if (!job->gradient || step == 0) continue;
        if (is_shared(*job)) {
            const bool served =
                job->kind == GRADIENT_SHARED
                && blas_serves(exec, (last - first) * samples, job->block, job->columns, width);
            if (served) RETURN_IF(multiply_shared(exec, pass, *job));
            pass.elements[i] = served ? 0 : step;
            elements += pass.elements[i];
            continue;
        }
        job->gradient = (char *)job->gradient + (size_t)(first * step) * dpcr_size_of(pass.chain.dtype);
        if (job->kind == GRADIENT_OUTER && blas_serves(exec, samples, job->rows, job->columns, width)) {
            RETURN_IF(multiply(exec, pass, *job, first, last));
        } else {
            pass.elements[i] = (last - first) * step;
            elements += pass.elements[i];
        }
    }
    return launch_gradients(exec, pass, elements);
}

static bool is_frozen(const dpcr_pullback *arrays, int64_t l) {
    return arrays->frozen && arrays->frozen[l];
}

/* Zeros, to which the steps are added: gradients of what all steps share. */
dpcr_status dpcr_cuda_clear_sums(dpcr_exec exec, const dpcr_chain *chain, const dpcr_pullback *arrays) {
    for (int i = 0; i < DPCR_PARAMETERS; i++) {
        const dpcr_parameter which = (dpcr_parameter)i;
        const size_t bytes = (size_t)dpcr_parameter_total(chain, which) * dpcr_size_of(chain->dtype);
        if (dpcr_parameter_stride(chain, which) == 0)
            RETURN_IF(dpcr_cuda_zero(exec, arrays->gparameter[i], bytes));
    }
    return DPCR_OK;
}

/* Rows of zeros: gradients that are empty sums. */
dpcr_status dpcr_cuda_clear_gradients(dpcr_exec exec, const dpcr_chain *chain, const dpcr_pullback *arrays,
                                      int64_t first, int64_t last) {
    for (int i = 0; i < DPCR_PARAMETERS; i++) {
        const size_t row =
            (size_t)dpcr_parameter_stride(chain, (dpcr_parameter)i) * dpcr_size_of(chain->dtype);
        char *gradient = (char *)arrays->gparameter[i];
        if (gradient)
            RETURN_IF(dpcr_cuda_zero(exec, gradient + (size_t)first * row, (size_t)(last - first) * row));
    }
    return DPCR_OK;
}

/* Steps first..last-1, run by run of those that are frozen and those that are not, from the last. */
dpcr_status dpcr_cuda_gradients(dpcr_exec exec, const dpcr_chain *chain, const dpcr_pullback *arrays,
                                const back_arrays &back, int64_t first, int64_t last) {
    const gradient_pass pass = make_gradients(chain, arrays, back);
    for (int64_t end = last, l = last; end > first; end = l) {
        const bool frozen = is_frozen(arrays, end - 1);
        while (l > first && is_frozen(arrays, l - 1) == frozen) l--;
        RETURN_IF(frozen ? dpcr_cuda_clear_gradients(exec, chain, arrays, l, end)
                         : run_gradients(exec, pass, l, end));
    }
    return DPCR_OK;
}
