/* SPDX-License-Identifier: Apache-2.0
 *
 * dpcr_newton_update against its definition in double, step by step; and what its head promises besides: any number
 * of threads, segments or batch mates, an inf that meets an exact zero, the guard, numbers that are not finite.
 */
#include "ops/update.h"

#include "support/backend.h"
#include "support/check.h"
#include "support/numbers.h"
#include "support/reduced.h"
#include "support/rng.h"

#include <stdlib.h>

typedef struct row {
    dpcr_structure structure;
    bool shared;
    int64_t L, B, w, segments;
    double norm;  /* of A, about */
    double guess; /* how far x is from e */
} row;

/* Arrays on the host, in the dtype. */
typedef struct problem {
    row at;
    dpcr_dtype dtype;
    int64_t size, blocks; /* elements of an A_l, blocks of a step */
    void *states, *ends, *jacobian;
    double *tolerance, rtol;
} problem;

typedef struct answer {
    void *updated, *error;
    int64_t *converged;
} answer;

static int64_t jacobian_size(const row *at) {
    switch (at->structure) {
    case DPCR_P_DENSE: return at->w * at->w;
    case DPCR_P_DIAGONAL: return at->w;
    case DPCR_P_SCALAR: return 1;
    default: return 0;
    }
}

static void *numbers(dpcr_dtype dtype, int64_t count) {
    return allocate((size_t)count * number_size(dtype));
}

static problem problem_create(row at, dpcr_dtype dtype) {
    problem p = {.at = at, .dtype = dtype, .size = jacobian_size(&at), .blocks = at.shared ? 1 : at.B};
    const int64_t state = at.B * at.w, matrices = at.L * p.blocks * p.size;
    rng r = {(uint64_t)(at.L * 100 + at.w)};
    p.states = numbers(dtype, (at.L + 1) * state);
    p.ends = numbers(dtype, at.L * state);
    p.jacobian = numbers(dtype, matrices);
    p.tolerance = allocate((size_t)at.L * sizeof *p.tolerance);
    p.rtol = 1e-3;
    for (int64_t i = 0; i < (at.L + 1) * state; i++) number_set(dtype, p.states, i, rng_normal(&r));
    for (int64_t i = 0; i < at.L * state; i++)
        number_set(dtype, p.ends, i, number_get(dtype, p.states, state + i) + at.guess * rng_normal(&r));
    const double scale = at.structure == DPCR_P_DENSE ? at.norm / sqrt((double)at.w) : at.norm;
    for (int64_t i = 0; i < matrices; i++) number_set(dtype, p.jacobian, i, scale * rng_normal(&r));
    for (int64_t l = 0; l < at.L; l++) p.tolerance[l] = rng_uniform(&r, 2, 6) * at.guess;
    return p;
}

static void problem_destroy(problem *p) {
    free(p->states);
    free(p->ends);
    free(p->jacobian);
    free(p->tolerance);
}

static double state_at(const problem *p, int64_t l, int64_t s, int64_t i) {
    return number_get(p->dtype, p->states, (l * p->at.B + s) * p->at.w + i);
}

static double end_at(const problem *p, int64_t l, int64_t s, int64_t i) {
    return number_get(p->dtype, p->ends, (l * p->at.B + s) * p->at.w + i);
}

static void set_end(problem *p, int64_t l, int64_t s, int64_t i, double value) {
    number_set(p->dtype, p->ends, (l * p->at.B + s) * p->at.w + i, value);
}

/* Element k of the block of step l, sample s. */
static int64_t jacobian_index(const problem *p, int64_t l, int64_t s, int64_t k) {
    return (l * p->blocks + (p->at.shared ? 0 : s)) * p->size + k;
}

static double jacobian_at(const problem *p, int64_t l, int64_t s, int64_t k) {
    return number_get(p->dtype, p->jacobian, jacobian_index(p, l, s, k));
}

/* ---- the call -------------------------------------------------------------------------------- */

static answer run(const problem *p, const backend *at, mode m) {
    const row *r = &p->at;
    const size_t element = number_size(p->dtype), state = (size_t)(r->B * r->w) * element,
                 steps = (size_t)(r->L * r->B) * element;
    const buffer states = buffer_create(at, p->states, ((size_t)r->L + 1) * state, 0),
                 ends = buffer_create(at, p->ends, (size_t)r->L * state, 0),
                 jacobian = buffer_create(at, p->jacobian, (size_t)(r->L * p->blocks * p->size) * element, 0),
                 tolerance = buffer_create(at, p->tolerance, (size_t)r->L * sizeof(double), 0),
                 updated = buffer_create(at, NULL, ((size_t)r->L + 1) * state, 0),
                 error = buffer_create(at, NULL, steps, 0),
                 converged = buffer_create(at, NULL, (size_t)r->B * sizeof(int64_t), 0);
    const dpcr_update update = {.dtype = p->dtype,
                                .structure = r->structure,
                                .L = r->L,
                                .B = r->B,
                                .w = r->w,
                                .segments = r->segments,
                                .shared = r->shared,
                                .states = buffer_data(&states),
                                .ends = buffer_data(&ends),
                                .jacobian = p->size > 0 ? buffer_data(&jacobian) : NULL,
                                .tolerance = buffer_data(&tolerance),
                                .rtol = p->rtol,
                                .updated = buffer_data(&updated),
                                .error = buffer_data(&error),
                                .converged = buffer_data(&converged)};
    const dpcr_exec exec = backend_exec(at, m);
    size_t bytes = 0;
    CHECK(dpcr_newton_update_workspace(exec, &update, &bytes) == DPCR_OK, "%s", dpcr_detail());
    const buffer workspace = buffer_create(at, NULL, bytes, 0);
    dpcr_buffer lent = {buffer_data(&workspace), bytes};
    CHECK(dpcr_newton_update(exec, &update, lent) == DPCR_OK, "%s", dpcr_detail());
    answer a = {numbers(p->dtype, (r->L + 1) * r->B * r->w), numbers(p->dtype, r->L * r->B),
                allocate((size_t)r->B * sizeof(int64_t))};
    CHECK(buffer_read(&updated, a.updated) && buffer_read(&error, a.error)
              && buffer_read(&converged, a.converged) && buffer_read(&workspace, NULL),
          "written beside an array");
    if (bytes > 0) {
        lent.bytes--;
        CHECK(dpcr_newton_update(exec, &update, lent) == DPCR_SMALL_WORKSPACE, "one byte less is enough");
    }
    const buffer *all[] = {&states, &ends, &jacobian, &tolerance, &updated, &error, &converged, &workspace};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) buffer_destroy((buffer *)all[i]);
    return a;
}

static void answer_destroy(answer *a) {
    free(a->updated);
    free(a->error);
    free(a->converged);
}

/* ---- the definition, in double ---------------------------------------------------------------- */

static double fold(double most, double x) {
    return isfinite(x) ? fmax(most, fabs(x)) : INFINITY;
}

/* out = A_l d; 0 where d is, all of it or, but for dense A, that element */
static void multiply(const problem *p, int64_t l, int64_t s, const double *d, double *out) {
    const int64_t w = p->at.w;
    bool zero = true;
    for (int64_t i = 0; i < w; i++) zero = zero && d[i] == 0;
    for (int64_t i = 0; i < w; i++) {
        out[i] = 0;
        if (l == 0 || zero || p->at.structure == DPCR_P_ZERO) continue;
        if (p->at.structure == DPCR_P_DENSE)
            for (int64_t c = 0; c < w; c++) out[i] += jacobian_at(p, l, s, i * w + c) * d[c];
        else if (d[i] != 0)
            out[i] =
                p->at.structure == DPCR_P_IDENTITY ? d[i] : jacobian_at(p, l, s, p->size > 1 ? i : 0) * d[i];
    }
}

/* Of sample s: new states (L,w), errors (L) */
static void define(const problem *p, int64_t s, double *states, double *errors) {
    const int64_t L = p->at.L, w = p->at.w;
    double *d = calloc((size_t)w, sizeof *d), *moved = calloc((size_t)w, sizeof *moved), largest = 0;
    for (int64_t l = 0; l < L; l++) {
        double end = 0;
        for (int64_t i = 0; i < w; i++) end = fold(end, end_at(p, l, s, i));
        if (isfinite(end)) largest = fmax(largest, end);
    }
    for (int64_t l = 0; l < L; l++) {
        double start = 0, error = 0, others = 0;
        multiply(p, l, s, d, moved);
        for (int64_t i = 0; i < w; i++) {
            const double e = end_at(p, l, s, i), r = e - state_at(p, l + 1, s, i);
            states[l * w + i] = e + moved[i];
            d[i] = moved[i] + r;
            start = fold(start, number_round(p->dtype, states[l * w + i]));
            error = fold(error, d[i]);
            others = fold(fold(others, moved[i]), r);
        }
        const bool guarded = !(start <= 10 * largest);
        for (int64_t i = 0; i < w && guarded; i++) states[l * w + i] = end_at(p, l, s, i);
        errors[l] = guarded ? fmax(error, others) : error;
    }
    free(d);
    free(moved);
}

/* Of the steps that the answer's own errors and the ends say. */
static int64_t leading(const problem *p, const answer *a, int64_t s) {
    int64_t l = 0;
    for (; l < p->at.L; l++) {
        double end = 0;
        const double error = number_get(p->dtype, a->error, l * p->at.B + s);
        for (int64_t i = 0; i < p->at.w; i++) end = fold(end, end_at(p, l, s, i));
        if (l == 0 && !isfinite(end)) return 1;
        if (!(isfinite(error) && error <= p->tolerance[l] + p->rtol * end)) break;
    }
    return l;
}

static bool same(double a, double b, double bound) {
    return (isnan(a) && isnan(b)) || a == b || fabs(a - b) <= bound;
}

static void check_sample(const problem *p, const answer *a, int64_t s) {
    const row *at = &p->at;
    double *states = allocate((size_t)(at->L * at->w) * sizeof *states),
           *errors = allocate((size_t)at->L * sizeof *errors), largest = 0;
    define(p, s, states, errors);
    for (int64_t l = 0; l < at->L; l++) largest = isfinite(errors[l]) ? fmax(largest, errors[l]) : largest;
    const double bound = unit_roundoff(p->dtype) * (double)(16 + 4 * at->L) * (1 + largest);
    int64_t wrong = 0, different = 0;
    for (int64_t l = 0; l < at->L; l++) {
        for (int64_t i = 0; i < at->w; i++)
            wrong += !same(number_get(p->dtype, a->updated, ((l + 1) * at->B + s) * at->w + i),
                           states[l * at->w + i], 4 * bound);
        different += !same(number_get(p->dtype, a->error, l * at->B + s), errors[l], 4 * bound);
    }
    CHECK(wrong == 0, "sample %d: %d elements of states", (int)s, (int)wrong);
    CHECK(different == 0, "sample %d: %d errors", (int)s, (int)different);
    CHECK(a->converged[s] == leading(p, a, s), "sample %d: %d converged, not %d", (int)s,
          (int)a->converged[s], (int)leading(p, a, s));
    for (int64_t i = 0; i < at->w; i++)
        wrong += !same(number_get(p->dtype, a->updated, s * at->w + i), state_at(p, 0, s, i), 0);
    CHECK(wrong == 0, "x_0 of sample %d has changed", (int)s);
    free(states);
    free(errors);
}

static bool same_bits(const problem *p, const answer *a, const answer *b, int64_t s) {
    const row *at = &p->at;
    const size_t element = number_size(p->dtype), width = (size_t)at->w * element;
    bool equal = a->converged[s] == b->converged[s];
    for (int64_t l = 0; l <= at->L; l++) {
        const size_t row = (size_t)(l * at->B + s);
        equal =
            equal && memcmp((char *)a->updated + row * width, (char *)b->updated + row * width, width) == 0;
        if (l < at->L)
            equal =
                equal
                && memcmp((char *)a->error + row * element, (char *)b->error + row * element, element) == 0;
    }
    return equal;
}

/* ---- the table -------------------------------------------------------------------------------- */

static const char *const structures[] = {"dense", "identity", "zero", "diagonal", "scalar"};

static void context(const row *at, dpcr_dtype dtype, const backend *on, const char *what) {
    check_context("%s: %s%s L=%d B=%d w=%d S=%d %s %s", what, structures[at->structure],
                  at->shared ? " shared" : "", (int)at->L, (int)at->B, (int)at->w, (int)at->segments,
                  number_name(dtype), on->name);
}

/* The definition, and the same bits in all modes. */
static void check_row(row at, dpcr_dtype dtype, const backend *on) {
    problem p = problem_create(at, dtype);
    context(&at, dtype, on, "definition");
    answer first = run(&p, on, MODE_ALONE);
    for (int64_t s = 0; s < at.B; s++) check_sample(&p, &first, s);
    for (int m = MODE_SHUFFLED; m < MODES; m++) {
        if (reduced_skips()) continue;
        answer other = run(&p, on, (mode)m);
        bool equal = true;
        for (int64_t s = 0; s < at.B; s++) equal = equal && same_bits(&p, &first, &other, s);
        CHECK(equal, "%s: other bits", mode_name((mode)m));
        answer_destroy(&other);
    }
    answer_destroy(&first);
    problem_destroy(&p);
}

static const row rows[] = {
    {DPCR_P_DENSE, false, 7, 3, 5, 0, 0.8, 0.3},    {DPCR_P_DENSE, true, 9, 5, 16, 0, 0.9, 0.3},
    {DPCR_P_DENSE, false, 33, 2, 3, 8, 0.9, 0.1},   {DPCR_P_DENSE, true, 20, 6, 9, 20, 0.7, 0.1},
    {DPCR_P_DENSE, false, 12, 1, 40, 5, 1.1, 0.1},  {DPCR_P_DENSE, false, 3, 2, 1, 0, 0.5, 1e-3},
    {DPCR_P_DIAGONAL, false, 6, 3, 7, 0, 0.9, 0.5}, {DPCR_P_DIAGONAL, true, 40, 2, 33, 9, 0.9, 0.2},
    {DPCR_P_DIAGONAL, false, 5, 2, 3000, 0, 1, 1},  {DPCR_P_DIAGONAL, true, 4, 2, 1025, 3, 1, 0.1},
    {DPCR_P_SCALAR, false, 8, 4, 130, 0, 1, 0.2},   {DPCR_P_SCALAR, true, 31, 2, 5, 31, 0.8, 0.1},
    {DPCR_P_IDENTITY, false, 10, 3, 6, 0, 0, 0.2},  {DPCR_P_IDENTITY, false, 16, 2, 600, 4, 0, 0.02},
    {DPCR_P_ZERO, false, 5, 3, 11, 0, 0, 0.5},      {DPCR_P_ZERO, false, 5, 2, 2100, 5, 0, 1e-3},
    {DPCR_P_DENSE, false, 1, 2, 4, 0, 1, 0.5},      {DPCR_P_DIAGONAL, false, 0, 3, 4, 0, 1, 0.5},
    {DPCR_P_DENSE, false, 0, 2, 300, 0, 1, 0.5},    {DPCR_P_SCALAR, true, 4, 0, 4, 0, 1, 0.5},
    {DPCR_P_DENSE, false, 4, 2, 0, 2, 1, 0.5},      {DPCR_P_IDENTITY, false, 4, 2, 0, 0, 1, 0.5},
};

/* ---- what no random row has -------------------------------------------------------------------- */

static row trap_row(int structure, int64_t segments) {
    return (row){(dpcr_structure)structure, false, 6, 3, 5, segments, 0.7, 0.2};
}

enum { ODD = 1 };

/* Steps up to `exact` of the odd sample have no residual; A of the step after them is inf. */
static void check_exact_prefix(int structure, int64_t segments, dpcr_dtype dtype, const backend *on) {
    const row at = trap_row(structure, segments);
    const int64_t exact = 3;
    problem p = problem_create(at, dtype);
    context(&at, dtype, on, "inf meets an exact zero");
    for (int64_t l = 0; l < exact; l++)
        for (int64_t i = 0; i < at.w; i++) set_end(&p, l, ODD, i, state_at(&p, l + 1, ODD, i));
    for (int64_t l = 1; l <= exact; l++)
        for (int64_t k = 0; k < p.size; k++)
            number_set(dtype, p.jacobian, jacobian_index(&p, l, ODD, k), k % 2 ? NAN : INFINITY);
    answer a = run(&p, on, MODE_ALONE);
    for (int64_t s = 0; s < at.B; s++) check_sample(&p, &a, s);
    CHECK(a.converged[ODD] >= exact, "only %d converged", (int)a.converged[ODD]);
    for (int64_t i = 0; i < at.w; i++)
        CHECK(number_get(dtype, a.updated, ((exact + 1) * at.B + ODD) * at.w + i)
                  == end_at(&p, exact, ODD, i),
              "element %d is not e", (int)i);
    answer_destroy(&a);
    problem_destroy(&p);
}

/* Something of the odd sample is not finite, or so large that the guard must act: the others keep their bits. */
static void check_odd(int structure, int64_t segments, double value, int where, dpcr_dtype dtype,
                      const backend *on) {
    const row at = trap_row(structure, segments);
    problem p = problem_create(at, dtype);
    context(&at, dtype, on, where == 2 ? "odd A" : where == 1 ? "odd e" : "odd e_1");
    answer healthy = run(&p, on, MODE_ALONE);
    if (where == 2)
        for (int64_t k = 0; k < p.size; k++)
            number_set(dtype, p.jacobian, jacobian_index(&p, 2, ODD, k), value);
    else
        set_end(&p, where == 1 ? 2 : 0, ODD, 3, value);
    answer odd = run(&p, on, MODE_POOL);
    check_sample(&p, &odd, ODD);
    CHECK(same_bits(&p, &healthy, &odd, 0) && same_bits(&p, &healthy, &odd, 2), "a neighbour has changed");
    if (where == 0 && !isfinite(value))
        CHECK(odd.converged[ODD] == 1, "%d converged", (int)odd.converged[ODD]);
    bool finite = true;
    for (int64_t l = 1; l <= at.L; l++)
        for (int64_t i = 0; i < at.w; i++) {
            const bool given = isfinite(end_at(&p, l - 1, ODD, i));
            finite =
                finite && (!given || isfinite(number_get(dtype, odd.updated, (l * at.B + ODD) * at.w + i)));
        }
    CHECK(finite, "a new state is not finite although its e is");
    answer_destroy(&healthy);
    answer_destroy(&odd);
    problem_destroy(&p);
}

static void check_traps(dpcr_dtype dtype, const backend *on) {
    static const double bad[] = {NAN, INFINITY, -INFINITY, 1e30};
    for (int structure = 0; structure < DPCR_STRUCTURES; structure++)
        for (int64_t segments = 0; segments <= (structure == DPCR_P_ZERO ? 0 : 6); segments += 3) {
            check_exact_prefix(structure, segments, dtype, on);
            for (int i = 0; i < 4; i++)
                for (int where = 0; where < 3; where++)
                    if (where < 2 || jacobian_size(&(row){(dpcr_structure)structure, .w = 1}) > 0)
                        check_odd(structure, segments, bad[i], where, dtype, on);
        }
}

int main(void) {
    int count;
    const backend *list = backends(&count);
    for (int d = 0; d < count; d++)
        for (int k = 0; k < 2 && list[d].device; k++) {
            const dpcr_dtype dtype = k == 0 ? DPCR_F32 : DPCR_F64;
            for (size_t i = (size_t)(REDUCED == 2 ? k : 0); i < sizeof rows / sizeof rows[0];
                 i += REDUCED == 2 ? 2 : 1)
                check_row(rows[i], dtype, &list[d]);
            check_traps(dtype, &list[d]);
        }
    return check_finish();
}
