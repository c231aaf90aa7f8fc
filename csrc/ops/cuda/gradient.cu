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

/* From the rows of step_back()'s saved. */
static gradient_pass make_gradients(const dpcr_chain *chain, const dpcr_pullback *arrays,
                                    const back_arrays &back) {
    gradient_pass pass = {};
    pass.chain = canonical(chain);
    pass.arrays = back;
    const bool norm = pass.chain.norm != DPCR_NO_NORM;
    const int64_t w = chain->w, h = chain->h;
    if (chain->step == DPCR_RESIDUAL) {
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
            outer_sums s = {end - l, chain.B, job.rows, job.columns, {}, {}, NULL, pass.layers * matrix};
            s.x = {at(saved, job.x), width, chain.B * width};
            s.y = {at(saved, job.y), width, chain.B * width};
            if (from_state) s.y = {before, chain.w, state};
            s.C = at(job.gradient, ((l - first) * pass.layers + m) * matrix);
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
    for (int i = 0; i < DPCR_PARAMETERS; i++) {
        gradient_job *job = &pass.job[i];
        const int64_t step = pass.layers * job->rows * job->columns;
        if (!job->gradient || step == 0) continue;
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

/* Rows of zeros: gradients that are empty sums. */
dpcr_status dpcr_cuda_clear_gradients(dpcr_exec exec, const dpcr_chain *chain, const dpcr_pullback *arrays,
                                      int64_t first, int64_t last) {
    for (int i = 0; i < DPCR_PARAMETERS; i++) {
        const size_t row = (size_t)dpcr_parameter_size(chain, (dpcr_parameter)i) * dpcr_size_of(chain->dtype);
        char *gradient = (char *)arrays->gparameter[i];
        if (gradient)
            RETURN_IF(dpcr_cuda_zero(exec, gradient + (size_t)first * row, (size_t)(last - first) * row));
    }
    return DPCR_OK;
}

/* Steps first..last-1, run by run of those that are frozen and those that are not. */
dpcr_status dpcr_cuda_gradients(dpcr_exec exec, const dpcr_chain *chain, const dpcr_pullback *arrays,
                                const back_arrays &back, int64_t first, int64_t last) {
    const gradient_pass pass = make_gradients(chain, arrays, back);
    for (int64_t l = first, end = first; l < last; l = end) {
        const bool frozen = is_frozen(arrays, l);
        while (end < last && is_frozen(arrays, end) == frozen) end++;
        RETURN_IF(frozen ? dpcr_cuda_clear_gradients(exec, chain, arrays, l, end)
                         : run_gradients(exec, pass, l, end));
    }
    return DPCR_OK;
}
