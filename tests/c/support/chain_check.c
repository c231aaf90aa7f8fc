/* SPDX-License-Identifier: Apache-2.0
 *
 * See the header.
 */
#include "chain_check.h"

#include "check.h"
#include "numbers.h"

void check_close(const char *what, const output *result, dpcr_dtype dtype, const double *reference,
                 const double *bound, int64_t pieces, int64_t size) {
    for (int64_t k = 0; k < pieces; k++) {
        double error = 0;
        for (int64_t i = k * size; i < (k + 1) * size; i++) {
            const double gap = fabs(number_get(dtype, result->data, i) - reference[i]);
            error = gap <= error ? error : gap; /* NaN, too, replaces a number */
            if (isnan(gap)) break;
        }
        CHECK_WITHIN(error, bound[k], "%s %d", what, (int)k);
    }
}

void check_contract(dpcr_status status, dpcr_status short_status, bool intact) {
    CHECK(status == DPCR_OK, "%d: %s", (int)status, dpcr_detail());
    CHECK(short_status == DPCR_SMALL_WORKSPACE, "%d with one byte less", (int)short_status);
    CHECK(intact, "bytes outside the results were written");
}

bool check_cap(dpcr_status status, size_t bytes, size_t cap, size_t uncapped) {
    if (status == DPCR_OK) return CHECK(cap == 0 || bytes <= cap, "%zu bytes, cap %zu", bytes, cap);
    CHECK(status == DPCR_BAD_ARGUMENT && strstr(dpcr_detail(), "workspace_cap"), "%d: %s", (int)status,
          dpcr_detail());
    CHECK(cap > 0 && cap < uncapped, "a cap of %zu is refused, %zu were taken without", cap, uncapped);
    return false;
}
