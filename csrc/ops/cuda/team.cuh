/* SPDX-License-Identifier: Apache-2.0
 *
 * A team of threads holds vectors of up to N = LANES ROWS numbers in registers: thread `lane` the rows lane,
 * lane + LANES, ...  Rows beyond a vector's length hold anything, and are selected away where vectors meet.
 *
 *   LANES 1, ROWS 4           a thread, vectors of up to 4: where there are many of them
 *   LANES 4, ROWS 1           the same by four neighbours, with the same bits: where there are few
 *   LANES 8, 16, 32, ROWS 1   neighbours in a warp; they meet by shuffles
 *   LANES 256, ROWS 4         a block, vectors of up to 1024; they meet in shared memory
 *   LANES 256, ROWS 16        the same, vectors of up to 4096
 *
 * Which one works on a chain follows from its kind and widths alone, so that every pass over it has the same bits.
 *
 * All lanes of a warp always meet: where its teams have different things to do, or fewer, each does what any of them
 * has to, and keeps nothing of it unless it is its own.
 */
#ifndef DEEPPCR_OPS_CUDA_TEAM_H
#define DEEPPCR_OPS_CUDA_TEAM_H

#include "pcr/cuda/run.cuh"

static constexpr int TEAM_WARP = 32, BLOCK_LANES = 256, BLOCK_ROWS = 4, WIDE_ROWS = 16,
                     BLOCK_WARPS = BLOCK_LANES / TEAM_WARP;

static constexpr unsigned kAllLanes = 0xffffffffu;

/* DENOISES: of steps of denoising, which have code of their own (denoise.cuh); a warp or a block. */
template <class T_, int LANES_, int ROWS_, bool DENOISES_ = false> struct team {
    typedef T_ T;
    static constexpr int LANES = LANES_, ROWS = ROWS_, N = LANES_ * ROWS_;
    static constexpr bool BLOCK = LANES_ == BLOCK_LANES, WIDE = ROWS_ == WIDE_ROWS, DENOISES = DENOISES_;
    /* Rows of WIDE vectors are looped over, so these lie in the thread's local memory, in the first-level cache: as
     * registers they would not fit, and a step reads at least their square of weights. */
    static constexpr int AT_ONCE = WIDE ? 1 : ROWS_;
    /* Whether parameters come into shared memory (stage.cuh), and a thread holds columns of Jacobians. */
    static constexpr bool STAGES = !BLOCK && !DENOISES;
    /* Elements of 16 bytes, and a row's stride in shared memory: an odd number of them, so that eight rows lie in
     * different banks. */
    static constexpr int PACK = 16 / sizeof(T_), STRIDE = N == 4 ? N : N + PACK;
    int lane;
    T_ *exchange; /* a block's: two vectors in shared memory, one behind the other */
    int room;     /* of either; read where a team is WIDE, for others it is N */
};

template <class TEAM> __device__ TEAM this_team(typename TEAM::T *exchange, int room = TEAM::N) {
    return {(int)threadIdx.x % TEAM::LANES, exchange, room};
}

/* The second of the two vectors. */
template <class TEAM> __device__ typename TEAM::T *outcome_of(const TEAM &at) {
    return at.exchange + (TEAM::WIDE ? at.room : TEAM::N);
}

/* Whether it holds for any team of the warp, which goes on together. */
template <class TEAM> __device__ bool any_team(bool value) {
    return TEAM::BLOCK ? value : __any_sync(kAllLanes, value) != 0;
}

#define UNROLL_ROWS UNROLL_BY(TEAM::AT_ONCE)

template <class TEAM> __device__ int row_of(const TEAM &at, int r) {
    return at.lane + r * TEAM::LANES;
}

template <class TEAM>
__device__ void load_rows(const TEAM &at, int n, const typename TEAM::T *from,
                          typename TEAM::T (&x)[TEAM::ROWS]) {
    UNROLL_ROWS for (int r = 0; r < TEAM::ROWS; r++) {
        const int row = row_of(at, r);
        x[r] = from && row < n ? from[row] : 0;
    }
}

template <class TEAM>
__device__ void store_rows(const TEAM &at, int n, const typename TEAM::T (&x)[TEAM::ROWS],
                           typename TEAM::T *to) {
    UNROLL_ROWS for (int r = 0; r < TEAM::ROWS; r++) if (row_of(at, r) < n) to[row_of(at, r)] = x[r];
}

template <class T, int ROWS> __device__ void copy_rows(const T (&from)[ROWS], T (&to)[ROWS]) {
    UNROLL_BY(ROWS == WIDE_ROWS ? 1 : ROWS) for (int r = 0; r < ROWS; r++) to[r] = from[r];
}

/* ---- sums and maxima over a vector, the same in all threads ----------------------------------- */

/* Over the lanes: log2 LANES levels in a warp, then the warps of a block in their order. */
template <class TEAM, class V, class F> __device__ V reduce_lanes(const TEAM &at, V value, F join) {
    UNROLL for (int d = (TEAM::BLOCK ? TEAM_WARP : TEAM::LANES) / 2; d > 0; d /= 2) value =
        join(value, __shfl_xor_sync(kAllLanes, value, d, TEAM::BLOCK ? TEAM_WARP : TEAM::LANES));
    if constexpr (TEAM::BLOCK) {
        SHARED(V, parts, BLOCK_WARPS);
        __syncthreads(); /* nobody still reads parts */
        if (at.lane % TEAM_WARP == 0) parts[at.lane / TEAM_WARP] = value;
        __syncthreads(); /* parts are complete */
        value = parts[0];
        for (int i = 1; i < BLOCK_WARPS; i++) value = join(value, parts[i]);
    }
    return value;
}

/* Products first, then their sum as a tree, so that one thread adds up as four do. */
template <class TEAM>
__device__ typename TEAM::T sum_rows(const TEAM &at, int n, const typename TEAM::T (&x)[TEAM::ROWS],
                                     const typename TEAM::T (&y)[TEAM::ROWS]) {
    typedef typename TEAM::T T;
    T product[TEAM::ROWS];
    UNROLL_ROWS for (int r = 0; r < TEAM::ROWS; r++) product[r] = row_of(at, r) < n ? x[r] * y[r] : T(0);
    if constexpr (TEAM::ROWS == 4) product[0] = (product[0] + product[2]) + (product[1] + product[3]);
    for (int r = 1; r < TEAM::ROWS && TEAM::WIDE; r++) product[0] += product[r];
    return reduce_lanes(at, product[0], [](T a, T b) { return a + b; });
}

/* Largest |x|; NaN where there is one, and inf where one is. */
template <class TEAM>
__device__ double norm_rows(const TEAM &at, int n, const typename TEAM::T (&x)[TEAM::ROWS]) {
    typedef typename TEAM::T T;
    T most = 0; /* NaN counts as more than all numbers, but for inf */
    UNROLL_ROWS for (int r = 0; r < TEAM::ROWS; r++) {
        const T size = row_of(at, r) < n ? (x[r] < 0 ? -x[r] : x[r]) : 0;
        most = size > most || (size != size && most < T(INFINITY)) ? size : most;
    }
    return (double)reduce_lanes(at, most, [](T a, T b) {
        if (a != a) return b == T(INFINITY) ? b : a;
        return b > a || (b != b && a < T(INFINITY)) ? b : a;
    });
}

template <class TEAM> __device__ bool all_lanes(const TEAM &at, bool value) {
    return reduce_lanes(at, (int)value, [](int a, int b) { return a & b; }) != 0;
}

/* ---- products with matrices -------------------------------------------------------------------- */

/* Row-major, in global or shared memory.  packed: every row has N readable columns, those beyond the matrix 0,
 * and is aligned to 16 bytes. */
template <class T> struct weights {
    const T *data;
    int stride;
    bool packed;
};

template <class T> struct alignas(16) pack16 {
    T of[16 / sizeof(T)];
};

template <class TEAM>
__device__ void load_matrix_row(const weights<typename TEAM::T> &W, int row, int n,
                                typename TEAM::T (&out)[TEAM::N]) {
    typedef typename TEAM::T T;
    const T *from = W.data + (int64_t)row * W.stride;
    if (W.packed) {
        UNROLL for (int c = 0; c < TEAM::N; c += TEAM::PACK) {
            const pack16<T> pack = *(const pack16<T> *)(from + c);
            UNROLL for (int i = 0; i < TEAM::PACK; i++) out[c + i] = pack.of[i];
        }
    } else {
        UNROLL for (int c = 0; c < TEAM::N; c++) out[c] = c < n ? from[c] : T(0);
    }
}

/* All rows of x, in every thread; 0 beyond n. */
template <class TEAM>
__device__ void gather(int n, const typename TEAM::T (&x)[TEAM::ROWS], typename TEAM::T (&all)[TEAM::N]) {
    typedef typename TEAM::T T;
    UNROLL for (int c = 0; c < TEAM::N; c++) {
        T value = x[c / TEAM::LANES];
        if constexpr (TEAM::LANES > 1) value = __shfl_sync(kAllLanes, value, c % TEAM::LANES, TEAM::LANES);
        all[c] = c < n ? value : T(0);
    }
}

/* Four sums, so that an addition need not wait for the last one. */
template <class T, int N> __device__ T dot(const T (&a)[N], const T (&b)[N], T start) {
    T sum[4] = {start, 0, 0, 0};
    UNROLL for (int c = 0; c < N; c++) sum[c % 4] = fused(a[c], b[c], sum[c % 4]);
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

/* y = W x + b by a block: a warp takes four rows at a time, its lanes their columns. */
template <class TEAM>
__device__ void block_times(const TEAM &at, const weights<typename TEAM::T> &W, int n_out, int n_in,
                            const typename TEAM::T (&x)[TEAM::ROWS], typename TEAM::T (&y)[TEAM::ROWS]) {
    typedef typename TEAM::T T;
    enum { AT_ONCE = 4 };
    T *in = at.exchange, *out = outcome_of(at);
    const int lane = at.lane % TEAM_WARP, warp = at.lane / TEAM_WARP;
    store_rows(at, n_in, x, in);
    __syncthreads(); /* in is complete, and nobody still reads out */
    for (int i0 = warp; i0 < n_out; i0 += BLOCK_WARPS * AT_ONCE) {
        T sum[AT_ONCE] = {};
        for (int c = lane; c < n_in; c += TEAM_WARP)
            UNROLL for (int q = 0; q < AT_ONCE; q++) if (i0 + q * BLOCK_WARPS < n_out) sum[q] =
                fused(W.data[(int64_t)(i0 + q * BLOCK_WARPS) * W.stride + c], in[c], sum[q]);
        UNROLL for (int q = 0; q < AT_ONCE; q++) {
            UNROLL for (int d = TEAM_WARP / 2; d > 0; d /= 2) sum[q] += __shfl_xor_sync(kAllLanes, sum[q], d);
            if (lane == 0 && i0 + q * BLOCK_WARPS < n_out) out[i0 + q * BLOCK_WARPS] = sum[q];
        }
    }
    __syncthreads(); /* out is complete, and nobody still reads in */
    UNROLL_ROWS for (int r = 0; r < TEAM::ROWS; r++) y[r] = row_of(at, r) < n_out ? out[row_of(at, r)] : 0;
}

/* y = W^T x by a block: a thread a column; where there are more threads, they share its rows. */
template <class TEAM>
__device__ void block_times_transposed(const TEAM &at, const weights<typename TEAM::T> &W, int n_out,
                                       int n_in, const typename TEAM::T (&x)[TEAM::ROWS],
                                       typename TEAM::T (&y)[TEAM::ROWS]) {
    typedef typename TEAM::T T;
    T *in = at.exchange, *out = outcome_of(at);
    int columns = TEAM_WARP;
    while (columns < n_in && columns < BLOCK_LANES) columns *= 2;
    const int shares = BLOCK_LANES / columns, share = at.lane / columns;
    store_rows(at, n_out, x, in);
    __syncthreads(); /* in is complete, and nobody still reads out */
    UNROLL_ROWS for (int r = 0; r < TEAM::ROWS; r++) {
        const int c = at.lane % columns + r * BLOCK_LANES;
        T sum[2] = {};
        int i = share;
        for (; c < n_in && i + shares < n_out; i += 2 * shares)
            UNROLL for (int q = 0; q < 2; q++) sum[q] =
                fused(W.data[(int64_t)(i + q * shares) * W.stride + c], in[i + q * shares], sum[q]);
        if (c < n_in && i < n_out) sum[0] = fused(W.data[(int64_t)i * W.stride + c], in[i], sum[0]);
        if (c < n_in || r == 0) out[at.lane + r * BLOCK_LANES] = sum[0] + sum[1];
    }
    __syncthreads(); /* out is complete, and nobody still reads in */
    UNROLL_ROWS for (int r = 0; r < TEAM::ROWS; r++) {
        y[r] = 0;
        for (int s = 0; s < shares && row_of(at, r) < n_in; s++) y[r] += out[row_of(at, r) + s * columns];
    }
}

/* Of WIDE vectors and steps of denoising these are called, not copied to where they are needed: ptxas would take
 * minutes. */
template <class TEAM>
__device__ NOT_INLINED void called_times(TEAM at, weights<typename TEAM::T> W, int n_out, int n_in,
                                         const typename TEAM::T (&x)[TEAM::ROWS],
                                         typename TEAM::T (&y)[TEAM::ROWS]) {
    block_times(at, W, n_out, n_in, x, y);
}

template <class TEAM>
__device__ NOT_INLINED void called_times_transposed(TEAM at, weights<typename TEAM::T> W, int n_out, int n_in,
                                                    const typename TEAM::T (&x)[TEAM::ROWS],
                                                    typename TEAM::T (&y)[TEAM::ROWS]) {
    block_times_transposed(at, W, n_out, n_in, x, y);
}

/* y = W x + b */
template <class TEAM>
__device__ void times(const TEAM &at, const weights<typename TEAM::T> &W, int n_out, int n_in,
                      const typename TEAM::T (&x)[TEAM::ROWS], const typename TEAM::T (&b)[TEAM::ROWS],
                      typename TEAM::T (&y)[TEAM::ROWS]) {
    typedef typename TEAM::T T;
    if constexpr (TEAM::BLOCK) {
        T product[TEAM::ROWS];
        if constexpr (TEAM::WIDE || TEAM::DENOISES)
            called_times(at, W, n_out, n_in, x, product);
        else
            block_times(at, W, n_out, n_in, x, product);
        UNROLL_ROWS for (int r = 0; r < TEAM::ROWS; r++) y[r] = product[r] + b[r];
    } else {
        T all[TEAM::N], row[TEAM::N];
        gather<TEAM>(n_in, x, all);
        UNROLL_ROWS for (int r = 0; r < TEAM::ROWS; r++) {
            y[r] = 0;
            if (row_of(at, r) >= n_out) continue;
            load_matrix_row<TEAM>(W, row_of(at, r), n_in, row);
            y[r] = dot<T, TEAM::N>(row, all, b[r]);
        }
    }
}

/* y = W^T x, W (n_out,n_in) */
template <class TEAM>
__device__ void times_transposed(const TEAM &at, const weights<typename TEAM::T> &W, int n_out, int n_in,
                                 const typename TEAM::T (&x)[TEAM::ROWS], typename TEAM::T (&y)[TEAM::ROWS]) {
    typedef typename TEAM::T T;
    if constexpr (TEAM::BLOCK) {
        T product[TEAM::ROWS];
        if constexpr (TEAM::WIDE || TEAM::DENOISES)
            called_times_transposed(at, W, n_out, n_in, x, product);
        else
            block_times_transposed(at, W, n_out, n_in, x, product);
        copy_rows(product, y);
    } else {
        T all[TEAM::N], column[TEAM::N];
        gather<TEAM>(n_out, x, all);
        UNROLL_ROWS for (int r = 0; r < TEAM::ROWS; r++) {
            y[r] = 0;
            if (row_of(at, r) >= n_in) continue;
            UNROLL for (int i = 0; i < TEAM::N; i++) column[i] =
                i < n_out ? W.data[(int64_t)i * W.stride + row_of(at, r)] : T(0);
            y[r] = dot<T, TEAM::N>(column, all, 0);
        }
    }
}

#endif
