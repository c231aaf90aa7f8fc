/* SPDX-License-Identifier: Apache-2.0
 *
 * What is around a call: status codes and their sentences, the detail of each thread, the devices, and
 * the fields of dpcr_exec, each of which must be seen to do what it says and never to change a result.
 */
#include "support/check.h"
#include "support/pool.h"
#include "support/recurrence_run.h"
#include "support/rng.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/* ---- statuses ------------------------------------------------------------------------------- */

static void check_sentences(void) {
    static const dpcr_status codes[] = {DPCR_OK, DPCR_BAD_ARGUMENT, DPCR_UNSUPPORTED, DPCR_SMALL_WORKSPACE,
                                        DPCR_DEVICE};
    const char *unknown = dpcr_strerror((dpcr_status)77);
    check_context("dpcr_strerror");
    CHECK(DPCR_OK == 0, "success is not 0");
    CHECK(unknown && *unknown && unknown == dpcr_strerror((dpcr_status)-99),
          "an unknown code has no sentence");
    for (int i = 0; i < 5; i++) {
        const char *sentence = dpcr_strerror(codes[i]);
        CHECK(i == 0 || codes[i] < 0, "code %d", (int)codes[i]);
        CHECK(sentence && strlen(sentence) > 4 && strcmp(sentence, unknown) != 0, "code %d has no sentence",
              (int)codes[i]);
        for (int j = 0; j < i; j++)
            CHECK(strcmp(sentence, dpcr_strerror(codes[j])) != 0, "codes %d and %d", i, j);
    }
}

static void *fail_elsewhere(void *argument) {
    size_t bytes;
    dpcr_recurrence_workspace(dpcr_serial(), NULL, NULL, &bytes);
    strncpy(argument, dpcr_detail(), 99);
    return NULL;
}

static void check_detail(void) {
    char theirs[100] = {0};
    pthread_t thread;
    size_t bytes;
    check_context("dpcr_detail");
    dpcr_recurrence_workspace((dpcr_exec){.threads = 1}, NULL, NULL, &bytes);
    CHECK(strstr(dpcr_detail(), "exec.device"), "%s", dpcr_detail());
    if (!CHECK(pthread_create(&thread, NULL, fail_elsewhere, theirs) == 0, "no thread")) return;
    pthread_join(thread, NULL);
    CHECK(strstr(theirs, "problem"), "%s", theirs);
    CHECK(strstr(dpcr_detail(), "exec.device"), "another thread's failure is seen here: %s", dpcr_detail());
}

/* ---- devices -------------------------------------------------------------------------------- */

static void check_devices(void) {
    int count;
    const backend *list = backends(&count);
    const dpcr_device *best = NULL;
    check_context("devices");
    CHECK(list[DPCR_GENERIC].device, "the generic kernels are always there");
    CHECK(!dpcr_cpu_device_level((dpcr_cpu_level)-1), "level -1");
    CHECK(!dpcr_cpu_device_level(DPCR_CPU_LEVELS), "level %d", DPCR_CPU_LEVELS);
    for (int i = 0; i < count; i++) {
        if (!list[i].device) continue;
        best = list[i].device;
        CHECK(strlen(dpcr_device_name(best)) > 0, "level %d has no name", i);
        for (int j = 0; j < i; j++)
            CHECK(!list[j].device || strcmp(dpcr_device_name(list[j].device), dpcr_device_name(best)) != 0,
                  "levels %d, %d", i, j);
    }
    CHECK(dpcr_cpu_device() == best, "the best device is not the highest level");
    CHECK(dpcr_device_name(NULL) != NULL, "no device has a name, too");
    CHECK(dpcr_serial().device == best && dpcr_serial().threads == 1 && !dpcr_serial().parallel_for,
          "dpcr_serial");
    CHECK(dpcr_openmp().device == best && dpcr_openmp().threads >= 1, "dpcr_openmp");
}

/* ---- the fields of dpcr_exec ---------------------------------------------------------------- */

/* Counts calls of parallel_for and checks that it is asked for no more bodies than it has threads. */
typedef struct counter {
    int calls;
    int64_t most;
} counter;

static void counting_for(void *pool, int64_t count, dpcr_body body, void *argument) {
    counter *c = pool;
    c->calls++;
    c->most = count > c->most ? count : c->most;
    for (int64_t i = count; i > 0; i--) body(argument, i - 1, i);
}

enum { L = 64, B = 300, W = 8 };

/* A recurrence of dense blocks into x; returns the bytes of its workspace. */
static size_t solve(dpcr_exec exec, double *x) {
    static double A[L * W * W], b[L * B * W];
    const dpcr_plan plan = {.segments = 8};
    rng random = {1};
    for (int i = 0; i < L * W * W; i++) A[i] = 0.3 * rng_normal(&random);
    for (int i = 0; i < L * B * W; i++) b[i] = rng_normal(&random);
    const dpcr_recurrence p = {.dtype = DPCR_F64,
                               .block = DPCR_DENSE,
                               .L = L,
                               .B = B,
                               .w = W,
                               .A = {A, W * W, 0, W, 1},
                               .b = {b, B * W, W},
                               .x = {x, B * W, W}};
    size_t bytes = 0;
    CHECK(dpcr_recurrence_workspace(exec, &p, &plan, &bytes) == DPCR_OK, "%s", dpcr_detail());
    void *work = aligned_alloc(DPCR_ALIGNMENT, (bytes + DPCR_ALIGNMENT) / DPCR_ALIGNMENT * DPCR_ALIGNMENT);
    CHECK(dpcr_recurrence_solve(exec, &p, &plan, (dpcr_buffer){work, bytes}, NULL) == DPCR_OK, "%s",
          dpcr_detail());
    free(work);
    return bytes;
}

static void check_exec(void) {
    static double alone[L * B * W], x[L * B * W];
    check_context("dpcr_exec");
    const size_t bytes = solve(dpcr_serial(), alone);
    counter c = {0, 0};
    dpcr_exec exec = {.device = dpcr_cpu_device(), .threads = 4, .parallel_for = counting_for, .pool = &c};
    const size_t more = solve(exec, x);
    CHECK(memcmp(x, alone, sizeof x) == 0, "four threads: other bits");
    CHECK(c.calls > 0, "parallel_for is not called");
    CHECK(more > bytes, "threads do not size the scratch: %zu bytes for 4, %zu for 1", more, bytes);
    const int calls = c.calls;
    exec.grain = INT64_MAX;
    c = (counter){0, 0};
    solve(exec, x);
    CHECK(c.calls == 0, "%d calls for less work than one grain", c.calls);
    CHECK(memcmp(x, alone, sizeof x) == 0, "a large grain: other bits");
    exec.grain = 1;
    solve(exec, x);
    CHECK(c.calls == calls, "%d calls with the smallest grain, %d without", c.calls, calls);
    exec.parallel_for = NULL;
    memset(x, 0, sizeof x);
    solve(exec, x);
    CHECK(memcmp(x, alone, sizeof x) == 0, "no parallel_for: other bits");
    memset(x, 0, sizeof x);
    solve(dpcr_openmp(), x);
    CHECK(memcmp(x, alone, sizeof x) == 0, "OpenMP: other bits");
}

/* The pools of this suite do cover every range once: otherwise they would prove nothing. */
static void add_one(void *argument, int64_t begin, int64_t end) {
    int *hits = argument;
    for (int64_t i = begin; i < end; i++) hits[i]++;
}

static void check_pools(void) {
    static const int64_t counts[] = {1, 2, 3, 17, 1000};
    check_context("the pools of this suite");
    for (int k = 0; k < 400; k++) {
        const int64_t count = counts[k % 5];
        int hits[1000] = {0};
        if (k % 2)
            shuffled_for(NULL, count, add_one, hits);
        else
            pool_for(pool_of(3), count, add_one, hits);
        int64_t wrong = 0;
        for (int64_t i = 0; i < 1000; i++) wrong += hits[i] != (i < count);
        CHECK(wrong == 0, "%d of %d elements were not visited once", (int)wrong, (int)count);
    }
}

int main(void) {
    check_sentences();
    check_detail();
    check_devices();
    check_exec();
    check_pools();
    return check_finish();
}
