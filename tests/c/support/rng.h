/* SPDX-License-Identifier: Apache-2.0
 *
 * Deterministic random numbers: splitmix64.  The state is the seed; equal seeds give equal tests on
 * every machine.
 */
#ifndef DEEPPCR_TEST_RNG_H
#define DEEPPCR_TEST_RNG_H

#include <stdint.h>

typedef struct rng {
    uint64_t state;
} rng;

static inline uint64_t rng_bits(rng *r) {
    uint64_t v = r->state += UINT64_C(0x9e3779b97f4a7c15);
    v = (v ^ (v >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    v = (v ^ (v >> 27)) * UINT64_C(0x94d049bb133111eb);
    return v ^ (v >> 31);
}

/* 0..count-1 */
static inline int64_t rng_below(rng *r, int64_t count) {
    return (int64_t)(rng_bits(r) % (uint64_t)count);
}

/* [low, high) */
static inline double rng_uniform(rng *r, double low, double high) {
    return low + (high - low) * ((double)(rng_bits(r) >> 11) * 0x1p-53);
}

/* Mean 0, variance 1, within +-3.5: the scaled sum of four uniforms. */
static inline double rng_normal(rng *r) {
    double sum = 0;
    for (int i = 0; i < 4; i++) {
        sum += rng_uniform(r, -1, 1);
    }
    return sum * 0.86602540378443865;
}

#endif
