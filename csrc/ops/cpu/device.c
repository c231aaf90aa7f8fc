/* SPDX-License-Identifier: Apache-2.0
 * The chains' kernels of each CPU device of csrc/pcr/cpu/device.c. */
#include "ops/kernels.h"
#include "ops/update_kernels.h"

const struct chain_kernels *dpcr_chain_kernels(const dpcr_device *device, dpcr_dtype dtype) {
    switch (device->index) {
#ifdef DPCR_HAVE_X86_64_LEVELS
    case DPCR_X86_64_V3: return &dpcr_chain_v3[dtype];
    case DPCR_X86_64_V4: return &dpcr_chain_v4[dtype];
#endif
    default: return &dpcr_chain_generic[dtype];
    }
}

const struct newton_kernels *dpcr_newton_kernels(const dpcr_device *device, dpcr_dtype dtype) {
    switch (device->index) {
#ifdef DPCR_HAVE_X86_64_LEVELS
    case DPCR_X86_64_V3: return &dpcr_newton_v3[dtype];
    case DPCR_X86_64_V4: return &dpcr_newton_v4[dtype];
#endif
    default: return &dpcr_newton_generic[dtype];
    }
}

const struct update_kernels *dpcr_update_kernels(const dpcr_device *device, dpcr_dtype dtype) {
    switch (device->index) {
#ifdef DPCR_HAVE_X86_64_LEVELS
    case DPCR_X86_64_V3: return &dpcr_update_v3[dtype];
    case DPCR_X86_64_V4: return &dpcr_update_v4[dtype];
#endif
    default: return &dpcr_update_generic[dtype];
    }
}
