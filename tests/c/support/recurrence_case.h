/* SPDX-License-Identifier: Apache-2.0
 *
 * A row of the table made into numbers: host images of all arrays in the row's layout, and the
 * problem whose pointers lead into them (so that the reference reads the very strides that the
 * implementation gets).  Every byte that the problem does not address is 0xff, and so is A_1 where no
 * x0 makes it count: reading one of them gives NaN, writing one is seen.
 */
#ifndef DEEPPCR_TEST_RECURRENCE_CASE_H
#define DEEPPCR_TEST_RECURRENCE_CASE_H

#include "backend.h"
#include "recurrence_rows.h"

/* An array and where its view's data pointer lies in it. */
typedef struct image {
    unsigned char *bytes;
    size_t size, origin;
} image;

typedef struct recurrence_case {
    recurrence_row row;
    dpcr_recurrence problem; /* of host pointers; x leads into an image of 0xff */
    image A, b, x0, x;
    double norm; /* no |A_l|_2 is larger */
} recurrence_case;

recurrence_case recurrence_case_create(const recurrence_row *row, dpcr_dtype dtype);
void recurrence_case_destroy(recurrence_case *c);

/* The arrays of a row, each of which may have a layout of its own. */
typedef enum role { OF_A, OF_B, OF_X0, OF_X, OF_GRADIENT_A, OF_GRADIENT_B, OF_GRADIENT_X0 } role;

/* Arrays in a row's layout, all bytes 0xff, and the strides of their views; the caller frees
 * image.bytes. */
image image_vectors(const recurrence_row *row, role of, dpcr_dtype dtype, dpcr_vectors *view);
image image_blocks(const recurrence_row *row, role of, dpcr_dtype dtype, dpcr_blocks *view);
image image_start(const recurrence_row *row, role of, dpcr_dtype dtype, dpcr_vectors *view);

/* Element i of vector (l, s) in a view; steps and samples count from 0. */
static inline int64_t vectors_index(const dpcr_vectors *v, int64_t l, int64_t s, int64_t i) {
    return l * v->step + s * v->sample + i;
}

/* How many numbers a block has, and where number k of block (l, s) lies in a view: those of a dense
 * block in row-major order whatever its strides. */
static inline int64_t block_elements(const dpcr_recurrence *p) {
    const int64_t elements[] = {p->w * p->w, p->w, 1, 0};
    return elements[p->block];
}

static inline int64_t block_index(const dpcr_recurrence *p, const dpcr_blocks *A, int64_t l, int64_t s,
                                  int64_t k) {
    const int64_t block = l * A->step + s * A->sample;
    return p->block == DPCR_DENSE ? block + k / p->w * A->row + k % p->w * A->column : block + k;
}

/* How many different blocks a step has in a view. */
static inline int64_t block_samples(const dpcr_recurrence *p, const dpcr_blocks *A) {
    return A->sample == 0 ? 1 : p->B;
}

/* True where all bytes of an image that a view does not address are 0xff. */
bool vectors_gaps_intact(const image *m, const dpcr_recurrence *p, const dpcr_vectors *view);
bool blocks_gaps_intact(const image *m, const dpcr_recurrence *p, const dpcr_blocks *view);

#endif
