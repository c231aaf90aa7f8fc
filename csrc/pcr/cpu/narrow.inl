/* SPDX-License-Identifier: Apache-2.0
 *
 * The cyclic reduction of own dense blocks of one narrow width (square.inl), by runs of elements: a task for
 * each of them, and a call for each of its products, would cost several times the arithmetic (1024 blocks of
 * w = 4 on one thread: 150 us, so 40).  The same operations in the same order as without.
 */

/* The loop over the steps of one sample, whose state stays in a register; `rows`: blocks are stored by rows. */
INLINE void SIZED(walk_alone)(const struct walk *walk, int64_t s, const bool rows) {
    const REAL *b = FN(rows_at)(&walk->b, 0, s).data, *x0 = FN(start)(walk, s).data;
    REAL *to = FN(rows_at)(&walk->x, 0, s).data;
    SIZED(row) x = x0 ? SIZED(load)(x0) : SIZED(load)(b);
    if (!x0) *(SIZED(row) *)to = x; /* M_0 may not exist */
    for (int64_t j = x0 ? 0 : 1; j < walk->L; j++) {
        const REAL *M = (const REAL *)walk->M.data + walk->M.first + j * walk->M.step + s * walk->M.sample;
        x = (rows ? SIZED(apply)(M, walk->M.row, x)
                  : SIZED(apply_transposed)(M, walk->M.column, (const REAL *)&x))
            + SIZED(load)(b + j * walk->b.step);
        *(SIZED(row) *)(to + j * walk->x.step) = x;
    }
}

static void SIZED(sequential_alone)(const void *argument, int64_t task, void *scratch) {
    (void)scratch;
    const struct walk *walk = argument;
    int64_t s0, n;
    FN(task_group)(walk, task, &s0, &n);
    for (int64_t s = s0; s < s0 + n; s++) {
        if (walk->M.column == 1)
            SIZED(walk_alone)(walk, s, true);
        else
            SIZED(walk_alone)(walk, s, false);
    }
}

/* reduce where every segment is one step */
static void SIZED(reduce_run)(const void *argument, int64_t task, void *scratch) {
    (void)scratch;
    const struct walk *walk = argument;
    int64_t s0, n;
    const int64_t first = FN(task_group)(walk, task, &s0, &n) * RUN, last = dpcr_min(first + RUN, walk->S);
    int64_t k = first;
    if (walk->direct && walk->B == 1 && walk->b.step == WIDTH && first > 0) {
        memcpy(FN(offset_at)(walk, k, 0), FN(rows_at)(&walk->b, k, 0).data,
               (size_t)(last - first) * WIDTH * sizeof(REAL));
        return;
    }
    for (; k < last; k++) {
        for (int64_t s = s0; s < s0 + n; s++) {
            const REAL *b = FN(rows_at)(&walk->b, k, s).data, *x0 = k == 0 ? FN(start)(walk, s).data : NULL;
            const struct FN(matrix) A = FN(block_at)(&walk->M, k, s).M;
            REAL *offset = FN(offset_at)(walk, k, s);
            REAL *map = FN(map_at)(walk, k, s);
            if (x0)
                *(SIZED(row) *)offset = SIZED(matvec)(&A, x0) + SIZED(load)(b);
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
            *(SIZED(row) *)to =
                SIZED(apply)(map, WIDTH, SIZED(load)(offset - walk->B * WIDTH)) + SIZED(load)(offset);
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
            const REAL *map = maps + element * WIDTH * WIDTH;
            *(SIZED(row) *)offset = SIZED(apply)(map, WIDTH, SIZED(load)(x)) + SIZED(load)(offset);
        }
    }
}

/* |v|, by its bits */
INLINE SIZED(row) SIZED(absolute)(SIZED(row) v) {
    const INT rest = ((((INT)1 << (8 * REAL_BYTES - 2)) - 1) * 2) + 1; /* all but the sign */
    return (SIZED(row))((SIZED(order))v & rest);
}

/* [a b] -> maxima of neighbouring pairs, those of a first; of absolute values, whose bits order them and NaN last */
INLINE SIZED(order) SIZED(pair_maxima)(SIZED(order) a, SIZED(order) b) {
    SIZED(order) left, right;
#ifdef __clang__
#pragma clang loop unroll(full)
    for (int i = 0; i < WIDTH / 2; i++) {
        left[i] = a[2 * i], left[WIDTH / 2 + i] = b[2 * i];
        right[i] = a[2 * i + 1], right[WIDTH / 2 + i] = b[2 * i + 1];
    }
#else
    SIZED(order) even, odd;
    for (INT i = 0; i < WIDTH; i++) even[i] = 2 * i, odd[i] = 2 * i + 1;
    left = __builtin_shuffle(a, b, even), right = __builtin_shuffle(a, b, odd);
#endif
    const SIZED(order) larger = left > right;
    return (left & larger) | (right & ~larger);
}

/* The gap between x and what was predicted (NaN where it is not finite), and the size it is measured by. */
INLINE void SIZED(compare)(SIZED(row) x, const REAL *predicted, const REAL *b, double *gap, double *size) {
    const SIZED(order) difference = (SIZED(order))SIZED(absolute)(x - SIZED(load)(predicted)),
                       end = (SIZED(order))SIZED(absolute)(x),
                       right = (SIZED(order))SIZED(absolute)(SIZED(load)(b));
    SIZED(order)
    most = SIZED(pair_maxima)(SIZED(pair_maxima)(difference, end), SIZED(pair_maxima)(right, right));
#pragma GCC unroll 2
    for (int64_t count = WIDTH; count > 4; count /= 2) most = SIZED(pair_maxima)(most, most);
    const SIZED(row) largest = (SIZED(row))most;
    *gap = (double)(largest[0] + (largest[0] - largest[0]));
    *size = (double)(largest[1] + largest[2]);
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
            SIZED(row) end = SIZED(load)(b);
            if (start) end += SIZED(matvec)(&A.M, start);
            *(SIZED(row) *)x = end;
            SIZED(compare)(end, predicted, b, &walk->gap[k * walk->B + s], &walk->size[k * walk->B + s]);
        }
    }
}

static const struct FN(narrow)
    SIZED(narrow) = {SIZED(sequential_alone), SIZED(reduce_run), SIZED(eliminate_run),
                     SIZED(back_substitute_run), SIZED(substitute_run)};

#undef WIDTH
#undef SIZED
