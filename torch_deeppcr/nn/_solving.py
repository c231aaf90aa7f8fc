# SPDX-License-Identifier: Apache-2.0
"""What the chains share as modules: how they are solved, and what they remember of it."""

from __future__ import annotations

from torch import Tensor, nn

from .. import _checks
from .._plan import Solver, SolverOptions, solver_of
from .._planner import Planner
from .._solve import Call


class SolvedChain(nn.Module):
    """A module with a `Solver` and a `Planner`; neither is part of the state_dict."""

    depth: int
    solver: Solver

    def __init__(self, depth: int, solver: SolverOptions) -> None:
        super().__init__()
        self.depth = _checks.size("depth", depth)
        self.solver = solver_of(solver)
        self._planner = Planner()
        self._check_segments()

    def _check_segments(self) -> None:
        if self.solver.segments != "auto":
            _checks.segments(self.solver.segments, self.depth)

    def _own(self, *names: str) -> tuple[Tensor | None, ...]:
        """Parameters, or what somebody put in their place; ``getattr`` of each takes longer than a
        short chain."""
        own = self._parameters
        return tuple([own[name] if name in own else getattr(self, name) for name in names])

    def _call(self, return_states: bool, warm_start: Tensor | None, return_info: bool) -> Call:
        return Call(return_states, warm_start, return_info, self.solver, self._planner)
