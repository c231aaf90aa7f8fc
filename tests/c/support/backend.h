/* SPDX-License-Identifier: Apache-2.0
 *
 * What the conformance tables run on.  A backend is a device and the four functions that put arrays
 * where its calls can reach them; the rows know nothing else of it, so another kind of device joins
 * by one more entry in the list of backend.c.  A backend that cannot run here stays in the list with
 * device NULL and the reason, and every program says so once.
 *
 * A mode is how the bodies of a call are run: the result must not depend on it.
 */
#ifndef DEEPPCR_TEST_BACKEND_H
#define DEEPPCR_TEST_BACKEND_H

#include "pcr/pcr.h"

typedef enum mode {
    MODE_ALONE,    /* no parallel_for */
    MODE_SHUFFLED, /* on the calling thread, in ranges of random sizes and order */
    MODE_POOL,     /* three threads, ranges as above */
    MODES
} mode;

typedef struct backend {
    const char *name;
    const dpcr_device *device;
    const char *reason;
    void *(*allocate)(size_t bytes); /* aligned to DPCR_ALIGNMENT */
    void (*release)(void *data);
    void (*to_device)(void *device, const void *host, size_t bytes);
    void (*to_host)(void *host, const void *device, size_t bytes);
    void (*fence)(void *data, size_t bytes,
                  bool closed); /* closed: reading or writing there is an error that a sanitizer reports */
    void *(*stream)(mode m);    /* exec.stream of a mode; NULL: none */
    const struct dpcr_cuda_blas *(*blas)(mode m); /* exec.blas of a mode; NULL: none */
} backend;

/* The list; the first call prints what is skipped. */
const backend *backends(int *count);

const char *mode_name(mode m);
dpcr_exec backend_exec(const backend *at, mode m);

/* An array on a backend between two guards: bytes that no call may write. */
typedef struct buffer {
    const backend *at;
    unsigned char *memory;
    size_t bytes, offset; /* of the array; of its first byte in memory */
} buffer;

/* image: the contents, or NULL for all bits one, which is NaN in either dtype.  shift: bytes by which
 * the array misses DPCR_ALIGNMENT. */
buffer buffer_create(const backend *at, const void *image, size_t bytes, size_t shift);
/* All bits one again. */
void buffer_clear(const buffer *b);
void *buffer_data(const buffer *b);
/* Copies the array to image (may be NULL) and says whether both guards are as they were. */
bool buffer_read(const buffer *b, void *image);
void buffer_destroy(buffer *b);

/* Host memory; ends the program where there is none. */
void *allocate(size_t bytes);

#endif
