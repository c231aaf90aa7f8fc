/* SPDX-License-Identifier: Apache-2.0
 *
 * The CPU devices: one set of kernels, compiled once per instruction-set level (kernels.c), chosen
 * by what the processor has.
 */
#include "pcr/cpu/kernels.h"

#ifdef DPCR_HAVE_X86_64_LEVELS
static const struct dpcr_device devices[DPCR_CPU_LEVELS] = {
    {"cpu (generic)",
     DPCR_GENERIC,
     {&dpcr_recurrence_generic[0], &dpcr_recurrence_generic[1]},
     &dpcr_cpu_solver,
     NULL},
    {"cpu (x86-64-v3)",
     DPCR_X86_64_V3,
     {&dpcr_recurrence_v3[0], &dpcr_recurrence_v3[1]},
     &dpcr_cpu_solver,
     NULL},
    {"cpu (x86-64-v4)",
     DPCR_X86_64_V4,
     {&dpcr_recurrence_v4[0], &dpcr_recurrence_v4[1]},
     &dpcr_cpu_solver,
     NULL},
};

static bool runs_here(dpcr_cpu_level level) {
    __builtin_cpu_init();
    switch (level) {
    case DPCR_X86_64_V3: return __builtin_cpu_supports("x86-64-v3");
    case DPCR_X86_64_V4: return __builtin_cpu_supports("x86-64-v4");
    default: return level == DPCR_GENERIC;
    }
}
#else
static const struct dpcr_device devices[DPCR_CPU_LEVELS] = {
    {"cpu (generic)",
     DPCR_GENERIC,
     {&dpcr_recurrence_generic[0], &dpcr_recurrence_generic[1]},
     &dpcr_cpu_solver,
     NULL},
};

static bool runs_here(dpcr_cpu_level level) {
    return level == DPCR_GENERIC;
}
#endif

const dpcr_device *dpcr_cpu_device_level(dpcr_cpu_level level) {
    return runs_here(level) ? &devices[level] : NULL;
}

const dpcr_device *dpcr_cpu_device(void) {
    for (int level = DPCR_CPU_LEVELS - 1; level > DPCR_GENERIC; level--)
        if (runs_here((dpcr_cpu_level)level)) return &devices[level];
    return &devices[DPCR_GENERIC];
}

const char *dpcr_device_name(const dpcr_device *device) {
    return device ? device->name : "none";
}
