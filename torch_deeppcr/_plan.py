# SPDX-License-Identifier: Apache-2.0
"""How a chain is to be solved (`Solver`: what the user said) and how it was (`ChainInfo`)."""

from __future__ import annotations

import enum
import math
import warnings
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

import torch
from torch import Tensor

from . import _checks

if TYPE_CHECKING:
    from ._kinds import Options

JACOBIANS = _checks.STRUCTURES
REFRESHES = ("adaptive", "always")
UNCONVERGED = ("sequential", "warn", "raise", "ignore")
MEMORY = ("states", "recompute")

#: Where steps have a skip, "auto" is Newton with dense Jacobians up to this width, beyond it
#: Picard's iteration: w columns a sample cost more than the sweeps that they spare, and the maps of
#: the segments are (S,B,w,w).  Measured with L = 256, S = 16, B = 1, one thread, pre-norm residual
#: blocks and blocks of 4 layers with LayerNorm, forward + backward, dense over identity: 0.8 and
#: 0.85 at w = 16, 1.0 at 32, 2.2 and 1.15 at 64, 2.3 and 1.3 at 128; and dense needs fewer sweeps,
#: which counts where a sweep is latency.
WIDEST_DENSE = 64

# The default rtol is 8 eps; of half precision it is only reported, since the loop has no tolerance.
_RTOL = {
    dtype: 8 * torch.finfo(dtype).eps
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16)
}


class SolverOptions(TypedDict, total=False):
    """The keyword arguments ``**solver`` of every chain, explained in `torch_deeppcr.mlp_chain`."""

    segments: int | str
    jacobian: str
    refresh: str
    rtol: float | None
    atol: float
    max_sweeps: int | None
    on_unconverged: str
    memory: str


@dataclass(frozen=True)
class Solver:
    """`SolverOptions`, checked, with the defaults filled in."""

    segments: Any = "auto"
    jacobian: str = "auto"
    refresh: str = "adaptive"
    rtol: float | None = None
    atol: float = 0.0
    max_sweeps: int | None = None
    on_unconverged: str = "sequential"
    memory: str = "states"

    def __post_init__(self) -> None:
        if self.segments != "auto":
            _checks.segments(self.segments)
        _checks.choice("jacobian", self.jacobian, ("auto", *JACOBIANS))
        _checks.choice("refresh", self.refresh, REFRESHES)
        if self.rtol is not None:
            _checks.positive("rtol", self.rtol)
        _checks.epsilon("atol", self.atol)
        if self.max_sweeps is not None:
            _checks.size("max_sweeps", self.max_sweeps)
        _checks.choice("on_unconverged", self.on_unconverged, UNCONVERGED)
        _checks.choice("memory", self.memory, MEMORY)

    def structure(self, skip: bool, width: int) -> str:
        """What stands for the product of a segment's step Jacobians, in steps with or without a
        skip."""
        if self.jacobian != "auto":
            return self.jacobian
        return "identity" if skip and width > WIDEST_DENSE else "dense"

    @property
    def kept(self) -> str:
        """What forward keeps for backward, as the raw operators call it."""
        return "states" if self.memory == "states" else "checkpoints"

    @property
    def watch(self) -> str:
        return self.on_unconverged if self.on_unconverged in ("warn", "raise") else ""

    def raw(
        self, segments: int, structure: str, max_sweeps: int | None, dtype: torch.dtype
    ) -> tuple[Any, ...]:
        """The solver's arguments of the raw operators, in their order."""
        return (
            segments,
            structure,
            self.refresh,
            _RTOL[dtype] if self.rtol is None else float(self.rtol),
            float(self.atol),
            -1 if max_sweeps is None else max_sweeps,
            self.on_unconverged in ("sequential", "warn"),
        )

    def text(self) -> str:
        """For ``extra_repr``: what differs from the defaults, each preceded by a comma."""
        changed = ((name, value) for name, value in vars(self).items() if value != _default(name))
        return "".join(f", {name}={value}" for name, value in changed)


def _default(name: str) -> object:
    return getattr(Solver, name)


_DEFAULT = Solver()


def solver_of(options: SolverOptions) -> Solver:
    """The options, checked; TypeError or ValueError naming the one that is wrong."""
    if not options:
        return _DEFAULT
    unknown = [name for name in options if name not in SolverOptions.__annotations__]
    if unknown:
        raise TypeError(f"unexpected keyword argument {unknown[0]!r}")
    if torch.compiler.is_compiling():
        return Solver(**options)
    try:
        return _cached(**options)
    except TypeError:  # also where a value cannot be hashed: the checks say which
        return Solver(**options)


@lru_cache(maxsize=128, typed=True)
def _cached(**options: Any) -> Solver:
    return Solver(**options)


# ---- how it went ---------------------------------------------------------------------------------


class Status(enum.IntEnum):
    """How a sample ended."""

    CONVERGED = 0  #: to rtol; with one segment, exactly
    SEQUENTIAL = 1  #: not in max_sweeps, and finished by walking: the result of one segment
    UNCONVERGED = 2  #: not in max_sweeps, and left as it was


class ConvergenceWarning(RuntimeWarning):
    """Samples did not converge and were finished sequentially (``on_unconverged="warn"``)."""


class ConvergenceError(RuntimeError):
    """Samples did not converge (``on_unconverged="raise"``)."""


@dataclass(frozen=True)
class Plan:
    """The options that a solve ran with, none of them left open.

    ``threads`` is 0 where it cannot be known yet (`torch.compile`).
    """

    segments: int
    jacobian: str
    refresh: str
    rtol: float
    atol: float
    max_sweeps: int
    on_unconverged: str
    memory: str
    threads: int


class ChainInfo(NamedTuple):
    """How a chain was solved; tensors have the batch shape of the input.

    sweeps: int64, how often the chain was propagated; 1 with one segment.
    tangent_sweeps: float64, how many of these propagated products of Jacobians too; one that did so
        in a part of the segments counts as that part.
    residual: float64, estimated error of the worst start of a segment after the last update,
        relative to that state.
    status: int64, values of `Status`.
    levels: levels of parallel cyclic reduction in one sweep, ceil(log2 segments), 0 where there is
        none (on CUDA, states wider than 4); an int, or a 0-d tensor where a number cannot be read
        (`torch.compile`, `torch.func`, meta tensors).
    flops: float64, of the matrix products of one sample.
    plan: the `Plan`.
    why: why this plan, a sentence.

    A function under `torch.vmap` must return tensors: pick those that you want.
    """

    sweeps: Tensor
    tangent_sweeps: Tensor
    residual: Tensor
    status: Tensor
    levels: int | Tensor
    flops: Tensor
    plan: Plan
    why: str


#: Rows of a report (6,B), as ``enum dpcr_report`` of ``csrc/ops/chain.h``: sweeps, tangent sweeps,
#: verdict, error, levels, flops.
REPORT = 6


def checkpoints(length: int, segments: int) -> int:
    """``dpcr_checkpoints``: how many states backward can do with."""
    if length == 0 or segments > 1:
        return 0 if length == 0 else segments
    return math.isqrt(int(length) - 1) + 1


def readable(info: Tensor) -> bool:
    """Whether numbers can be read from a report: not from meta, fake or transformed tensors, and
    not while a CUDA graph is captured.  Of a CUDA tensor, reading is waiting."""
    return type(info) is Tensor and not info.is_meta and not captured(info)


def captured(tensor: Tensor) -> bool:
    """Whether work on this tensor is being captured in a CUDA graph."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def complain(options: Options, info: Tensor, which: str) -> None:
    """Warns or raises, as ``options.watch`` says, if samples of a report (6,B) did not converge."""
    if type(info) is Tensor and captured(info):
        raise NotImplementedError(
            f'on_unconverged="{options.watch}" is not supported in a CUDA graph, which cannot look '
            'at the samples: use "sequential" or "ignore"'
        )
    if not readable(info):
        return
    failed = info[2] != Status.CONVERGED
    count = int(failed.sum())
    if not count:
        return
    sweeps, worst = int(info[0].max()), float(info[3][failed].max())
    message = (
        f"{count} of {info.shape[1]} samples did not converge in {sweeps} sweeps ({which} pass, "
        f"segments={options.solver[0]}, jacobian={options.solver[1]!r}, largest estimated error "
        f"{worst:.1e}); fewer segments or a larger max_sweeps may help"
    )
    if options.watch == "raise":
        raise ConvergenceError(message + ', on_unconverged="sequential" always gives a result')
    warnings.warn(message + "; they were finished sequentially", ConvergenceWarning, stacklevel=2)
