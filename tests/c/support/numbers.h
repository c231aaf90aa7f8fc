/* SPDX-License-Identifier: Apache-2.0
 *
 * Elements of f32 and f64 arrays, read and written as double.
 */
#ifndef DEEPPCR_TEST_NUMBERS_H
#define DEEPPCR_TEST_NUMBERS_H

#include "pcr/pcr.h"

#include <math.h>
#include <string.h>

static inline size_t number_size(dpcr_dtype dtype) {
    return dtype == DPCR_F32 ? sizeof(float) : sizeof(double);
}

static inline const char *number_name(dpcr_dtype dtype) {
    return dtype == DPCR_F32 ? "f32" : "f64";
}

/* Half the distance from 1 to the next number. */
static inline double unit_roundoff(dpcr_dtype dtype) {
    return dtype == DPCR_F32 ? 0x1p-24 : 0x1p-53;
}

/* The elements may lie anywhere: memcpy, so that a misaligned array is no undefined behaviour here. */
static inline double number_get(dpcr_dtype dtype, const void *data, int64_t index) {
    const char *at = (const char *)data + index * (int64_t)number_size(dtype);
    float narrow;
    double wide;
    if (dtype == DPCR_F32) {
        memcpy(&narrow, at, sizeof narrow);
        return (double)narrow;
    }
    memcpy(&wide, at, sizeof wide);
    return wide;
}

static inline void number_set(dpcr_dtype dtype, void *data, int64_t index, double value) {
    char *at = (char *)data + index * (int64_t)number_size(dtype);
    if (dtype == DPCR_F32) {
        const float narrow = (float)value;
        memcpy(at, &narrow, sizeof narrow);
    } else {
        memcpy(at, &value, sizeof value);
    }
}

/* value as the dtype holds it.  volatile: gcc 12.2 -O2 vectorizes a pair of plain casts to nothing. */
static inline double number_round(dpcr_dtype dtype, double value) {
    const volatile float narrow = (float)value;
    return dtype == DPCR_F32 ? (double)narrow : value;
}

#endif
