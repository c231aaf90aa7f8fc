/* SPDX-License-Identifier: Apache-2.0
 *
 * The list of backends (every level of the CPU kernels or, where the build says DPCR_TEST_CUDA_ON_HOST or
 * DPCR_TEST_CUDA, the CUDA kernels on their simulator or on a GPU) and guarded buffers.
 */
#include "backend.h"

#include "check.h"
#include "pool.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define __asan_poison_memory_region(data, bytes) ((void)(data), (void)(bytes))
#define __asan_unpoison_memory_region(data, bytes) ((void)(data), (void)(bytes))
#endif

enum { GUARD = 512, THREADS = 3 };

void *allocate(size_t bytes) {
    void *data = malloc(bytes > 0 ? bytes : 1);
    if (data == NULL) {
        fputs("out of memory\n", stderr);
        exit(2);
    }
    return data;
}

#if !defined DPCR_TEST_CUDA_ON_HOST && !defined DPCR_TEST_CUDA
static void *cpu_allocate(size_t bytes) {
    const size_t whole = (bytes + DPCR_ALIGNMENT - 1) / DPCR_ALIGNMENT * DPCR_ALIGNMENT;
    void *data = aligned_alloc(DPCR_ALIGNMENT, whole + DPCR_ALIGNMENT);
    if (data == NULL) {
        fputs("out of memory\n", stderr);
        exit(2);
    }
    return data;
}

static void cpu_copy(void *to, const void *from, size_t bytes) {
    memcpy(to, from, bytes);
}

static void cpu_fence(void *data, size_t bytes, bool closed) {
    if (closed) {
        __asan_poison_memory_region(data, bytes);
    } else {
        __asan_unpoison_memory_region(data, bytes);
    }
}

static backend cpu_backend(const char *name, dpcr_cpu_level level) {
    const backend at = {
        .name = name,
        .device = dpcr_cpu_device_level(level),
        .reason = "not built in, or not run by this processor",
        .allocate = cpu_allocate,
        .release = free,
        .to_device = cpu_copy,
        .to_host = cpu_copy,
        .fence = cpu_fence,
    };
    return at;
}

#endif

/* ---- the list ------------------------------------------------------------------------------- */

#if defined DPCR_TEST_CUDA_ON_HOST
#include "cuda_on_host.h"
#include "pcr/cuda/cuda.h"

enum { BACKENDS = 1 };

/* Every mode is an order of blocks, warps and lanes. */
static void *cuda_stream(mode m) {
    return cuda_on_host_stream((uint64_t)m);
}

/* In two modes of three, so that the kernels and the products are held to the same bits. */
static const struct dpcr_cuda_blas *cuda_blas(mode m) {
    static struct dpcr_cuda_blas blas[MODES];
    blas[m] = (struct dpcr_cuda_blas){cuda_stream(m), cuda_on_host_sgemm(), cuda_on_host_dgemm(), true};
    return m == MODE_ALONE ? NULL : &blas[m];
}

static void fill(backend *list) {
    list[0] = (backend){
        .name = "cuda on host",
        .device = dpcr_cuda_device(),
        .allocate = cuda_on_host_allocate,
        .release = cuda_on_host_release,
        .to_device = cuda_on_host_copy,
        .to_host = cuda_on_host_copy,
        .fence = cuda_on_host_fence,
        .stream = cuda_stream,
        .blas = cuda_blas,
    };
}
#elif defined DPCR_TEST_CUDA
#include "cuda/device_memory.h"
#include "pcr/cuda/cuda.h"

enum { BACKENDS = 1 };

static void fill(backend *list) {
    list[0] = (backend){
        .name = "cuda",
        .device = device_memory_reason() ? NULL : dpcr_cuda_device(),
        .reason = device_memory_reason(),
        .allocate = device_memory_allocate,
        .release = device_memory_release,
        .to_device = device_memory_to_device,
        .to_host = device_memory_to_host,
        .fence = device_memory_fence,
        .stream = device_memory_stream,
    };
}
#else
enum { BACKENDS = DPCR_CPU_LEVELS };

static void fill(backend *list) {
    list[DPCR_GENERIC] = cpu_backend("cpu generic", DPCR_GENERIC);
    list[DPCR_X86_64_V3] = cpu_backend("cpu x86-64-v3", DPCR_X86_64_V3);
    list[DPCR_X86_64_V4] = cpu_backend("cpu x86-64-v4", DPCR_X86_64_V4);
}
#endif

const backend *backends(int *count) {
    static backend list[BACKENDS];
    static bool known;
    *count = BACKENDS;
    if (known) {
        return list;
    }
    known = true;
    fill(list);
    for (int i = 0; i < *count; i++) {
        if (list[i].device == NULL) {
            check_skip(list[i].name, list[i].reason);
        }
    }
    return list;
}

const char *mode_name(mode m) {
    static const char *const names[MODES] = {"one thread", "shuffled", "pool of 3"};
    return names[m];
}

dpcr_exec backend_exec(const backend *at, mode m) {
    dpcr_exec exec = {.device = at->device, .threads = 1};
    exec.stream = at->stream != NULL ? at->stream(m) : NULL;
    exec.blas = at->blas != NULL ? at->blas(m) : NULL;
    if (m == MODE_SHUFFLED) {
        exec.parallel_for = shuffled_for;
    } else if (m == MODE_POOL) {
        exec.threads = THREADS;
        exec.parallel_for = pool_for;
        exec.pool = pool_of(THREADS);
    }
    return exec;
}

static void guards(const buffer *b, bool closed) {
    b->at->fence(b->memory, b->offset, closed);
    b->at->fence(b->memory + b->offset + b->bytes, GUARD, closed);
}

buffer buffer_create(const backend *at, const void *image, size_t bytes, size_t shift) {
    buffer b = {.at = at, .bytes = bytes, .offset = GUARD + shift};
    const size_t total = b.offset + bytes + GUARD;
    unsigned char *host = allocate(total);
    memset(host, 0xff, total);
    if (image != NULL && bytes > 0) {
        memcpy(host + b.offset, image, bytes);
    }
    b.memory = at->allocate(total);
    at->to_device(b.memory, host, total);
    free(host);
    guards(&b, true);
    return b;
}

void buffer_clear(const buffer *b) {
    unsigned char *host = allocate(b->bytes);
    memset(host, 0xff, b->bytes);
    b->at->to_device(buffer_data(b), host, b->bytes);
    free(host);
}

void *buffer_data(const buffer *b) {
    return b->memory + b->offset;
}

static bool all_ones(const unsigned char *bytes, size_t count) {
    bool same = true;
    for (size_t i = 0; i < count; i++) {
        same = same && bytes[i] == 0xff;
    }
    return same;
}

bool buffer_read(const buffer *b, void *image) {
    const size_t total = b->offset + b->bytes + GUARD;
    unsigned char *host = allocate(total);
    guards(b, false);
    b->at->to_host(host, b->memory, total);
    guards(b, true);
    const bool intact = all_ones(host, b->offset) && all_ones(host + b->offset + b->bytes, GUARD);
    if (image != NULL && b->bytes > 0) {
        memcpy(image, host + b->offset, b->bytes);
    }
    free(host);
    return intact;
}

void buffer_destroy(buffer *b) {
    guards(b, false);
    b->at->release(b->memory);
    b->memory = NULL;
}
