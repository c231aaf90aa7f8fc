# SPDX-License-Identifier: Apache-2.0
"""`parallel_sampling`: a diffusers pipeline, untouched, whose denoising loop runs in parallel.

While the context is open, two calls of the pipeline are listened to: that of its denoiser and
``scheduler.step``.  The first step runs as ever, and shows how the pipeline makes the denoiser's
input from the latents (scaled, and doubled for guidance), which arguments go with it, how it
combines the outputs, and with what options it steps.  When the second step begins, the other steps
are solved in parallel from there, and from then on the denoiser's answers and the states are those
that have been found.  The scheduler's own step still runs, with these answers, so that its
counters, its memory and the generator are where the pipeline expects them.

All of this is checked, not assumed: the guidance is fitted and must fit; arguments must not change
from step to step; each latents that come back must be those that were handed out, and each step of
the scheduler must agree with the state found, or the rest of the loop runs on the real denoiser.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from . import noise, schedulers
from .job import Job
from .model import ModelCalls, output_of, refuse_state
from .plan import PlanOptions, SampleInfo, SamplePlan
from .revealed import (
    Call,
    PipelineModel,
    Shown,
    bind,
    close,
    equal,
    fit_guidance,
    like,
    rounding_of,
    sorted_arguments,
    with_sample,
)
from .schedule import Schedule
from .solve import Chain

#: Names under which pipelines keep the network that they call in every step.
_DENOISERS = ("unet", "transformer")


class Replay:
    """What `parallel_sampling` yields: ``infos``, a `SampleInfo` for each call of the pipeline (its
    sweeps, calls and rows do not count the first step), and ``info``, the last of them."""

    def __init__(self) -> None:
        self.infos: list[SampleInfo] = []

    @property
    def info(self) -> SampleInfo:
        if not self.infos:
            raise RuntimeError("the pipeline has not been called yet")
        return self.infos[-1]


@contextlib.contextmanager
def parallel_sampling(
    pipe: Any,
    *,
    plan: str | SamplePlan = "auto",
    jacobian: str = "auto",
    refresh: str = "adaptive",
    window: int | None = None,
    max_rows: int | None = None,
    tolerance: float = 1e-4,
    max_sweeps: int | None = None,
) -> Iterator[Replay]:
    """While it is open, calls of this diffusers pipeline run their denoising steps in parallel.

        with dpcr.parallel_sampling(pipe) as replay:
            images = pipe(num_inference_steps=100).images
        print(replay.info)

    Args:
        pipe: a pipeline with a ``scheduler`` and a ``unet`` or ``transformer``, such as
            DDIMPipeline, DDPMPipeline or StableDiffusionPipeline, with or without classifier-free
            guidance.
        plan, jacobian, refresh, window, max_rows, tolerance, max_sweeps: as in `sample`.

    Images are those of the pipeline to within ``tolerance``.  Callbacks see the states in order;
    where one replaces the latents, or changes the guidance, the rest of the loop runs step by step.

    Raises:
        NotImplementedError: the pipeline's step is not understood (other guidance, inputs that are
            more than the scaled latents, arguments that differ from step to step), its scheduler is
            not supported, or it has no denoiser, or two.
        ValueError: as `sample`.
    """
    found = [name for name in _DENOISERS if isinstance(getattr(pipe, name, None), nn.Module)]
    if len(found) != 1 or getattr(pipe, "transformer_2", None) is not None:
        raise NotImplementedError(
            f"pipe: {type(pipe).__name__} must have one network that it calls in every step, "
            f"{' or '.join(_DENOISERS)}, it has {found or 'none'}"
        )
    options = PlanOptions(plan, jacobian, refresh, window, max_rows, tolerance, max_sweeps)
    replay = Replay()
    denoiser, scheduler = getattr(pipe, found[0]), pipe.scheduler
    listener = _Listener(denoiser, scheduler, options, replay)
    with (
        _replaced(denoiser, "forward", listener.forward),
        _replaced(scheduler, "step", listener.step),
    ):
        yield replay


@contextlib.contextmanager
def _replaced(owner: Any, name: str, replacement: Callable[..., Any]) -> Iterator[None]:
    """The instance's method, and nobody else's; its signature stays that of the original."""
    original, own = getattr(owner, name), name in vars(owner)

    def method(*args: Any, **kwargs: Any) -> Any:
        return replacement(original, *args, **kwargs)

    method.__signature__ = inspect.signature(original)  # type: ignore[attr-defined]
    method.__wrapped__ = original  # type: ignore[attr-defined]
    object.__setattr__(owner, name, method)
    try:
        yield
    finally:
        if own:
            object.__setattr__(owner, name, original)
        else:
            object.__delattr__(owner, name)


class _Listener:
    """One pipeline; a run is one call of it."""

    def __init__(
        self, denoiser: nn.Module, scheduler: Any, options: PlanOptions, replay: Replay
    ) -> None:
        self.denoiser, self.scheduler = denoiser, scheduler
        self.options, self.replay = options, replay
        self.reset()

    def reset(self) -> None:
        self.first: tuple[Call, Any] | None = None  # the call of the first step, and its answer
        self.shown: Shown | None = None
        self.schedule: Schedule | None = None  # its steps from the pipeline's first one on
        self.generator: noise.Generators = None
        self.at = 0  # steps that the pipeline has made
        self.state: Tensor | None = None  # the latents as they were handed out last
        self.remembered: Tensor | None = None  # the prediction of the first step
        self.plan: SamplePlan | None = None  # set once the chain has been solved
        self.states: list[Tensor] = []  # after the steps from the second on, as found
        self.answers: list[Tensor] = []  # the denoiser's in these steps
        self.alone = False  # the rest of the loop runs on the real denoiser

    @contextlib.contextmanager
    def _forgetting(self) -> Iterator[None]:
        """A loop that ends with an exception leaves nothing behind."""
        try:
            yield
        except BaseException:
            self.reset()
            raise

    # ---- the denoiser ----------------------------------------------------------------------------

    def forward(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with self._forgetting():
            call = bind(original, args, kwargs)
            if self._begins(call):
                self.reset()
            if self.first is None:
                answer = original(*args, **kwargs)
                self.first = (call, answer)
                return answer
            if not self.alone:
                if self.shown is None:
                    raise NotImplementedError(
                        "pipe: its denoiser is called more than once in a step, which cannot be "
                        "replayed"
                    )
                if self.plan is None:
                    self._check_second(call)
                    if self._is_ours(call.x):
                        self._solve(original)
                self.alone = not self._is_ours(call.x) or self.at > len(self.answers)
            if self.alone:
                return original(*args, **kwargs)
            assert self.shown is not None
            return like(self.shown.answer, self.answers[self.at - 1].to(call.x.dtype))

    def _begins(self, call: Call) -> bool:
        """Whether the pipeline begins a loop anew: after its last step, or with its first time."""
        if self.first is None or self.schedule is None:
            return False
        return self.at >= len(self.schedule) or (self.at > 1 and call.time == self.first[0].time)

    def _is_ours(self, x: Tensor) -> bool:
        """Whether the denoiser's input is made of the latents that the last step gave."""
        assert self.shown is not None and self.state is not None and self.schedule is not None
        scaled = self.state * self.schedule.input_scale_of(self.at)
        return close(x, torch.cat([scaled] * self.shown.copies))

    # ---- the scheduler ---------------------------------------------------------------------------

    def step(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with self._forgetting():
            if self.first is None:  # the pipeline steps without its denoiser
                return original(*args, **kwargs)
            bound = inspect.signature(original).bind(*args, **kwargs).arguments
            if self.shown is None and not self.alone:
                self._look(dict(bound))
            out = original(*args, **kwargs)
            prev = out[0] if isinstance(out, tuple) else out.prev_sample
            self.at += 1
            if self.plan is not None and not self.alone:
                found = self.states[self.at - 2]
                self.alone = not self._agrees(bound["sample"], prev, found)
                if not self.alone:
                    prev = found.to(prev.dtype)
                    out = (prev, *out[1:]) if isinstance(out, tuple) else with_sample(out, prev)
            self.state = prev
            return out

    def _look(self, bound: dict[str, Any]) -> None:
        """The first step: what does this pipeline do?"""
        assert self.first is not None
        call, answer = self.first
        out, time, sample = (bound.pop(name) for name in ("model_output", "timestep", "sample"))
        self.generator = bound.pop("generator", None)
        bound.pop("return_dict", None)
        if getattr(self.scheduler, "order", 1) != 1:
            raise NotImplementedError(
                f"scheduler: {type(self.scheduler).__name__} steps twice for each step of its "
                "loop, which cannot be replayed; use torch_deeppcr.sample"
            )
        schedule = schedulers.read(self.scheduler, bound)
        first = (schedule.timesteps == torch.as_tensor(time).to(schedule.timesteps)).nonzero()
        if not len(first):
            raise NotImplementedError(f"pipe: its first timestep, {time}, is not of its scheduler")
        self.schedule = schedule = schedule.part(int(first[0, 0])) if first[0, 0] else schedule
        copies, left = divmod(call.x.shape[0], max(1, sample.shape[0]))
        scaled = sample * schedule.input_scale_of(0)
        if left or copies not in (1, 2) or not close(call.x, torch.cat([scaled] * copies)):
            raise NotImplementedError(
                f"pipe: its denoiser's input {tuple(call.x.shape)} is not the scaled latents "
                f"{tuple(sample.shape)}, once or twice"
            )
        scale = fit_guidance(output_of(answer), out, copies)
        own = float(schedule.timesteps[0])
        self.shown = Shown(copies, scale, call.time / own if own else 1.0, call, answer)
        self.remembered = schedule.prediction(0, sample, out)

    def _agrees(self, sample: Tensor, stepped: Tensor, found: Tensor) -> bool:
        """Whether the scheduler makes the state that was found, of the answers that were found."""
        assert self.plan is not None and self.schedule is not None
        if sample.shape != found.shape or not close(sample, self.state):
            return False
        level = float(self.schedule.levels(torch.tensor([self.at - 1])))
        rounding = rounding_of(sample.dtype) * float(found.abs().nan_to_num().max())
        far = (stepped - found).abs()
        same = bool((far.isnan() == found.isnan()).all())
        return same and float(far.nan_to_num().max()) <= 50 * self.plan.tolerance * level + rounding

    # ---- the solve -------------------------------------------------------------------------------

    def _check_second(self, call: Call) -> None:
        """The second step must be called as the first was."""
        assert self.shown is not None and self.schedule is not None
        before = self.shown.call.others
        for name in call.others.keys() | before.keys():
            if not equal(call.others.get(name), before.get(name)):
                raise NotImplementedError(
                    f"pipe: the denoiser's argument {name!r} differs from step to step "
                    "(ControlNet, changing embeddings), so that steps cannot run in parallel"
                )
        expected = float(self.schedule.timesteps[1]) * self.shown.time_factor
        if abs(call.time - expected) > 1e-3 * max(1.0, abs(expected)):
            raise NotImplementedError(
                f"pipe: its denoiser is called with timestep {call.time} in the second step, "
                f"expected {expected}"
            )

    @torch.no_grad()
    def _solve(self, original: Callable[..., Any]) -> None:
        """States and answers of the steps from the second on, as far as it pays."""
        shown, schedule, latents = self.shown, self.schedule, self.state
        assert shown is not None and schedule is not None and latents is not None
        refuse_state(self.denoiser)
        arguments = sorted_arguments(shown.call.others, latents.shape[0], shown.copies)
        plan = self.options.resolve(schedule, latents)
        denoiser = ModelCalls(
            PipelineModel(self.denoiser, original, shown),
            latents,
            arguments.positive,
            arguments.shared,
            arguments.negative if shown.copies == 2 else None,
            shown.guidance_scale,
            plan.max_rows,
        )
        dtype = torch.float64 if latents.dtype == torch.float64 else torch.float32
        generator = noise.copies(self.generator, latents.device)
        chain = Chain(schedule, denoiser, generator, dtype, latents.device, latents.dtype, drawn=1)
        state = latents.to(dtype).flatten(1)
        if self.remembered is not None:
            state = torch.cat((state, self.remembered.to(dtype).flatten(1)), -1)
        job = Job(chain, plan, keep=True)
        job.run(state, 1, None, finish=False)
        found = job.states or []
        self.states = [job.latents(each) for each in found]
        self.answers = self._answers([state, *found][: len(found)], chain, plan.window)
        info = job.info()
        self.plan = info.plan
        self.replay.infos.append(info)

    def _answers(self, inputs: list[Tensor], chain: Chain, size: int) -> list[Tensor]:
        """The denoiser's at the states found: what the pipeline will combine and step with."""
        shown, denoiser = self.shown, chain.denoiser
        assert shown is not None
        answers: list[Tensor] = []
        pieces: list[tuple[Tensor, ...]] = []
        denoiser.observe = lambda out: pieces.append(out.chunk(shown.copies))
        for begin in range(0, len(inputs), size):
            states = torch.stack(inputs[begin : begin + size])
            chain.steps(torch.arange(begin + 1, begin + 1 + len(states)), states)
            halves = [torch.cat(half).split(denoiser.batch) for half in zip(*pieces, strict=True)]
            answers += [torch.cat(step) for step in zip(*halves, strict=True)]
            pieces.clear()
        denoiser.observe = None
        return answers
