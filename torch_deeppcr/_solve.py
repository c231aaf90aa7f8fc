# SPDX-License-Identifier: Apache-2.0
"""One call of a chain: arguments checked, a plan made, the chain run, the report read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _again, _chain, _checks, _native
from ._chain import Parameters
from ._kinds import ChainKind, Options
from ._plan import ChainInfo, Plan, Solver, readable
from ._planner import FEWEST_THREADS, Choice, Planner, Problem, cuda_choice
from ._switch import sequential_wanted
from ._transforms import autocast_enabled, forward_ad_active, func_active

#: A tensor, or a tuple of it and what ``return_states`` and ``return_info`` ask for.
Output = Any
#: The options of a kind, as its operator takes them.
Step = tuple[Any, ...]

# Why "auto" is one segment without asking the planner.
_FUNCTION = Choice(
    1, None, "segments=1: a function remembers no sweeps, so 'auto' is 1; modules do"
)
_TRACED = Choice(
    1, None, "segments=1: under torch.compile and torch.func no sweeps are seen, so 'auto' is 1"
)
_WATCHED = Choice(1, None, "segments=1: 'auto' is more only with on_unconverged='sequential'")
_FEW_THREADS = Choice(
    1, None, f"segments=1: more need {FEWEST_THREADS} threads or more to be faster"
)


class Call(NamedTuple):
    """What a caller of a chain of any kind says besides the tensors and options of the kind."""

    return_states: bool
    warm_start: Tensor | None
    return_info: bool
    solver: Solver
    planner: Planner | None = None  # of a module
    frozen: tuple[bool, ...] = ()  # steps whose parameters are constants; empty: none

    @property
    def wants_output(self) -> bool:
        """And nothing else; and gives no guess."""
        return self.return_states is False and self.return_info is False and self.warm_start is None


def run(
    kind: ChainKind,
    call: Call,
    state: Tensor,
    parameters: Parameters,
    told: tuple[Any, ...],
    resolve: Callable[..., Step] | None = None,
) -> Output:
    """state, parameters: as the user gave them.  told: options that `resolve` (of state, parameters
    and those) makes the options of the kind of; without it they are that."""
    planner = call.planner
    key = None
    if planner is not None and call.wants_output:
        key = _again.key_of(kind, call.frozen, state, parameters)
        if key is not None and (ready := planner.ready.get(key)):
            z = _again.run(ready, key[-1], told, call.solver, state, parameters)
            if z is not None:
                return z
    step = resolve(state, parameters, *told) if resolve else told
    state = _checks.real_tensor("input", state)
    guess = call.warm_start
    if autocast_enabled(state):
        state = to_float32(state)
        parameters = tuple(map(to_float32, parameters))
        guess = to_float32(guess)
    parameters = _flatten_sampled(kind, state, parameters)
    length = _checks.parameters(kind.shapes, parameters, "input", state)["L"]
    _checks.frozen(call.frozen, length)
    _checks.flag("return_states", call.return_states)
    _checks.flag("return_info", call.return_info)
    outer = state.shape[:-1]
    if guess is not None:
        guess = _check_guess(guess, length, state)
    if len(outer) != 1:
        state = state.flatten(0, -2) if outer else state.unsqueeze(0)

    structure = call.solver.structure(kind.has_skip(*step), state.shape[1])
    problem, choice = _choose(kind, call, structure, length, state, parameters)
    options = Options(
        step,
        call.solver.raw(choice.segments, structure, choice.max_sweeps, state.dtype),
        call.solver.kept,
        call.solver.watch,
        call.frozen,
        choice.back,
    )
    keep = "states" if call.return_states else "nothing"
    start = None if choice.segments == 1 else guess
    z, states, info = _chain.solve(kind, options, keep, state, *parameters, start)
    if problem and choice.segments > 1 and planner and info is not None and readable(info):
        planner.learn(problem, choice.segments, info)

    if len(outer) != 1:
        z = z.unflatten(0, outer) if outer else z.squeeze(0)
    if not call.return_states and not call.return_info:
        if key and planner and choice.segments == 1 and len(outer) == 1 and info is not None:
            _again.remember(planner.ready, key, kind, options, told, call.solver)
        return z
    result: list[Any] = [z]
    if call.return_states:
        if len(outer) != 1:
            states = states.unflatten(1, outer) if outer else states.squeeze(1)
        result.append(states)
    if call.return_info:
        result.append(_info(kind, call, choice, options, state, parameters, outer, info))
    return tuple(result)


def to_float32(value: Any) -> Any:
    """What autocast does to the inputs of an operator that needs precision; float64 stays."""
    if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16):
        return value.float()
    return value


def _flatten_sampled(kind: ChainKind, state: Tensor, parameters: Parameters) -> Parameters:
    """Parameters (L, ..., w) that have a row for each sample as (L,B,w)."""
    if not kind.sampled or state.dim() == 2:
        return parameters
    values = list(parameters)
    for index in kind.sampled:
        value = values[index]
        if not isinstance(value, Tensor) or value.dim() == 0:
            continue  # somebody else's
        if value.shape[1:] != state.shape:
            expected = ", ".join(map(str, ("L", *state.shape)))
            raise ValueError(
                f"{list(kind.shapes)[index]} must have the shape of the states, (L, ..., w) = "
                f"({expected}), got {tuple(value.shape)}"
            )
        values[index] = value.flatten(1, -2) if state.dim() > 2 else value.unsqueeze(1)
    return tuple(values)


def _check_guess(guess: object, length: int, state: Tensor) -> Tensor:
    """warm_start (L, ..., w) as (L,B,w), without its graph."""
    guess = _checks.like("warm_start", guess, "input", state)
    expected = (length, *state.shape)
    if guess.shape != expected:
        raise ValueError(
            f"warm_start must have the shape of the states, (L, ..., w) = {expected}, "
            f"got {tuple(guess.shape)}"
        )
    guess = guess.detach()
    if state.dim() == 2:
        return guess
    return guess.flatten(1, -2) if state.dim() > 2 else guess.unsqueeze(1)


# ---- the plan ------------------------------------------------------------------------------------


def _choose(
    kind: ChainKind,
    call: Call,
    structure: str,
    length: int,
    state: Tensor,
    parameters: Parameters,
) -> tuple[Problem | None, Choice]:
    """How many segments; and for what, where the planner chose and wants to see the sweeps."""
    solver = call.solver
    if solver.segments != "auto":
        return None, Choice(_checks.segments(solver.segments, length), solver.max_sweeps, "")
    if state.device.type == "cuda" and _chain.native(state):
        if solver.on_unconverged != "sequential":
            return None, _WATCHED
        batch, width = state.shape
        measured = structure == "dense" and kind.every_stacked
        choice = cuda_choice(length, batch, width, measured)
        if solver.max_sweeps is not None:
            choice = choice._replace(max_sweeps=solver.max_sweeps)
        return None, choice
    if call.planner is None:
        return None, _FUNCTION
    if torch.compiler.is_compiling() or func_active() or forward_ad_active():
        return None, _TRACED
    if solver.on_unconverged != "sequential":
        return None, _WATCHED
    threads = torch.get_num_threads()
    if threads < FEWEST_THREADS:
        return None, _FEW_THREADS
    gradients = torch.is_grad_enabled() and (
        state.requires_grad or any(p is not None and p.requires_grad for p in parameters)
    )
    # One column of tangents is neither counted nor expected to spare a chain its sweeps.
    refresh = solver.refresh if structure == "dense" else None
    batch, width = state.shape
    problem = Problem(length, batch, width, state.dtype, refresh, threads, gradients)
    choice = call.planner.choose(problem)
    if solver.max_sweeps is not None:
        choice = choice._replace(max_sweeps=solver.max_sweeps)
    return problem, choice


# ---- the report ----------------------------------------------------------------------------------


def _info(
    kind: ChainKind,
    call: Call,
    choice: Choice,
    options: Options,
    state: Tensor,
    parameters: Parameters,
    outer: tuple[int, ...],
    info: Tensor | None,
) -> ChainInfo:
    segments, structure, _, rtol, atol, max_sweeps, _ = options.solver
    why = choice.why or f"segments={segments}, as asked for"
    if info is None:
        segments, why = 1, f"PyTorch's loop: {_no_kernel(state)}"
        info = _loop_report(kind, state, parameters)
    compiling = torch.compiler.is_compiling()
    plan = Plan(
        segments,
        structure,
        call.solver.refresh,
        rtol,
        atol,
        min(segments, 40) if max_sweeps < 0 else max_sweeps,
        call.solver.on_unconverged,
        call.solver.memory,
        0 if compiling else torch.get_num_threads(),
    )
    levels: int | Tensor = info[4, :1].sum().long()
    if not (compiling or func_active()) and readable(info):
        levels = int(levels)
    sweeps, tangent_sweeps, status, residual, _, flops = (row.reshape(outer) for row in info)
    return ChainInfo(
        sweeps.long(), tangent_sweeps, residual, status.long(), levels, flops, plan, why
    )


def _no_kernel(state: Tensor) -> str:
    if sequential_wanted():
        return "inside of torch_deeppcr.sequential()"
    if not _native.native_available():
        return "the native library is not loaded"
    return f"there is no native kernel for {state.dtype} on {state.device.type}"


def _loop_report(kind: ChainKind, state: Tensor, parameters: Parameters) -> Tensor:
    """The report (6,B) of a walk."""
    device = state.device if state.device.type in ("cpu", "cuda", "meta") else None
    info = torch.zeros(6, state.shape[0], dtype=torch.float64, device=device)
    if state.shape[1] and kind.flops(parameters):
        info[0], info[5] = 1, kind.flops(parameters)
    return info
