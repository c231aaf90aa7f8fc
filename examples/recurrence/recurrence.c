/* SPDX-License-Identifier: Apache-2.0
 *
 * The linear recurrence x_l = A_l x_{l-1} + b_l from plain C, without PyTorch: solved by the loop (S = 1) and
 * by cyclic reduction (S = L), on one thread and on OpenMP's, each result checked against the equation itself.
 *
 * Install deeppcr (see the head of its CMakeLists.txt), then here:
 *
 *     cmake -B build -DCMAKE_PREFIX_PATH=<where deeppcr is installed>
 *     cmake --build build && ./build/recurrence
 */
#include <deeppcr/pcr.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { L = 1000, B = 4, w = 8 }; /* steps, samples, width */

static double A[L][B][w][w], b[L][B][w], x0[B][w];

static double random_number(void) { /* in -1..1 */
    return 2.0 * rand() / RAND_MAX - 1.0;
}

/* The largest |A_l x_{l-1} + b_l - x_l|: 0 up to rounding for the right x. */
static double residual(double (*x)[B][w]) {
    double worst = 0;
    for (int l = 0; l < L; l++)
        for (int n = 0; n < B; n++)
            for (int i = 0; i < w; i++) {
                const double *before = l ? x[l - 1][n] : x0[n];
                double sum = b[l][n][i];
                for (int j = 0; j < w; j++) sum += A[l][n][i][j] * before[j];
                worst = fmax(worst, fabs(sum - x[l][n][i]));
            }
    return worst;
}

/* Solves with S segments into x; true where the library succeeded and the equation holds. */
static bool solve(const char *where, dpcr_exec exec, int64_t S, double (*x)[B][w], int64_t *levels) {
    const dpcr_recurrence problem = {
        .dtype = DPCR_F64,
        .block = DPCR_DENSE,
        .L = L,
        .B = B,
        .w = w,
        .A = {.data = A, .step = B * w * w, .sample = w * w, .row = w, .column = 1},
        .b = {.data = b, .step = B * w, .sample = w},
        .x0 = {.data = x0, .sample = w},
        .x = {.data = x, .step = B * w, .sample = w},
    };
    const dpcr_plan plan = {.segments = S};
    dpcr_buffer workspace = {0};
    dpcr_status status = dpcr_recurrence_workspace(exec, &problem, &plan, &workspace.bytes);
    if (status == DPCR_OK && workspace.bytes > 0) {
        workspace.data = aligned_alloc(DPCR_ALIGNMENT, (workspace.bytes + DPCR_ALIGNMENT - 1) / DPCR_ALIGNMENT
                                                           * DPCR_ALIGNMENT);
        if (!workspace.data) return false;
    }
    if (status == DPCR_OK) status = dpcr_recurrence_solve(exec, &problem, &plan, workspace, levels);
    free(workspace.data);
    if (status != DPCR_OK) {
        fprintf(stderr, "%s: %s\n", dpcr_strerror(status), dpcr_detail());
        return false;
    }
    const double error = residual(x);
    printf("%-7s %s, %lld threads: S = %4lld, %2lld levels, %zu bytes of workspace, residual %.1e\n", where,
           dpcr_device_name(exec.device), (long long)exec.threads, (long long)S, (long long)*levels,
           workspace.bytes, error);
    return error < 1e-13;
}

int main(void) {
    static double loop[L][B][w], reduced[L][B][w];
    double *entries = &A[0][0][0][0], *right = &b[0][0][0], *start = &x0[0][0];
    for (int i = 0; i < L * B * w * w; i++) entries[i] = random_number() / w; /* |A| < 1: nothing grows */
    for (int i = 0; i < L * B * w; i++) right[i] = random_number();
    for (int i = 0; i < B * w; i++) start[i] = random_number();

    bool right_answers = true;
    for (int run = 0; run < 2; run++) {
        const char *where = run ? "openmp" : "serial";
        const dpcr_exec exec = run ? dpcr_openmp() : dpcr_serial();
        int64_t levels_loop = 0, levels_reduced = 0;
        right_answers &= solve(where, exec, 1, loop, &levels_loop) && levels_loop == 0;
        right_answers &=
            solve(where, exec, L, reduced, &levels_reduced) && levels_reduced == 10; /* ceil(log2 L) */

        double difference = 0;
        for (int i = 0; i < L * B * w; i++)
            difference = fmax(difference, fabs((&loop[0][0][0])[i] - (&reduced[0][0][0])[i]));
        printf("%-7s loop and cyclic reduction differ by %.1e\n", where, difference);
        right_answers &= difference < 1e-12;
    }
    puts(right_answers ? "right" : "WRONG");
    return right_answers ? EXIT_SUCCESS : EXIT_FAILURE;
}
