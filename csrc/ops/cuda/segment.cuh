/* SPDX-License-Identifier: Apache-2.0
 *
 * One team through one segment of a chain, forward or backward, with the parameters where they are; and the
 * kernels that do this for all segments and samples at once.
 */
#ifndef DEEPPCR_OPS_CUDA_SEGMENT_H
#define DEEPPCR_OPS_CUDA_SEGMENT_H

#include "ops/cuda/denoise.cuh"
#include "ops/cuda/simple.cuh"
#include "ops/cuda/stage.cuh"

enum { SEGMENT_THREADS = 256 };

/* Steps first..last-1 of a chain in slots of shared memory; first = last: none. */
template <class T> struct resident {
    const T *slots;
    slot_shape shape;
    int64_t first, last;
};

template <class TEAM>
__device__ step_parameters<typename TEAM::T>
parameters_near(const dpcr_chain &chain, const resident<typename TEAM::T> &near, int64_t l) {
    if (l >= near.first && l < near.last)
        return parameters_in<TEAM>(near.shape, near.slots + (l - near.first) * near.shape.size);
    return parameters_of<TEAM>(chain, l);
}

template <class T>
__device__ T *state_row(const dpcr_chain &chain, const void *states, int64_t l, int64_t s) {
    return (T *)states + (l * chain.B + s) * chain.w;
}

template <class T> __device__ T *segment_row(const segment_rows &rows, int64_t k, int64_t s, int64_t w) {
    return (T *)rows.data + (k * rows.samples + rows.first + s) * w;
}

/* A team's walk through steps first..last-1 of sample s, in `longest` turns with its neighbours'; own: it keeps what
 * comes of it. */
struct way {
    int64_t first, last, longest, s;
    bool own;
};

/* Segment k of S. */
template <class TEAM>
__device__ way way_through(const dpcr_chain &chain, int64_t S, int64_t k, int64_t s, bool own) {
    const int64_t first = dpcr_edge(k, chain.L, S), last = dpcr_edge(k + 1, chain.L, S);
    return {first, last, TEAM::BLOCK ? last - first : dpcr_ceil_div(chain.L, S), s, own};
}

/* Parameters of steps first..last-1 and the way from one to the next. */
template <class TEAM>
__device__ simple_steps<typename TEAM::T> simple_near(const dpcr_chain &chain,
                                                      const resident<typename TEAM::T> &near, int64_t first,
                                                      int64_t last, bool from_last = false) {
    typedef typename TEAM::T T;
    const bool inside = first >= near.first && last <= near.last;
    const int64_t l = from_last ? last - 1 : first, w = chain.w;
    const step_parameters<T> p =
        inside ? parameters_near<TEAM>(chain, near, l) : parameters_of<TEAM>(chain, l);
    return {p.W1, p.b1, inside ? near.shape.size : w * w, inside ? near.shape.size : w};
}

/* live: z through the steps; states (-,B,w), step `origin` its first row, or NULL */
template <class TEAM>
__device__ void walk(const TEAM &at, const dpcr_chain &chain, const resident<typename TEAM::T> &near,
                     const way &on, void *states, int64_t origin, typename TEAM::T (&z)[TEAM::ROWS]) {
    typedef typename TEAM::T T;
    if constexpr (TEAM::STAGES) {
        if (is_simple(chain)) {
            T *rows = on.own && states ? state_row<T>(chain, states, on.first - origin, on.s) : NULL;
            walk_simple(at, chain, simple_near<TEAM>(chain, near, on.first, on.last),
                        {on.own ? on.last - on.first : 0, on.longest, rows, chain.B * chain.w}, z);
            return;
        }
    }
    for (int64_t l = on.first; l < on.first + on.longest; l++) {
        const bool live = on.own && l < on.last;
        const int64_t step = dpcr_min(l, on.last - 1);
        if constexpr (TEAM::DENOISES)
            denoise_forward(at, chain, step, on.s, live, z);
        else
            step_forward(at, chain, parameters_near<TEAM>(chain, near, step), live, z);
        if (live && states) store_rows(at, (int)chain.w, z, state_row<T>(chain, states, l - origin, on.s));
    }
}

/* The thread's own rows of a vector of n, added up. */
template <class TEAM>
__device__ typename TEAM::T sum_own(const TEAM &at, int n, const typename TEAM::T (&x)[TEAM::ROWS]) {
    typename TEAM::T sum = 0;
    UNROLL_ROWS for (int r = 0; r < TEAM::ROWS; r++) sum += row_of(at, r) < n ? x[r] : 0;
    return sum;
}

/* A product of Jacobians to be: element (i, c) at i * row + c * column. */
template <class T> struct tangent_place {
    T *data;
    int64_t row, column;
};

/* live: step l of sample s, z -> f(z), v -> f'(z) v */
template <class TEAM>
__device__ void tangent_through(const TEAM &at, const dpcr_chain &chain,
                                const resident<typename TEAM::T> &near, int64_t l, int64_t s, bool live,
                                typename TEAM::T (&z)[TEAM::ROWS], typename TEAM::T (&v)[TEAM::ROWS]) {
    if constexpr (TEAM::DENOISES)
        denoise_tangent(at, chain, l, s, live, z, v);
    else
        step_tangent(at, chain, parameters_near<TEAM>(chain, near, l), live, z, v);
}

/* As walk(), with the product of the steps' Jacobians, stored where P.data is not NULL; returns the largest row sum of
 * magnitudes of what it stores (of a product that is stored transposed: its largest column sum). */
template <class TEAM>
__device__ typename TEAM::T walk_tangents(const TEAM &at, const dpcr_chain &chain,
                                          const resident<typename TEAM::T> &near, const way &on, void *states,
                                          int64_t origin, const tangent_place<typename TEAM::T> &P,
                                          typename TEAM::T (&z)[TEAM::ROWS]) {
    typedef typename TEAM::T T;
    const int w = (int)chain.w;
    const bool by_columns = P.row == 1 && w > 1;
    T largest = 0;
    if constexpr (!TEAM::STAGES) { /* column by column, from the start each time */
        T start[TEAM::ROWS], sums[TEAM::ROWS] = {};
        copy_rows(z, start);
        for (int c = 0; c < w; c++) {
            T v[TEAM::ROWS];
            copy_rows(start, z);
            UNROLL_ROWS for (int r = 0; r < TEAM::ROWS; r++) v[r] = row_of(at, r) == c ? 1 : 0;
            for (int64_t l = on.first; l < on.last; l++) {
                tangent_through(at, chain, near, l, on.s, true, z, v);
                if (states && c == 0) store_rows(at, w, z, state_row<T>(chain, states, l - origin, on.s));
            }
            UNROLL_ROWS for (int r = 0; r < TEAM::ROWS; r++) {
                if (row_of(at, r) >= w) continue;
                P.data[row_of(at, r) * P.row + c * P.column] = v[r];
                sums[r] += v[r] < 0 ? -v[r] : v[r];
            }
            if (by_columns) {
                UNROLL_ROWS for (int r = 0; r < TEAM::ROWS; r++) sums[r] = v[r] < 0 ? -v[r] : v[r];
                const T sum = reduce_lanes(at, sum_own(at, w, sums), [](T a, T b) { return a + b; });
                largest = sum > largest || sum != sum ? sum : largest;
            }
        }
        if (!by_columns) largest = (T)norm_rows(at, w, sums);
    } else {
        columns<TEAM> V;
        UNROLL_ROWS for (int q = 0; q < TEAM::ROWS; q++) UNROLL for (int i = 0; i < TEAM::N; i++) V.v[q][i] =
            i == at.lane * TEAM::ROWS + q ? 1 : 0;
        for (int64_t l = on.first; l < on.first + on.longest; l++) {
            const bool live = on.own && l < on.last;
            step_columns(at, chain, parameters_near<TEAM>(chain, near, dpcr_min(l, on.last - 1)), live, z, V);
            if (live && states) store_rows(at, w, z, state_row<T>(chain, states, l - origin, on.s));
        }
        T column[TEAM::ROWS] = {};
        UNROLL for (int i = 0; i < TEAM::N; i++) {
            T sum = 0;
            UNROLL_ROWS for (int q = 0; q < TEAM::ROWS; q++) {
                const int c = at.lane * TEAM::ROWS + q;
                if (c >= w || i >= w) continue;
                if (P.data) P.data[i * P.row + c * P.column] = V.v[q][i];
                const T size = V.v[q][i] < 0 ? -V.v[q][i] : V.v[q][i];
                sum += size;
                column[q] += size;
            }
            if (by_columns) continue;
            sum = reduce_lanes(at, sum, [](T a, T b) { return a + b; });
            largest = sum > largest || sum != sum ? sum : largest;
        }
        if (by_columns) { /* columns beyond w hold zeros */
            UNROLL_ROWS for (int q = 0; q < TEAM::ROWS; q++) largest =
                column[q] > largest || column[q] != column[q] ? column[q] : largest;
            largest = reduce_lanes(at, largest, [](T a, T b) { return b > a || b != b ? b : a; });
        }
    }
    return largest;
}

/* As walk(), with one tangent: v times the product of the steps' Jacobians. */
template <class TEAM>
__device__ void walk_tangent(const TEAM &at, const dpcr_chain &chain, const resident<typename TEAM::T> &near,
                             const way &on, void *states, int64_t origin, typename TEAM::T (&z)[TEAM::ROWS],
                             typename TEAM::T (&v)[TEAM::ROWS]) {
    typedef typename TEAM::T T;
    for (int64_t l = on.first; l < on.first + on.longest; l++) {
        const bool live = on.own && l < on.last;
        tangent_through(at, chain, near, dpcr_min(l, on.last - 1), on.s, live, z, v);
        if (live && states) store_rows(at, (int)chain.w, z, state_row<T>(chain, states, l - origin, on.s));
    }
}

/* The arrays of a backward pass that its steps read and write. */
struct back_arrays {
    int64_t first;       /* the step that rows of states and saved begin with */
    const void *before;  /* (B,w) the state before it */
    const void *states;  /* (-,B,w) */
    const void *gstates; /* (L,B,w) or NULL */
    void *saved;         /* (-,B,saved_size), or NULL: no parameter gradients, and no need of it */
};

template <class T>
__device__ const T *state_before(const dpcr_chain &chain, const back_arrays &arrays, int64_t l, int64_t s) {
    return l == arrays.first ? state_row<T>(chain, arrays.before, 0, s)
                             : state_row<T>(chain, arrays.states, l - 1 - arrays.first, s);
}

/* live: g back through the steps */
template <class TEAM>
__device__ void walk_back(const TEAM &at, const dpcr_chain &chain, const resident<typename TEAM::T> &near,
                          const back_arrays &arrays, const way &on, typename TEAM::T (&g)[TEAM::ROWS]) {
    typedef typename TEAM::T T;
    const int w = (int)chain.w;
    const bool plain = is_plain(chain);
    if constexpr (TEAM::STAGES) {
        if (plain) {
            const int64_t l = on.last - 1, width = saved_size(chain), row = chain.B * chain.w;
            T *saved = (T *)arrays.saved + ((l - arrays.first) * chain.B + on.s) * width;
            walk_back_simple(at, chain, simple_near<TEAM>(chain, near, on.first, on.last, true),
                             {on.own ? on.last - on.first : 0, on.longest,
                              state_row<T>(chain, arrays.states, l - arrays.first, on.s),
                              arrays.gstates ? state_row<T>(chain, arrays.gstates, l, on.s) : NULL,
                              arrays.saved ? saved : NULL, row, row, chain.B * width},
                             g);
            return;
        }
    }
    T after[TEAM::ROWS], before[TEAM::ROWS];
    copy_rows(g, before);
    if (on.last > on.first)
        load_rows(at, w, state_row<T>(chain, arrays.states, on.last - 1 - arrays.first, on.s), before);
    for (int64_t l = on.last - 1; l >= on.last - on.longest; l--) {
        const bool live = on.own && l >= on.first;
        T *saved = NULL;
        copy_rows(before, after);
        if (live && (l > on.first || !plain)) /* a plain step needs what comes after it alone */
            load_rows(at, w, state_before<T>(chain, arrays, l, on.s), before);
        if (live && arrays.gstates) {
            T extra[TEAM::ROWS];
            load_rows(at, w, state_row<T>(chain, arrays.gstates, l, on.s), extra);
            UNROLL_ROWS for (int r = 0; r < TEAM::ROWS; r++) g[r] += extra[r];
        }
        if (live && arrays.saved)
            saved = (T *)arrays.saved + ((l - arrays.first) * chain.B + on.s) * saved_size(chain);
        const int64_t step = dpcr_max(l, on.first);
        if constexpr (TEAM::DENOISES)
            denoise_back(at, chain, step, live, before, saved, g);
        else
            step_back(at, chain, parameters_near<TEAM>(chain, near, step), live, before, after, saved, g);
    }
}

/* ---- kernels ----------------------------------------------------------------------------------- */

/* The team's number in its warp (0 in a block), that of the warp's first one in the grid, and how many there are. */
template <class TEAM> __device__ int team_in_warp() {
    return TEAM::BLOCK ? 0 : (int)threadIdx.x % TEAM_WARP / TEAM::LANES;
}

template <class TEAM> __device__ int64_t first_team() {
    const int64_t thread = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    return thread / TEAM::LANES - team_in_warp<TEAM>();
}

template <class TEAM> __device__ int64_t team_count() {
    return (int64_t)gridDim.x * (blockDim.x / TEAM::LANES);
}

/* The widest vector of a chain, and of a team. */
static inline DPCR_EVERYWHERE int64_t widest_of(const dpcr_chain &chain) {
    return dpcr_max(chain.w, chain.h);
}

/* What a block team exchanges through: an array of its own or, where that would be more than a block has unasked,
 * `dynamic`, the block's dynamic array of exchange_bytes().  Others need none. */
#define TEAM_HERE(TEAM, name, chain, dynamic)                                                \
    DYNAMIC_SHARED(typename TEAM::T, dynamic);                                               \
    SHARED(typename TEAM::T, name##_exchange, TEAM::BLOCK && !TEAM::WIDE ? 2 * TEAM::N : 1); \
    const TEAM name =                                                                        \
        TEAM::WIDE ? this_team<TEAM>(dynamic, (int)widest_of(chain)) : this_team<TEAM>(name##_exchange)

template <class TEAM> static inline size_t exchange_bytes(const dpcr_chain &chain) {
    return TEAM::WIDE ? 2 * (size_t)widest_of(chain) * sizeof(typename TEAM::T) : 0;
}

/* Segments k0..k1-1 of S, as a propagate_pass has them.  tasks: segments x samples */
struct propagate_arguments {
    dpcr_chain chain;
    int64_t S, k0, samples;
    segment_rows starts, ends; /* ends.data NULL: not kept */
    void *states;              /* (-,B,w) from step `origin` on, or NULL */
    int64_t origin;
    void *tangents; /* (S,B,w,w), or NULL */
};

template <class TEAM>
__global__ void THREADS(SEGMENT_THREADS)
    propagate_kernel(int64_t tasks, const __grid_constant__ propagate_arguments a) {
    typedef typename TEAM::T T;
    TEAM_HERE(TEAM, at, a.chain, shared);
    const dpcr_chain &chain = a.chain;
    const int w = (int)chain.w;
    const resident<T> nothing = {};
    for (int64_t turn = first_team<TEAM>(); turn < tasks; turn += team_count<TEAM>()) {
        const int64_t task = dpcr_min(turn + team_in_warp<TEAM>(), tasks - 1);
        const bool own = turn + team_in_warp<TEAM>() < tasks;
        const int64_t k = a.k0 + task / a.samples, s = task % a.samples;
        const way on = way_through<TEAM>(chain, a.S, k, s, own);
        T z[TEAM::ROWS];
        load_rows(at, w, segment_row<T>(a.starts, k, s, w), z);
        if (a.tangents) {
            T *P = (T *)a.tangents + (k * a.samples + s) * w * w;
            walk_tangents(at, chain, nothing, on, a.states, a.origin, {own ? P : NULL, w, 1}, z);
        } else {
            walk(at, chain, nothing, on, a.states, a.origin, z);
        }
        if (own && a.ends.data) store_rows(at, w, z, segment_row<T>(a.ends, k, s, w));
    }
}

/* Steps first..last-1 backwards, a team a sample: what sequential_back_kernel is for teams of a block. */
struct pullback_arguments {
    dpcr_chain chain;
    back_arrays arrays;
    int64_t first, last;
    const void *gz; /* (B,w) or NULL */
    void *g;        /* (B,w) or NULL; may be gz */
};

template <class TEAM>
__global__ void THREADS(SEGMENT_THREADS)
    pullback_kernel(int64_t samples, const __grid_constant__ pullback_arguments a) {
    typedef typename TEAM::T T;
    TEAM_HERE(TEAM, at, a.chain, shared);
    const dpcr_chain &chain = a.chain;
    const int w = (int)chain.w;
    const resident<T> nothing = {};
    for (int64_t turn = first_team<TEAM>(); turn < samples; turn += team_count<TEAM>()) {
        const int64_t s = dpcr_min(turn + team_in_warp<TEAM>(), samples - 1);
        const way on = {a.first, a.last, a.last - a.first, s, turn + team_in_warp<TEAM>() < samples};
        T g[TEAM::ROWS];
        load_rows(at, w, on.own && a.gz ? state_row<T>(chain, a.gz, 0, s) : NULL, g);
        walk_back(at, chain, nothing, a.arrays, on, g);
        if (on.own && a.g) store_rows(at, w, g, state_row<T>(chain, a.g, 0, s));
    }
}

#endif
