# SPDX-License-Identifier: Apache-2.0
"""jax.lax.associative_scan over affine maps, jitted: what parallel methods in JAX stand on."""

from problems import Problem

from . import Run
from ._jax import Array, JaxContender, after, after_diagonal, jax, run


class AssociativeScan(JaxContender):
    name = "JAX associative_scan"
    title = "JAX, jitted: jax.lax.associative_scan over affine maps"

    def unfit(self, problem: Problem) -> str:
        return "recurrences only" if problem.is_chain else ""

    def prepare(self, problem: Problem) -> Run:
        then = after if problem.kind == "dense" else after_diagonal

        def solve(blocks: Array, b: Array) -> Array:
            return jax.lax.associative_scan(then, (blocks, b))[1]

        return run(problem, solve)


CONTENDERS = (AssociativeScan(),)
