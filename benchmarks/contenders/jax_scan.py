# SPDX-License-Identifier: Apache-2.0
"""jax.lax.scan, jitted: the sequential loop without a dispatch per step."""

from problems import Problem

from . import Run
from ._jax import STEPS, Array, JaxContender, apply, jax, jnp, run


class Scan(JaxContender):
    name = "JAX scan"
    title = "JAX, jitted: jax.lax.scan, one step after the other"

    def prepare(self, problem: Problem) -> Run:
        if problem.is_chain:
            step = STEPS[problem.kind]

            def chain(z: Array, *stacked: Array) -> Array:
                return jax.lax.scan(lambda z, p: (step(z, *p), None), z, stacked)[0]

            return run(problem, chain)

        times = apply if problem.kind == "dense" else jnp.multiply

        def body(x: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
            x = times(inputs[0], x) + inputs[1]
            return x, x

        def recurrence(blocks: Array, b: Array) -> Array:
            return jax.lax.scan(body, jnp.zeros_like(b[0]), (blocks, b))[1]

        return run(problem, recurrence)


CONTENDERS = (Scan(),)
