# SPDX-License-Identifier: Apache-2.0
"""Who takes part: every way to sample a chain, and the registry at the end.

All start from the same latents and the same noise.  To add one, write a class with `sample` and put
it into METHODS: the table and the pictures read the registry.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import loops
import torch
from data import Space
from torch import Tensor

import torch_deeppcr as dpcr


@dataclass(frozen=True)
class Chain:
    """A model in its space, and a sampler: what all methods compute."""

    space: Space
    sampler: str
    schedule: dpcr.Schedule
    model: dpcr.nn.Denoiser

    @property
    def name(self) -> str:
        return f"{self.space.name}, {self.sampler}"

    @property
    def length(self) -> int:
        return len(self.schedule)


@dataclass(frozen=True)
class Draw:
    """latents (B, w), and the noise of all steps (L, B, w), or None where the sampler has none."""

    latents: Tensor
    noise: Tensor | None
    state: Tensor
    """Of the generator when the latents had been drawn: for methods that draw the noise."""

    def generator(self) -> torch.Generator:
        generator = torch.Generator()
        generator.set_state(self.state)
        return generator


@dataclass(frozen=True)
class Outcome:
    """samples (B, w), and what they cost.

    calls: evaluations of the network one after the other; rows: of one sample in one step in all,
    a column of a Jacobian counted as one.
    """

    samples: Tensor
    sweeps: int | None
    calls: int
    rows: int
    converged: bool = True
    why: str = ""


class Method:
    """By default it takes any batch, and is as near to the loop as rounding allows."""

    name: str
    title: str
    compiles = False
    """Whether it needs a C++ compiler, which a machine may lack."""

    def __init__(self, name: str, title: str) -> None:
        self.name, self.title = name, title

    def takes(self, chain: Chain, batch: int) -> bool:
        """Whether this batch is worth its time."""
        return True

    def sample(self, chain: Chain, draw: Draw) -> Outcome:
        raise NotImplementedError


class Loop(Method):
    def sample(self, chain: Chain, draw: Draw) -> Outcome:
        states = loops.everyday(chain.model, chain.schedule, draw.latents, draw.noise)
        return walked(chain, states[-1])


class Precise(Method):
    """The loop in float64: how much of a difference is the loop's own rounding."""

    def sample(self, chain: Chain, draw: Draw) -> Outcome:
        noise = None if draw.noise is None else draw.noise.double()
        model = dpcr.nn.Denoiser(
            chain.model.width, chain.model.hidden, chain.model.layers, dtype=torch.float64
        )
        model.load_state_dict(chain.model.state_dict())
        states = loops.everyday(model, chain.schedule, draw.latents.double(), noise)
        return walked(chain, states[-1].float())


class Best(Method):
    """Compiled for one sample; another batch would be another graph, and runs as it is."""

    compiles = True

    def sample(self, chain: Chain, draw: Draw) -> Outcome:
        best = loops.Best(chain.model, compiled=len(draw.latents) == 1)
        return walked(chain, best(chain.schedule, draw.latents, draw.noise))


class Native(Method):
    """`dpcr.nn.Denoiser.denoise`: the loop as one operator; with a jacobian every step is a
    segment, which is DeepPCR."""

    def __init__(self, name: str, title: str, jacobian: str | None = None, **solver: Any) -> None:
        super().__init__(name, title)
        self.jacobian, self.solver = jacobian, solver

    def takes(self, chain: Chain, batch: int) -> bool:
        """Not batches of wide Jacobians: a row more for each column."""
        return batch == 1 or self.jacobian != "dense" or chain.space.width <= 16

    def options(self, chain: Chain) -> dict[str, Any]:
        if self.jacobian is None:
            return {}
        return {"segments": chain.length, "jacobian": self.jacobian, **self.solver}

    def sample(self, chain: Chain, draw: Draw) -> Outcome:
        samples, info = chain.model.denoise(
            draw.latents, chain.schedule, draw.noise, return_info=True, **self.options(chain)
        )
        if self.jacobian is None:
            return walked(chain, samples, info.why)
        columns = chain.space.width if self.jacobian in ("dense", "diagonal") else 0
        rows = chain.length * (info.sweeps + columns * info.tangent_sweeps).sum().item()
        sweeps, done = int(info.sweeps.max()), bool((info.status == 0).all())
        return Outcome(samples, sweeps, sweeps if done else sweeps + chain.length, int(rows), done)


class Sample(Method):
    """`dpcr.sample`, which takes any network; without options it knows this one's operator."""

    def __init__(self, name: str, title: str, jacobian: str | None = None) -> None:
        super().__init__(name, title)
        self.jacobian = jacobian
        self.options = {} if jacobian is None else {"plan": "parallel", "jacobian": jacobian}

    def takes(self, chain: Chain, batch: int) -> bool:
        return batch == 1 or self.jacobian != "dense"

    def sample(self, chain: Chain, draw: Draw) -> Outcome:
        samples, info = dpcr.sample(
            chain.model,
            chain.schedule,
            draw.latents,
            generator=draw.generator(),
            return_info=True,
            **self.options,
        )
        sweeps = info.sweeps if info.plan.parallel else None
        return Outcome(samples, sweeps, info.calls, info.rows, info.converged, info.plan.why)


def walked(chain: Chain, samples: Tensor, why: str = "") -> Outcome:
    return Outcome(samples, None, chain.length, chain.length * len(samples), why=why)


LOOP = Loop("loop", "PyTorch's loop")
AUTO = Native("auto", "native, auto plan (S = 1)")
PAPER = Native("paper", "native S = L, dense (the paper's)", "dense", refresh="always")
DIAGONAL = Sample("diagonal-any", "any model, diagonal", "diagonal")

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        LOOP,
        Precise("float64", "PyTorch's loop in float64"),
        Best("best", f"PyTorch's best loop ({loops.GROUP} steps compiled)"),
        AUTO,
        Sample("sample", "dpcr.sample, auto plan"),
        PAPER,
        Native("diagonal", "native S = L, diagonal", "diagonal"),
        Native("scalar", "native S = L, scalar", "scalar"),
        Native("identity", "native S = L, identity", "identity"),
        Sample("dense-any", "any model, dense", "dense"),
        DIAGONAL,
        Sample("scalar-any", "any model, scalar", "scalar"),
        Sample("identity-any", "any model, identity", "identity"),
    )
}
