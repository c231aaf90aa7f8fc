# SPDX-License-Identifier: Apache-2.0
"""A call of a module like an earlier one: the operator at once.

What a call came to is remembered where that was one segment: then nothing has to be chosen, and the
operator checks its inputs itself.  A short chain is done sooner than its arguments are checked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._chain import Parameters, call, pullback
from ._kinds import ChainKind, Options
from ._plan import Solver
from ._switch import sequential_wanted
from ._transforms import below_autograd, forward_ad_active, func_active, plain

_MOST = 64


class Ready(NamedTuple):
    """What a call came to, and what it depended on besides its key."""

    told: tuple[Any, ...]
    solver: Solver
    threads: int
    kind: ChainKind
    options: Options
    operator: Callable[..., Any]
    operator_backward: Callable[..., Any]
    inference: tuple[Any, ...]  # arguments of the operator, behind its tensors
    training: tuple[Any, ...]
    backward: tuple[Any, ...]  # without needs


def key_of(kind: ChainKind, frozen: tuple[bool, ...], state: Any, parameters: Parameters) -> Any:
    """What the calls have in common that come to the same, and last whether gradients are recorded;
    None where a call is not plain."""
    if (
        torch.compiler.is_compiling()
        or not plain(state)
        or not kind.every_stacked
        or sequential_wanted()
    ):
        return None
    recording = torch.is_grad_enabled()
    if recording and not state.requires_grad:
        for parameter in parameters:
            if parameter is not None and parameter.requires_grad:
                break
        else:
            recording = False
    shape = getattr(parameters[0], "shape", None)  # what is no tensor is refused later
    return kind.name, frozen, state.shape, shape, state.dtype, recording


def remember(
    memory: dict[Any, Ready],
    key: Any,
    kind: ChainKind,
    options: Options,
    told: tuple[Any, ...],
    solver: Solver,
) -> None:
    if len(memory) >= _MOST:
        memory.clear()
    memory[key] = Ready(
        told,
        solver,
        torch.get_num_threads(),
        kind,
        options,
        kind.operator,
        kind.operator_backward,
        (*options.raw, "nothing"),
        (*options.raw, options.kept),
        (*options.backward(options.kept).raw, options.kept),
    )


def run(
    ready: Ready,
    recording: bool,
    told: tuple[Any, ...],
    solver: Solver,
    state: Tensor,
    parameters: Parameters,
) -> Tensor | None:
    """None where something else is wanted by now, or the operator fails: the long way then says why
    in the words of the caller."""
    if ready.solver is not solver or ready.told != told:
        return None
    if ready.threads != torch.get_num_threads():
        return None
    try:
        if recording:
            return RepeatedChain.apply(ready, state, *parameters)
        with below_autograd():
            return ready.operator(state, *parameters, None, *ready.inference)[0]
    except (RuntimeError, TypeError, ValueError):  # not those that hooks of PyTorch steer by
        return None


class RepeatedChain(torch.autograd.Function):
    """(ready, z0, *parameters) -> z: `_chain.RecordedChain` where nobody wants the states."""

    @staticmethod
    def forward(ctx: Any, ready: Ready, *tensors: Tensor | None) -> Tensor:
        with below_autograd():
            z, kept, _ = ready.operator(*tensors, None, *ready.training)
        ctx.ready = ready
        # In the order of `Chain`, because checkpoint may call one now and the other later.
        ctx.save_for_backward(tensors[0], kept, *tensors[1:])
        return z

    @staticmethod
    def backward(ctx: Any, gz: Tensor) -> tuple[Tensor | None, ...]:
        ready, needs = ctx.ready, ctx.needs_input_grad[1:]
        tensors = (gz, None, *ctx.saved_tensors)
        if torch.is_grad_enabled() or func_active() or forward_ad_active():
            keep = ready.options.kept
            options = ready.options.backward(keep)
            gradients = pullback(ready.kind, options, keep, needs, *tensors)
        else:
            gradients = call(ready.operator_backward, *tensors, *ready.backward, needs)
        # The raw operator's report comes last and is left out.
        return (None, *[g if need else None for g, need in zip(gradients, needs, strict=False)])
