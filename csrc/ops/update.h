/* SPDX-License-Identifier: Apache-2.0
 *
 * deeppcr, part 3: one Newton sweep for steps that somebody else evaluates.
 *
 * Of a chain  x_l = f_l(x_{l-1}),  l = 1..L, the caller has x_0, guesses x_1..x_L, and at these the ends
 * e_l = f_l(x_{l-1}) and what is to stand for their Jacobians A_l.  The call does the rest of a sweep:
 *
 *     residual    r_l = e_l - x_l
 *     solve       d_l = A_l d_{l-1} + r_l, d_0 = 0: the linear recurrence of pcr.h (A_1 is never read)
 *     update      x_l = e_l + A_l d_{l-1}, and e_l itself where d_{l-1} is exactly 0, be A_l inf
 *     guard       a new x_l that is not finite, or larger than 10 times the largest finite |e| of its sample,
 *                 is not believed: e_l takes its place
 *     test        error_l = |d_l|, of a guarded step the largest of |d_l|, |A_l d_{l-1}| and |r_l|; inf where
 *                 that is not finite; converged = the number of leading steps with
 *                 error_l <= tolerance_l + rtol |e_l|
 *
 * where |.| is the largest element.  Whatever A is, steps whose x_{l-1} is exact become exact: after each sweep
 * there is one more of them, and a new x_1 always is.  So where e_1 is not finite, converged is 1: that is what the
 * loop over the steps would compute, too, and nothing is known of the steps behind it.
 *
 * With one segment all of it is a loop over the steps, in one pass over the arrays, in parallel over samples and
 * (but for dense A) over the elements of a state: 2 L w operations (dense 2 L w^2) and 4 L w numbers moved.  More
 * segments serve where samples are few, steps many and A dense; then the recurrence is solved first, and a sample
 * whose d is not finite is done again by the loop.
 *
 * The contract is that of pcr.h.  Arrays are contiguous and row-major; results must not overlap what is read.
 */
#ifndef DEEPPCR_UPDATE_H
#define DEEPPCR_UPDATE_H

#include "chain.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct dpcr_update {
    dpcr_dtype dtype;
    dpcr_structure structure; /* of A */
    int64_t L, B, w;
    int64_t segments;        /* of the recurrence, 1..L; 0: its own choice, which is 1 */
    bool shared;             /* A is the same for all samples: 1 stands in place of its B */
    const void *states;      /* (L+1,B,w) x_0..x_L */
    const void *ends;        /* (L,B,w) e_1..e_L */
    const void *jacobian;    /* dense (L,B,w,w), diagonal (L,B,w), scalar (L,B); NULL for identity and zero */
    const double *tolerance; /* (L) absolute */
    double rtol;             /* >= 0 */
    void *updated;           /* (L+1,B,w) x_0 and the new x_1..x_L */
    void *error;             /* (L,B), of the dtype */
    int64_t *converged;      /* (B) */
} dpcr_update;

/* The query reads no array. */
DPCR_API dpcr_status dpcr_newton_update_workspace(dpcr_exec exec, const dpcr_update *update, size_t *bytes);
DPCR_API dpcr_status dpcr_newton_update(dpcr_exec exec, const dpcr_update *update, dpcr_buffer workspace);

#ifdef __cplusplus
}
#endif
#endif
