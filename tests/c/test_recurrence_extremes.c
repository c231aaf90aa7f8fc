/* SPDX-License-Identifier: Apache-2.0
 *
 * Where products of blocks over- or underflow although the loop does not, the sample is the loop's,
 * to the bit, and is flagged; no other sample is.  NaN and inf stay in their sample.
 *
 * Every case is a batch of healthy samples among which one, the odd one, is changed.
 */
#include "support/backend.h"
#include "support/check.h"
#include "support/numbers.h"
#include "support/recurrence_reference.h"
#include "support/recurrence_run.h"
#include "support/reduced.h"

#include <stdlib.h>

enum { STEPS = 48, SAMPLES = 5, ODD = 2 };

/* Powers of ten are multiplied by this in f64, so that both dtypes meet their limits. */
static double power(dpcr_dtype dtype, double exponent) {
    return pow(10, dtype == DPCR_F32 ? exponent : 8 * exponent);
}

/* ---- traps: blocks a_l I (or diagonal, scalar) and inputs of the odd sample ------------------ */

typedef struct trap {
    const char *name;
    bool (*applies)(const recurrence_row *row);
    double (*block)(dpcr_dtype dtype, int64_t l); /* a_l, step l from 0 along the walk */
    double start, input;                          /* exponents of x0 and b; 0: exactly zero */
} trap;

static bool any(const recurrence_row *row) {
    (void)row;
    return true;
}

static bool from_start(const recurrence_row *row) {
    return row->start;
}

static double growing(dpcr_dtype dtype, int64_t l) {
    (void)l;
    return power(dtype, 3);
}

static double growing_then_zero(dpcr_dtype dtype, int64_t l) {
    return l % 6 == 5 ? 0 : power(dtype, 12);
}

static double dipping(dpcr_dtype dtype, int64_t l) {
    return l % 4 < 2 ? power(dtype, -30) : power(dtype, 30);
}

static double alternating_zero_run(dpcr_dtype dtype, int64_t l) {
    return l < 20 ? power(dtype, 5) : l == 20 ? 0 : power(dtype, -5);
}

/* No overflow anywhere: the product of two blocks underflows to 0, finite garbage that only the size of
 * the state there gives away, not the largest of the chain. */
static double sinking(dpcr_dtype dtype, int64_t l) {
    return l == 0 ? 1 : l < 3 ? power(dtype, -25) : power(dtype, 0.5);
}

static const trap traps[] = {
    {"growing blocks, nothing to grow", any, growing, 0, 0},
    {"growth cut off by zero blocks", from_start, growing_then_zero, -30, 0},
    {"growth cut off by zero blocks, inputs", any, growing_then_zero, 0, -25},
    {"products that underflow", from_start, dipping, 38, 0},
    {"a product that underflows, then growth", from_start, sinking, 38, 0},
    {"growth, a zero, decay", from_start, alternating_zero_run, 0, 0},
};

/* ---- building ------------------------------------------------------------------------------- */

/* Block of every sample that shares it with the odd one: value on the diagonal. */
static void set_block(const recurrence_case *c, int64_t l, double value) {
    const dpcr_recurrence *p = &c->problem;
    for (int64_t k = 0; k < block_elements(p); k++) {
        const bool off = p->block == DPCR_DENSE && k / p->w != k % p->w;
        number_set(p->dtype, p->A.data, block_index(p, &p->A, l, ODD, k), off ? 0 : value);
    }
}

static void set_trap(const recurrence_case *c, const trap *t) {
    const dpcr_recurrence *p = &c->problem;
    const dpcr_dtype dtype = p->dtype;
    for (int64_t j = p->x0.data ? 0 : 1; j < p->L; j++) {
        const int64_t l = p->transposed ? p->L - j : j; /* the block between walk steps j - 1 and j */
        set_block(c, l, t->block(dtype, j));
    }
    for (int64_t i = 0; i < p->w; i++) {
        for (int64_t l = 0; l < p->L; l++)
            number_set(dtype, p->b.data, vectors_index(&p->b, l, ODD, i),
                       t->input == 0 ? 0 : power(dtype, t->input));
        if (p->x0.data)
            number_set(dtype, p->x0.data, vectors_index(&p->x0, 0, ODD, i),
                       t->start == 0 ? 0 : power(dtype, t->start));
    }
}

static recurrence_row healthy_row(dpcr_block block, bool transposed, bool start, int64_t w, int64_t S) {
    return (recurrence_row){.block = block,
                            .transposed = transposed,
                            .start = start && !transposed,
                            .L = STEPS,
                            .B = SAMPLES,
                            .w = w,
                            .S = S,
                            .spectrum = CONTRACTING,
                            .layout = transposed ? BATCH_FIRST : 0,
                            .seed = (uint64_t)(100 * w + S)};
}

/* ---- comparing ------------------------------------------------------------------------------ */

static bool same_bits(const recurrence_case *c, const recurrence_run *a, const recurrence_run *b, int64_t l,
                      int64_t s) {
    const size_t size = number_size(c->problem.dtype);
    const size_t at = a->x.origin + (size_t)vectors_index(&c->problem.x, l, s, 0) * size;
    return memcmp(a->x.bytes + at, b->x.bytes + at, (size_t)c->row.w * size) == 0;
}

static int64_t different_steps(const recurrence_case *c, const recurrence_run *a, const recurrence_run *b,
                               int64_t s) {
    int64_t different = 0;
    for (int64_t l = 0; l < c->row.L; l++) different += !same_bits(c, a, b, l, s);
    return different;
}

static recurrence_run solve(const recurrence_case *c, const backend *at, mode m, int64_t S) {
    recurrence_run run = recurrence_run_create(c, at, m, (dpcr_plan){.segments = S});
    CHECK(run.status == DPCR_OK && run.intact, "%s", dpcr_detail());
    return run;
}

/* The healthy samples have the bits of a run without the odd one, and no flag. */
static void check_others(const recurrence_case *c, const recurrence_run *healthy, const recurrence_run *run) {
    for (int64_t s = 0; s < SAMPLES; s++) {
        if (s == ODD) continue;
        CHECK(different_steps(c, healthy, run, s) == 0, "sample %d of the healthy ones has changed", (int)s);
        CHECK(run->recomputed[s] == 0, "healthy sample %d is flagged", (int)s);
    }
}

/* The odd sample is that of the loop but for rounding: nothing cancels in a trap. */
static bool close_to(const recurrence_case *c, const recurrence_run *run, const recurrence_run *loop) {
    const double tolerance = 1000 * unit_roundoff(c->problem.dtype);
    bool close = true;
    for (int64_t l = 0; l < c->row.L; l++)
        for (int64_t i = 0; i < c->row.w; i++) {
            const int64_t index = vectors_index(&c->problem.x, l, ODD, i);
            const double x = number_get(c->problem.dtype, run->x.bytes + run->x.origin, index);
            const double y = number_get(c->problem.dtype, loop->x.bytes + loop->x.origin, index);
            close = close && fabs(x - y) <= tolerance * fabs(y);
        }
    return close;
}

static bool all_finite(const recurrence_case *c, const recurrence_run *run) {
    bool finite = true;
    for (int64_t l = 0; l < c->row.L; l++)
        for (int64_t i = 0; i < c->row.w; i++) {
            const int64_t index = vectors_index(&c->problem.x, l, ODD, i);
            finite = finite && isfinite(number_get(c->problem.dtype, run->x.bytes + run->x.origin, index));
        }
    return finite;
}

static void context(const recurrence_case *c, const backend *at, const char *what) {
    char text[200];
    recurrence_row_text(&c->row, text, sizeof text);
    check_context("%s: %s, %s, %s", what, text, number_name(c->problem.dtype), at->name);
}

/* ---- the traps on one row ------------------------------------------------------------------- */

/* The loop is finite by construction; some reductions fall into the trap, others multiply none of the
 * blocks that set it: either way the numbers are the loop's.  Returns whether it was fallen into. */
static bool check_trap(const recurrence_row *row, dpcr_dtype dtype, const trap *t, const backend *at) {
    recurrence_case c = recurrence_case_create(row, dtype);
    context(&c, at, t->name);
    recurrence_run healthy = solve(&c, at, MODE_ALONE, row->S);
    set_trap(&c, t);
    recurrence_run loop = solve(&c, at, MODE_ALONE, 1), run = solve(&c, at, MODE_POOL, row->S);
    CHECK(all_finite(&c, &loop), "the loop overflows: the trap is none");
    check_others(&c, &healthy, &run);
    const int64_t different = different_steps(&c, &run, &loop, ODD);
    if (run.recomputed[ODD]) {
        CHECK(different == 0, "%d steps are not the loop's", (int)different);
    } else {
        CHECK(close_to(&c, &run, &loop), "neither the loop's numbers nor flagged");
    }
    CHECK(loop.recomputed[ODD] == 0, "flagged by the loop itself");
    const bool flagged = run.recomputed[ODD];
    recurrence_run_destroy(&healthy);
    recurrence_run_destroy(&loop);
    recurrence_run_destroy(&run);
    recurrence_case_destroy(&c);
    return flagged;
}

/* ---- NaN and inf ---------------------------------------------------------------------------- */

/* A bad number in b (or, where there is one, in x0 or in the sample's own block) of the odd sample. */
static void check_bad(const recurrence_row *row, dpcr_dtype dtype, double bad, int where, const backend *at) {
    recurrence_case c = recurrence_case_create(row, dtype);
    const dpcr_recurrence *p = &c.problem;
    const int64_t step = row->L / 2, last = block_elements(p) - 1;
    context(&c, at, where == 0 ? "not finite in b" : where == 1 ? "not finite in x0" : "not finite in A");
    recurrence_run healthy = solve(&c, at, MODE_ALONE, row->S);
    if (where == 0) number_set(dtype, p->b.data, vectors_index(&p->b, step, ODD, row->w - 1), bad);
    if (where == 1) number_set(dtype, p->x0.data, vectors_index(&p->x0, 0, ODD, row->w - 1), bad);
    if (where == 2) number_set(dtype, p->A.data, block_index(p, &p->A, step, ODD, last), bad);
    recurrence_run run = solve(&c, at, MODE_ALONE, row->S), loop = solve(&c, at, MODE_ALONE, 1);
    double *x = allocate((size_t)(row->L * row->B * row->w) * sizeof(double));
    reference_recurrence(p, x);
    check_others(&c, &healthy, &run);
    int64_t pattern = 0;
    for (int64_t l = 0; l < row->L; l++)
        for (int64_t i = 0; i < row->w; i++) {
            const double ours =
                number_get(dtype, run.x.bytes + run.x.origin, vectors_index(&p->x, l, ODD, i));
            const double reference = x[(l * row->B + ODD) * row->w + i];
            pattern += isnan(ours) != isnan(reference) || isinf(ours) != isinf(reference);
        }
    CHECK(pattern == 0, "%d elements are not finite where the reference is, or the other way", (int)pattern);
    CHECK(different_steps(&c, &run, &loop, ODD) == 0, "not the loop's bits");
    free(x);
    recurrence_run_destroy(&healthy);
    recurrence_run_destroy(&loop);
    recurrence_run_destroy(&run);
    recurrence_case_destroy(&c);
}

/* ---- healthy batches ------------------------------------------------------------------------ */

/* States that pass through zero, decay to nothing, or grow by 1e15 are no reason to recompute. */
static void check_healthy(spectrum kind, int64_t w, dpcr_dtype dtype, const backend *at) {
    const recurrence_row row = {.block = w == 1 ? DPCR_SCALAR : DPCR_DENSE,
                                .start = true,
                                .L = REDUCED ? 256 : 1024,
                                .B = w == 1 ? 64 : 16,
                                .w = w,
                                .S = 1,
                                .spectrum = kind,
                                .seed = 5};
    recurrence_case c = recurrence_case_create(&row, dtype);
    for (int64_t S = 2; S <= row.L; S *= 8) {
        recurrence_run run = solve(&c, at, MODE_ALONE, S);
        context(&c, at, "healthy");
        int64_t flagged = 0;
        for (int64_t s = 0; s < row.B; s++) flagged += run.recomputed[s];
        CHECK(flagged <= false_alarms(&row), "%d of %d samples are flagged with S=%d", (int)flagged,
              (int)row.B, (int)S);
        recurrence_run_destroy(&run);
    }
    recurrence_case_destroy(&c);
}

/* Of each trap, how often it was fallen into: a trap that never works tests nothing. */
static int fallen[sizeof traps / sizeof traps[0]];

static void check_shape(dpcr_block block, bool transposed, int64_t w, int64_t S, const backend *at) {
    static const double bad[] = {NAN, INFINITY, -INFINITY};
    for (int k = 0; k < 4; k++) {
        const dpcr_dtype dtype = k % 2 ? DPCR_F64 : DPCR_F32;
        const recurrence_row row = healthy_row(block, transposed, k < 2, w, S);
        for (size_t t = 0; t < sizeof traps / sizeof traps[0]; t++)
            if (block != DPCR_IDENTITY && traps[t].applies(&row))
                fallen[t] += check_trap(&row, dtype, &traps[t], at);
        for (int i = 0; i < 3; i++) {
            if (reduced_skips()) continue;
            check_bad(&row, dtype, bad[i], 0, at);
            if (row.start) check_bad(&row, dtype, bad[i], 1, at);
            if (block != DPCR_IDENTITY) check_bad(&row, dtype, bad[i], 2, at);
        }
    }
}

static void check_device(const backend *at) {
    static const int64_t widths[] = {1, 3, 8, 17}, segments[] = {2, 7, 24, STEPS};
    static const int64_t healthy[] = {1, 2, 8};
    for (int block = DPCR_DENSE; block <= DPCR_IDENTITY; block++)
        for (int k = 0; k < 32; k += REDUCED ? 5 : 1)
            check_shape((dpcr_block)block, k % 2, widths[k / 2 % 4], segments[k / 8], at);
    for (int kind = 0; kind < SPECTRA; kind++)
        for (int k = 0; k < 6; k++)
            check_healthy((spectrum)kind, healthy[k / 2], k % 2 ? DPCR_F64 : DPCR_F32, at);
}

int main(void) {
    int count;
    const backend *list = backends(&count);
    for (int d = 0; d < count; d++)
        if (list[d].device) check_device(&list[d]);
    for (size_t t = 0; t < sizeof traps / sizeof traps[0]; t++)
        CHECK(fallen[t] > 0, "no row falls into the trap: %s", traps[t].name);
    return check_finish();
}
