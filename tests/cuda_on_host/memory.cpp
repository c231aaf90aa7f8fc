/* SPDX-License-Identifier: Apache-2.0
 *
 * Device memory of the simulator, and what is known of its every 4 bytes: whether they belong to an
 * array, whether they were written, and who read and wrote them last.  Cost: 10 to 20 ns an access.
 */
#include "simulator.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

namespace cuda_on_host {

enum { ALIGNMENT = 256, LIVE = 1024, ARRAYS = 16 };
static const size_t kGlobal = (size_t)1 << 28, kSegment = 1 << 17, kShared = 64 * kSegment,
                    kArena = kGlobal + kShared, kStacks = (size_t)RESIDENT_THREADS * STACK;

struct access {
    uint32_t phase, block, barrier; /* phase 0: none */
    uint16_t thread, sync;
};

/* Who else has read since: nobody, other threads of the warp, other threads. */
enum readers { ONE, WARP_MATES, MANY };

struct cell {
    access write, read;
    uint8_t readers, in_array, written, atomic;
};

struct shared_segment {
    char *data;
    size_t used, own; /* with fences and all; of arrays but for the dynamic one */
    struct {
        const void *site;
        char *data;
    } arrays[ARRAYS];
    int count;
    size_t dynamic;
};

static char *arena, *stacks;
static cell *cells;
static struct {
    char *data;
    size_t bytes;
} live[LIVE]; /* by address */
static int live_count;
static shared_segment segments[kShared / kSegment];

static char *reserve(size_t bytes) {
    void *data =
        mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (data == MAP_FAILED) {
        fputs("cuda_on_host: no address space\n", stderr);
        exit(2);
    }
    return (char *)data;
}

static void start() {
    if (arena) return;
    arena = reserve(kArena);
    cells = (cell *)reserve(kArena / 4 * sizeof(cell));
    stacks = reserve(kStacks);
}

char *stack_of(int resident) {
    start();
    return stacks + (size_t)resident * STACK;
}

static cell *cell_of(const void *data) {
    return cells + ((const char *)data - arena) / 4;
}

static void open_cells(char *data, size_t bytes) {
    memset((void *)cell_of(data), 0, (bytes + 3) / 4 * sizeof(cell));
    for (cell *c = cell_of(data); c < cell_of(data) + (bytes + 3) / 4; c++) c->in_array = 1;
}

static void close_cells(char *data, size_t bytes) {
    memset((void *)cell_of(data), 0, (bytes + 3) / 4 * sizeof(cell));
}

/* ---- one access ----------------------------------------------------------------------------- */

static access now() {
    const block *b = running->home;
    return {phase, b->number, b->barriers, (uint16_t)running->number, b->syncs[running->number / WARP]};
}

/* May the two have run in either order, or at once? */
static bool unordered(const access &a, const access &b) {
    if (a.phase != b.phase || (a.block == b.block && a.thread == b.thread)) return false;
    if (a.block != b.block) return true;
    if (a.barrier != b.barrier) return false;
    return a.thread / WARP != b.thread / WARP || a.sync == b.sync;
}

static void race(const char *what, const access &with) {
    fail("race: %s what block %u, thread %u %s with no barrier between them", what, with.block, with.thread,
         what[0] == 'r' ? "writes" : "reads or writes");
}

static void note_read(cell *c, const access &mine) {
    if (unordered(c->read, mine)) {
        const bool mates = c->read.block == mine.block && c->read.thread / WARP == mine.thread / WARP;
        if (!mates || c->readers != MANY) c->readers = mates ? WARP_MATES : MANY;
    } else if (c->read.phase != mine.phase || c->read.barrier != mine.barrier || c->read.block != mine.block
               || c->read.sync != mine.sync) {
        if (c->readers != MANY || c->read.phase != mine.phase || c->read.barrier != mine.barrier)
            c->readers = ONE;
    }
    c->read = mine;
}

static bool read_by_others(const cell *c, const access &mine) {
    if (unordered(c->read, mine)) return true;
    if (c->readers == ONE || c->read.phase != mine.phase) return false;
    if (c->read.block != mine.block) return true;
    return c->read.barrier == mine.barrier && (c->readers == MANY || c->read.sync == mine.sync);
}

static void check_cell(cell *c, const char *address, bool write, bool atomic) {
    const bool shared = address >= arena + kGlobal;
    if (!c->in_array)
        fail("%s outside every %s array", write ? "writes" : "reads", shared ? "shared" : "device");
    if (!write && shared && !c->written) fail("reads shared memory that was never written");
    const access mine = now();
    const bool both_atomic = atomic && c->atomic;
    if (!both_atomic && unordered(c->write, mine)) race(write ? "writes" : "reads", c->write);
    if (write && !both_atomic && read_by_others(c, mine)) race("writes", c->read);
    if (!write) note_read(c, mine);
    if (write) c->write = mine;
    if (write) c->written = 1;
    c->atomic = atomic;
}

static void check(const void *data, size_t bytes, bool write, bool atomic) {
    const char *address = (const char *)data;
    if (address >= stacks && address < stacks + kStacks) return;
    const bool ours = arena && address >= arena && address < arena + kArena;
    if (!running) {
        if (ours) fail("host code %s device memory", write ? "writes" : "reads");
        return;
    }
    if (!ours) fail("%s host memory at %p", write ? "writes" : "reads", data);
    for (const char *at = address - ((uintptr_t)address & 3); at < address + bytes; at += 4)
        check_cell(cell_of(at), at, write, atomic);
}

void atomic(const void *address, size_t bytes) {
    check(address, bytes, true, true);
}

bool touch(void *data, size_t bytes, bool write) {
    const char *address = (const char *)data;
    if (address < arena || address + bytes > arena + kArena) return false;
    for (cell *c = cell_of(data); c < cell_of(address + bytes - 1) + 1; c++) {
        if (!c->in_array) return false;
        if (write) c->written = 1;
    }
    return true;
}

/* ---- shared memory -------------------------------------------------------------------------- */

enum { FENCE = 64 };

/* All bits of it a signalling NaN, in float and in double. */
static void poison(char *data, size_t bytes) {
    for (size_t i = 0; i + 4 <= bytes; i += 4) memcpy(data + i, "\xa0\xa0\xa0\xff", 4);
}

void begin_shared(block *b, int resident, size_t dynamic) {
    start();
    shared_segment *s = &segments[resident];
    s->data = arena + kGlobal + (size_t)resident * kSegment;
    close_cells(s->data, s->used);
    s->used = FENCE;
    s->own = 0;
    s->count = 0;
    s->dynamic = dynamic;
    b->shared = s;
}

void *shared_array(const void *site, const char *name, size_t bytes) {
    shared_segment *s = running->home->shared;
    for (int i = 0; i < s->count; i++)
        if (s->arrays[i].site == site) return s->arrays[i].data;
    const size_t size = site ? bytes : s->dynamic;
    s->own += site ? bytes : 0;
    if (s->count == ARRAYS || s->own > MAX_SHARED || s->own + s->dynamic > MOST_SHARED)
        fail("shared array %s: more than %d arrays, or %d bytes, or %d with the dynamic one", name,
             (int)ARRAYS, (int)MAX_SHARED, (int)MOST_SHARED);
    char *data = s->data + s->used;
    open_cells(data, size);
    poison(data, size);
    s->used += (size + FENCE - 1) / FENCE * FENCE + FENCE;
    s->arrays[s->count++] = {site, data};
    return data;
}

} // namespace cuda_on_host

/* ---- arrays --------------------------------------------------------------------------------- */

using namespace cuda_on_host;

void *cuda_on_host_allocate(size_t bytes) {
    start();
    const size_t whole = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    char *data = arena + ALIGNMENT;
    int at = 0;
    for (; at < live_count && data + whole + ALIGNMENT > live[at].data; at++)
        data = live[at].data + (live[at].bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT + ALIGNMENT;
    if (live_count == LIVE || data + whole + ALIGNMENT > arena + kGlobal) {
        fputs("cuda_on_host: out of device memory\n", stderr);
        exit(2);
    }
    memmove(live + at + 1, live + at, (size_t)(live_count - at) * sizeof live[0]);
    live[at] = {data, bytes};
    live_count++;
    open_cells(data, bytes);
    return data;
}

void cuda_on_host_release(void *data) {
    for (int i = 0; i < live_count; i++)
        if (live[i].data == data) {
            close_cells(live[i].data, live[i].bytes);
            memmove(live + i, live + i + 1, (size_t)(live_count - i - 1) * sizeof live[0]);
            live_count--;
            return;
        }
}

void cuda_on_host_copy(void *to, const void *from, size_t bytes) {
    memcpy(to, from, bytes);
}

void cuda_on_host_fence(void *data, size_t bytes, bool closed) {
    for (size_t i = 0; i < bytes; i += 4) cell_of((char *)data + i)->in_array = !closed;
}

/* ---- what the compiler calls ---------------------------------------------------------------- */

#define ACCESS(size)                                   \
    void __tsan_read##size(void *address) {            \
        check(address, size, false, false);            \
    }                                                  \
    void __tsan_write##size(void *address) {           \
        check(address, size, true, false);             \
    }                                                  \
    void __tsan_unaligned_read##size(void *address) {  \
        check(address, size, false, false);            \
    }                                                  \
    void __tsan_unaligned_write##size(void *address) { \
        check(address, size, true, false);             \
    }

extern "C" {
ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)
void __tsan_read_range(void *address, size_t bytes) {
    check(address, bytes, false, false);
}
void __tsan_write_range(void *address, size_t bytes) {
    check(address, bytes, true, false);
}
void __tsan_init() {
}
}
