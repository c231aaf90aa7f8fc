/* SPDX-License-Identifier: Apache-2.0
 *
 * REDUCED is 1 where the tables are to be thinned out, and 2 where they are to be thin: under a sanitizer, or
 * where the build says so with -DDPCR_TEST_REDUCED=...
 */
#ifndef DEEPPCR_TEST_REDUCED_H
#define DEEPPCR_TEST_REDUCED_H

#include "pcr/pcr.h"

#include <stdbool.h>

#if defined DPCR_TEST_REDUCED
enum { REDUCED = DPCR_TEST_REDUCED };
#elif defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
enum { REDUCED = 2 };
#else
enum { REDUCED = 0 };
#endif

/* Where tables are to be thin half of what is only compared with another run is left out, in no pattern. */
static inline bool reduced_skips(void) {
    static unsigned turn;
    turn = turn * 1103515245U + 12345U;
    return REDUCED > 1 && (turn >> 16 & 1U) != 0;
}

/* Where tables are to be thin a row is checked in one of the two dtypes. */
static inline bool reduced_has(int row, dpcr_dtype dtype) {
    return REDUCED < 2 || row / 4 % 2 == (dtype == DPCR_F64);
}

#endif
