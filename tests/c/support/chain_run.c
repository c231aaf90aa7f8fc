/* SPDX-License-Identifier: Apache-2.0
 *
 * Arrays of a chain case on a backend, the calls, and what they left behind.
 */
#include "chain_run.h"

#include "check.h"
#include "numbers.h"

#include <math.h>
#include <stdlib.h>

bool outputs_equal(const output *a, const output *b) {
    return a->bytes == b->bytes && (a->bytes == 0 || memcmp(a->data, b->data, a->bytes) == 0);
}

/* An array on the backend that is NULL to the call where it was not given. */
typedef struct lent {
    buffer buffer;
    const void *image; /* host contents of an input */
    bool given;
} lent;

static size_t shift_of(const chain_case *c) {
    return c->row.shifted ? number_size(c->dtype) : 0;
}

static size_t bytes_of(const chain_case *c, int64_t count) {
    return (size_t)count * number_size(c->dtype);
}

static lent lend_input(const chain_case *c, const backend *at, const void *image, int64_t count) {
    const bool given = image != NULL;
    return (lent){buffer_create(at, image, given ? bytes_of(c, count) : 0, shift_of(c)), image, given};
}

static lent lend_output(const chain_case *c, const backend *at, bool wanted, int64_t count) {
    return (lent){buffer_create(at, NULL, wanted ? bytes_of(c, count) : 0, shift_of(c)), NULL, wanted};
}

/* (DPCR_REPORT,B) doubles */
static lent lend_report(const chain_case *c, const backend *at, bool wanted) {
    const size_t bytes = (size_t)(DPCR_REPORT * c->row.B) * sizeof(double);
    return (lent){buffer_create(at, NULL, wanted ? bytes : 0, c->row.shifted ? sizeof(double) : 0), NULL,
                  wanted};
}

static void *address(const lent *a) {
    return a->given ? buffer_data(&a->buffer) : NULL;
}

/* Guards whole and an input unchanged? */
static bool take_back_input(lent *a) {
    unsigned char *now = allocate(a->buffer.bytes);
    bool intact = buffer_read(&a->buffer, now);
    intact = intact && (!a->given || a->buffer.bytes == 0 || memcmp(now, a->image, a->buffer.bytes) == 0);
    free(now);
    buffer_destroy(&a->buffer);
    return intact;
}

/* The sign of a NaN depends on the order of the operands that made it, which may be anything: it is
 * cleared, but for the NaN of bytes that nobody has written. */
static void drop_signs(dpcr_dtype dtype, output *a) {
    const size_t size = number_size(dtype), count = a->data ? a->bytes / size : 0;
    for (size_t i = 0; i < count; i++) {
        unsigned char *bytes = (unsigned char *)a->data + i * size;
        if (isnan(number_get(dtype, a->data, (int64_t)i)) && bytes[0] != 0xff) bytes[size - 1] &= 0x7f;
    }
}

static bool take_back_output(dpcr_dtype dtype, lent *a, output *to) {
    *to = (output){a->buffer.bytes, a->given ? allocate(a->buffer.bytes) : NULL};
    const bool intact = buffer_read(&a->buffer, to->data);
    buffer_destroy(&a->buffer);
    drop_signs(dtype, to);
    return intact;
}

typedef struct parameters {
    lent array[DPCR_PARAMETERS];
} parameters;

static parameters lend_parameters(const chain_case *c, const backend *at, dpcr_chain *chain) {
    parameters p;
    *chain = c->chain;
    for (int i = 0; i < DPCR_PARAMETERS; i++) {
        p.array[i] = lend_input(c, at, c->chain.parameter[i], c->parameter[i].count);
        chain->parameter[i] = address(&p.array[i]);
    }
    return p;
}

static bool take_back_parameters(parameters *p) {
    bool intact = true;
    for (int i = 0; i < DPCR_PARAMETERS; i++) intact = take_back_input(&p->array[i]) && intact;
    return intact;
}

/* Workspace of NaN, or of a finite number in either dtype. */
static buffer workspace_create(const backend *at, size_t bytes, bool used) {
    unsigned char *image = used ? allocate(bytes) : NULL;
    if (used) memset(image, 0x3d, bytes);
    buffer work = buffer_create(at, image, bytes, 0);
    free(image);
    return work;
}

/* ---- forward -------------------------------------------------------------------------------- */

static void propagate(forward_run *run, const dpcr_chain *chain, const dpcr_propagation *pass,
                      const backend *at, dpcr_exec exec, const dpcr_plan *plan) {
    run->status = dpcr_chain_propagate_workspace(exec, chain, pass, plan, &run->bytes);
    run->short_status = DPCR_SMALL_WORKSPACE;
    if (run->status != DPCR_OK) return;
    buffer work = buffer_create(at, NULL, run->bytes, 0);
    dpcr_buffer lent = {run->bytes > 0 ? buffer_data(&work) : NULL, run->bytes};
    if (run->bytes > 0) {
        lent.bytes--;
        run->short_status = dpcr_chain_propagate(exec, chain, pass, plan, lent);
        lent.bytes++;
    }
    run->status = dpcr_chain_propagate(exec, chain, pass, plan, lent);
    run->intact = buffer_read(&work, NULL) && run->intact;
    buffer_destroy(&work);
}

forward_run forward_run_create(const chain_case *c, const void *starts, int want, const backend *at, mode m,
                               dpcr_plan plan) {
    const int64_t S = plan.segments, state = c->row.B * c->row.w;
    forward_run run = {.intact = true};
    dpcr_chain chain;
    parameters p = lend_parameters(c, at, &chain);
    lent from = lend_input(c, at, starts, S * state), ends = lend_output(c, at, true, S * state);
    lent states = lend_output(c, at, want & WANT_STATES, c->row.L * state);
    lent tangents = lend_output(c, at, want & WANT_TANGENTS, S * state * c->row.w);
    const dpcr_propagation pass = {address(&from), address(&ends), address(&states), address(&tangents)};
    propagate(&run, &chain, &pass, at, backend_exec(at, m), &plan);
    run.intact = take_back_parameters(&p) && run.intact;
    run.intact = take_back_input(&from) && run.intact;
    run.intact = take_back_output(c->dtype, &ends, &run.ends) && run.intact;
    run.intact = take_back_output(c->dtype, &states, &run.states) && run.intact;
    run.intact = take_back_output(c->dtype, &tangents, &run.tangents) && run.intact;
    return run;
}

void forward_run_destroy(forward_run *run) {
    free(run->ends.data);
    free(run->states.data);
    free(run->tangents.data);
}

/* ---- the whole chain ------------------------------------------------------------------------ */

static void solve(solve_run *run, const dpcr_chain *chain, const dpcr_solution *solution, bool used,
                  const backend *at, mode m, const dpcr_plan *plan) {
    const dpcr_exec exec = backend_exec(at, m);
    run->status = dpcr_chain_solve_workspace(exec, chain, solution, plan, &run->bytes);
    run->short_status = DPCR_SMALL_WORKSPACE;
    if (run->status != DPCR_OK) return;
    buffer work = workspace_create(at, run->bytes, used);
    dpcr_buffer lent = {run->bytes > 0 ? buffer_data(&work) : NULL, run->bytes};
    if (run->bytes > 0) {
        lent.bytes--;
        run->short_status = dpcr_chain_solve(exec, chain, solution, plan, lent);
        lent.bytes++;
    }
    run->status = dpcr_chain_solve(exec, chain, solution, plan, lent);
    run->intact = buffer_read(&work, NULL) && run->intact;
    buffer_destroy(&work);
}

solve_run solve_run_create(const chain_case *c, solve_input in, int want, const backend *at, mode m,
                           dpcr_plan plan) {
    const int64_t L = c->row.L, state = c->row.B * c->row.w, C = dpcr_checkpoints(L, plan.segments);
    solve_run run = {.intact = true};
    dpcr_chain chain;
    parameters p = lend_parameters(c, at, &chain);
    lent z0 = lend_input(c, at, c->z0.data, state), guess = lend_input(c, at, in.guess, L * state);
    lent z = lend_output(c, at, true, state), states = lend_output(c, at, want & WANT_STATES, L * state);
    lent checkpoints = lend_output(c, at, want & WANT_CHECKPOINTS, C * state);
    lent report = lend_report(c, at, want & WANT_REPORT);
    const dpcr_solution solution = {.z0 = address(&z0),
                                    .guess = address(&guess),
                                    .z = address(&z),
                                    .states = address(&states),
                                    .checkpoints = address(&checkpoints),
                                    .report = address(&report),
                                    .newton = in.newton};
    solve(&run, &chain, &solution, want & WANT_USED, at, m, &plan);
    run.intact = take_back_parameters(&p) && run.intact;
    run.intact = take_back_input(&z0) && run.intact;
    run.intact = take_back_input(&guess) && run.intact;
    run.intact = take_back_output(c->dtype, &z, &run.z) && run.intact;
    run.intact = take_back_output(c->dtype, &states, &run.states) && run.intact;
    run.intact = take_back_output(c->dtype, &checkpoints, &run.checkpoints) && run.intact;
    run.intact = take_back_output(DPCR_F64, &report, &run.report) && run.intact;
    return run;
}

void solve_run_destroy(solve_run *run) {
    free(run->z.data);
    free(run->states.data);
    free(run->checkpoints.data);
    free(run->report.data);
}

double report_get(const output *report, int row, int64_t sample, int64_t B) {
    return report->data ? number_get(DPCR_F64, report->data, row * B + sample) : NAN;
}

/* ---- backward ------------------------------------------------------------------------------- */

static void pull_back(pullback_run *run, const dpcr_chain *chain, const dpcr_pullback *pass, bool used,
                      const backend *at, mode m, const dpcr_plan *plan) {
    const dpcr_exec exec = backend_exec(at, m);
    run->status = dpcr_chain_backward_workspace(exec, chain, pass, plan, &run->bytes);
    run->short_status = DPCR_SMALL_WORKSPACE;
    if (run->status != DPCR_OK) return;
    buffer work = workspace_create(at, run->bytes, used);
    dpcr_buffer lent = {run->bytes > 0 ? buffer_data(&work) : NULL, run->bytes};
    if (run->bytes > 0) {
        lent.bytes--;
        run->short_status = dpcr_chain_backward(exec, chain, pass, plan, lent);
        lent.bytes++;
    }
    run->status = dpcr_chain_backward(exec, chain, pass, plan, lent);
    run->intact = buffer_read(&work, NULL) && run->intact;
    buffer_destroy(&work);
}

pullback_run pullback_run_create(const chain_case *c, pullback_input in, int want, const backend *at, mode m,
                                 dpcr_plan plan) {
    const int64_t L = c->row.L, state = c->row.B * c->row.w, C = dpcr_checkpoints(L, plan.segments);
    pullback_run run = {.intact = true};
    dpcr_chain chain;
    parameters p = lend_parameters(c, at, &chain);
    lent input[] = {lend_input(c, at, c->z0.data, state), lend_input(c, at, in.states, L * state),
                    lend_input(c, at, in.checkpoints, C * state), lend_input(c, at, in.gz, state),
                    lend_input(c, at, in.gstates, L * state)};
    lent z0 = lend_output(c, at, want & WANT_Z0, state), gradient[DPCR_PARAMETERS];
    lent report = lend_report(c, at, want & WANT_PULLBACK_REPORT);
    dpcr_pullback pass = {.z0 = address(&input[0]),
                          .states = address(&input[1]),
                          .checkpoints = address(&input[2]),
                          .gz = address(&input[3]),
                          .gstates = address(&input[4]),
                          .gz0 = address(&z0),
                          .frozen = in.frozen,
                          .report = address(&report),
                          .newton = in.newton};
    for (int i = 0; i < DPCR_PARAMETERS; i++) {
        const bool wanted = want >> i & 1 && chain_row_has(&c->row, i);
        gradient[i] = lend_output(c, at, wanted, chain_row_pieces(&c->row, i) * chain_row_size(&c->row, i));
        pass.gparameter[i] = address(&gradient[i]);
    }
    pull_back(&run, &chain, &pass, want & WANT_PULLBACK_USED, at, m, &plan);
    run.intact = take_back_parameters(&p) && run.intact;
    for (int i = 0; i < 5; i++) run.intact = take_back_input(&input[i]) && run.intact;
    run.intact = take_back_output(c->dtype, &z0, &run.z0) && run.intact;
    run.intact = take_back_output(DPCR_F64, &report, &run.report) && run.intact;
    for (int i = 0; i < DPCR_PARAMETERS; i++)
        run.intact = take_back_output(c->dtype, &gradient[i], &run.parameter[i]) && run.intact;
    return run;
}

void pullback_run_destroy(pullback_run *run) {
    free(run->z0.data);
    free(run->report.data);
    for (int i = 0; i < DPCR_PARAMETERS; i++) free(run->parameter[i].data);
}
