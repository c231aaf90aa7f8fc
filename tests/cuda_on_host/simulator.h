/* SPDX-License-Identifier: Apache-2.0
 * What scheduler.cpp, memory.cpp and runtime.cpp know of one another. */
#ifndef DEEPPCR_CUDA_ON_HOST_SIMULATOR_H
#define DEEPPCR_CUDA_ON_HOST_SIMULATOR_H

#include "cuda_on_host.h"
#include "pcr/cuda/intrinsics.cuh"

namespace cuda_on_host {

enum { WARP = 32, MAX_THREADS = 1024, RESIDENT_THREADS = 8192 };
/* Bytes of shared memory: of a block's own arrays, which is also what the device says it has, so that buffers that
 * fill it are small; and with the dynamic one, as on the smallest of the devices that kernels are compiled for. */
enum { MAX_SHARED = 48 << 10, MOST_SHARED = 99 << 10 };

enum state { READY, AT_BARRIER, AT_GRID, IN_WARP, RETURNED };

struct thread {
    void *stack_pointer;
    struct block *home;
    int number; /* in its block */
    dim3 index;
    enum state state;
    place at;
    uint64_t result;
    int predicate; /* of a barrier */
    struct {       /* of a warp operation */
        warp_operation operation;
        unsigned mask;
        uint64_t value;
        int source, width;
    } asks;
};

struct block {
    dim3 index;
    uint32_t number;
    uint32_t barriers;                  /* passed so far */
    uint16_t syncs[MAX_THREADS / WARP]; /* __syncwarp passed, by warp */
    thread *threads;
    int count; /* of threads */
    int gang;  /* of blocks, that its threads wait for */
    struct shared_segment *shared;
};

/* The thread whose code is running, or NULL: the host's. */
extern thread *running;
/* Changes with every launch and grid barrier: accesses of different phases are ordered. */
extern uint32_t phase;

/* ---- scheduler.cpp ---- */

/* Records the first error; from a kernel it does not return. */
__attribute__((format(printf, 1, 2))) void fail(const char *format, ...);
bool has_failed();

/* ---- memory.cpp ---- */

/* Stacks are private to their threads. */
char *stack_of(int resident);
enum { STACK = 64 << 10 };
void begin_shared(block *b, int resident, size_t dynamic);
/* Accesses of the whole device, by cudaMemsetAsync and the like; false: not in a device array. */
bool touch(void *data, size_t bytes, bool write);

/* ---- runtime.cpp ---- */

struct order {      /* of blocks, warps and lanes */
    uint64_t state; /* 0: in order */
};

order order_of(cudaStream_t stream);
uint64_t draw(order *o, uint64_t below);
/* Counts a launch; true: it is to be refused. */
bool refused();

} // namespace cuda_on_host

#endif
