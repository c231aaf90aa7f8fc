# SPDX-License-Identifier: Apache-2.0
"""The public functions: arguments are resolved and checked, then `_chain` or `_recurrence` runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from . import _activations, _chain, _checks, _planner, _recurrence, _solve
from ._activations import Activation
from ._chain import Parameters
from ._kinds import DENOISE, EULER, LAYERS, MLP, RESIDUAL
from ._plan import SolverOptions, solver_of
from ._solve import Call, Output, Step, to_float32
from ._transforms import autocast_enabled, func_active

if TYPE_CHECKING:
    from typing_extensions import Unpack

ActivationLike = str | tuple[Any, ...] | torch.nn.Module | Activation
_NORMS = (None, "layer_norm", "rms_norm")


class RecurrenceInfo(NamedTuple):
    """How a linear recurrence was solved.

    levels: levels of the cyclic reduction that ran, ceil(log2 segments); an int, or a 0-d
        tensor where a number cannot be read (`torch.compile`, `torch.func`, meta tensors).
    recomputed: bool (B,), samples that the plain loop computed in the end, because a product of
        their blocks over- or underflowed although the loop would not have.
    """

    levels: int | Tensor
    recomputed: Tensor


def mlp_chain(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: ActivationLike = "tanh",
    return_states: bool = False,
    warm_start: Tensor | None = None,
    return_info: bool = False,
    **solver: Unpack[SolverOptions],
) -> Output:
    """L layers of equal width, z_l = act(W_l z_{l-1} + b_l), as one operator.

    Args:
        input: z_0 (..., w).
        weight: (L, w, w), each W_l as in `torch.nn.Linear` (out, in).
        bias: (L, w) or None.
        activation: "identity", "relu", "leaky_relu", "elu", "tanh", "sigmoid", "silu", "gelu",
            "gelu_tanh" or "softplus"; a tuple (name, *parameters); or one of PyTorch's modules of
            these functions, such as ``nn.ELU(0.5)``.
        return_states: also return all states z_1..z_L.
        warm_start: a guess of z_1..z_L (L, ..., w), such as the states of a similar input; None is
            the input everywhere.  It changes how many sweeps are needed, not the result.
        return_info: also return a `ChainInfo`.

    How the chain is solved, the same for every chain:
        segments: into how many parts S, 1..L, the steps are cut.  1 is the loop in one fused pass.
            With more, the parts run in parallel from guessed start states, which Newton's method
            corrects, sweep after sweep; L is DeepPCR.  "auto" is 1, except in a module on a machine
            with many threads, where it is what the sweeps seen there say is fastest, and on CUDA
            devices, where long chains of narrow states and small batches are cut by a fixed table.
        jacobian: what stands for the product P of a segment's step Jacobians: "dense", itself
            (Newton); "diagonal", a guess at its diagonal from one tangent, v . (P v) with a random
            v of +-1 that is drawn anew every time, the same in every run (quasi-Newton); "identity"
            (Picard's iteration, for residual chains) or "zero" (Jacobi's); "scalar", the product of
            what the steps multiply their input by, which is 1 where they add to it, else 0.  The
            cheaper a sweep is, the more of them there are.  "auto" is "dense"; but "identity" for
            chains whose steps add to their input (residual, Euler, layers with skip) and are wider
            than 64, where w^3 work a step and w^2 memory a segment and sample are dearer than the
            extra sweeps.
        refresh: when a dense or diagonal P is computed: "adaptive", from the second sweep on where
            the last gained little, or "always".
        rtol, atol: a segment's start may be wrong by rtol times its size (None: 8 eps of the
            dtype), or by atol.  The error is an estimate, and a chaotic chain enlarges it as it
            enlarges every rounding.
        max_sweeps: 0 or more; None is at most 40.
        on_unconverged: what becomes of samples that need more sweeps: "sequential", they are
            finished by walking, which gives exactly the result of one segment; "warn", the same
            with a `ConvergenceWarning`; "raise", a `ConvergenceError`; "ignore", they are left as
            they are.  Gradients are finished by walking in any case.
        memory: what is kept for backward: all "states", or "recompute", only S of them (the root of
            L with one segment), from which backward computes the others again.

    Returns:
        z_L (..., w), then, where they are asked for, the states (L, ..., w) and the info.  L = 0
        gives a copy of the input.  z_L and states are differentiable, any number of times, in
        reverse and in forward mode.

    float32 and float64 on the CPU and on CUDA devices run in native kernels; every other
    floating-point dtype and device runs PyTorch's loop, whatever the options.  On CUDA devices
    nothing waits for the GPU, except to read numbers: for ``return_info``, and for
    ``on_unconverged`` "warn" and "raise".  Under autocast the chain computes and returns float32,
    unlike `nn.Linear`.

    Raises:
        TypeError: a tensor is of another type, or of another dtype than ``input``.
        ValueError: a shape does not fit, tensors are on several devices, or an option is unknown.
        ConvergenceError: only if asked to.
        NotImplementedError: ``on_unconverged`` is "warn" or "raise" under `torch.compile` or in a
            CUDA graph; CUDA tensors, and the CUDA library is missing or does not have this chain.
    """
    call = Call(return_states, warm_start, return_info, solver_of(solver))
    return run_mlp(call, input, (weight, bias), activation)


def run_mlp(call: Call, input: Tensor, parameters: Parameters, *told: Any) -> Output:
    """told: as the user gave it, here activation."""
    return _solve.run(MLP, call, input, parameters, told, _mlp_step)


def _mlp_step(input: Tensor, parameters: Parameters, activation: ActivationLike) -> Step:
    return _activations.resolve(activation)


def euler_chain(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: ActivationLike = "tanh",
    scale: float = 1.0,
    return_states: bool = False,
    warm_start: Tensor | None = None,
    return_info: bool = False,
    **solver: Unpack[SolverOptions],
) -> Output:
    """L explicit Euler steps of z' = act(W z + b), z_l = z_{l-1} + scale act(W_l z_{l-1} + b_l).

    Args:
        input: z_0 (..., w).
        weight, bias: (L, w, w) and (L, w) or None, as in `mlp_chain`.
        activation: as in `mlp_chain`.
        scale: the step size, a finite number.
        return_states, warm_start, return_info, **solver: as in `mlp_chain`.

    Returns, dtypes, devices, autocast and errors: as `mlp_chain`.
    """
    call = Call(return_states, warm_start, return_info, solver_of(solver))
    return run_euler(call, input, (weight, bias), activation, scale)


def run_euler(call: Call, input: Tensor, parameters: Parameters, *told: Any) -> Output:
    return _solve.run(EULER, call, input, parameters, told, _euler_step)


def _euler_step(
    input: Tensor, parameters: Parameters, activation: ActivationLike, scale: float
) -> Step:
    return (*_activations.resolve(activation), _checks.finite("scale", scale))


def residual_chain(
    input: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor,
    bias2: Tensor | None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    *,
    activation: ActivationLike = "relu",
    norm: str | None = None,
    norm_eps: float | None = None,
    scale: float = 1.0,
    return_states: bool = False,
    warm_start: Tensor | None = None,
    return_info: bool = False,
    **solver: Unpack[SolverOptions],
) -> Output:
    """L residual blocks, z_l = z_{l-1} + scale (W2_l act(W1_l norm(z_{l-1}) + b1_l) + b2_l).

    Args:
        input: z_0 (..., w).
        weight1, bias1: (L, h, w) and (L, h) or None; h is the hidden width.
        weight2, bias2: (L, w, h) and (L, w) or None.
        norm_weight, norm_bias: (L, w) or None; only with a norm (norm_bias only with "layer_norm").
        activation: as in `mlp_chain`.
        norm: None, "layer_norm" or "rms_norm", over the w elements of a state.
        norm_eps: None is PyTorch's default: 1e-5 for "layer_norm", for "rms_norm" eps of the
            arithmetic's dtype (float32 for half precision).
        scale: a finite number.
        return_states, warm_start, return_info, **solver: as in `mlp_chain`.

    Returns, dtypes, devices, autocast and errors: as `mlp_chain`.
    """
    call = Call(return_states, warm_start, return_info, solver_of(solver))
    parameters = (weight1, bias1, weight2, bias2, norm_weight, norm_bias)
    return run_residual(call, input, parameters, activation, norm, norm_eps, scale)


def run_residual(call: Call, input: Tensor, parameters: Parameters, *told: Any) -> Output:
    return _solve.run(RESIDUAL, call, input, parameters, told, _residual_step)


def _residual_step(
    input: Tensor,
    parameters: Parameters,
    activation: ActivationLike,
    norm: str | None,
    norm_eps: float | None,
    scale: float,
) -> Step:
    normed = _resolve_norm(input, norm, norm_eps, *parameters[-2:])
    return (*_activations.resolve(activation), *normed, _checks.finite("scale", scale))


def layers_chain(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    *,
    activation: ActivationLike = "silu",
    norm: str | None = None,
    norm_eps: float | None = None,
    skip: bool = True,
    scale: float = 1.0,
    return_states: bool = False,
    warm_start: Tensor | None = None,
    return_info: bool = False,
    **solver: Unpack[SolverOptions],
) -> Output:
    """L steps of M layers each, z_l = z_{l-1} + scale a_M with a_0 = z_{l-1} and
    a_m = act(norm(W_lm a_{m-1} + b_lm)); without skip z_l = scale a_M.

    Args:
        input: z_0 (..., w).
        weight, bias: (L, M, w, w) and (L, M, w) or None; M is at least 1.
        norm_weight, norm_bias: (L, M, w) or None; only with a norm (norm_bias only with
            "layer_norm").
        activation: as in `mlp_chain`.
        norm, norm_eps: as in `residual_chain`, but of the pre-activations.
        skip: whether z_{l-1} is added.
        scale: a finite number.
        return_states, warm_start, return_info, **solver: as in `mlp_chain`.

    Returns, dtypes, devices, autocast and errors: as `mlp_chain`.
    """
    call = Call(return_states, warm_start, return_info, solver_of(solver))
    parameters = (weight, bias, norm_weight, norm_bias)
    return run_layers(call, input, parameters, activation, norm, norm_eps, skip, scale)


def run_layers(call: Call, input: Tensor, parameters: Parameters, *told: Any) -> Output:
    return _solve.run(LAYERS, call, input, parameters, told, _layers_step)


def _layers_step(
    input: Tensor,
    parameters: Parameters,
    activation: ActivationLike,
    norm: str | None,
    norm_eps: float | None,
    skip: bool,
    scale: float,
) -> Step:
    normed = _resolve_norm(input, norm, norm_eps, *parameters[-2:])
    _checks.sublayers(parameters[0])
    adds = (_checks.flag("skip", skip), _checks.finite("scale", scale))
    return (*_activations.resolve(activation), *normed, *adds)


def denoise_chain(
    input: Tensor,
    weight_in: Tensor,
    bias: Tensor,
    weight_hidden: Tensor | None,
    weight_out: Tensor,
    bias_out: Tensor | None = None,
    *,
    coefficients: Tensor,
    noise: Tensor | None = None,
    activation: ActivationLike = "silu",
    return_states: bool = False,
    warm_start: Tensor | None = None,
    return_info: bool = False,
    **solver: Unpack[SolverOptions],
) -> Output:
    """L steps of a sampler around a residual network, z_l = a_l z_{l-1} + c_l net_l(z_{l-1}) + n_l
    with net_l(z) = W_out x_M + b_out, x_0 = act(W_in z + b_l0), x_m = x_{m-1} + act(W_m x_{m-1} +
    b_lm) for m = 1..M.

    The weights are the same in all steps; each step has its own biases, into which the embedding
    of its time goes, and coefficients.  So it is the whole reverse process of a diffusion model:
    DDIM's coefficients make it deterministic, DDPM's come with noise.

    Args:
        input: z_0 (..., w).
        weight_in: W_in (h, w), as in `torch.nn.Linear`; h is the hidden width.
        bias: (L, M + 1, h), of the first layer and the M hidden ones in every step.
        weight_hidden: (M, h, h), or None where M is 0.
        weight_out: W_out (w, h).
        bias_out: (w) or None.
        coefficients: (L, 2), a_l and c_l.
        noise: n_l (L, ..., w), scaled already, or None.
        activation: as in `mlp_chain`.
        return_states, warm_start, return_info, **solver: as in `mlp_chain`, where a skip is that
            of a_l z_{l-1}.

    All tensors are of the dtype and on the device of ``input``.  Gradients of the weights and of
    bias_out are sums over all steps and samples.

    Returns, dtypes, autocast and errors: as `mlp_chain`.  On CUDA devices ``segments="auto"`` is 1.

    Sources: solving the process as one chain is from DeepPCR (Danieli et al., NeurIPS 2023, arXiv
    2309.16318); coefficients of DDIM (Song et al., arXiv 2010.02502, equation 12) and DDPM (Ho et
    al., arXiv 2006.11239, equation 11).
    """
    call = Call(return_states, warm_start, return_info, solver_of(solver))
    _checks.hidden_layers(bias, weight_hidden)
    parameters = (weight_in, bias, weight_hidden, weight_out, bias_out, coefficients, noise)
    return _solve.run(DENOISE, call, input, parameters, (activation,), _mlp_step)


def linear_recurrence(
    A: Tensor | None,
    b: Tensor,
    x0: Tensor | None = None,
    *,
    reverse: bool = False,
    blocks: str | None = None,
    segments: int | str = "auto",
    return_info: bool = False,
) -> Output:
    """x_l = A_l x_{l-1} + b_l for l = 1..L, a block-bidiagonal linear system in x_1..x_L.

    Args:
        A: dense (L, B, w, w), diagonal (L, B, w) or scalar (L, B, 1) blocks, each with 1 in place
            of B where the samples share them; None: identity blocks, a cumulative sum.  Dense
            blocks are read through their strides (``A.mT``, batch-first views) without a copy.
        b: (L, B, w).
        x0: (B, w); None is zero, and A_1 is then not read.
        reverse: x_l = A_l x_{l+1} + b_l from the last step down, x0 entering after it.  Nothing is
            transposed: the adjoint of the recurrence has the blocks A_{l+1}^T.
        blocks: "dense", "diagonal", "scalar" or "identity".  Needed only where the shape of A could
            be read in two ways: A (L, w, w) with B = w.  With "dense" such an A is shared by the
            samples.
        segments: into how many parts S the steps are cut.  1 is the plain loop, L is cyclic
            reduction, ceil(log2 L) levels; between them every part is reduced first.  "auto"
            is 1 on the CPU and taken from a table on CUDA devices.  The result does not depend on
            it, but for rounding.
        return_info: also return a `RecurrenceInfo`.

    Returns:
        x (L, B, w), differentiable any number of times, in reverse and in forward mode.

    dtypes, devices and autocast: as `mlp_chain`.

    Raises:
        TypeError: a tensor is of another type, or of another dtype than ``b``.
        ValueError: a shape does not fit or is ambiguous, tensors are on several devices, segments
            is not in 1..L, or ``blocks`` is unknown.
        NotImplementedError: CUDA tensors, and the CUDA library is missing.

    Method: every segment is reduced to one map, the maps are combined by cyclic reduction, in as
    many levels as the parallel one of DeepPCR (Danieli et al., NeurIPS 2023, arXiv 2309.16318)
    with fewer products.
    """
    if not return_info:
        x = _recurrence.at_once(A, b, x0, blocks, reverse, segments)
        if x is not None:
            return x
    b = _checks.real_tensor("b", b)
    if autocast_enabled(b):
        A, b, x0 = (to_float32(tensor) for tensor in (A, b, x0))
    kind = _block_kind(A, b, blocks)
    if kind == "dense" and A is not None and A.dim() == 3:
        A = A.unsqueeze(1)
    _checks.recurrence(A, b, x0, kind)
    if segments != "auto":
        count = _checks.segments(segments, b.shape[0])
    else:
        on_cuda = b.device.type == "cuda" and _chain.native(b)
        length, batch, width = b.shape
        count = _planner.cuda_recurrence(length, batch, width, kind) if on_cuda else 1
    x, info = _recurrence.solve(A, b, x0, kind, _checks.flag("reverse", reverse), count)
    return (x, _info(b, count, info)) if _checks.flag("return_info", return_info) else x


def _resolve_norm(
    state: object, norm: str | None, eps: float | None, *parameters: Tensor | None
) -> tuple[str, float]:
    """norm and norm_eps as the operators take them."""
    _checks.choice("norm", norm, _NORMS)
    norm = norm or "none"
    _checks.norm_parameters(norm, *parameters)
    return norm, _default_eps(norm, state) if eps is None else _checks.epsilon("norm_eps", eps)


def _default_eps(norm: str, state: object) -> float:
    """PyTorch's: for "rms_norm" eps of the arithmetic, which is float32 for half precision."""
    if norm != "rms_norm":
        return 1e-5
    double = _checks.real_tensor("input", state).dtype == torch.float64
    return torch.finfo(torch.float64 if double else torch.float32).eps


def _block_kind(A: object, b: Tensor, blocks: str | None) -> str:
    """Which blocks the shape of A means; ValueError where it could mean two things."""
    if blocks is not None:
        _checks.choice("blocks", blocks, _checks.BLOCKS)
    if A is None:
        return blocks or "identity"
    A = _checks.like("A", A, "b", b)
    if blocks is not None:
        return blocks
    if A.dim() not in (3, 4):
        raise ValueError(f"A must have 3 or 4 dimensions, got shape {tuple(A.shape)}")
    if A.dim() == 4 or b.dim() != 3:
        return "dense"
    batch, width = b.shape[1:]
    if A.shape[1:] == (width, width) and width > 1:  # with width 1 all readings agree
        if batch == width:
            raise ValueError(
                f"A of shape {tuple(A.shape)} may hold diagonal blocks (L, B, w) or dense blocks "
                '(L, w, w) that the samples share: say which by blocks="diagonal" or blocks="dense"'
            )
        raise ValueError(
            f"A of shape {tuple(A.shape)} does not fit b of shape {tuple(b.shape)}; dense blocks "
            'that the samples share are A[:, None], or say blocks="dense"'
        )
    return "scalar" if A.shape[2] == 1 else "diagonal"


def _info(b: Tensor, segments: int, info: Tensor) -> RecurrenceInfo:
    levels = _recurrence.levels(b, segments)
    opaque = torch.compiler.is_compiling() or func_active() or info.is_meta
    return RecurrenceInfo(info.new_full((), levels) if opaque else levels, info != 0)
