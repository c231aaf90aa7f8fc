/* SPDX-License-Identifier: Apache-2.0
 * Launches of update.cuh. */
#include "ops/cuda/update.cuh"

#include "ops/cuda/chain.h"

static int64_t tile(const dpcr_update *) {
    return UPDATE_TILE;
}

static size_t scratch(const update_pass *pass) {
    update_memory<float> single;
    update_memory<double> twice;
    return pass->update.dtype == DPCR_F32 ? carve_update(*pass, NULL, &single)
                                          : carve_update(*pass, NULL, &twice);
}

static dpcr_status residuals(const update_pass *pass) {
    const int64_t elements = pass->update.L * pass->update.B * pass->update.w;
    return pass->update.dtype == DPCR_F32
               ? run_elements<residual_kernel<float>>(pass->exec, elements, *pass)
               : run_elements<residual_kernel<double>>(pass->exec, elements, *pass);
}

template <class T> static dpcr_status walk_of(const update_pass *pass) {
    const dpcr_update &u = pass->update;
    const int64_t tasks = u.L > 0 ? u.B * pass->tiles * pass->pieces : 0;
    update_memory<T> memory;
    carve_update(*pass, pass->scratch, &memory);
    return u.structure == DPCR_P_DENSE
               ? run_blocks<walk_dense_kernel<T>>(pass->exec, tasks, BLOCK_LANES, *pass, memory.d)
               : run_elements<walk_elements_kernel<T>>(pass->exec, tasks * TEAM_WARP, *pass);
}

static dpcr_status walk(const update_pass *pass) {
    const dpcr_update &u = pass->update;
    const size_t row = (size_t)(u.B * u.w) * dpcr_size_of(u.dtype);
    if (row > 0 && !pass->again)
        RETURN_IF(launched(cudaMemcpyAsync(u.updated, u.states, row, cudaMemcpyDeviceToDevice,
                                           (cudaStream_t)pass->exec.stream)));
    return u.dtype == DPCR_F32 ? walk_of<float>(pass) : walk_of<double>(pass);
}

template <class T> static dpcr_status judge_of(const update_pass *pass) {
    const dpcr_update &u = pass->update;
    const int64_t pieces = dpcr_ceil_div(u.w, RESTORE_TILE), steps = u.L * u.B;
    update_memory<T> memory;
    carve_update(*pass, pass->scratch, &memory);
    if (pass->tiles > 1)
        RETURN_IF((run_blocks<whole_kernel<T>>(pass->exec, SIZES * steps, BLOCK_LANES, *pass, memory.whole)));
    const T *whole = memory.whole;
    RETURN_IF((run_blocks<judge_kernel<T>>(pass->exec, u.B, BLOCK_LANES, *pass, whole)));
    return run_blocks<restore_kernel<T>>(pass->exec, steps * pieces, BLOCK_LANES, *pass, pieces);
}

static dpcr_status judge(const update_pass *pass) {
    return pass->update.dtype == DPCR_F32 ? judge_of<float>(pass) : judge_of<double>(pass);
}

const struct update_kernels dpcr_cuda_update = {tile, scratch, residuals, walk, judge};
