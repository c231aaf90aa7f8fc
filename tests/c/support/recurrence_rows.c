/* SPDX-License-Identifier: Apache-2.0
 *
 * The table in parts: every length with every kind of segmentation; every batch with every width, and
 * large batches; every layout.  What a part does not run through is drawn at random, and where a drawn
 * row would cost more than COST its batch and width are drawn again.
 */
#include "recurrence_rows.h"

#include "backend.h"
#include "check.h"
#include "reduced.h"
#include "rng.h"

#include <stdio.h>

enum { COST = REDUCED ? 200000 : 4000000, KEEP = REDUCED ? 7 : 1 }; /* one row in KEEP */
enum { CAPACITY = 4096 };

#define COUNT(table) ((int64_t)(sizeof(table) / sizeof((table)[0])))

static const int64_t lengths[] = {0, 1, 2, 3, 31, 32, 33, 100, 1023, 1024, 1025};
static const int64_t batches[] = {0, 1, 2, 5, 33, 70};
static const int64_t widths[] = {0, 1, 2, 3, 4, 5, 8, 16, 17, 32, 64, 100};

typedef struct table {
    recurrence_row *row;
    int count, drawn;
    rng random;
} table;

/* Multiply-adds of a solve, roughly */
static double row_cost(const recurrence_row *row) {
    const double loop = (double)(row->L * row->B * row->w);
    if (row->block != DPCR_DENSE) {
        return loop;
    }
    const double blocks = (double)(row->L * (row->shared ? 1 : row->B));
    return loop * (double)row->w + (row->S > 1 ? 3 * blocks * (double)(row->w * row->w * row->w) : 0);
}

static void table_add(table *t, recurrence_row row) {
    row.start = !row.transposed && row.start;
    row.layout = row.S > 1 ? row.layout & ~IN_PLACE : row.layout;
    row.seed = rng_bits(&t->random);
    if (t->drawn++ % KEEP == 0 && t->count < CAPACITY) {
        t->row[t->count++] = row;
    }
}

static recurrence_row draw(table *t) {
    const recurrence_row row = {
        .block = (dpcr_block)rng_below(&t->random, DPCR_IDENTITY + 1),
        .shared = rng_below(&t->random, 2),
        .summed = rng_below(&t->random, 2),
        .transposed = rng_below(&t->random, 2),
        .start = rng_below(&t->random, 4),
        .spectrum = (spectrum)rng_below(&t->random, SPECTRA),
        .layout = (int)rng_below(&t->random, LAYOUTS),
        .mix = rng_below(&t->random, 2) ? rng_bits(&t->random) : 0,
    };
    return row;
}

static void draw_batch(table *t, recurrence_row *row) {
    do {
        row->B = batches[rng_below(&t->random, COUNT(batches))];
        row->w = widths[rng_below(&t->random, COUNT(widths))];
    } while (row_cost(row) > COST);
}

static void add_lengths(table *t, dpcr_block block, bool transposed) {
    for (int64_t i = 0; i < COUNT(lengths); i++) {
        const int64_t L = lengths[i];
        const int64_t segments[] = {1, 2, 3, 7, L / 2, L - 1, L};
        for (int64_t j = 0; j < COUNT(segments); j++) {
            recurrence_row row = draw(t);
            row.block = block;
            row.transposed = transposed;
            row.L = L;
            row.S = segments[j];
            if (row.S >= 1 && (row.S <= L || row.S == 1)) {
                draw_batch(t, &row);
                table_add(t, row);
            }
        }
    }
}

static void add_widths(table *t, dpcr_block block) {
    for (int64_t i = 0; i < COUNT(batches); i++) {
        for (int64_t j = 0; j < COUNT(widths); j++) {
            recurrence_row row = draw(t);
            row.block = block;
            row.B = batches[i];
            row.w = widths[j];
            do {
                row.L = 1 + rng_below(&t->random, 40);
                row.S = 1 + rng_below(&t->random, row.L);
            } while (row.L > 3 && row_cost(&row) > COST);
            table_add(t, row);
        }
    }
}

static void add_layouts(table *t, dpcr_block block, bool transposed) {
    for (int layout = 0; layout < LAYOUTS; layout++) {
        recurrence_row row = draw(t);
        row.block = block;
        row.transposed = transposed;
        row.layout = layout;
        row.mix = 0;
        row.L = 2 + rng_below(&t->random, 40);
        row.S = layout & IN_PLACE ? 1 : 1 + rng_below(&t->random, row.L);
        draw_batch(t, &row);
        table_add(t, row);
    }
}

/* More samples than kernels may take at once, whatever their groups are. */
static void add_batches(table *t, dpcr_block block) {
    static const int64_t shapes[][2] = {{5000, 1}, {1500, 3}, {300, 16}};
    for (int64_t i = 0; i < 2 * COUNT(shapes); i++) {
        recurrence_row row = draw(t);
        row.block = block;
        row.B = shapes[i / 2][0];
        row.w = shapes[i / 2][1];
        row.L = 5;
        row.S = i % 2 ? 3 : 1;
        table_add(t, row);
    }
}

recurrence_row *recurrence_rows(int *count) {
    table t = {.row = allocate(CAPACITY * sizeof(recurrence_row)), .random = {20}};
    for (int block = DPCR_DENSE; block <= DPCR_IDENTITY; block++) {
        add_lengths(&t, (dpcr_block)block, false);
        add_lengths(&t, (dpcr_block)block, true);
        add_widths(&t, (dpcr_block)block);
        add_batches(&t, (dpcr_block)block);
        add_layouts(&t, (dpcr_block)block, false);
        add_layouts(&t, (dpcr_block)block, true);
    }
    *count = t.count;
    check_context("the table of the recurrence");
    CHECK(t.count < CAPACITY, "%d rows were dropped", t.drawn / KEEP - t.count);
    return t.row;
}

void recurrence_row_text(const recurrence_row *row, char *text, size_t size) {
    static const char *const blocks[] = {"dense", "diagonal", "scalar", "identity"};
    static const char *const spectra[SPECTRA] = {"contracting", "orthogonal", "growing", "singular",
                                                 "zero blocks"};
    static const char *const layouts[] = {"batch-first", "reversed", "padded",
                                          "by columns",  "shifted",  "in place"};
    int at = snprintf(text, size, "%s%s%s L=%d B=%d w=%d S=%d %s%s", row->shared ? "shared " : "",
                      blocks[row->block], row->transposed ? " transposed" : "", (int)row->L, (int)row->B,
                      (int)row->w, (int)row->S, spectra[row->spectrum], row->start ? ", x0" : "");
    if (row->mix != 0) {
        at +=
            snprintf(text + at, size - (size_t)at, ", layouts mixed from %llu", (unsigned long long)row->mix);
    }
    for (int i = row->mix != 0 ? 4 : 0; i < (int)COUNT(layouts); i++) {
        if (row->layout >> i & 1) {
            at += snprintf(text + at, size - (size_t)at, ", %s", layouts[i]);
        }
    }
}
