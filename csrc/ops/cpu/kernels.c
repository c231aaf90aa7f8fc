/* SPDX-License-Identifier: Apache-2.0
 *
 * The chains' CPU kernels of one instruction-set level.  Compiled once per level with
 * -DDPCR_LEVEL=generic | v3 | v4 and the matching -march.
 */
#include "ops/kernels.h"
#include "ops/update_kernels.h"
#include "pcr/cpu/vec.h"

#define REAL float
#define REAL_BYTES 4
#define INT int32_t
#define FN(name) name##_f32
#include "pcr/cpu/product.inl"
#include "pcr/cpu/transpose.inl"
#include "ops/cpu/vmath_f32.inl"
#include "ops/cpu/activation.inl"
#include "ops/cpu/panel.inl"
#include "ops/cpu/norm.inl"
#include "ops/cpu/mlp.inl"
#include "ops/cpu/residual.inl"
#include "ops/cpu/euler.inl"
#include "ops/cpu/layers.inl"
#include "ops/cpu/denoise.inl"
#include "ops/cpu/single.inl"
#include "ops/cpu/passes.inl"
#include "ops/cpu/newton.inl"
#include "ops/cpu/update.inl"
#include "pcr/cpu/end_dtype.h"

#define REAL double
#define REAL_BYTES 8
#define INT int64_t
#define FN(name) name##_f64
#include "pcr/cpu/product.inl"
#include "pcr/cpu/transpose.inl"
#include "ops/cpu/vmath_f64.inl"
#include "ops/cpu/activation.inl"
#include "ops/cpu/panel.inl"
#include "ops/cpu/norm.inl"
#include "ops/cpu/mlp.inl"
#include "ops/cpu/residual.inl"
#include "ops/cpu/euler.inl"
#include "ops/cpu/layers.inl"
#include "ops/cpu/denoise.inl"
#include "ops/cpu/single.inl"
#include "ops/cpu/passes.inl"
#include "ops/cpu/newton.inl"
#include "ops/cpu/update.inl"
#include "pcr/cpu/end_dtype.h"

#define CHAIN(dtype)                                                  \
    {tile_##dtype,     propagate_scratch_##dtype, propagate_##dtype,  \
     finish_##dtype,   pullback_scratch_##dtype,  saved_size_##dtype, \
     pullback_##dtype, finish_pullback_##dtype,   gradient_##dtype,   \
     activate_##dtype}
#define UPDATE(dtype)                                                                            \
    {update_tile_##dtype, update_scratch_##dtype, update_residuals_##dtype, update_walk_##dtype, \
     update_judge_##dtype}
#define NEWTON(dtype) {residuals_##dtype, confirm_##dtype, update_##dtype, judge_##dtype}

const struct chain_kernels LEVEL(dpcr_chain)[2] = {CHAIN(f32), CHAIN(f64)};
const struct newton_kernels LEVEL(dpcr_newton)[2] = {NEWTON(f32), NEWTON(f64)};
const struct update_kernels LEVEL(dpcr_update)[2] = {UPDATE(f32), UPDATE(f64)};
