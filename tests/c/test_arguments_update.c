/* SPDX-License-Identifier: Apache-2.0
 *
 * Bad arguments of dpcr_newton_update: from a good call one thing at a time is broken.  And what is no error.
 */
#include "ops/update.h"
#include "support/refusal.h"

#include <math.h>

enum { L = 4, B = 3, W = 2 };

typedef struct call {
    dpcr_exec exec;
    dpcr_update update;
    const dpcr_update *update_at;
    size_t bytes, *bytes_at;
    dpcr_buffer workspace;
} call;

static float states[(L + 1) * B * W], ends[L * B * W], jacobian[L * B * W * W], updated[(L + 1) * B * W],
    error[L * B];
static double tolerance[L];
static int64_t converged[B];
static _Alignas(DPCR_ALIGNMENT) char work[1 << 16];

static void good(call *c) {
    *c = (call){.exec = dpcr_serial(), .workspace = {work, sizeof work}};
    c->update = (dpcr_update){.dtype = DPCR_F32,
                              .L = L,
                              .B = B,
                              .w = W,
                              .segments = 2,
                              .states = states,
                              .ends = ends,
                              .jacobian = jacobian,
                              .tolerance = tolerance,
                              .updated = updated,
                              .error = error,
                              .converged = converged};
    c->update_at = &c->update;
    c->bytes_at = &c->bytes;
}

enum { QUERY = 1, RUN = 2, ALL = 3 };

static void run(const call *c, int calls, const char *name) {
    refusal_expected(name);
    if (calls & QUERY)
        refusal_check(dpcr_newton_update_workspace(c->exec, c->update_at, c->bytes_at), DPCR_BAD_ARGUMENT,
                      "workspace");
    refusal_expected(name);
    if (calls & RUN)
        refusal_check(dpcr_newton_update(c->exec, c->update_at, c->workspace), DPCR_BAD_ARGUMENT, "update");
}

#define BREAK(calls, name, ...)            \
    do {                                   \
        call c;                            \
        good(&c);                          \
        check_context("%s", #__VA_ARGS__); \
        __VA_ARGS__;                       \
        run(&c, calls, name);              \
    } while (0)

#define ALLOW(...)                                                                                   \
    do {                                                                                             \
        call c;                                                                                      \
        good(&c);                                                                                    \
        check_context("%s", #__VA_ARGS__);                                                           \
        __VA_ARGS__;                                                                                 \
        CHECK(dpcr_newton_update_workspace(c.exec, &c.update, &c.bytes) == DPCR_OK                   \
                  && dpcr_newton_update(c.exec, &c.update, (dpcr_buffer){work, c.bytes}) == DPCR_OK, \
              "%s", dpcr_detail());                                                                  \
    } while (0)

int main(void) {
    BREAK(ALL, "exec.device", c.exec.device = NULL);
    BREAK(ALL, "exec.threads", c.exec.threads = 0);
    BREAK(ALL, "update", c.update_at = NULL);
    BREAK(QUERY, "bytes", c.bytes_at = NULL);
    BREAK(ALL, "dtype", c.update.dtype = (dpcr_dtype)9);
    BREAK(ALL, "structure", c.update.structure = DPCR_STRUCTURES);
    BREAK(ALL, "L", c.update.L = -1);
    BREAK(ALL, "B", c.update.B = -1);
    BREAK(ALL, "w", c.update.w = -1);
    BREAK(ALL, "states", c.update.L = INT64_MAX, c.update.segments = 0);
    BREAK(ALL, "states", c.update.B = INT64_MAX / 8);
    BREAK(ALL, "jacobian", c.update.w = INT64_MAX >> 36);
    BREAK(ALL, "segments", c.update.segments = -1);
    BREAK(ALL, "segments", c.update.segments = L + 1);
    BREAK(ALL, "rtol", c.update.rtol = -1);
    BREAK(ALL, "rtol", c.update.rtol = NAN);
    BREAK(RUN, "states", c.update.states = NULL);
    BREAK(RUN, "ends", c.update.ends = NULL);
    BREAK(RUN, "jacobian", c.update.jacobian = NULL);
    BREAK(RUN, "jacobian", c.update.structure = DPCR_P_ZERO);
    BREAK(RUN, "tolerance", c.update.tolerance = NULL);
    BREAK(RUN, "updated", c.update.updated = NULL);
    BREAK(RUN, "error", c.update.error = NULL);
    BREAK(RUN, "converged", c.update.converged = NULL);
    BREAK(RUN, "workspace.data", c.workspace.data = NULL);
    BREAK(RUN, "workspace.data", c.workspace.data = work + 1);
    ALLOW((void)c);
    ALLOW(c.update.segments = 0);
    ALLOW(c.update.structure = DPCR_P_IDENTITY, c.update.jacobian = NULL);
    ALLOW(c.update.B = 0, c.update.states = c.update.ends = NULL, c.update.converged = NULL);
    ALLOW(c.update.L = 0, c.update.ends = c.update.jacobian = NULL, c.update.tolerance = NULL);
    ALLOW(c.update.w = 0, c.update.states = c.update.ends = c.update.jacobian = NULL);
    return check_finish();
}
