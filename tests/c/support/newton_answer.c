/* SPDX-License-Identifier: Apache-2.0
 *
 * Noisy runs and moved starts; see the header.
 */
#include "newton_answer.h"

#include "check.h"
#include "numbers.h"

#include <stdlib.h>

enum { RUNS = 3, NOISE = 2 };

/* Errors allowed: per deviation that roundings showed, per deviation that moved starts showed; at the
 * ends of segments in units of rtol, and everywhere in roundings of the largest element. */
static const double kRounding = 2, kStart = 2, kEnd = 2, kFloor = 4;

/* Whether step l (from 0) is the last of a segment that another follows. */
static bool is_end(int64_t l, int64_t L, int64_t S) {
    for (int64_t k = 1; k < S; k++)
        if (segment_edge(k, L, S) == l + 1) return true;
    return false;
}

static double *doubles(int64_t count) {
    double *a = allocate((size_t)count * sizeof(double));
    for (int64_t i = 0; i < count; i++) a[i] = 0;
    return a;
}

static double largest(const double *a, int64_t count) {
    double most = 0;
    for (int64_t i = 0; i < count; i++) most = fabs(a[i]) <= most ? most : fabs(a[i]);
    return most;
}

/* Steps first..last-1 from starts: deviation (L,B) grows to what they show. */
static void observe(const chain_case *c, const double *exact, int64_t first, int64_t last,
                    const double *starts, noise *n, double *deviation) {
    const int64_t B = c->row.B, w = c->row.w;
    double *states = doubles((last - first) * B * w), *end = doubles(B * w);
    reference_propagate(&c->exact, first, last, starts, end, states, n);
    for (int64_t k = 0; k < (last - first) * B; k++)
        for (int64_t i = 0; i < w; i++)
            deviation[first * B + k] =
                fmax(deviation[first * B + k], fabs(states[k * w + i] - exact[(first * B + k) * w + i]));
    free(states);
    free(end);
}

/* Segments 1..S-1 from starts that are off by rtol in every sample's own size. */
static void move_starts(const chain_case *c, const double *exact, int64_t S, double rtol, rng *random,
                        double *deviation) {
    const int64_t L = c->row.L, B = c->row.B, w = c->row.w;
    double *starts = doubles(B * w);
    noise none = {.roundoff = 0};
    for (int64_t k = 1; k < S; k++) {
        const int64_t first = segment_edge(k, L, S);
        const double *z = exact + (first - 1) * B * w;
        for (int64_t i = 0; i < B * w; i++)
            starts[i] = z[i] + rtol * largest(z + i / w * w, w) * rng_uniform(random, -1, 1);
        observe(c, exact, first, segment_edge(k + 1, L, S), starts, &none, deviation);
    }
    free(starts);
}

/* A step that came off lightly by chance takes its neighbours' deviation. */
static double around(const double *deviation, int64_t l, int64_t s, int64_t L, int64_t B) {
    double most = 0;
    for (int64_t j = l - 2; j <= l + 2; j++)
        if (j >= 0 && j < L) most = fmax(most, deviation[j * B + s]);
    return most;
}

newton_answer newton_answer_create(const chain_case *c, int64_t S, double rtol) {
    const int64_t L = c->row.L, B = c->row.B, w = c->row.w;
    const double range = c->dtype == DPCR_F32 ? 1e37 : 1e300,
                 least = c->dtype == DPCR_F32 ? 1e-39 : 0x1p-1040;
    newton_answer a = {.states = doubles(L * B * w), .bound = doubles(L * B)};
    double *rounding = doubles(L * B), *start = doubles(L * B), *end = doubles(B * w);
    noise none = {.roundoff = 0};
    reference_propagate(&c->exact, 0, L, c->z0.value, end, a.states, &none);
    for (int run = 1; run <= RUNS && w > 0; run++) {
        noise n = {.random = {c->row.seed + (uint64_t)run}, .roundoff = NOISE * unit_roundoff(c->dtype)};
        observe(c, a.states, 0, L, c->z0.value, &n, rounding);
        move_starts(c, a.states, L > 0 ? S : 1, rtol, &n.random, start);
    }
    for (int64_t k = 0; k < L * B; k++) {
        const double size = largest(a.states + k * w, w);
        a.bound[k] = kRounding * around(rounding, k / B, k % B, L, B) + kStart * start[k]
                     + kFloor * unit_roundoff(c->dtype) * size + least
                     + (is_end(k / B, L, S) ? kEnd * rtol * size : 0);
        if (!(size < range)) a.bound[k] = INFINITY;
    }
    free(rounding);
    free(start);
    free(end);
    return a;
}

void newton_answer_destroy(newton_answer *a) {
    free(a->states);
    free(a->bound);
}

void check_sample(const chain_case *c, const newton_answer *a, const output *states, int64_t sample) {
    const int64_t L = c->row.L, B = c->row.B, w = c->row.w;
    for (int64_t l = 0; l < L; l++) {
        const int64_t row = l * B + sample;
        double error = 0;
        if (isinf(a->bound[row])) return;
        for (int64_t i = 0; i < w; i++) {
            const double gap = fabs(number_get(c->dtype, states->data, row * w + i) - a->states[row * w + i]);
            error = gap <= error ? error : gap; /* NaN, too, replaces a number */
            if (isnan(gap)) break;
        }
        if (!CHECK_WITHIN(error, a->bound[row], "step %d of sample %d of size %g", (int)l, (int)sample,
                          largest(a->states + row * w, w)))
            return;
    }
}

void check_verdict(const chain_case *c, const newton_answer *a, const dpcr_newton *newton,
                   const solve_run *run, const solve_run *sequential, int64_t sample) {
    const double verdict = report_get(&run->report, DPCR_VERDICT, sample, c->row.B),
                 error = report_get(&run->report, DPCR_ERROR, sample, c->row.B);
    CHECK(verdict == DPCR_CONVERGED || verdict == DPCR_SEQUENTIAL
              || (verdict == DPCR_UNCONVERGED && !newton->finish),
          "sample %d: verdict %g", (int)sample, verdict);
    if (verdict == DPCR_SEQUENTIAL)
        CHECK(sample_equal(c, &run->states, &sequential->states, sample, c->row.w)
                  && sample_equal(c, &run->z, &sequential->z, sample, c->row.w),
              "sample %d: finished, but not in the bits of S = 1", (int)sample);
    if (verdict == DPCR_CONVERGED) {
        check_sample(c, a, &run->states, sample);
        CHECK(error >= 0 && error < INFINITY, "sample %d: converged with an error of %g", (int)sample, error);
    }
}

bool sample_equal(const chain_case *c, const output *a, const output *b, int64_t sample, int64_t size) {
    const size_t piece = (size_t)size * number_size(c->dtype), stride = piece * (size_t)c->row.B;
    if (a->bytes != b->bytes) return false;
    for (size_t at = piece * (size_t)sample; at < a->bytes && piece > 0; at += stride)
        if (memcmp((const char *)a->data + at, (const char *)b->data + at, piece) != 0) return false;
    return true;
}
