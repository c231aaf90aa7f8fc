/* SPDX-License-Identifier: Apache-2.0
 *
 * Arrays of a case on a backend, the call, and what it left behind.
 */
#include "recurrence_run.h"

#include "numbers.h"

#include <stdlib.h>

bool images_equal(const image *a, const image *b) {
    return a->size == b->size && memcmp(a->bytes, b->bytes, a->size) == 0;
}

bool image_blank(const image *m) {
    bool blank = true;
    for (size_t i = 0; i < m->size; i++) blank = blank && m->bytes[i] == 0xff;
    return blank;
}

static image image_like(const image *like) {
    image m = *like;
    m.bytes = allocate(m.size);
    memset(m.bytes, 0xff, m.size);
    return m;
}

/* The arrays of a problem on a backend; x is the buffer of b where the row says in place. */
typedef struct arrays {
    buffer A, b, x0, x, flags, workspace;
    dpcr_recurrence problem; /* of device pointers */
    bool in_place;
} arrays;

static size_t row_shift(const recurrence_case *c) {
    return c->row.layout & SHIFTED ? number_size(c->problem.dtype) : 0;
}

static void *place(const buffer *b, const image *m) {
    return (char *)buffer_data(b) + m->origin;
}

static arrays arrays_create(const recurrence_case *c, const backend *at) {
    const size_t shift = row_shift(c);
    arrays a = {.problem = c->problem, .in_place = c->row.layout & IN_PLACE};
    dpcr_recurrence *p = &a.problem;
    a.A = buffer_create(at, c->A.bytes, c->A.size, shift);
    a.b = buffer_create(at, c->b.bytes, c->b.size, shift);
    a.x0 = buffer_create(at, c->x0.bytes, c->x0.size, shift);
    a.x = buffer_create(at, NULL, c->x.size, shift);
    a.flags = buffer_create(at, NULL, (size_t)p->B * sizeof(int32_t), 0);
    p->A.data = p->block == DPCR_IDENTITY ? NULL : place(&a.A, &c->A);
    p->b.data = place(&a.b, &c->b);
    p->x0.data = p->x0.data == NULL ? NULL : place(&a.x0, &c->x0);
    p->x.data = a.in_place ? p->b.data : place(&a.x, &c->x);
    p->recomputed = buffer_data(&a.flags);
    return a;
}

static void arrays_destroy(arrays *a) {
    buffer_destroy(&a->A);
    buffer_destroy(&a->b);
    buffer_destroy(&a->x0);
    buffer_destroy(&a->x);
    buffer_destroy(&a->flags);
}

static bool unchanged(const buffer *b, const image *was) {
    image now = image_like(was);
    const bool same = buffer_read(b, now.bytes) && images_equal(&now, was);
    free(now.bytes);
    return same;
}

/* Solves with a workspace of exactly `bytes`, and before that, to no avail, with one byte less. */
static void solve(recurrence_run *run, const arrays *a, const backend *at, dpcr_exec exec,
                  const dpcr_plan *plan) {
    buffer work = buffer_create(at, NULL, run->bytes, 0);
    dpcr_buffer lent = {buffer_data(&work), run->bytes};
    run->short_status = DPCR_SMALL_WORKSPACE;
    if (run->bytes > 0) {
        lent.bytes--;
        run->short_status = dpcr_recurrence_solve(exec, &a->problem, plan, lent, NULL);
        lent.bytes++;
    } else {
        lent.data = NULL;
    }
    run->status = dpcr_recurrence_solve(exec, &a->problem, plan, lent, &run->levels);
    run->intact = buffer_read(&work, NULL) && run->intact;
    buffer_destroy(&work);
}

recurrence_run recurrence_run_create(const recurrence_case *c, const backend *at, mode m, dpcr_plan plan) {
    recurrence_run run = {.x = image_like(&c->x), .levels = -1, .intact = true};
    const dpcr_exec exec = backend_exec(at, m);
    arrays a = arrays_create(c, at);
    run.recomputed = allocate((size_t)c->row.B * sizeof(int32_t));
    run.status = dpcr_recurrence_workspace(exec, &a.problem, &plan, &run.bytes);
    if (run.status == DPCR_OK) {
        solve(&run, &a, at, exec, &plan);
    }
    run.intact = buffer_read(&a.flags, run.recomputed) && run.intact;
    run.intact = buffer_read(a.in_place ? &a.b : &a.x, run.x.bytes) && run.intact;
    run.intact = vectors_gaps_intact(&run.x, &c->problem, &c->problem.x) && run.intact;
    run.intact = (a.in_place || unchanged(&a.b, &c->b)) && run.intact;
    run.intact = unchanged(&a.A, &c->A) && unchanged(&a.x0, &c->x0) && run.intact;
    arrays_destroy(&a);
    return run;
}

void recurrence_run_destroy(recurrence_run *run) {
    free(run->x.bytes);
    free(run->recomputed);
}

/* ---- gradients ------------------------------------------------------------------------------ */

static void differentiate(gradient_run *run, const arrays *a, const dpcr_recurrence_gradients *g,
                          const backend *at, mode m, const dpcr_plan *plan) {
    size_t bytes = 0;
    const dpcr_exec exec = backend_exec(at, m);
    run->status = dpcr_recurrence_workspace(exec, &a->problem, plan, &bytes);
    if (run->status != DPCR_OK) {
        return;
    }
    run->bytes = bytes;
    buffer work = buffer_create(at, NULL, bytes, 0);
    const dpcr_buffer lent = {bytes > 0 ? buffer_data(&work) : NULL, bytes};
    run->status = dpcr_recurrence_backward(exec, &a->problem, g, plan, lent);
    run->intact = buffer_read(&work, NULL) && run->intact;
    buffer_destroy(&work);
}

gradient_run gradient_run_create(const recurrence_case *c, const image *solved, const image *incoming,
                                 int want, const backend *at, mode m, dpcr_plan plan) {
    const size_t shift = row_shift(c);
    gradient_run run = {.intact = true};
    run.b = image_vectors(&c->row, OF_GRADIENT_B, c->problem.dtype, &run.b_view);
    recurrence_row gradient = c->row;
    gradient.shared = c->row.summed;
    run.A = image_blocks(&gradient, OF_GRADIENT_A, c->problem.dtype, &run.A_view);
    run.x0 = image_start(&c->row, OF_GRADIENT_X0, c->problem.dtype, &run.x0_view);
    arrays a = arrays_create(c, at);
    a.x.at->to_device(buffer_data(&a.x), solved->bytes, solved->size);
    a.problem.x.data = place(&a.x, solved); /* not that of b, which an in-place row has lost by now */
    buffer gx = buffer_create(at, incoming->bytes, incoming->size, shift),
           gb = buffer_create(at, NULL, run.b.size, shift);
    buffer gA = buffer_create(at, NULL, run.A.size, shift), gx0 = buffer_create(at, NULL, run.x0.size, shift);
    dpcr_recurrence_gradients g = {.x = c->problem.b, .b = run.b_view, .A = run.A_view, .x0 = run.x0_view};
    g.x.data = place(&gx, incoming);
    g.b.data = place(&gb, &run.b);
    g.A.data = want & WANT_A && c->row.block != DPCR_IDENTITY ? place(&gA, &run.A) : NULL;
    g.x0.data = want & WANT_X0 ? place(&gx0, &run.x0) : NULL;
    differentiate(&run, &a, &g, at, m, &plan);
    run.intact = buffer_read(&gb, run.b.bytes) && buffer_read(&gA, run.A.bytes)
                 && buffer_read(&gx0, run.x0.bytes) && run.intact;
    run.intact =
        vectors_gaps_intact(&run.b, &c->problem, &run.b_view) && unchanged(&gx, incoming) && run.intact;
    run.intact = blocks_gaps_intact(&run.A, &c->problem, &run.A_view) && run.intact;
    run.intact = unchanged(&a.A, &c->A) && unchanged(&a.x0, &c->x0) && unchanged(&a.x, solved) && run.intact;
    buffer_destroy(&gx);
    buffer_destroy(&gb);
    buffer_destroy(&gA);
    buffer_destroy(&gx0);
    arrays_destroy(&a);
    return run;
}

void gradient_run_destroy(gradient_run *run) {
    free(run->b.bytes);
    free(run->A.bytes);
    free(run->x0.bytes);
}
