/* SPDX-License-Identifier: Apache-2.0
 *
 * What the layers share and no user sees: error returns, the workspace arena, tasks over threads.
 */
#ifndef DEEPPCR_INTERNAL_H
#define DEEPPCR_INTERNAL_H

#include "pcr.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Small functions that kernels call, too. */
#ifdef __CUDACC__
#define DPCR_EVERYWHERE __host__ __device__
#else
#define DPCR_EVERYWHERE
#endif

/* ---- errors: a status up, the sentence in a thread-local ------------------------------------ */

/* Exported for the libraries of other devices, whose failures belong into the same detail. */
DPCR_API dpcr_status dpcr_fail(dpcr_status status, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

#define RETURN_IF(call)                         \
    do {                                        \
        const dpcr_status status_ = (call);     \
        if (status_ != DPCR_OK) return status_; \
    } while (0)

#define REQUIRE(condition, ...)                                             \
    do {                                                                    \
        if (!(condition)) return dpcr_fail(DPCR_BAD_ARGUMENT, __VA_ARGS__); \
    } while (0)

/* DPCR_OK where the product of three sizes (and 8 bytes each) fits an int64; name goes into the sentence. */
dpcr_status dpcr_check_size(const char *name, int64_t a, int64_t b, int64_t c);
dpcr_status dpcr_check_exec(dpcr_exec exec);
dpcr_status dpcr_check_workspace(dpcr_buffer workspace, size_t needed);

/* ---- workspace: the query runs the carve with base = NULL, so the two cannot disagree ------- */

struct arena {
    char *base;
    size_t used;
};

static inline DPCR_EVERYWHERE size_t dpcr_round_up(size_t bytes) {
    return (bytes + DPCR_ALIGNMENT - 1) / DPCR_ALIGNMENT * DPCR_ALIGNMENT;
}

static inline DPCR_EVERYWHERE void *dpcr_take(struct arena *arena, size_t bytes) {
    char *taken = arena->base ? arena->base + arena->used : NULL;
    arena->used += dpcr_round_up(bytes);
    return taken;
}

static inline DPCR_EVERYWHERE size_t dpcr_size_of(dpcr_dtype dtype) {
    return dtype == DPCR_F32 ? sizeof(float) : sizeof(double);
}

/* ---- tasks: fixed pieces of work, whoever runs them ----------------------------------------- */

struct tasks {
    void (*run)(const void *pass, int64_t task, void *scratch);
    const void *pass;
    int64_t count;
    double work;          /* operations of all tasks together: decides whether threads are worth starting */
    char *scratch;        /* dpcr_slots(...) pieces of scratch_bytes */
    size_t scratch_bytes; /* of one running task */
};

/* Pieces of scratch that a set of tasks needs: as many as may run at once. */
static inline int64_t dpcr_slots(dpcr_exec exec, int64_t count) {
    const int64_t threads = exec.parallel_for ? exec.threads : 1;
    return count < threads ? count : threads;
}

void dpcr_run_tasks(dpcr_exec exec, const struct tasks *tasks);

static inline DPCR_EVERYWHERE int64_t dpcr_min(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static inline DPCR_EVERYWHERE int64_t dpcr_max(int64_t a, int64_t b) {
    return a > b ? a : b;
}

static inline DPCR_EVERYWHERE int64_t dpcr_ceil_div(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

/* First step (from 0) of segment k = 0..S of a chain of L steps: floor(k L / S) without overflow. */
static inline DPCR_EVERYWHERE int64_t dpcr_edge(int64_t k, int64_t L, int64_t S) {
    return S == L ? k : k * (L / S) + k * (L % S) / S; /* divisions cost as much as a short segment */
}

/* ---- devices -------------------------------------------------------------------------------- */

struct recurrence_kernels;
struct recurrence_solver;
struct chain_solver;

struct dpcr_device {
    const char *name;
    int index; /* where other layers keep their kernels for it: a dpcr_cpu_level */
    const struct recurrence_kernels *recurrence[2]; /* by dtype, the CPU's alone: NULL elsewhere */
    const struct recurrence_solver *solver;
    const struct chain_solver *chains; /* NULL: the driver of csrc/ops over the kernels of `index` */
};

#ifdef __cplusplus
}
#endif

#endif
