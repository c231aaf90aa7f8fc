/* SPDX-License-Identifier: Apache-2.0
 *
 * Chains of the tests of traps, and the ways to solve them.
 */
#ifndef DEEPPCR_TEST_TRAP_CHAINS_H
#define DEEPPCR_TEST_TRAP_CHAINS_H

#include "chain_case.h"
#include "reduced.h"

/* Layers of random weights without biases: W1 alone. */
chain_row trap_layers(dpcr_activation activation, int64_t L, int64_t B, int64_t w, double gain);

/* Three thirds: the state shrinks, grows, shrinks.  From z0, which is where the first guess starts every
 * segment, the second third alone overflows. */
chain_case trap_hourglass(dpcr_activation activation, int64_t L, int64_t B, int64_t w, dpcr_dtype dtype);

/* Default options but for structure and refresh: dense adaptive, dense always, zero, identity, diagonal,
 * scalar. */
enum { TRAP_WAYS = 6 };
dpcr_newton trap_options(dpcr_dtype dtype, int way);

/* Where tables are thin: every second way in turn, diagonal but for the first number of segments, and scalar,
 * which is identity or zero. */
static inline bool trap_is_left_out(int way, int segments) {
    return REDUCED > 1 && ((way + segments) % 2 == 1 || way == 5 || (way == 4 && segments > 0));
}

#endif
