/* SPDX-License-Identifier: Apache-2.0
 *
 * The one place that knows the instruction set.  Kernels are written once in GCC's vector extension;
 * each .inl is included with REAL and FN set for float and for double, and the file that includes
 * them is compiled once per level, so VECTOR_BYTES follows from the compiler's flags.
 */
#ifndef DEEPPCR_VEC_H
#define DEEPPCR_VEC_H

#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#define VECTOR_REGISTERS 32
#elif defined(__AVX2__)
#define VECTOR_BYTES 32
#define VECTOR_REGISTERS 16
#else
#define VECTOR_BYTES 16
#define VECTOR_REGISTERS 16
#endif

#define PASTE_(a, b) a##_##b
#define PASTE(a, b) PASTE_(a, b)
/* name_generic, name_v3, name_v4 */
#define LEVEL(name) PASTE(name, DPCR_LEVEL)

#define INLINE static inline __attribute__((always_inline))
/* Not every file that includes an .inl calls all of it. */
#define MAYBE_UNUSED __attribute__((unused))

#endif
