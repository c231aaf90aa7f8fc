/* SPDX-License-Identifier: Apache-2.0
 *
 * deeppcr, part 1: the linear recurrence
 *
 *     x_l = A_l x_{l-1} + b_l,     l = 1..L,    x_0 given (or zero),
 *
 * a block-bidiagonal linear system in x_1..x_L, and its transpose
 *
 *     y_l = A_{l+1}^T y_{l+1} + c_l,     l = L..1,    y_{L+1} = 0.
 *
 * Solved by S segments (1 <= S <= L): every segment is reduced to one affine map, the S maps are
 * combined by cyclic reduction in ceil(log2 S) levels, and every segment is walked once from the start
 * state so found.  S = 1 is the plain loop, S = L is cyclic reduction alone, as in DeepPCR (arXiv
 * 2309.16318).  The walk checks the reduction: a sample whose states disagree with it (a product over- or
 * underflowed although the loop would not have) is recomputed by the loop.
 *
 * Contract of every call: the caller owns all memory; nothing is allocated, printed or kept between
 * calls; the same input and plan give the same bits whatever the number of threads; samples never
 * mix, so NaN or inf in one of them stays there.  Sizes are int64, strides count elements.
 * Outputs must not overlap inputs unless a function says so.
 */
#ifndef DEEPPCR_PCR_H
#define DEEPPCR_PCR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifndef DPCR_API
#define DPCR_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* 0, or a negative code; the outputs of a failed call are unspecified. */
#define DPCR_STATUS_LIST(X)                                                     \
    X(DPCR_OK, 0, "success")                                                    \
    X(DPCR_BAD_ARGUMENT, -1, "an argument is invalid")                          \
    X(DPCR_UNSUPPORTED, -2, "this combination of arguments is not supported")   \
    X(DPCR_SMALL_WORKSPACE, -3, "the workspace is smaller than its query said") \
    X(DPCR_DEVICE, -4, "the device refused a launch")

typedef enum dpcr_status {
#define DPCR_STATUS_ENUM(name, value, text) name = value,
    DPCR_STATUS_LIST(DPCR_STATUS_ENUM)
#undef DPCR_STATUS_ENUM
} dpcr_status;

/* The sentence of a status code. */
DPCR_API const char *dpcr_strerror(dpcr_status status);
/* What was wrong with the last failed call of this thread: names the argument and what it must be. */
DPCR_API const char *dpcr_detail(void);

typedef enum dpcr_dtype { DPCR_F32, DPCR_F64 } dpcr_dtype;

/* Structure of the blocks A_l: a full matrix, a diagonal, a multiple of I, or I itself. */
typedef enum dpcr_block { DPCR_DENSE, DPCR_DIAGONAL, DPCR_SCALAR, DPCR_IDENTITY } dpcr_block;

/* ---- where and how a call runs -------------------------------------------------------------- */

typedef void (*dpcr_body)(void *argument, int64_t begin, int64_t end);
/* Calls body(argument, begin, end) on disjoint ranges that cover 0..count, possibly at once, and
 * returns when all are done. */
typedef void (*dpcr_parallel_for)(void *pool, int64_t count, dpcr_body body, void *argument);

typedef struct dpcr_device dpcr_device;

typedef struct dpcr_exec { /* by value; owns nothing */
    const dpcr_device *device;
    /* how many bodies parallel_for may run at once, >= 1: sizes the scratch, never the result */
    int64_t threads;
    dpcr_parallel_for parallel_for; /* NULL: one thread */
    void *pool;                     /* first argument of parallel_for */
    int64_t grain; /* operations that pay for another thread (a start costs 2 to 50 us); 0: always */
    void *stream;  /* a CUDA device's: the cudaStream_t that everything is enqueued on */
    const struct dpcr_cuda_blas *blas; /* a CUDA device's: matrix products, pcr/cuda/cuda.h; NULL: its own */
} dpcr_exec;

/* Instruction-set levels of the CPU kernels; the others need an x86-64 processor that has them. */
typedef enum dpcr_cpu_level { DPCR_GENERIC, DPCR_X86_64_V3, DPCR_X86_64_V4, DPCR_CPU_LEVELS } dpcr_cpu_level;

/* The best CPU device of this machine, or the one of a level (NULL: not built in, or not run by this processor). */
DPCR_API const dpcr_device *dpcr_cpu_device(void);
DPCR_API const dpcr_device *dpcr_cpu_device_level(dpcr_cpu_level level);
DPCR_API const char *dpcr_device_name(const dpcr_device *device);
/* The best CPU device on the calling thread alone, and on OpenMP's threads (on one where the library
 * was built without OpenMP). */
DPCR_API dpcr_exec dpcr_serial(void);
DPCR_API dpcr_exec dpcr_openmp(void);

/* ---- plan and workspace --------------------------------------------------------------------- */

/* Goes unchanged to the workspace query and to the run. */
typedef struct dpcr_plan {
    int64_t segments;     /* S, 1..L; L = 0 takes any */
    size_t workspace_cap; /* bytes the workspace may take, 0: no limit; the batch is tiled to fit */
} dpcr_plan;

typedef struct dpcr_buffer { /* aligned to DPCR_ALIGNMENT; may be {NULL, 0} where the query says 0 */
    void *data;
    size_t bytes;
} dpcr_buffer;

#define DPCR_ALIGNMENT 64

/* ---- the recurrence ------------------------------------------------------------------------- */

/* L x B vectors of w contiguous elements.  A negative step stride runs the recurrence from the last
 * step down (data then points at step L). */
typedef struct dpcr_vectors {
    void *data;
    int64_t step, sample;
} dpcr_vectors;

/* L x B blocks; sample stride 0 shares them between the samples.  Dense: element (i, j) at
 * i * row + j * column, one of which is 1.  Diagonal: w contiguous elements.  Scalar: one. */
typedef struct dpcr_blocks {
    void *data;
    int64_t step, sample, row, column;
} dpcr_blocks;

typedef struct dpcr_recurrence {
    dpcr_dtype dtype;
    dpcr_block block;
    bool transposed; /* solve for y: b holds c, x receives y, x0 must be NULL */
    int64_t L, B, w;
    dpcr_blocks A;       /* not written; A_1 is never read where x0 is NULL */
    dpcr_vectors b;      /* not written */
    dpcr_vectors x0;     /* data NULL: zero; step is not used; not written */
    dpcr_vectors x;      /* result; may be the same array as b where plan.segments is 1 */
    int32_t *recomputed; /* B flags or NULL: 1 where the sample was recomputed by the loop */
} dpcr_recurrence;

/* Bytes of workspace for the solve (and for the backward call with the same problem). */
DPCR_API dpcr_status dpcr_recurrence_workspace(dpcr_exec exec, const dpcr_recurrence *problem,
                                               const dpcr_plan *plan, size_t *bytes);

/* Solves the problem.  levels (may be NULL) receives the number of cyclic-reduction levels that ran: ceil(log2 S). */
DPCR_API dpcr_status dpcr_recurrence_solve(dpcr_exec exec, const dpcr_recurrence *problem,
                                           const dpcr_plan *plan, dpcr_buffer workspace, int64_t *levels);

/* Gradients of a forward problem whose x has been solved, for the incoming gradient c of x:
 * y as above, gb = y, gA_l = y_l x_{l-1}^T (its diagonal, its trace for the other kinds; summed over
 * the samples where the sample stride of gA is 0), gx0 = A_1^T y_1. */
typedef struct dpcr_recurrence_gradients {
    dpcr_vectors x;  /* c, incoming; not written */
    dpcr_vectors b;  /* y; required, it holds the adjoint */
    dpcr_blocks A;   /* data NULL: not wanted */
    dpcr_vectors x0; /* data NULL: not wanted */
} dpcr_recurrence_gradients;

DPCR_API dpcr_status dpcr_recurrence_backward(dpcr_exec exec, const dpcr_recurrence *problem,
                                              const dpcr_recurrence_gradients *gradients,
                                              const dpcr_plan *plan, dpcr_buffer workspace);

#ifdef __cplusplus
}
#endif
#endif
