/* SPDX-License-Identifier: Apache-2.0
 *
 * When the CUDA device takes the products of dpcr_exec.blas for the gradients of a chain's matrices, how many it asks
 * for, and what becomes of one that fails.  That the results are right, whatever the chain, is what the conformance
 * suites check, which have both ways.
 */
#include "support/chain_check.h"
#include "support/check.h"
#include "support/numbers.h"
#include "support/rng.h"

#include "cuda_on_host.h"

#include <stdlib.h>
#include <string.h>

enum { ALL = WANT_Z0 | ((1 << DPCR_PARAMETERS) - 1) };

static struct {
    int64_t calls, products;
    int status; /* of the next call */
} seen;

static int counted_sgemm(void *handle, int transpose_A, int transpose_B, int m, int n, int k,
                         const float *alpha, const float *A, int row_A, long long next_A, const float *B,
                         int row_B, long long next_B, const float *beta, float *C, int row_C,
                         long long next_C, int count) {
    seen.calls++;
    seen.products += count;
    if (seen.status != 0) return seen.status;
    return cuda_on_host_sgemm()(handle, transpose_A, transpose_B, m, n, k, alpha, A, row_A, next_A, B, row_B,
                                next_B, beta, C, row_C, next_C, count);
}

static const struct dpcr_cuda_blas *lent(mode m) {
    static struct dpcr_cuda_blas blas = {.sgemm = counted_sgemm};
    blas.handle = cuda_on_host_stream(0);
    blas.always = m == MODE_POOL;
    return &blas;
}

typedef struct expected {
    dpcr_step step;
    int64_t layers, B, w, h;
    mode m; /* MODE_POOL: always */
    int64_t S;
    bool frozen;             /* the second step */
    int64_t calls, products; /* of a backward pass through 4 steps */
} expected;

static const expected rows[] = {
    {DPCR_MLP, 0, 8, 64, 64, MODE_ALONE, 1, false, 2, 4}, /* the step after z0 by itself */
    {DPCR_MLP, 0, 8, 63, 63, MODE_ALONE, 1, false, 0, 0}, /* too small */
    {DPCR_MLP, 0, 7, 64, 64, MODE_ALONE, 1, false, 0, 0}, /* too few */
    {DPCR_MLP, 0, 1, 3, 3, MODE_POOL, 2, false, 2, 4},    /* but always */
    {DPCR_MLP, 0, 8, 64, 64, MODE_ALONE, 1, true, 2, 3},
    {DPCR_LAYERS, 3, 2, 5, 5, MODE_POOL, 1, false, 4, 12},
    {DPCR_RESIDUAL, 0, 9, 16, 256, MODE_ALONE, 1, false, 3, 8},
};

static void check_row(const expected *e, const backend *at) {
    const double *p = (const double[]){0, 0};
    chain_row row = {.step = e->step, .activation = DPCR_TANH, .activation_parameter = {p[0], p[1]}};
    row.layers = e->layers, row.present = 63, row.scale = 1, row.gain = 0.5, row.seed = 3;
    row.L = 4, row.B = e->B, row.w = e->w, row.h = e->h;
    for (int i = 0; i < DPCR_PARAMETERS; i++)
        if (!chain_row_has(&row, i)) row.present &= ~(1U << i);
    check_context("B=%d w=%d h=%d S=%d%s", (int)e->B, (int)e->w, (int)e->h, (int)e->S,
                  e->frozen ? ", frozen" : "");
    chain_case c = chain_case_create(&row, DPCR_F32);
    rng random = {5};
    numbers states = numbers_random(DPCR_F32, 4 * e->B * e->w, 0, 1, &random);
    numbers gz = numbers_random(DPCR_F32, e->B * e->w, 0, 1, &random);
    const unsigned char frozen[4] = {0, 1, 0, 0};
    const dpcr_newton newton = dpcr_newton_default(DPCR_F32);
    const pullback_input in = {
        .states = states.data, .gz = gz.data, .newton = &newton, .frozen = e->frozen ? frozen : NULL};
    const dpcr_plan plan = {.segments = e->S};
    backend without = *at, with = *at;
    without.blas = NULL;
    with.blas = lent;
    pullback_run plain = pullback_run_create(&c, in, ALL, &without, e->m, plan);
    seen.calls = seen.products = 0;
    pullback_run run = pullback_run_create(&c, in, ALL, &with, e->m, plan);
    check_contract(run.status, run.short_status, run.intact);
    CHECK(seen.calls == e->calls && seen.products == e->products, "%d calls, %d products", (int)seen.calls,
          (int)seen.products);
    for (int i = 0; i < DPCR_PARAMETERS; i++)
        CHECK(outputs_equal(&run.parameter[i], &plain.parameter[i]), "parameter %d", i);
    CHECK(outputs_equal(&run.z0, &plain.z0), "gz0");
    if (e->calls > 0) {
        seen.status = 13;
        pullback_run broken = pullback_run_create(&c, in, ALL, &with, e->m, plan);
        CHECK(broken.status == DPCR_DEVICE && strstr(dpcr_detail(), "status 13"), "%s", dpcr_detail());
        seen.status = 0;
        pullback_run_destroy(&broken);
    }
    pullback_run_destroy(&plain);
    pullback_run_destroy(&run);
    numbers_destroy(&states);
    numbers_destroy(&gz);
    chain_case_destroy(&c);
}

int main(void) {
    int count;
    const backend *at = backends(&count);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) check_row(&rows[i], at);
    return check_finish();
}
