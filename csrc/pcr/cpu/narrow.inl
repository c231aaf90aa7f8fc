/* SPDX-License-Identifier: Apache-2.0
 *
 * The cyclic reduction of own dense blocks of one narrow width (square.inl), by runs of elements: a task for
 * each of them, and a call for each of its products, would cost several times the arithmetic (1024 blocks of
 * w = 4 on one thread: 150 us, so 40).  The same operations in the same order as without.
 */

/* reduce where every segment is one step */
static void SIZED(reduce_run)(const void *argument, int64_t task, void *scratch) {
    (void)scratch;
    const struct walk *walk = argument;
    int64_t s0, n;
    const int64_t first = FN(task_group)(walk, task, &s0, &n) * RUN, last = dpcr_min(first + RUN, walk->S);
    for (int64_t k = first; k < last; k++) {
        for (int64_t s = s0; s < s0 + n; s++) {
            const REAL *b = FN(rows_at)(&walk->b, k, s).data, *x0 = k == 0 ? FN(start)(walk, s).data : NULL;
            const struct FN(matrix) A = FN(block_at)(&walk->M, k, s).M;
            REAL *offset = FN(offset_at)(walk, k, s);
            REAL *map = FN(map_at)(walk, k, s);
            if (x0)
                SIZED(square_matvec)(&A, x0, b, offset);
            else
                memcpy(offset, b, WIDTH * sizeof(REAL));
            if (k == 0 || walk->direct) continue; /* segment 0 has no map, and M_0 may not exist */
            if (A.row == WIDTH && A.column == 1)
                memcpy(map, A.data, (size_t)WIDTH * WIDTH * sizeof(REAL));
            else
                for (int64_t i = 0; i < (int64_t)WIDTH * WIDTH; i++)
                    map[i] = A.data[i / WIDTH * A.row + i % WIDTH * A.column];
        }
    }
}

static void SIZED(eliminate_run)(const void *argument, int64_t task, void *scratch) {
    (void)scratch;
    const struct FN(level_pass) *pass = argument;
    const struct walk *walk = pass->walk;
    int64_t s0, n;
    const int64_t first = FN(task_group)(walk, task, &s0, &n) * RUN,
                  last = dpcr_min(first + RUN, pass->next.count), size = (int64_t)WIDTH * WIDTH;
    const REAL *maps = pass->level.first == 0 && walk->direct ? walk->direct : walk->maps;
    for (int64_t m = first; m < last; m++) {
        for (int64_t s = s0; s < s0 + n; s++) {
            if (FN(skipped)(walk, s)) continue;
            const int64_t element = (pass->level.first + 2 * m) * walk->B + s;
            const REAL *map = maps + element * size;
            const REAL *offset = (const REAL *)walk->offsets + element * WIDTH;
            const int64_t next = (pass->next.first + m) * walk->B + s;
            REAL *to = (REAL *)walk->offsets + next * WIDTH;
            if (m == 0) {
                memcpy(to, offset, WIDTH * sizeof(REAL));
                continue;
            }
            const struct FN(matrix) left = {map, WIDTH, 1};
            SIZED(square_matvec)(&left, offset - walk->B * WIDTH, offset, to);
            if (FN(is_fresh)(pass, m, s))
                SIZED(rows_product)(map, WIDTH, 1, map - walk->B * size, (REAL *)walk->maps + next * size);
        }
    }
}

static void SIZED(back_substitute_run)(const void *argument, int64_t task, void *scratch) {
    (void)scratch;
    const struct FN(level_pass) *pass = argument;
    const struct walk *walk = pass->walk;
    int64_t s0, n;
    const int64_t first = FN(task_group)(walk, task, &s0, &n) * RUN,
                  last = dpcr_min(first + RUN, pass->next.count);
    const REAL *maps = pass->level.first == 0 && walk->direct ? walk->direct : walk->maps;
    for (int64_t m = first; m < last; m++) {
        for (int64_t s = s0; s < s0 + n; s++) {
            if (FN(skipped)(walk, s)) continue;
            const REAL *x = (const REAL *)walk->offsets + ((pass->next.first + m) * walk->B + s) * WIDTH;
            const int64_t element = (pass->level.first + 2 * m + 1) * walk->B + s;
            REAL *offset = (REAL *)walk->offsets + element * WIDTH;
            memcpy(offset - walk->B * WIDTH, x, WIDTH * sizeof(REAL));
            if (2 * m + 1 == pass->level.count) continue;
            const struct FN(matrix) map = {maps + element * WIDTH * WIDTH, WIDTH, 1};
            SIZED(square_matvec)(&map, x, offset, offset);
        }
    }
}

/* |v|, by its bits */
INLINE SIZED(row) SIZED(absolute)(SIZED(row) v) {
    const INT rest = ((((INT)1 << (8 * REAL_BYTES - 2)) - 1) * 2) + 1; /* all but the sign */
    return (SIZED(row))((SIZED(order))v & rest);
}

INLINE REAL SIZED(largest)(SIZED(row) v) {
    REAL most = v[0];
    for (int64_t i = 1; i < WIDTH; i++) most = v[i] > most ? v[i] : most;
    return most;
}

/* The gap between x and what was predicted (NaN where it is not finite), and the size it is measured by. */
INLINE void SIZED(compare)(const REAL *x, const REAL *predicted, const REAL *b, double *gap, double *size) {
    const SIZED(row) end = *(const SIZED(row) *)x, right = *(const SIZED(row) *)b;
    const SIZED(row) difference = end - *(const SIZED(row) *)predicted, none = difference - difference;
    REAL poison = none[0];
    for (int64_t i = 1; i < WIDTH; i++) poison += none[i];
    *gap = (double)(SIZED(largest)(SIZED(absolute)(difference)) + poison);
    *size = (double)(SIZED(largest)(SIZED(absolute)(end)) + SIZED(largest)(SIZED(absolute)(right)));
}

/* substitute where every segment is one step */
static void SIZED(substitute_run)(const void *argument, int64_t task, void *scratch) {
    (void)scratch;
    const struct walk *walk = argument;
    int64_t s0, n;
    const int64_t first = FN(task_group)(walk, task, &s0, &n) * RUN, last = dpcr_min(first + RUN, walk->S);
    for (int64_t k = first; k < last; k++) {
        for (int64_t s = s0; s < s0 + n; s++) {
            const REAL *b = FN(rows_at)(&walk->b, k, s).data, *predicted = FN(offset_at)(walk, k, s);
            const REAL *start = k > 0 ? FN(offset_at)(walk, k - 1, s) : FN(start)(walk, s).data;
            REAL *x = FN(rows_at)(&walk->x, k, s).data;
            const struct FN(block) A = FN(block_at)(&walk->M, k, s);
            if (start)
                SIZED(square_matvec)(&A.M, start, b, x);
            else
                memcpy(x, b, WIDTH * sizeof(REAL));
            SIZED(compare)(x, predicted, b, &walk->gap[k * walk->B + s], &walk->size[k * walk->B + s]);
        }
    }
}

static const struct FN(narrow) SIZED(narrow) = {SIZED(reduce_run), SIZED(eliminate_run),
                                                SIZED(back_substitute_run), SIZED(substitute_run)};

#undef WIDTH
#undef SIZED
