# SPDX-License-Identifier: Apache-2.0
"""DEER in JAX: Newton on all steps at once, the peer of deeppcr with segments=L, refresh="always".

Each sweep takes the Jacobian of every step with jacfwd and solves the linearised chain with
jax.lax.associative_scan (Lim et al., "Parallelizing non-linear sequential models over the sequence
length", ICLR 2024, arXiv 2309.12252).  Sweeps end when the update is below 1e-4 of the largest
state: convergence is quadratic there, and with a tolerance near rounding some chains never end.
Backward is one more scan, with the transposed Jacobians of the final states, and the vjp of every
step.  Written for this benchmark.  There is no safe finish: a chain on which Newton fails gets a
wrong result, so this contender may be wrong.
"""

from typing import Any

from problems import Problem

from . import Run, newton_gflop
from ._jax import STEPS, Array, JaxContender, after, apply, jax, jnp, run_pass

RTOL = 1e-4
MOST_SWEEPS = 100


class Deer(JaxContender):
    name = "JAX DEER"
    title = "JAX, jitted: DEER, Newton with jacfwd and associative_scan over all steps"
    always_right = False

    def unfit(self, problem: Problem) -> str:
        return "" if problem.is_chain else "chains only"

    def gflop(self, problem: Problem) -> float:
        return newton_gflop(problem, problem.length)

    def prepare(self, problem: Problem) -> Run:
        step = STEPS[problem.kind]
        shared = (0, *(None for _ in problem.leaves[1:]))
        jacobians = jax.vmap(jax.vmap(jax.jacfwd(step), shared))  # (L,B,w,w)
        steps = jax.vmap(step)

        def before(z0: Array, states: Array) -> Array:
            return jnp.concatenate([z0[None], states[:-1]])

        def solve(z0: Array, *stacked: Array) -> tuple[Array, Array]:
            """All states (L,B,w), and the number of sweeps."""

            def sweep(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
                states, _, count = carry
                previous = before(z0, states)
                J, ends = jacobians(previous, *stacked), steps(previous, *stacked)
                # z_0 is exact, so the first step has no correction.
                right = (ends - apply(J, previous)).at[0].set(ends[0])
                new = jax.lax.associative_scan(after, (J, right))[1]
                change = jnp.abs(new - states).max() / jnp.abs(new).max()
                return new, change, count + 1

            def unfinished(carry: tuple[Array, Array, Array]) -> Array:
                return (carry[1] > RTOL) & (carry[2] < MOST_SWEEPS)

            guess = jnp.broadcast_to(z0, (stacked[0].shape[0], *z0.shape))
            states, _, count = jax.lax.while_loop(unfinished, sweep, (guess, jnp.inf, 0))
            return states, count

        def forward(*leaves: Array) -> list[Array]:
            states, count = solve(*leaves)
            return [states[-1], count]

        def train(gradient: Array, z0: Array, *stacked: Array) -> list[Array]:
            states, count = solve(z0, *stacked)
            previous = before(z0, states)
            # g_L = gradient, g_{l-1} = J_l^T g_l, as a recurrence over the reversed steps.
            transposed = jacobians(previous, *stacked)[:0:-1].swapaxes(-1, -2)
            maps = jnp.concatenate([jnp.zeros_like(transposed[:1]), transposed])
            right = jnp.zeros_like(states).at[0].set(gradient)
            adjoints = jax.lax.associative_scan(after, (maps, right))[1][::-1]

            def pull(g: Array, *inputs: Array) -> Any:
                return jax.vjp(step, *inputs)[1](g)

            of_states, *of_parameters = jax.vmap(pull)(adjoints, previous, *stacked)
            return [states[-1], of_states[0], *of_parameters, count]

        def notes(extra: list[Array]) -> dict[str, Any]:
            return {"sweeps": int(extra[0])}

        return run_pass(problem, train if problem.trains else forward, notes)


CONTENDERS = (Deer(),)
