/* SPDX-License-Identifier: Apache-2.0
 *
 * Checks that the tests of the chains share.
 */
#ifndef DEEPPCR_TEST_CHAIN_CHECK_H
#define DEEPPCR_TEST_CHAIN_CHECK_H

#include "chain_run.h"

/* (pieces, size) elements of a result: each piece is within its bound of the reference. */
void check_close(const char *what, const output *result, dpcr_dtype dtype, const double *reference,
                 const double *bound, int64_t pieces, int64_t size);

/* A call succeeded with the workspace of its query, failed with less, and wrote what it may. */
void check_contract(dpcr_status status, dpcr_status short_status, bool intact);

/* A call under a cap (0: none) either keeps to it or is refused for it, which must not happen where
 * the cap is what the call took without (and on as many threads or fewer).  True if it ran. */
bool check_cap(dpcr_status status, size_t bytes, size_t cap, size_t uncapped);

#endif
