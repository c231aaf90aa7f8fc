/* SPDX-License-Identifier: Apache-2.0
 *
 * The CUDA device.  Link libdeeppcr_cuda for it.
 */
#ifndef DEEPPCR_PCR_CUDA_H
#define DEEPPCR_PCR_CUDA_H

#include "pcr.h"

#ifdef __cplusplus
extern "C" {
#endif

/* For dpcr_exec: the CUDA device that is current when a call is made.  All arrays (recomputed, reports and the
 * workspace, too; but not dpcr_pullback.frozen) are the device's; the call enqueues its kernels on exec.stream and
 * returns.  Chains are up to 4096 wide. */
DPCR_API const dpcr_device *dpcr_cuda_device(void);

#ifdef __cplusplus
}
#endif
#endif
