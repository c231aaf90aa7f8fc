/* SPDX-License-Identifier: Apache-2.0
 *
 * Plain loops; see the header.
 */
#include "recurrence_reference.h"

#include "numbers.h"
#include "recurrence_case.h"

#include <math.h>
#include <stdlib.h>

double reference_vector(dpcr_dtype dtype, const dpcr_vectors *v, int64_t l, int64_t s, int64_t i) {
    return number_get(dtype, v->data, vectors_index(v, l, s, i));
}

double reference_block(const dpcr_recurrence *p, int64_t l, int64_t s, int64_t i, int64_t j) {
    if (p->block == DPCR_IDENTITY || (p->block != DPCR_DENSE && i != j)) return i == j;
    const int64_t k = p->block == DPCR_DENSE ? i * p->w + j : p->block == DPCR_DIAGONAL ? i : 0;
    return number_get(p->dtype, p->A.data, block_index(p, &p->A, l, s, k));
}

/* Row i of A_l (or of A_l^T) times v; only entries that the kind of block stores are looked at. */
static double row_times(const dpcr_recurrence *p, int64_t l, int64_t s, int64_t i, const double *v,
                        bool transposed) {
    if (p->block != DPCR_DENSE) {
        return reference_block(p, l, s, i, i) * v[i];
    }
    double sum = 0;
    for (int64_t j = 0; j < p->w; j++) {
        sum += (transposed ? reference_block(p, l, s, j, i) : reference_block(p, l, s, i, j)) * v[j];
    }
    return sum;
}

static void forward(const dpcr_recurrence *p, int64_t s, double *x) {
    for (int64_t l = 0; l < p->L; l++) {
        for (int64_t i = 0; i < p->w; i++) {
            double value = reference_vector(p->dtype, &p->b, l, s, i);
            if (l > 0) {
                value += row_times(p, l, s, i, x + ((l - 1) * p->B + s) * p->w, false);
            }
            x[(l * p->B + s) * p->w + i] = value;
        }
        for (int64_t i = 0; i < p->w && l == 0 && p->x0.data != NULL; i++) {
            for (int64_t j = 0; j < p->w; j++) {
                if (p->block == DPCR_DENSE || i == j) {
                    x[s * p->w + i] +=
                        reference_block(p, 0, s, i, j) * reference_vector(p->dtype, &p->x0, 0, s, j);
                }
            }
        }
    }
}

static void backward(const dpcr_recurrence *p, int64_t s, double *y) {
    for (int64_t l = p->L - 1; l >= 0; l--) {
        for (int64_t i = 0; i < p->w; i++) {
            double value = reference_vector(p->dtype, &p->b, l, s, i);
            if (l + 1 < p->L) {
                value += row_times(p, l + 1, s, i, y + ((l + 1) * p->B + s) * p->w, true);
            }
            y[(l * p->B + s) * p->w + i] = value;
        }
    }
}

void reference_recurrence(const dpcr_recurrence *p, double *x) {
    for (int64_t s = 0; s < p->B; s++) {
        if (p->transposed) {
            backward(p, s, x);
        } else {
            forward(p, s, x);
        }
    }
}

/* Adds y_l x_{l-1}^T, in the structure of the block, to one block of the gradient. */
static void add_outer(dpcr_block block, int64_t w, const double *y, const double *x, double *gradient) {
    for (int64_t i = 0; i < w; i++) {
        for (int64_t j = 0; j < w && block == DPCR_DENSE; j++) {
            gradient[i * w + j] += y[i] * x[j];
        }
        if (block == DPCR_DIAGONAL) {
            gradient[i] += y[i] * x[i];
        } else if (block == DPCR_SCALAR) {
            gradient[0] += y[i] * x[i];
        }
    }
}

static void block_gradients(const dpcr_recurrence *p, const double *x, const double *y, bool summed,
                            double *gA) {
    double *start = allocate((size_t)p->w * sizeof(double));
    const int64_t size = block_elements(p);
    for (int64_t k = 0; k < p->L * (summed ? 1 : p->B) * size; k++) {
        gA[k] = 0;
    }
    for (int64_t s = 0; s < p->B; s++) {
        for (int64_t l = 1; l < p->L; l++) {
            add_outer(p->block, p->w, y + (l * p->B + s) * p->w, x + ((l - 1) * p->B + s) * p->w,
                      gA + (summed ? l : l * p->B + s) * size);
        }
        for (int64_t i = 0; i < p->w && p->x0.data != NULL; i++) {
            start[i] = reference_vector(p->dtype, &p->x0, 0, s, i);
        }
        if (p->x0.data != NULL && p->L > 0) {
            add_outer(p->block, p->w, y + s * p->w, start, gA + (summed ? 0 : s) * size);
        }
    }
    free(start);
}

void reference_recurrence_gradients(const dpcr_recurrence *p, const double *x, const dpcr_vectors *c,
                                    reference_gradients g) {
    dpcr_recurrence adjoint = *p;
    adjoint.transposed = true;
    adjoint.b = *c;
    reference_recurrence(&adjoint, g.y);
    if (g.A != NULL) {
        block_gradients(p, x, g.y, g.summed, g.A);
    }
    for (int64_t s = 0; g.x0 != NULL && s < p->B; s++) {
        for (int64_t i = 0; i < p->w; i++) {
            g.x0[s * p->w + i] = p->L > 0 ? row_times(p, 0, s, i, g.y + s * p->w, true) : 0;
        }
    }
}

static double norm_of(const dpcr_recurrence *p, const dpcr_vectors *v, int64_t l, int64_t s) {
    double square = 0;
    for (int64_t i = 0; i < p->w; i++) {
        const double element = reference_vector(p->dtype, v, l, s, i);
        square += element * element;
    }
    return sqrt(square);
}

void reference_recurrence_size(const dpcr_recurrence *p, double norm, double *size) {
    for (int64_t s = 0; s < p->B; s++) {
        double length = p->x0.data != NULL ? norm_of(p, &p->x0, 0, s) : 0;
        for (int64_t k = 0; k < p->L; k++) {
            const int64_t l = p->transposed ? p->L - 1 - k : k;
            length = norm * length + norm_of(p, &p->b, l, s);
            size[l * p->B + s] = length;
        }
    }
}

/* Errors of long products add up like sqrt(L w) roundings; the conformance table sees less than a
 * fifth of this. */
double recurrence_error_bound(const dpcr_recurrence *p, double size) {
    const double order = 2 + sqrt((double)p->w);
    return unit_roundoff(p->dtype) * size * order * (4 + sqrt((double)p->L));
}
