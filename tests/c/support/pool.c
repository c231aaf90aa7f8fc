/* SPDX-License-Identifier: Apache-2.0
 *
 * Threads that wait for ranges.  A call cuts 0..count at random, shuffles the ranges, hands them out
 * one by one under the lock, and returns when the last is done.
 */
#include "pool.h"

#include "rng.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

enum { RANGES = 16, THREADS_MAX = 8 };

typedef struct ranges {
    int64_t begin[RANGES], end[RANGES];
    int count;
} ranges;

typedef struct pool {
    pthread_mutex_t lock;
    pthread_cond_t work, idle;
    pthread_t thread[THREADS_MAX];
    int threads;
    ranges todo;
    int taken, done;
    dpcr_body body;
    void *argument;
    bool stop;
    rng random;
} pool;

static pool only = {.lock = PTHREAD_MUTEX_INITIALIZER,
                    .work = PTHREAD_COND_INITIALIZER,
                    .idle = PTHREAD_COND_INITIALIZER,
                    .random = {2}};

/* 0..count in ranges of 1 to 2 count / RANGES + 1 elements, shuffled */
static ranges cut(rng *random, int64_t count) {
    ranges r = {.count = 0};
    for (int64_t at = 0; at < count;) {
        const bool last = r.count == RANGES - 1;
        const int64_t length = last ? count - at : 1 + rng_below(random, 2 * count / RANGES + 1);
        r.begin[r.count] = at;
        at = at + length < count ? at + length : count;
        r.end[r.count++] = at;
    }
    for (int i = r.count - 1; i > 0; i--) {
        const int j = (int)rng_below(random, i + 1);
        const int64_t begin = r.begin[i], end = r.end[i];
        r.begin[i] = r.begin[j];
        r.end[i] = r.end[j];
        r.begin[j] = begin;
        r.end[j] = end;
    }
    return r;
}

void shuffled_for(void *unused, int64_t count, dpcr_body body, void *argument) {
    static rng random = {1};
    const ranges r = cut(&random, count);
    (void)unused;
    for (int i = 0; i < r.count; i++) {
        body(argument, r.begin[i], r.end[i]);
    }
}

static void *serve(void *argument) {
    pool *p = argument;
    pthread_mutex_lock(&p->lock);
    while (!p->stop) {
        if (p->taken == p->todo.count) {
            pthread_cond_wait(&p->work, &p->lock);
            continue;
        }
        const int i = p->taken++;
        pthread_mutex_unlock(&p->lock);
        p->body(p->argument, p->todo.begin[i], p->todo.end[i]);
        pthread_mutex_lock(&p->lock);
        if (++p->done == p->todo.count) {
            pthread_cond_signal(&p->idle);
        }
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

void pool_for(void *which, int64_t count, dpcr_body body, void *argument) {
    pool *p = which;
    pthread_mutex_lock(&p->lock);
    p->body = body;
    p->argument = argument;
    p->taken = p->done = 0;
    p->todo = cut(&p->random, count);
    pthread_cond_broadcast(&p->work);
    while (p->done < p->todo.count) {
        pthread_cond_wait(&p->idle, &p->lock);
    }
    pthread_mutex_unlock(&p->lock);
}

static void pool_stop(void) {
    pthread_mutex_lock(&only.lock);
    only.stop = true;
    pthread_cond_broadcast(&only.work);
    pthread_mutex_unlock(&only.lock);
    for (int i = 0; i < only.threads; i++) {
        pthread_join(only.thread[i], NULL);
    }
}

void *pool_of(int threads) {
    if (only.threads > 0) {
        return &only;
    }
    for (int i = 0; i < threads; i++) {
        if (pthread_create(&only.thread[i], NULL, serve, &only) != 0) {
            fputs("cannot start a thread\n", stderr);
            exit(2);
        }
        only.threads++;
    }
    atexit(pool_stop);
    return &only;
}
