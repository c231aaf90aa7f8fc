/* SPDX-License-Identifier: Apache-2.0
 *
 * Numbers of a row.  A dense block is a Householder reflection with its columns rotated: orthogonal,
 * not symmetric, cheap, and of known norm.
 */
#include "recurrence_case.h"

#include "numbers.h"
#include "rng.h"

#include <stdlib.h>

enum { PAD = 3, WIDEST = 128 };

static image image_create(dpcr_dtype dtype, int64_t count, int64_t origin) {
    image m = {.size = (size_t)count * number_size(dtype), .origin = (size_t)origin * number_size(dtype)};
    m.bytes = allocate(m.size);
    memset(m.bytes, 0xff, m.size);
    return m;
}

/* Strides of L x B pieces of `size` elements; returns how many elements they span. */
static int64_t place(const recurrence_row *row, int64_t B, int64_t size, int64_t *step, int64_t *sample) {
    const int64_t pad = row->layout & PADDED ? PAD : 0;
    if (row->layout & BATCH_FIRST) {
        *step = size + pad;
        *sample = row->L * *step + pad;
    } else {
        *sample = size + pad;
        *step = B * *sample + pad;
    }
    return row->L > 0 && B > 0 && size > 0 ? (row->L - 1) * *step + (B - 1) * *sample + size : 0;
}

/* Turns the steps of a view around; returns where its data pointer goes. */
static int64_t reverse(const recurrence_row *row, int64_t count, int64_t *step) {
    const int64_t origin = count > 0 && row->layout & REVERSED ? (row->L - 1) * *step : 0;
    *step = row->layout & REVERSED ? -*step : *step;
    return origin;
}

/* The row with the layout of one of its arrays. */
static recurrence_row row_of(const recurrence_row *row, role of) {
    recurrence_row own = *row;
    const int own_bits = BATCH_FIRST | REVERSED | PADDED | BY_COLUMNS;
    if (row->mix != 0) {
        rng random = {row->mix + (row->layout & IN_PLACE && of == OF_X ? OF_B : of)};
        own.layout = (row->layout & ~own_bits) | ((int)rng_below(&random, LAYOUTS) & own_bits);
    }
    return own;
}

image image_vectors(const recurrence_row *row, role of, dpcr_dtype dtype, dpcr_vectors *view) {
    const recurrence_row own = row_of(row, of);
    const int64_t count = place(&own, own.B, own.w, &view->step, &view->sample);
    const image m = image_create(dtype, count, reverse(&own, count, &view->step));
    view->data = m.bytes + m.origin;
    return m;
}

image image_start(const recurrence_row *row, role of, dpcr_dtype dtype, dpcr_vectors *view) {
    recurrence_row one = row_of(row, of);
    one.L = 1;
    one.mix = 0;
    one.layout &= ~REVERSED;
    const image m = image_vectors(&one, of, dtype, view);
    view->step = 0;
    return m;
}

image image_blocks(const recurrence_row *row, role of, dpcr_dtype dtype, dpcr_blocks *view) {
    const recurrence_row own = row_of(row, of);
    const int64_t pad = own.layout & PADDED ? PAD : 0, lead = row->w + pad;
    const int64_t dense = row->w > 0 ? (row->w - 1) * lead + row->w : 0;
    const int64_t sizes[] = {dense, row->w, 1, 0};
    const int64_t count =
        place(&own, row->shared ? 1 : row->B, sizes[row->block], &view->step, &view->sample);
    const image m = image_create(dtype, count, reverse(&own, count, &view->step));
    view->data = row->block == DPCR_IDENTITY ? NULL : m.bytes + m.origin;
    view->sample = row->shared ? 0 : view->sample;
    view->row = own.layout & BY_COLUMNS ? 1 : lead;
    view->column = own.layout & BY_COLUMNS ? lead : 1;
    return m;
}

/* Takes a copy in which the addressed bytes have been set to 0xff. */
static bool blank(const image *m, unsigned char *copy) {
    bool intact = true;
    for (size_t i = 0; i < m->size; i++) intact = intact && copy[i] == 0xff;
    free(copy);
    return intact;
}

static unsigned char *copy_of(const image *m) {
    unsigned char *copy = allocate(m->size);
    memcpy(copy, m->bytes, m->size);
    return copy;
}

bool vectors_gaps_intact(const image *m, const dpcr_recurrence *p, const dpcr_vectors *view) {
    unsigned char *copy = copy_of(m);
    const size_t size = number_size(p->dtype);
    for (int64_t l = 0; l < p->L; l++)
        for (int64_t s = 0; s < p->B; s++)
            memset(copy + m->origin + vectors_index(view, l, s, 0) * (int64_t)size, 0xff,
                   (size_t)p->w * size);
    return blank(m, copy);
}

bool blocks_gaps_intact(const image *m, const dpcr_recurrence *p, const dpcr_blocks *view) {
    unsigned char *copy = copy_of(m);
    const size_t size = number_size(p->dtype);
    for (int64_t l = 0; l < p->L && m->size > 0; l++)
        for (int64_t s = 0; s < block_samples(p, view); s++)
            for (int64_t k = 0; k < block_elements(p); k++)
                memset(copy + m->origin + block_index(p, view, l, s, k) * (int64_t)size, 0xff, size);
    return blank(m, copy);
}

static double largest_norm(const recurrence_row *row) {
    const double most = exp(35.0 / (double)(row->L > 0 ? row->L : 1)); /* grows to at most 1e15 */
    const double norms[SPECTRA] = {0.9, 1, most < 2 ? most : 2, 0.95, 0.95};
    return row->block == DPCR_IDENTITY ? 1 : norms[row->spectrum];
}

/* One dense block into full (w,w), row-major: scale * reflection * rotation of columns; singular: one
 * column of zeros. */
static void draw_dense(rng *random, int64_t w, double scale, bool singular, double *full) {
    double v[WIDEST], square = 0;
    const int64_t turn = rng_below(random, w), lost = singular ? rng_below(random, w) : -1;
    for (int64_t i = 0; i < w; i++) {
        v[i] = rng_normal(random);
        square += v[i] * v[i];
    }
    for (int64_t i = 0; i < w; i++) {
        for (int64_t j = 0; j < w; j++) {
            const double reflection = (i == j) - 2 * v[i] * v[j] / square;
            full[i * w + (j + turn) % w] = (j + turn) % w == lost ? 0 : scale * reflection;
        }
    }
}

/* The numbers of block (l, s), of the row's kind and spectrum, into full (w,w), (w) or (1). */
static void draw_block(const recurrence_row *row, double norm, int64_t l, rng *random, double *full) {
    const double low = row->spectrum == ORTHOGONAL ? 1 : 0.8, scale = norm * rng_uniform(random, low, 1);
    const int64_t size = row->block == DPCR_SCALAR ? 1 : row->w;
    const bool singular = row->spectrum == SINGULAR, zero = row->spectrum == ZERO_BLOCKS && l % 3 == 1;
    if (row->block == DPCR_DENSE) {
        draw_dense(random, row->w, zero ? 0 : scale, singular, full);
        return;
    }
    for (int64_t i = 0; i < size; i++) {
        const double sign = rng_below(random, 2) ? 1 : -1;
        const bool lost = zero || (singular && rng_below(random, 3) == 0);
        full[i] = lost ? 0 : sign * (row->spectrum == ORTHOGONAL ? 1 : norm * rng_uniform(random, low, 1));
    }
}

static void fill_blocks(recurrence_case *c, rng *random) {
    const dpcr_recurrence *p = &c->problem;
    double *full = allocate((size_t)block_elements(p) * sizeof(double));
    for (int64_t l = p->x0.data == NULL; l < p->L && block_elements(p) > 0 && p->w > 0; l++)
        for (int64_t s = 0; s < block_samples(p, &p->A); s++) {
            draw_block(&c->row, c->norm, l, random, full);
            for (int64_t k = 0; k < block_elements(p); k++)
                number_set(p->dtype, p->A.data, block_index(p, &p->A, l, s, k), full[k]);
        }
    free(full);
}

static void fill_vectors(const dpcr_recurrence *p, const dpcr_vectors *view, int64_t L, rng *random) {
    for (int64_t l = 0; l < L; l++) {
        for (int64_t s = 0; s < p->B; s++) {
            for (int64_t i = 0; i < p->w; i++) {
                number_set(p->dtype, view->data, vectors_index(view, l, s, i), rng_normal(random));
            }
        }
    }
}

recurrence_case recurrence_case_create(const recurrence_row *row, dpcr_dtype dtype) {
    rng random = {row->seed};
    recurrence_case c = {.row = *row, .norm = largest_norm(row)};
    dpcr_recurrence *p = &c.problem;
    *p = (dpcr_recurrence){.dtype = dtype,
                           .block = row->block,
                           .transposed = row->transposed,
                           .L = row->L,
                           .B = row->B,
                           .w = row->w};
    c.A = image_blocks(row, OF_A, dtype, &p->A);
    c.b = image_vectors(row, OF_B, dtype, &p->b);
    c.x = image_vectors(row, OF_X, dtype, &p->x);
    c.x0 = image_start(row, OF_X0, dtype, &p->x0);
    p->x0.data = row->start ? p->x0.data : NULL;
    fill_blocks(&c, &random);
    fill_vectors(p, &p->b, p->L, &random);
    fill_vectors(p, &p->x0, row->start ? 1 : 0, &random);
    return c;
}

void recurrence_case_destroy(recurrence_case *c) {
    free(c->A.bytes);
    free(c->b.bytes);
    free(c->x.bytes);
    free(c->x0.bytes);
}
