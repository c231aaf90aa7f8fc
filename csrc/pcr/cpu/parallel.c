/* SPDX-License-Identifier: Apache-2.0
 *
 * Tasks over threads.  A call is cut into tasks of fixed content; the threads only decide who runs
 * which, so results do not depend on them.  Every running thread owns one piece of scratch.
 */
#include "pcr/internal.h"

struct slots {
    const struct tasks *tasks;
    int64_t count;
};

static void run_slots(void *argument, int64_t begin, int64_t end) {
    const struct slots *slots = argument;
    const struct tasks *tasks = slots->tasks;
    for (int64_t slot = begin; slot < end; slot++) {
        void *scratch = tasks->scratch ? tasks->scratch + (size_t)slot * tasks->scratch_bytes : NULL;
        const int64_t last = dpcr_edge(slot + 1, tasks->count, slots->count);
        for (int64_t task = dpcr_edge(slot, tasks->count, slots->count); task < last; task++)
            tasks->run(tasks->pass, task, scratch);
    }
}

void dpcr_run_tasks(dpcr_exec exec, const struct tasks *tasks) {
    const int64_t most = dpcr_slots(exec, tasks->count);
    const double paying = exec.grain > 0 ? tasks->work / (double)exec.grain : (double)most;
    const struct slots slots = {tasks, paying < (double)most ? dpcr_max((int64_t)paying, 1) : most};
    if (tasks->count == 0) return;
    if (slots.count == 1 || !exec.parallel_for)
        run_slots((void *)&slots, 0, slots.count);
    else
        exec.parallel_for(exec.pool, slots.count, run_slots, (void *)&slots);
}

dpcr_exec dpcr_serial(void) {
    return (dpcr_exec){.device = dpcr_cpu_device(), .threads = 1};
}

#ifdef _OPENMP
#include <omp.h>

/* About 20 us of one core: starting a thread costs 2 us at best, a scheduler slice on a busy machine. */
static const int64_t kGrain = 400000;

static void openmp_for(void *pool, int64_t count, dpcr_body body, void *argument) {
    (void)pool;
#pragma omp parallel for schedule(static, 1)
    for (int64_t i = 0; i < count; i++) body(argument, i, i + 1);
}

dpcr_exec dpcr_openmp(void) {
    return (dpcr_exec){.device = dpcr_cpu_device(),
                       .threads = omp_get_max_threads(),
                       .parallel_for = openmp_for,
                       .grain = kGrain};
}
#else
dpcr_exec dpcr_openmp(void) {
    return dpcr_serial();
}
#endif
