/* SPDX-License-Identifier: Apache-2.0
 *
 * The simulator itself.  Every kernel here exists twice: right, when it must run in every order and give
 * its answer, and with one planted bug, which must be found: reported with words that name it, or (in
 * an arithmetic bug, which no tool can tell from intent) by the answer.
 */
#include "cuda_on_host.h"
#include "pcr/cuda/intrinsics.cuh"

extern "C" {
#include "support/check.h"
}

#include <stdio.h>
#include <string.h>

enum { FULL_COUNT = 64, SEEDS = 8 };
static const unsigned kAll = 0xffffffffu;

/* ---- kernels: BUG 0 is right ----------------------------------------------------------------- */

/* out_i = in_{n-1-i} within a block, through static shared memory */
template <int BUG> __global__ void reverse_kernel(const int *in, int *out) {
    SHARED(int, tile, FULL_COUNT);
    const int i = (int)threadIdx.x, n = (int)blockDim.x, first = (int)blockIdx.x * n;
    tile[i] = in[first + i];
    if (BUG == 0) __syncthreads();
    out[first + i] = tile[n - 1 - i];
}

/* Twice that, through the same array: the second barrier protects what the first round still reads. */
template <int BUG> __global__ void reuse_kernel(const int *in, int *out) {
    SHARED(int, tile, FULL_COUNT);
    const int i = (int)threadIdx.x, n = (int)blockDim.x;
    tile[i] = in[i];
    __syncthreads();
    const int other = tile[n - 1 - i];
    if (BUG == 0) __syncthreads();
    tile[i] = other;
    out[i] = tile[i];
}

/* The same, with arrays that are too short or not written. */
template <int BUG> __global__ void tile_kernel(const int *in, int *out) {
    DYNAMIC_SHARED(int, tile);
    const int i = (int)threadIdx.x, n = (int)blockDim.x;
    if (BUG != 2 || i != 5) tile[i + (BUG == 1)] = in[i];
    __syncthreads();
    out[i] = tile[n - 1 - i + (BUG == 1)];
}

/* Inclusive sums within a warp; BUG 1: the shift misses by one */
template <int BUG> __global__ void sum_kernel(const int *in, int *out) {
    const int i = (int)threadIdx.x, lane = i % 32;
    int sum = in[i];
    for (int d = 1; d < 32; d *= 2) {
        const int other = __shfl_up_sync(kAll, sum, (unsigned)(d - (BUG == 1)));
        if (lane >= d) sum += other;
    }
    out[i] = sum;
}

/* Lanes below 20 hand their number on; BUG 1: the mask names lanes that have gone, 2: that wait elsewhere,
 * 3: a lane outside the mask is read, 4: the caller is not in its own mask */
template <int BUG> __global__ void mask_kernel(const int *, int *out) {
    const int i = (int)threadIdx.x;
    const unsigned some = (1u << 20) - 1;
    out[i] = -1;
    if (i >= 20 && BUG == 2) __syncwarp(kAll);
    if (i >= 20) return;
    out[i] = __shfl_sync(BUG == 1 || BUG == 2 ? kAll
                         : BUG == 4           ? some & ~2u
                                              : some,
                         i, BUG == 3 ? i + 1 : 19 - i);
}

/* Votes and counts over threads: out_i = what they say */
template <int BUG> __global__ void vote_kernel(const int *, int *out) {
    const int i = (int)threadIdx.x;
    int said = (int)(__ballot_sync(kAll, i % 2) == 0xaaaaaaaau) + 2 * __any_sync(kAll, i % 32 == 31)
               + 4 * __all_sync(kAll, i >= 0) + 8 * __syncthreads_or(i == 3)
               + 16 * __syncthreads_and(i < 1000);
    said += 32 * (__syncthreads_count(i % 2) == FULL_COUNT / 2) + 64 * __any_sync(kAll, 0);
    said += 128 * (__shfl_xor_sync(kAll, i, 1) == (i ^ 1))
            + 256 * (__shfl_down_sync(kAll, i, 1, 4) == i + (i % 4 != 3));
    out[i] = said;
}

/* BUG 1: half of the threads have returned; 2: they wait at another barrier */
template <int BUG> __global__ void barrier_kernel(const int *, int *out) {
    const int i = (int)threadIdx.x;
    out[i] = i;
    if (BUG == 1 && i >= 32) return;
    if (BUG == 2 && i >= 32)
        __syncthreads();
    else
        __syncthreads();
}

/* Segments of 4: each block sums its own, and (BUG) starts from what the block before it has left */
template <int BUG> __global__ void segment_kernel(const int *in, int *out) {
    const int k = (int)blockIdx.x;
    if (threadIdx.x != 0) return;
    int sum = BUG == 1 && k > 0 ? out[k - 1] : 0;
    for (int i = 0; i < 4; i++) sum += in[4 * k + i];
    out[k] = sum;
}

/* All blocks count themselves; BUG 1: without an atomic operation */
template <int BUG> __global__ void count_kernel(const int *, int *out) {
    if (BUG == 0)
        atomicAdd(out, 1);
    else
        out[0] += 1;
}

/* Every block reads what the next one has written; BUG 1: without waiting for it */
template <int BUG> __global__ void grid_kernel(const int *, int *out) {
    const int k = (int)blockIdx.x, n = (int)gridDim.x;
    SHARED(int, mine, 1);
    if (threadIdx.x == 0) mine[0] = k;
    if (threadIdx.x == 0) out[k] = 10 * k;
    if (BUG == 0) grid_barrier();
    if (threadIdx.x == 1) out[n + k] = out[(k + 1) % n] + (BUG == 0 ? mine[0] : 0);
}

/* BUG 1: beyond the array, 2: host memory */
template <int BUG> __global__ void bounds_kernel(const int *in, int *out, int *host) {
    const int i = (int)threadIdx.x;
    out[i + (BUG == 1)] = in[i];
    if (BUG == 2) host[i] = 0;
}

/* Within a warp, __syncwarp orders; BUG 1: it is missing */
template <int BUG> __global__ void warp_kernel(const int *in, int *out) {
    SHARED(int, tile, FULL_COUNT);
    const int i = (int)threadIdx.x;
    tile[i] = in[i];
    if (BUG == 0) __syncwarp();
    out[i] = tile[i ^ 1];
}

/* ---- running them ---------------------------------------------------------------------------- */

typedef struct arrays {
    int *in, *out;
} arrays;

static cudaStream_t stream_of(int seed) {
    return (cudaStream_t)cuda_on_host_stream((uint64_t)seed);
}

template <auto KERNEL>
static void run_one(const arrays *a, int seed, int64_t blocks, size_t shared, bool cooperative) {
    launch<KERNEL>({blocks, FULL_COUNT, shared, cooperative}, stream_of(seed), (const int *)a->in, a->out);
}

#define RUNNERS(name, kernel, ...)                                                                      \
    template <int BUG> static void name##_bug(const arrays *a, int seed) {                              \
        run_one<kernel<BUG>>(a, seed, __VA_ARGS__);                                                     \
    }                                                                                                   \
    static void name(const arrays *a, int seed, int bug) {                                              \
        static void (*const run[])(const arrays *, int) = {name##_bug<0>, name##_bug<1>, name##_bug<2>, \
                                                           name##_bug<3>, name##_bug<4>};               \
        run[bug](a, seed);                                                                              \
    }

RUNNERS(reverse, reverse_kernel, 1, 0, false)
RUNNERS(reuse, reuse_kernel, 1, 0, false)
RUNNERS(tile, tile_kernel, 1, FULL_COUNT * sizeof(int), false)
RUNNERS(sums, sum_kernel, 1, 0, false)
RUNNERS(masks, mask_kernel, 1, 0, false)
RUNNERS(votes, vote_kernel, 1, 0, false)
RUNNERS(barriers, barrier_kernel, 1, 0, false)
RUNNERS(segments, segment_kernel, 8, 0, false)
RUNNERS(counts, count_kernel, 8, 0, false)
RUNNERS(grids, grid_kernel, 8, 0, true)
RUNNERS(warps, warp_kernel, 1, 0, false)

template <int BUG> static void bounds_bug(const arrays *a, int seed) {
    static int host[FULL_COUNT];
    launch<bounds_kernel<BUG>>({1, FULL_COUNT, 0, false}, stream_of(seed), (const int *)a->in, a->out, host);
}

static void bounds(const arrays *a, int seed, int bug) {
    static void (*const run[])(const arrays *, int) = {bounds_bug<0>, bounds_bug<1>, bounds_bug<2>};
    run[bug](a, seed);
}

/* ---- what they must say ---------------------------------------------------------------------- */

static int reversed_at(int i) {
    return FULL_COUNT - 1 - i;
}
static int sum_at(int i) {
    return i < 32 ? i * (i + 1) / 2 : i * (i + 1) / 2 - 496;
}
static int mask_at(int i) {
    return i < 20 ? 19 - i : -1;
}
static int vote_at(int) {
    return 1 + 2 + 4 + 8 + 16 + 32 + 128 + 256;
}
static int same_at(int i) {
    return i;
}
static int segment_at(int i) {
    return i < 8 ? 16 * i + 6 : 0;
}
static int count_at(int i) {
    return i == 0 ? 8 * FULL_COUNT : 0;
}
static int grid_at(int i) {
    return i < 8 ? 10 * i : i < 16 ? 10 * ((i - 7) % 8) + i - 8 : 0;
}
static int swapped_at(int i) {
    return i ^ 1;
}

static const char kAnswer[] = "(the answer)";

static const struct row {
    const char *name;
    void (*run)(const arrays *, int seed, int bug);
    int (*expected)(int i);
    const char *found[5]; /* of bugs 1, 2, ...: words of the report */
} rows[] = {
    {"static shared memory", reverse, reversed_at, {"race|never written"}},
    {"reused shared memory", reuse, reversed_at, {"race"}},
    {"dynamic shared memory", tile, reversed_at, {"outside every shared array", "never written"}},
    {"shuffles", sums, sum_at, {kAnswer}},
    {"masks",
     masks,
     mask_at,
     {"which has returned|do not join", "warp operation", "reads lane 20",
      "does not name the calling lane|not in the mask"}},
    {"votes", votes, vote_at, {}},
    {"barriers", barriers, same_at, {"divergent barrier", "divergent barrier"}},
    {"segments", segments, segment_at, {"race"}},
    {"atomics", counts, count_at, {"race"}},
    {"grid barriers", grids, grid_at, {"race"}},
    {"bounds", bounds, same_at, {"outside every device array", "host memory"}},
    {"order within a warp", warps, swapped_at, {"race|never written"}},
};

static void fill(const arrays *a) {
    int in[FULL_COUNT], out[FULL_COUNT];
    for (int i = 0; i < FULL_COUNT; i++) in[i] = i, out[i] = 0;
    cuda_on_host_copy(a->in, in, sizeof in);
    cuda_on_host_copy(a->out, out, sizeof out);
}

static int wrong_numbers(const arrays *a, const row *r) {
    int out[FULL_COUNT], wrong = 0;
    cuda_on_host_copy(out, a->out, sizeof out);
    for (int i = 0; i < FULL_COUNT; i++) wrong += out[i] != r->expected(i);
    return wrong;
}

/* Which of two kinds of words a bug is reported with may depend on the order. */
static bool says(const char *report, const char *words) {
    const char *bar = strchr(words, '|');
    char first[100];
    snprintf(first, sizeof first, "%.*s", (int)(bar ? bar - words : (long)strlen(words)), words);
    return report && strstr(report, "kernel<") && strstr(report, "thread (")
           && (strstr(report, first) || (bar && strstr(report, bar + 1)));
}

static void check_row(const row *r, int seed) {
    arrays a = {(int *)cuda_on_host_allocate(FULL_COUNT * sizeof(int)),
                (int *)cuda_on_host_allocate(FULL_COUNT * sizeof(int))};
    check_context("%s, order %d", r->name, seed);
    fill(&a);
    r->run(&a, seed, 0);
    const char *report = cuda_on_host_report();
    CHECK(!report, "%s", report);
    CHECK(wrong_numbers(&a, r) == 0, "%d numbers are wrong", wrong_numbers(&a, r));
    for (int bug = 1; r->found[bug - 1]; bug++) {
        fill(&a);
        r->run(&a, seed, bug);
        report = cuda_on_host_report();
        const char *words = r->found[bug - 1];
        if (words == kAnswer)
            CHECK(!report && wrong_numbers(&a, r) > 0, "bug %d: not found, %s", bug,
                  report ? report : "no report");
        else
            CHECK(says(report, words), "bug %d: not found, %s", bug, report ? report : "no report");
    }
    cuda_on_host_release(a.in);
    cuda_on_host_release(a.out);
}

/* ---- the host side --------------------------------------------------------------------------- */

static void check_host() {
    int *a = (int *)cuda_on_host_allocate(FULL_COUNT * sizeof(int)), b[FULL_COUNT];
    arrays both = {a, a};
    check_context("the host side");
    CHECK(cudaMemsetAsync(a, 0x11, 64, stream_of(1)) == cudaSuccess, "memset");
    CHECK(cudaMemcpyAsync(a + 16, a, 64, cudaMemcpyDeviceToDevice, stream_of(1)) == cudaSuccess, "memcpy");
    cuda_on_host_copy(b, a, sizeof b);
    CHECK(b[31] == 0x11111111, "%#x", (unsigned)b[31]);
    CHECK(cudaMemsetAsync(a, 0, 4096, stream_of(1)) != cudaSuccess && cuda_on_host_report(),
          "beyond the array");
    CHECK(cudaMemsetAsync(a, 0, 4, NULL) != cudaSuccess && cuda_on_host_report(), "default stream");
    CHECK((launch<count_kernel<0>>({1, 32, 0, false}, NULL, (const int *)a, a) != cudaSuccess
           && cuda_on_host_report()),
          "default stream");
    CHECK((launch<count_kernel<0>>({1, 2000, 0, false}, stream_of(1), (const int *)a, a))
              == cudaErrorInvalidConfiguration,
          "too many threads");
    CHECK(cudaGetLastError() == cudaErrorInvalidConfiguration && cudaGetLastError() == cudaSuccess,
          "last error");
    cuda_on_host_refuse(1);
    counts(&both, 0, 0);
    CHECK(cudaGetLastError() == cudaSuccess, "refused too early");
    counts(&both, 0, 0);
    CHECK(cudaGetLastError() == cudaErrorNoKernelImageForDevice, "not refused");
    volatile int *host_view = a;
    host_view[0] = 1;
    const char *report = cuda_on_host_report();
    CHECK(report && strstr(report, "host code writes device memory"), "host access to device memory");
    cuda_on_host_release(a);
}

int main() {
    for (int seed = 0; seed < SEEDS; seed++)
        for (size_t r = 0; r < sizeof rows / sizeof rows[0]; r++) check_row(&rows[r], seed);
    check_host();
    return check_finish();
}
