# SPDX-License-Identifier: Apache-2.0
"""Who takes part: every way to sample a chain, and the registry at the end.

All start from the same latents and the same noise.  To add one, write a class with `sample` and put
it into METHODS: the table and the pictures read the registry.
"""

from __future__ import annotations

from dataclasses import dataclass

import loops
import torch
from data import Space
from torch import Tensor

import torch_deeppcr as dpcr

TOLERANCE = 1e-5
"""A coarser tolerance than the operator's 8 eps, of which the table has a row."""
MOST_SWEEPS = 200


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
    """latents (B, w), and the noise of all steps (L, B, w), or None; where it comes from, for
    methods that draw it themselves."""

    latents: Tensor
    noise: Tensor | None
    seed: int
    state: Tensor

    def generator(self) -> torch.Generator:
        """As it was when the latents had been drawn."""
        generator = torch.Generator()
        generator.set_state(self.state)
        return generator

    def first(self, samples: int) -> Draw:
        """Fewer of them; what draws its own noise would draw other."""
        noise = None if self.noise is None else self.noise[:, :samples]
        return Draw(self.latents[:samples], noise, self.seed, self.state)


@dataclass(frozen=True)
class Outcome:
    """samples (B, w), and what they cost.

    calls: evaluations of the network one after the other; rows: of one sample in one step in all,
    a column of a Jacobian counted as one.
    """

    samples: Tensor
    sweeps: float | None
    calls: float
    rows: float
    converged: bool = True
    why: str = ""


class Method:
    """By default it takes any batch, and is as near to the loop as rounding allows."""

    name: str
    title: str
    colour = "#000000"
    compiles = False
    draws = False
    """Whether it draws its noise itself."""

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
    """For one sample: another batch is another graph to compile."""

    compiles = True

    def __init__(self, name: str, title: str) -> None:
        super().__init__(name, title)
        self.made: dict[tuple[int, bool], loops.Best] = {}

    def takes(self, chain: Chain, batch: int) -> bool:
        return batch == 1

    def sample(self, chain: Chain, draw: Draw) -> Outcome:
        key = (id(chain.model), draw.noise is None)
        if key not in self.made:
            self.made[key] = loops.Best(chain.model, compiled=True)
        return walked(chain, self.made[key](chain.schedule, draw.latents, draw.noise))


class Native(Method):
    """`dpcr.nn.Denoiser.denoise`: the loop as one operator; parallel=True: every step a segment."""

    def __init__(self, name: str, title: str, parallel: bool, **solver: object) -> None:
        super().__init__(name, title)
        self.parallel, self.solver = parallel, solver

    def takes(self, chain: Chain, batch: int) -> bool:
        """Not batches of wide dense Jacobians: 64 more rows a step, for minutes."""
        dense = self.solver.get("jacobian") == "dense"
        return not (dense and batch > 1 and chain.space.width > 16)

    def options(self, chain: Chain) -> dict[str, object]:
        if not self.parallel:
            return {}
        return {"segments": chain.length, "max_sweeps": MOST_SWEEPS, **self.solver}

    def sample(self, chain: Chain, draw: Draw) -> Outcome:
        samples, info = chain.model.denoise(
            draw.latents, chain.schedule, draw.noise, return_info=True, **self.options(chain)
        )
        if not self.parallel:
            return walked(chain, samples, info.why)
        columns = {"dense": chain.space.width, "diagonal": chain.space.width}
        rows = info.sweeps + info.tangent_sweeps * columns.get(str(self.solver["jacobian"]), 0)
        return Outcome(
            samples,
            info.sweeps.double().median().item(),
            info.sweeps.max().item(),
            rows.sum().item() * chain.length,
            bool((info.status == 0).all()),
            info.why,
        )


class Sample(Method):
    """`dpcr.sample`, which takes any network: here the same one, as any module."""

    draws = True

    def __init__(self, name: str, title: str, **options: object) -> None:
        super().__init__(name, title)
        self.options = options

    def takes(self, chain: Chain, batch: int) -> bool:
        dense = self.options.get("jacobian") == "dense"
        return not (dense and batch > 1 and chain.space.width > 16)

    def sample(self, chain: Chain, draw: Draw) -> Outcome:
        generator = draw.generator()
        samples, info = dpcr.sample(
            chain.model,
            chain.schedule,
            draw.latents,
            generator=generator,
            return_info=True,
            **self.options,
        )
        sweeps = info.sweeps if info.plan.parallel else None
        return Outcome(samples, sweeps, info.calls, info.rows, info.converged, info.plan.why)


def walked(chain: Chain, samples: Tensor, why: str = "") -> Outcome:
    return Outcome(samples, None, chain.length, chain.length * len(samples), why=why)


LOOP = Loop("loop", "PyTorch's loop")
AUTO = Native("auto", "native, auto plan (S = 1)", parallel=False)
PAPER = {"parallel": True, "jacobian": "dense", "refresh": "always"}

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        LOOP,
        Precise("float64", "PyTorch's loop in float64"),
        Best("best", f"PyTorch's best loop ({loops.GROUP} steps compiled)"),
        AUTO,
        Sample("sample", "dpcr.sample, auto plan"),
        Native("paper", "native S = L, dense (the paper's)", **PAPER),
        Native("coarse", f"the same, rtol {TOLERANCE:.0e}", **PAPER, rtol=TOLERANCE),
        Native("identity", "native S = L, identity", parallel=True, jacobian="identity"),
        Sample("dense-any", "any model, dense", plan="parallel", jacobian="dense"),
        Sample("diagonal-any", "any model, diagonal", plan="parallel", jacobian="diagonal"),
        Sample("scalar-any", "any model, scalar", plan="parallel", jacobian="scalar"),
        Sample("identity-any", "any model, identity", plan="parallel", jacobian="identity"),
    )
}
