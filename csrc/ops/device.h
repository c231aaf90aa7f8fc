/* SPDX-License-Identifier: Apache-2.0
 *
 * The chains as a device offers them that has its own driver: the arguments have been checked, and no size but that
 * of a batch or of L is 0 where a call comes here.  Arrays are the device's, but for `frozen` and what the structs
 * themselves hold; everything is enqueued on exec.stream.
 *
 * bytes given: only the workspace is asked for, and arrays count by whether they are NULL.
 */
#ifndef DEEPPCR_OPS_DEVICE_H
#define DEEPPCR_OPS_DEVICE_H

#include "ops/chain.h"

struct update_kernels;

struct chain_solver {
    dpcr_status (*propagate)(dpcr_exec exec, const dpcr_chain *chain, const dpcr_propagation *arrays,
                             int64_t segments);
    dpcr_status (*solve)(dpcr_exec exec, const dpcr_chain *chain, const dpcr_solution *arrays,
                         const dpcr_plan *plan, const dpcr_newton *options, void *workspace, size_t *bytes);
    dpcr_status (*backward)(dpcr_exec exec, const dpcr_chain *chain, const dpcr_pullback *arrays,
                            const dpcr_plan *plan, const dpcr_newton *options, void *workspace,
                            size_t *bytes);
    dpcr_status (*activate)(dpcr_exec exec, const dpcr_chain *chain, int64_t count, const void *u, void *y,
                            void *d);
    const struct update_kernels *update; /* of both dtypes */
};

#endif
