/* SPDX-License-Identifier: Apache-2.0
 * Status codes, their sentences, and the checks that every public call shares. */
#include "internal.h"

#include <stdarg.h>
#include <stdio.h>

static _Thread_local char detail[256];

const char *dpcr_strerror(dpcr_status status) {
    switch (status) {
#define DPCR_STATUS_CASE(name, value, text) \
    case name: return text;
        DPCR_STATUS_LIST(DPCR_STATUS_CASE)
#undef DPCR_STATUS_CASE
    }
    return "unknown status";
}

const char *dpcr_detail(void) {
    return detail;
}

dpcr_status dpcr_fail(dpcr_status status, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(detail, sizeof detail, format, arguments);
    va_end(arguments);
    return status;
}

dpcr_status dpcr_check_size(const char *name, int64_t a, int64_t b, int64_t c) {
    int64_t bytes = 64; /* 8 an element, and room for sums of a few such arrays */
    const bool overflow = __builtin_mul_overflow(bytes, a, &bytes) || __builtin_mul_overflow(bytes, b, &bytes)
                          || __builtin_mul_overflow(bytes, c, &bytes);
    REQUIRE(!overflow, "%s: %lld x %lld x %lld elements do not fit 64-bit sizes", name, (long long)a,
            (long long)b, (long long)c);
    return DPCR_OK;
}

dpcr_status dpcr_check_exec(dpcr_exec exec) {
    REQUIRE(exec.device, "exec.device is NULL: not a device of this machine");
    REQUIRE(exec.threads >= 1, "exec.threads is %lld, must be at least 1", (long long)exec.threads);
    return DPCR_OK;
}

dpcr_status dpcr_check_workspace(dpcr_buffer workspace, size_t needed) {
    REQUIRE(needed == 0 || workspace.data, "workspace.data is NULL, %zu bytes are needed", needed);
    REQUIRE((uintptr_t)workspace.data % DPCR_ALIGNMENT == 0, "workspace.data is not aligned to %d bytes",
            DPCR_ALIGNMENT);
    if (workspace.bytes < needed)
        return dpcr_fail(DPCR_SMALL_WORKSPACE, "workspace.bytes is %zu, %zu are needed", workspace.bytes,
                         needed);
    return DPCR_OK;
}
