/* SPDX-License-Identifier: Apache-2.0
 *
 * The recurrence's CPU kernels of one instruction-set level.  Compiled once per level with
 * -DDPCR_LEVEL=generic | v3 | v4 and the matching -march.
 */
#include "pcr/cpu/kernels.h"
#include "pcr/cpu/vec.h"

#define REAL float
#define REAL_BYTES 4
#define INT int32_t
#define FN(name) name##_f32
#include "pcr/cpu/product.inl"
#include "pcr/cpu/transpose.inl"
#include "pcr/cpu/block.inl"
#include "pcr/cpu/recurrence.inl"
#include "pcr/cpu/gradient.inl"
#include "pcr/cpu/end_dtype.h"

#define REAL double
#define REAL_BYTES 8
#define INT int64_t
#define FN(name) name##_f64
#include "pcr/cpu/product.inl"
#include "pcr/cpu/transpose.inl"
#include "pcr/cpu/block.inl"
#include "pcr/cpu/recurrence.inl"
#include "pcr/cpu/gradient.inl"
#include "pcr/cpu/end_dtype.h"

#define KERNELS(dtype)                                                               \
    {group_##dtype,     scratch_##dtype,         sequential_##dtype, reduce_##dtype, \
     eliminate_##dtype, back_substitute_##dtype, substitute_##dtype, repair_##dtype, \
     gradient_##dtype,  start_gradient_##dtype}

const struct recurrence_kernels LEVEL(dpcr_recurrence)[2] = {KERNELS(f32), KERNELS(f64)};
