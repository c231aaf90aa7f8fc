/* SPDX-License-Identifier: Apache-2.0
 *
 * Two functions that fit dpcr_exec.parallel_for and use all the freedom its contract gives: the
 * ranges have random sizes, are more than the threads, and come in random order.
 */
#ifndef DEEPPCR_TEST_POOL_H
#define DEEPPCR_TEST_POOL_H

#include "pcr/pcr.h"

#include <stdint.h>

/* Runs the ranges one after another on the calling thread; pool is not used. */
void shuffled_for(void *pool, int64_t count, dpcr_body body, void *argument);

/* Runs them on the threads of a pool while the caller waits. */
void pool_for(void *pool, int64_t count, dpcr_body body, void *argument);

/* The one pool of this program, started at the first call and stopped at exit; threads <= 8 and the
 * same at every call. */
void *pool_of(int threads);

#endif
