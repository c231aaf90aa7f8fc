/* SPDX-License-Identifier: Apache-2.0
 *
 * Fibers, and who may go on: a thread runs until it waits or returns, then another one does.  What a
 * thread waits for is complete when everybody else has come to it; when nobody can go on any more, the
 * launch has failed, and the report says who waits where.
 */
#include "simulator.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Saves the callee's registers and the stack pointer of this fiber, and goes on with another (System V ABI). */
extern "C" void cuda_on_host_switch(void **from, void *to);
__asm__(".text\n"
        ".globl cuda_on_host_switch\n"
        ".type cuda_on_host_switch,@function\n"
        "cuda_on_host_switch:\n"
        "    pushq %rbp\n    pushq %rbx\n    pushq %r12\n    pushq %r13\n    pushq %r14\n    pushq %r15\n"
        "    movq %rsp, (%rdi)\n"
        "    movq %rsi, %rsp\n"
        "    popq %r15\n    popq %r14\n    popq %r13\n    popq %r12\n    popq %rbx\n    popq %rbp\n"
        "    ret\n"
        ".size cuda_on_host_switch, .-cuda_on_host_switch\n"
        ".section .note.GNU-stack,\"\",@progbits\n.text\n");

namespace cuda_on_host {

thread *running;
uint32_t phase = 1;

static void *host_stack;
static const call *kernel;
static launch_shape shape;
static char report[600];
static bool failed;
static thread threads[RESIDENT_THREADS];
static block blocks[64];

/* ---- errors --------------------------------------------------------------------------------- */

bool has_failed() {
    return failed;
}

/* "... [KERNEL = scan_kernel<float, 3>; A = {...}]" -> "scan_kernel<float, 3>" */
static int kernel_name(const char **name) {
    const char *begin = strstr(kernel->kernel, "KERNEL = "), *end;
    *name = begin ? begin + 9 : kernel->kernel;
    end = strstr(*name, "; ");
    return (int)(end ? end - *name : (long)strlen(*name));
}

static void yield() {
    void **from = &running->stack_pointer;
    running = NULL;
    cuda_on_host_switch(from, host_stack);
}

void fail(const char *format, ...) {
    if (!failed) {
        va_list arguments;
        va_start(arguments, format);
        int at = 0;
        if (running) {
            const char *name;
            const int length = kernel_name(&name);
            const dim3 b = running->home->index, t = running->index;
            at = snprintf(report, sizeof report,
                          "%.*s, block (%u,%u,%u), thread (%u,%u,%u): ", length < 200 ? length : 200, name,
                          b.x, b.y, b.z, t.x, t.y, t.z);
        }
        vsnprintf(report + at, sizeof report - (size_t)at, format, arguments);
        va_end(arguments);
        failed = true;
    }
    if (running) yield(); /* never comes back: the launch is over */
}

static const char *file_of(place at) {
    const char *slash = at.file ? strrchr(at.file, '/') : NULL;
    return slash ? slash + 1 : at.file ? at.file : "?";
}

static bool same(place a, place b) {
    return a.line == b.line && a.file == b.file;
}

/* Fails on behalf of a thread that waits: for `other`, if that is not NULL. */
static void fail_waiting(thread *t, const char *what, const thread *other) {
    static const char *const states[] = {"runs", "waits at the barrier", "waits at the grid barrier",
                                         "is in the warp operation", "has returned after"};
    char text[200] = "";
    if (other)
        snprintf(text, sizeof text, ", but thread %d of block %u %s %s:%d", other->number,
                 other->home->number, states[other->state], file_of(other->at), other->at.line);
    running = t;
    const char *name;
    const int length = kernel_name(&name);
    snprintf(report, sizeof report, "%.*s, block (%u,%u,%u), thread (%u,%u,%u): %s at %s:%d%s",
             length < 200 ? length : 200, name, t->home->index.x, t->home->index.y, t->home->index.z,
             t->index.x, t->index.y, t->index.z, what, file_of(t->at), t->at.line, text);
    running = NULL;
    failed = true;
}

/* ---- what kernels call ---------------------------------------------------------------------- */

dim3 thread_index() {
    return running->index;
}

dim3 block_index() {
    return running->home->index;
}

static dim3 block_dim, grid_dim;

dim3 block_shape() {
    return block_dim;
}

dim3 grid_shape() {
    return grid_dim;
}

static void wait(state s, place at) {
    running->state = s;
    running->at = at;
    yield();
}

int block_barrier(int predicate, place at) {
    running->predicate = predicate != 0;
    wait(AT_BARRIER, at);
    return (int)running->result;
}

void grid_barrier(place at) {
    if (!shape.cooperative)
        fail("a grid barrier at %s:%d in a launch that is not cooperative", file_of(at), at.line);
    running->home->gang = (int)shape.blocks;
    wait(AT_GRID, at);
}

void gang_barrier(int blocks, place at) {
    if (blocks == 1) {
        wait(AT_BARRIER, at);
        return;
    }
    if (!shape.cooperative || shape.blocks % blocks != 0)
        fail("a barrier of %d blocks at %s:%d in a launch of %d that is %scooperative", blocks, file_of(at),
             at.line, (int)shape.blocks, shape.cooperative ? "" : "not ");
    running->home->gang = blocks;
    wait(AT_GRID, at);
}

/* The lane that a shuffle reads, of those of its group of `width`. */
static int source_lane(int lane, const thread *t) {
    const int width = t->asks.width, first = lane / width * width, inside = lane - first;
    switch (t->asks.operation) {
    case SHUFFLE: return first + (t->asks.source & (width - 1));
    case SHUFFLE_UP: return inside - t->asks.source < 0 ? lane : lane - t->asks.source;
    case SHUFFLE_DOWN: return inside + t->asks.source >= width ? lane : lane + t->asks.source;
    default: return (lane ^ t->asks.source) >= first + width ? lane : lane ^ t->asks.source;
    }
}

static void answer(thread *warp_threads, unsigned mask) {
    uint64_t ballot = 0;
    for (int i = 0; i < WARP; i++)
        if (mask >> i & 1 && warp_threads[i].asks.value) ballot |= UINT64_C(1) << i;
    for (int i = 0; i < WARP; i++) {
        thread *t = &warp_threads[i];
        if (!(mask >> i & 1)) continue;
        switch (t->asks.operation) {
        case SYNC: t->result = 0; break;
        case BALLOT: t->result = ballot; break;
        case ANY: t->result = ballot != 0; break;
        case ALL: t->result = ballot == mask; break;
        default: {
            const int from = source_lane(i, t);
            if (!(mask >> from & 1))
                fail("the shuffle at %s:%d reads lane %d for lane %d, which is not in the mask %#x",
                     file_of(t->at), t->at.line, from, i, mask);
            t->result = warp_threads[from].asks.value;
        }
        }
        t->state = READY;
    }
}

uint64_t warp(warp_operation operation, unsigned mask, uint64_t value, int source, int width, place at) {
    thread *me = running;
    block *b = me->home;
    const int first = me->number / WARP * WARP;
    running->asks = {operation, mask, value, source, width};
    running->state = IN_WARP;
    running->at = at;
    if (!(mask >> (me->number - first) & 1))
        fail("the mask %#x at %s:%d does not name the calling lane", mask, file_of(at), at.line);
    if (width < 1 || width > WARP || width & (width - 1))
        fail("a shuffle of width %d at %s:%d", width, file_of(at), at.line);
    bool complete = true;
    for (int i = 0; i < WARP; i++) {
        if (!(mask >> i & 1)) continue;
        const thread *t = b->threads + first + i;
        if (first + i >= b->count || t->state == RETURNED)
            fail("the mask %#x at %s:%d names lane %d, which %s", mask, file_of(at), at.line, i,
                 first + i >= b->count ? "does not exist" : "has returned");
        complete = complete && t->state == IN_WARP && t->asks.mask == mask && t->asks.operation == operation
                   && same(t->at, at);
    }
    if (!complete) {
        yield();
    } else {
        if (operation == SYNC) b->syncs[first / WARP]++;
        answer(b->threads + first, mask);
    }
    return running->result;
}

/* ---- barriers ------------------------------------------------------------------------------- */

/* Nobody of these threads can run: lets them pass the barrier where all of them wait at the same one.
 * Returns whether anybody can go on, or all have returned. */
static bool pass(thread *first, int count, state s) {
    thread *waiting = NULL;
    int predicates = 0;
    for (int i = 0; i < count && !waiting; i++) waiting = first[i].state != RETURNED ? first + i : NULL;
    if (!waiting) return true;
    for (int i = 0; i < count; i++) {
        if (first[i].state == READY) return true;
        if (waiting->state == IN_WARP) {
            fail_waiting(waiting, "a warp operation that other lanes of its mask do not join", NULL);
            return false;
        }
        if (first[i].state != waiting->state || !same(first[i].at, waiting->at)) {
            fail_waiting(waiting, "divergent barrier", first + i);
            return false;
        }
        predicates += first[i].predicate;
    }
    if (waiting->state != s) return true; /* at the grid barrier: not for the block to decide */
    for (int i = 0; i < count; i++) {
        first[i].state = READY;
        first[i].result = (uint64_t)predicates;
    }
    return true;
}

/* ---- running -------------------------------------------------------------------------------- */

static void enter() {
    kernel->run(kernel->arguments);
    running->state = RETURNED;
    yield();
}

static void start_thread(thread *t, block *b, int number, int resident) {
    t->home = b;
    t->number = number;
    t->index = dim3((unsigned)number % block_dim.x, (unsigned)number / block_dim.x % block_dim.y,
                    (unsigned)number / block_dim.x / block_dim.y);
    t->state = READY;
    t->at = {NULL, 0};
    /* six registers, the return address, and one word that keeps the stack aligned as after a call */
    void **top = (void **)(stack_of(resident) + STACK - 64) - 8;
    memset(top, 0, 8 * sizeof *top);
    top[6] = (void *)enter;
    t->stack_pointer = top;
}

static void start_block(block *b, uint32_t number, int resident) {
    b->number = number;
    b->index = dim3(number, 0, 0);
    b->barriers = 0;
    b->count = shape.threads;
    b->gang = 1;
    b->threads = threads + (size_t)resident * (size_t)shape.threads;
    memset(b->syncs, 0, sizeof b->syncs);
    begin_shared(b, resident, shape.shared);
    for (int i = 0; i < shape.threads; i++) start_thread(b->threads + i, b, i, resident * shape.threads + i);
}

static void resume(thread *t) {
    running = t;
    cuda_on_host_switch(&host_stack, t->stack_pointer);
}

/* Every thread that can run does, once; lanes and warps in the stream's order. */
static bool sweep(block *b, order *o) {
    bool ran = false;
    const int warps = (b->count + WARP - 1) / WARP;
    const unsigned warp_turn = o->state ? (unsigned)draw(o, (uint64_t)warps) : 0;
    const unsigned lane_turn = o->state ? (unsigned)draw(o, WARP) : 0,
                   flip = o->state ? (unsigned)draw(o, WARP) : 0;
    for (int k = 0; k < warps; k++)
        for (unsigned i = 0; i < WARP && !failed; i++) {
            const unsigned lane = ((i + lane_turn) % WARP) ^ flip;
            const unsigned number = ((unsigned)k + warp_turn) % (unsigned)warps * WARP + lane;
            if (number >= (unsigned)b->count || b->threads[number].state != READY) continue;
            resume(b->threads + number);
            ran = true;
        }
    return ran;
}

/* The blocks first..first+count-1 of those that are resident, to their end. */
static void run_blocks(int count, order *o) {
    for (bool alive = true; alive && !failed;) {
        alive = false;
        for (int i = 0; i < count && !failed; i++) {
            while (sweep(&blocks[i], o) && !failed) alive = true;
            const uint32_t before = blocks[i].barriers;
            if (failed || !pass(blocks[i].threads, blocks[i].count, AT_BARRIER)) return;
            for (int t = 0; t < blocks[i].count; t++)
                if (blocks[i].threads[t].state == READY) blocks[i].barriers = before + 1, alive = true;
        }
        if (!alive && shape.cooperative) {
            int gang = 1; /* of all blocks: those that wait know */
            for (int i = 0; i < count; i++) gang = blocks[i].gang > gang ? blocks[i].gang : gang;
            for (int i = 0; i < count; i += gang) {
                thread *first = threads + i * shape.threads;
                if (!pass(first, gang * shape.threads, AT_GRID)) return;
                for (int t = 0; t < gang * shape.threads; t++) alive = alive || first[t].state == READY;
            }
            phase += alive;
        }
    }
}

static uint64_t common_factor(uint64_t a, uint64_t b) {
    while (b) {
        const uint64_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

/* Blocks one after another, from a random one on, by a random stride that has no factor in common with their number. */
static void run_grid(order *o) {
    const uint64_t count = (uint64_t)shape.blocks;
    uint64_t first = 0, stride = 1;
    if (o->state) {
        first = draw(o, count);
        stride = 1 + draw(o, count);
        while (common_factor(stride, count) > 1) stride++;
    }
    for (uint64_t i = 0; i < count && !failed; i++) {
        start_block(&blocks[0], (uint32_t)((first + i * stride) % count), 0);
        run_blocks(1, o);
    }
}

static bool possible(const launch_shape &s) {
    if (s.blocks < 1 || s.blocks > INT32_MAX || s.threads < 1 || s.threads > MAX_THREADS
        || s.shared > MOST_SHARED)
        return false;
    return !s.cooperative || (s.blocks <= 64 && s.blocks * s.threads <= RESIDENT_THREADS);
}

static cudaError_t last_error;

static cudaError_t leave(cudaError_t error) {
    if (error != cudaSuccess) last_error = error;
    return error;
}

cudaError_t launch(const call &k, const launch_shape &s, cudaStream_t stream) {
    if (!possible(s)) return leave(cudaErrorInvalidConfiguration);
    if (refused()) return leave(cudaErrorNoKernelImageForDevice);
    if (!stream) fail("the default stream is used");
    if (failed) return leave(cudaErrorLaunchFailure);
    kernel = &k;
    shape = s;
    block_dim = dim3((unsigned)s.threads);
    grid_dim = dim3((unsigned)s.blocks);
    phase++;
    order o = order_of(stream);
    if (s.cooperative) {
        for (int i = 0; i < (int)s.blocks; i++) start_block(&blocks[i], (uint32_t)i, i);
        run_blocks((int)s.blocks, &o);
    } else {
        run_grid(&o);
    }
    running = NULL;
    return leave(failed ? cudaErrorLaunchFailure : cudaSuccess);
}

} // namespace cuda_on_host

using namespace cuda_on_host;

const char *cuda_on_host_report(void) {
    if (!failed) return NULL;
    failed = false;
    last_error = cudaSuccess;
    return report;
}

cudaError_t cudaGetLastError() {
    const cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}

const char *cudaGetErrorString(cudaError_t error) {
    switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorNoKernelImageForDevice: return "no kernel image is available for execution on the device";
    case cudaErrorLaunchFailure: return report;
    default: return "invalid argument";
    }
}
