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

/* A quarter or half of a vector as a whole one whose other lanes have no value, and back: nothing is computed, but GCC
 * would go through memory.  Names: elements, dtype.  And max(x, 0) that keeps NaN: one instruction, where a selection takes
 * three. */
#if defined(__AVX512F__)
#include <immintrin.h>
#define WIDEN_4_f32(x) _mm512_castps128_ps512((__m128)(x))
#define WIDEN_8_f32(x) _mm512_castps256_ps512((__m256)(x))
#define WIDEN_4_f64(x) _mm512_castpd256_pd512((__m256d)(x))
#define NARROW_4_f32(x) _mm512_castps512_ps128((__m512)(x))
#define NARROW_8_f32(x) _mm512_castps512_ps256((__m512)(x))
#define NARROW_4_f64(x) _mm512_castpd512_pd256((__m512d)(x))
#define POSITIVE_f32(x) _mm512_max_ps(_mm512_setzero_ps(), (__m512)(x))
#define POSITIVE_f64(x) _mm512_max_pd(_mm512_setzero_pd(), (__m512d)(x))
#elif defined(__AVX2__)
#include <immintrin.h>
#define WIDEN_4_f32(x) _mm256_castps128_ps256((__m128)(x))
#define NARROW_4_f32(x) _mm256_castps256_ps128((__m256)(x))
#define POSITIVE_f32(x) _mm256_max_ps(_mm256_setzero_ps(), (__m256)(x))
#define POSITIVE_f64(x) _mm256_max_pd(_mm256_setzero_pd(), (__m256d)(x))
#else
#define POSITIVE_f32(x) ((vec_f32)((mask_f32)(x) & ~((x) <= 0)))
#define POSITIVE_f64(x) ((vec_f64)((mask_f64)(x) & ~((x) <= 0)))
#endif

#define PASTE_(a, b) a##_##b
#define PASTE(a, b) PASTE_(a, b)
/* name_generic, name_v3, name_v4 */
#define LEVEL(name) PASTE(name, DPCR_LEVEL)

#define INLINE static inline __attribute__((always_inline))
/* Not every file that includes an .inl calls all of it. */
#define MAYBE_UNUSED __attribute__((unused))

#endif
