# SPDX-License-Identifier: Apache-2.0
"""Everything on a GPU: held to PyTorch's loops in float64 on the CPU, then what only a GPU has:
streams, graphs, and that nothing waits for it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from cases import (
    ACTIVATIONS,
    BLOCKS,
    CHAOTIC,
    EASY,
    MAKERS,
    MARGINAL,
    NORMS,
    SMALL_CHAINS,
    Chain,
    Problem,
    all_are,
    assert_close,
    each_module,
    gradients,
    name_of,
    on_host,
    present,
)
from torch import Tensor, nn

import torch_deeppcr as dpcr
from torch_deeppcr import _native, _planner, reference

pytestmark = pytest.mark.cuda

F32, F64 = torch.float32, torch.float64
each_dtype = pytest.mark.parametrize("dtype", [F32, F64], ids=["f32", "f64"])
BLOCK_KINDS = ("dense", "diagonal", "scalar", "identity")
ops = torch.ops.deeppcr


def test_the_cuda_library_is_loaded() -> None:
    """Everything else would test PyTorch against itself."""
    assert "cuda" in _native.devices, _native.missing
    for name in ("mlp", "linear_recurrence", "mlp_backward", "linear_recurrence_backward"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"deeppcr::{name}", "CUDA")


def rounded(tree: Any, dtype: torch.dtype) -> Any:
    """What an exact result is in another dtype, to be compared with one."""
    return torch.utils._pytree.tree_map_only(Tensor, lambda t: t.to(dtype), tree)


# ---- the linear recurrence ----------------------------------------------------------------------


def check_recurrence(problem: Problem, dtype: torch.dtype, device: torch.device) -> None:
    """Values and gradients."""
    factor = 1e4 if dtype == F32 else 1e6  # products of blocks round, too
    exact = problem.tensors(dtype)
    host = [None if t is None else t.double() for t in exact]
    there = [None if t is None else t.to(device) for t in exact]
    expected = [problem.loop(*host), *gradients(*present(problem.loop, host))]
    actual = [problem.run(*there), *gradients(*present(problem.run, there))]
    assert all(t.device == device for t in actual)
    assert_close(on_host(actual), rounded(expected, dtype), factor=factor)


@each_dtype
@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 8, 16, 17, 33])
@pytest.mark.parametrize("blocks", BLOCK_KINDS)
def test_recurrence(blocks: str, width: int, dtype: torch.dtype, device: torch.device) -> None:
    for segments, reverse, shared, start in (
        (1, False, False, True),
        (1, True, True, False),
        (5, False, True, True),
        (5, True, False, True),
        (33, False, False, False),
        (33, True, True, True),
    ):
        problem = Problem(blocks, 33, 3, width, shared, start, reverse, segments)
        check_recurrence(problem, dtype, device)


@pytest.mark.parametrize("length", [0, 1, 2, 3, 31, 32, 33, 1023, 1024, 1025])
@pytest.mark.parametrize("blocks", BLOCK_KINDS)
def test_recurrence_lengths(blocks: str, length: int, device: torch.device) -> None:
    for segments in sorted({1, 2, 7, length} & set(range(1, max(length, 1) + 1))):
        check_recurrence(Problem(blocks, length, 2, 4, segments=segments), F64, device)


@pytest.mark.parametrize("sizes", [(9, 70000, 2), (3, 70000, 17), (70000, 1, 3), (5000, 2, 16)])
def test_recurrence_of_many_samples_or_steps(
    sizes: tuple[int, int, int], device: torch.device
) -> None:
    """More blocks than a grid has in y or z; segments as "auto" chooses."""
    length, batch, width = sizes
    A, b, x0 = Problem("dense", length, batch, width).tensors(F32)
    expected = reference.linear_recurrence(A, b, x0, "dense", False)
    for segments in ("auto", 2, min(length, 4096)):
        x = dpcr.linear_recurrence(A.to(device), b.to(device), x0.to(device), segments=segments)
        assert_close(x.cpu(), expected, factor=1e4)


def test_strided_operands_are_not_copied(device: torch.device) -> None:
    """Batch-first views, transposed blocks, samples that share; no gap is written to."""
    L, B, w = 40, 3, 5
    A = torch.randn(B, L, w, w, device=device, dtype=F64).transpose(0, 1).mT * 0.4
    b = torch.randn(B, L, 2 * w, device=device, dtype=F64)[..., :w].transpose(0, 1)
    x0 = torch.randn(B, 2 * w, device=device, dtype=F64)[:, :w]
    shared = (torch.randn(L, w, w, device=device, dtype=F64) * 0.4)[:, None].expand(L, B, w, w)
    for blocks in (A, shared):
        for reverse in (False, True):
            packed = (blocks.contiguous(), b.contiguous(), x0.contiguous())
            for segments in (1, 6):
                options = {"segments": segments, "reverse": reverse}
                x = dpcr.linear_recurrence(blocks, b, x0, **options)
                assert_close(x, dpcr.linear_recurrence(*packed, **options))
    big = torch.randn(8, 4000, 16, 16, device=device).transpose(0, 1).mT * 0.2
    right = torch.randn(8, 4000, 16, device=device).transpose(0, 1)
    torch.cuda.reset_peak_memory_stats(device)
    held = torch.cuda.memory_allocated(device)
    dpcr.linear_recurrence(big, right, segments=1)
    taken = torch.cuda.max_memory_allocated(device) - held
    assert taken < big.numel() * big.element_size() / 2


def test_overflowing_products_are_recomputed(device: torch.device) -> None:
    """Growing blocks, then a zero block: products overflow, the loop does not."""
    A = torch.full((400, 3, 1), 10.0)
    A[200] = 0.0
    b = torch.zeros(400, 3, 1)
    b[:, 1] = 1e-30  # overflows in the loop too
    expected = reference.linear_recurrence(A, b, None, "scalar", False)
    x, info = dpcr.linear_recurrence(A.to(device), b.to(device), segments=400, return_info=True)
    assert info.levels == 9 and info.recomputed.device == device
    assert torch.equal(x[:, 0].cpu(), expected[:, 0]) and bool(info.recomputed[0])
    assert torch.equal(x.isfinite().cpu(), expected.isfinite())


@pytest.mark.parametrize("width", [3, 9])
def test_not_a_number_stays_in_its_sample(width: int, device: torch.device) -> None:
    for segments in (1, 4, 16):
        problem = Problem("dense", 16, 3, width, segments=segments)
        A, b, x0 = (t.to(device) for t in problem.tensors())
        clean = problem.run(A, b, x0)
        b[7, 1, 2] = math.nan
        x = problem.run(A, b, x0)
        assert torch.equal(x[:, [0, 2]], clean[:, [0, 2]])
        assert torch.equal(x.isnan().cpu(), problem.loop(A.cpu(), b.cpu(), x0.cpu()).isnan())


# ---- chains -------------------------------------------------------------------------------------


def check_chain(
    chain: Chain, dtype: torch.dtype, device: torch.device, factor: float = 1e4, **options: Any
) -> None:
    """z, states and all gradients."""
    there, exact = chain.to(dtype, device), chain.to(dtype).to(F64)

    def run(*tensors: Tensor) -> Any:
        return there.run(*tensors, return_states=True, **options)

    def loop(*tensors: Tensor) -> Any:
        return exact.loop(*tensors, return_states=True)

    expected = [*loop(*exact.present), *gradients(loop, exact.present)]
    actual = [*run(*there.present), *gradients(run, there.present)]
    assert all(t.device == device for t in actual)
    assert_close(on_host(actual), rounded(expected, dtype), factor=factor)


def kinds(width: int, **options: Any) -> list[Chain]:
    """One chain of each kind; no norm is of one number, whose gradient is all rounding."""
    layer_norm, rms_norm = ("layer_norm", "rms_norm") if width > 1 else (None, None)
    return [
        Chain("mlp", 40, 3, width, gain=0.9, **options),
        Chain("euler", 40, 3, width, gain=0.9, scale=0.05, **options),
        Chain("residual", 40, 3, width, width + 3, scale=0.05, norm=layer_norm, **options),
        Chain("layers", 40, 3, width, scale=0.05, norm=rms_norm, **options),
        Chain("denoise", 40, 3, width, width + 3, activation="silu", scale=-0.05, **options),
    ]


each_kind = pytest.mark.parametrize(
    "index", range(5), ids=["mlp", "euler", "residual", "layers", "denoise"]
)


@each_dtype
@each_kind
def test_chain(index: int, dtype: torch.dtype, device: torch.device) -> None:
    chain = kinds(4)[index]
    for segments in (1, 7, 40):
        for memory in ("states", "recompute"):
            check_chain(chain, dtype, device, segments=segments, memory=memory)


@each_dtype
@pytest.mark.parametrize("width", [1, 2, 3, 5, 8, 16, 17, 32, 33, 64, 65, 130])
@each_kind
def test_chain_widths(index: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
    for segments in (1, 5):
        check_chain(kinds(width)[index], dtype, device, segments=segments)


@each_dtype
def test_vectors_of_more_than_1024(dtype: torch.dtype, device: torch.device) -> None:
    for w, h in ((1500, 3), (4, 4096), (4096, 2)):
        chain = Chain("residual", 4, 2, w, h, scale=0.1, norm="layer_norm")
        for segments in (1, 3):
            check_chain(chain, dtype, device, segments=segments, jacobian="identity")
    for chain in (Chain("mlp", 3, 2, 1025, gain=0.9), Chain("denoise", 3, 2, 1025, 5, scale=0.1)):
        check_chain(chain, dtype, device, segments=1)


@each_dtype
@pytest.mark.parametrize("kind", ["mlp", "residual", "layers", "denoise"])
def test_gradients_of_large_matrices_and_batches(
    kind: str, dtype: torch.dtype, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are cuBLAS's products, in float32 whatever PyTorch's own may be."""
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)
    norm = "layer_norm" if kind in ("residual", "layers") else None
    chain = Chain(kind, 3, 16, 64, 80, scale=0.2, norm=norm)
    for segments in (1, 3):
        check_chain(chain, dtype, device, factor=100, segments=segments)
    assert torch.backends.cuda.matmul.allow_tf32


@each_dtype
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_chain_activations(activation: str, dtype: torch.dtype, device: torch.device) -> None:
    for kind, segments in (("mlp", 1), ("mlp", 4), ("residual", 1)):
        chain = Chain(kind, 12, 5, 6, activation=activation, gain=0.7, scale=0.3)
        check_chain(chain, dtype, device, segments=segments)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", ["residual", "layers"])
def test_chain_norms(kind: str, norm: str | None, device: torch.device) -> None:
    for bias, skip in ((True, True), (False, False)):
        chain = Chain(kind, 12, 5, 6, activation="silu", norm=norm, bias=bias, skip=skip, layers=3)
        for segments in (1, 4):
            check_chain(chain, F64, device, segments=segments)


@pytest.mark.parametrize("length", [0, 1, 2, 3, 31, 32, 33, 257])
def test_chain_lengths(length: int, device: torch.device) -> None:
    chain = Chain("mlp", length, 3, 4, gain=0.9)
    for segments in sorted({1, 2, length} & set(range(1, max(length, 1) + 1))):
        check_chain(chain, F64, device, segments=segments)


@pytest.mark.parametrize("batch", [1, 2, 4, 31, 33, 128, 1000])
def test_chain_batches(batch: int, device: torch.device) -> None:
    for kind in ("mlp", "residual", "denoise"):
        chain = Chain(kind, 12, batch, 5, gain=0.9, scale=0.1)
        for segments in (1, 4):
            check_chain(chain, F64, device, segments=segments)


def test_chain_of_many_samples(device: torch.device) -> None:
    for width in (2, 16):
        chain = Chain("mlp", 5, 70000, width, gain=0.9)
        for segments in (1, 2):
            check_chain(chain, F32, device, segments=segments)


def test_chain_of_many_steps(device: torch.device) -> None:
    chain = Chain("mlp", 4096, 2, 4, gain=0.9).to(F32)
    expected = chain.to(F64).loop()
    for options in ({}, {"segments": 1}, {"segments": 64}, {"segments": 64, "memory": "recompute"}):
        there = chain.to(F32, device)
        assert_close(there.run(**options).cpu(), rounded(expected, F32), factor=1e4)
        for g in gradients(lambda *t, c=there, o=options: c.run(*t, **o), there.present):
            assert g.isfinite().all()


def test_empty(device: torch.device) -> None:
    for batch, width in ((0, 4), (3, 0), (0, 0)):
        for kind in ("mlp", "residual", "denoise"):
            chain = Chain(kind, 3, batch, width).to(F32, device)
            for segments in (1, 3):
                z, states, info = chain.run(segments=segments, return_states=True, return_info=True)
                assert z.shape == (batch, width) and states.shape == (3, batch, width)
                assert not info.sweeps.any() and info.sweeps.device == device
            for gradient, tensor in zip(
                gradients(chain.run, chain.present), chain.present, strict=True
            ):
                assert torch.equal(gradient, torch.zeros_like(tensor))
        b = torch.zeros(3, batch, width, device=device)
        assert dpcr.linear_recurrence(None, b, segments=2).shape == b.shape


def test_inputs_of_any_shape_and_stride(device: torch.device) -> None:
    net = dpcr.nn.MLPChain(4, 9, device=device, dtype=F64)
    wide = torch.randn(3, 2, 8, device=device, dtype=F64)
    flat = net(wide[..., ::2].reshape(6, 4))
    assert_close(net(wide[..., ::2]), flat.reshape(3, 2, 4))
    assert_close(net(wide[0, 0, :4]), net(wide[:1, 0, :4])[0])
    weight = net.weight.detach()
    strided = torch.empty(9, 4, 8, device=device, dtype=F64)[..., :4].copy_(weight)
    bias = net.bias.detach()
    assert_close(dpcr.mlp_chain(wide[0, :, :4], strided, bias), net(wide[0, :, :4]))


# ---- Newton -------------------------------------------------------------------------------------


@pytest.mark.parametrize("segments", [1, 12, 96])
@pytest.mark.parametrize("chain", [EASY, MARGINAL, BLOCKS], ids=["easy", "marginal", "blocks"])
def test_info(chain: Chain, segments: int, device: torch.device) -> None:
    there = chain.to(F64, device)
    z, info = there.run(segments=segments, return_info=True)
    assert_close(z.cpu(), chain.loop(), factor=1e5)
    assert all(t.device == device for t in info[:4])
    assert all_are(info.status, dpcr.Status.CONVERGED)
    reduced = max(chain.width, chain.hidden) <= 4  # wider systems are solved in groups
    assert info.levels == (math.ceil(math.log2(segments)) if reduced else 0)
    assert bool((info.sweeps == 1).all() if segments == 1 else (info.sweeps > 1).all())
    assert bool((info.sweeps < 40).all()) and bool((info.flops > 0).all())


def test_structures_and_refreshes(device: torch.device) -> None:
    there, expected = BLOCKS.to(F64, device), BLOCKS.loop()
    for options, factor in (
        ({"jacobian": "identity"}, 1e5),
        ({"jacobian": "zero"}, 1e5),
        ({"jacobian": "scalar"}, 1e5),
        ({"jacobian": "diagonal"}, 1e5),
        ({"refresh": "always"}, 1e5),
        ({"rtol": 1e-6}, 1e11),
    ):
        assert_close(there.run(segments=12, **options).cpu(), expected, factor=factor)


def test_a_warm_start_saves_sweeps(device: torch.device) -> None:
    there = MARGINAL.to(F64, device)
    z, states, cold = there.run(segments=12, return_states=True, return_info=True)
    again, warm = there.run(segments=12, warm_start=states, return_info=True)
    assert bool((warm.sweeps < cold.sweeps).all())
    assert_close(again, z)


def test_what_does_not_converge_is_finished_by_walking(device: torch.device) -> None:
    there = CHAOTIC.to(F32, device)
    exact = there.run(segments=1, return_states=True)
    *walked, info = there.run(segments=64, max_sweeps=3, return_states=True, return_info=True)
    assert all_are(info.status, dpcr.Status.SEQUENTIAL)
    assert torch.equal(walked[0], exact[0]) and torch.equal(walked[1], exact[1])
    left = there.run(segments=64, max_sweeps=3, on_unconverged="ignore", return_info=True)[1]
    assert all_are(left.status, dpcr.Status.UNCONVERGED)
    with pytest.raises(dpcr.ConvergenceError, match="3 of 3 samples"):
        there.run(segments=64, max_sweeps=3, on_unconverged="raise")
    with pytest.warns(dpcr.ConvergenceWarning):
        there.run(segments=64, max_sweeps=3, on_unconverged="warn")


@pytest.mark.parametrize("segments", [1, 12])
def test_samples_do_not_mix_and_bits_repeat(segments: int, device: torch.device) -> None:
    there = EASY.to(F32, device)
    z, *parameters = there.tensors
    clean = there.run(segments=segments)
    assert torch.equal(there.run(segments=segments), clean)
    spoilt = z.clone()
    spoilt[1] = math.nan
    out = dpcr.mlp_chain(spoilt, *parameters, segments=segments)
    assert out[1].isnan().all() and torch.equal(out[[0, 2]], clean[[0, 2]])


def test_auto_is_the_table(device: torch.device) -> None:
    for length, batch, width in (
        (4096, 1, 4),
        (1024, 1, 4),
        (8192, 2, 16),
        (1024, 2, 17),
        (32, 1, 4),
    ):
        net = dpcr.nn.MLPChain(width, length, device=device)
        x = torch.randn(batch, width, device=device)
        z, info = net(x, return_info=True)
        expected = _planner.cuda_choice(length, batch, width)
        assert info.plan.segments == expected.segments and info.why == expected.why
        with dpcr.sequential():
            assert_close(z, net(x), factor=1e4)
    steps = Chain("denoise", 4096, 1, 4, 8, scale=0.001).to(F32, device)
    assert steps.run(return_info=True)[1].plan.segments == 1  # another kind than the table's


def test_the_loop_of_a_denoiser_is_one_operator(device: torch.device) -> None:
    torch.manual_seed(0)
    host = dpcr.nn.Denoiser(6, 40, dtype=F64)
    there = copy.deepcopy(host).to(device)
    noise = torch.linspace(0.3, 0.1, 20, dtype=F64)
    schedule = dpcr.Schedule(
        timesteps=torch.arange(20, 0, -1), sample=1 - noise / 4, model=-noise / 4
    )
    latents = torch.randn(3, 6, dtype=F64)
    expected = dpcr.sample(host, schedule, latents)
    found, info = dpcr.sample(there, schedule, latents.to(device), return_info=True)
    assert "native" in info.plan.why and found.device == device
    assert_close(found.cpu(), expected, factor=1e4)
    parallel = there.denoise(latents.to(device), schedule, segments=20)
    assert_close(parallel.cpu(), expected, factor=1e5)


# ---- modules ------------------------------------------------------------------------------------


@each_module
def test_modules(make: Callable[..., nn.Module], device: torch.device) -> None:
    host = make(dtype=F64)
    there = copy.deepcopy(host).to(device)
    x = torch.randn(5, 4, dtype=F64)

    def results(net: nn.Module, x: Tensor) -> list[Tensor]:
        x = x.requires_grad_()
        z = net(x)
        return [z, *torch.autograd.grad(z.square().sum(), [x, *net.parameters()])]

    assert_close(on_host(results(there, x.to(device))), results(host, x.clone()))
    assert all(p.device == device for p in make(device=device).parameters())


def sequential_model() -> nn.Sequential:
    layers = [layer for _ in range(12) for layer in (nn.Linear(6, 6), nn.Tanh())]
    return nn.Sequential(nn.Linear(3, 6), *layers, nn.Linear(6, 2)).double()


@pytest.mark.parametrize("stack", [False, True])
def test_parallelize(stack: bool, device: torch.device) -> None:
    """Frozen layers, too; and the modules' loop for half precision."""
    plain = sequential_model()
    if not stack:
        plain[3].requires_grad_(False)
        plain[7].weight.requires_grad_(False)
    net = dpcr.parallelize(copy.deepcopy(plain).to(device), stack=stack, segments=3)
    x = torch.randn(4, 3, dtype=F64)
    assert_close(net(x.to(device)).cpu(), plain(x))
    net(x.to(device)).square().sum().backward()
    plain(x).square().sum().backward()
    if not stack:
        theirs = [p.grad for p in plain.parameters()]
        assert_close([None if p.grad is None else p.grad.cpu() for p in net.parameters()], theirs)
    half = net.to(torch.bfloat16)
    assert half(x.to(device, torch.bfloat16)).dtype == torch.bfloat16


def test_what_the_kernels_do_not_have_runs_as_modules(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError(f"{_native.UNSUPPORTED}no such chain")

    net = dpcr.parallelize(sequential_model().to(device), segments=2)
    x = torch.randn(4, 3, dtype=F64, device=device)
    expected = net(x)
    monkeypatch.setattr("torch_deeppcr._kinds.ChainKind.forward", refuse)
    assert_close(net(x), expected)
    with pytest.raises(NotImplementedError, match="no such chain"):
        EASY.to(F32, device).run()


def test_training_is_that_of_the_cpu(device: torch.device) -> None:
    torch.manual_seed(0)
    host = dpcr.nn.ResidualChain(4, 40, norm="layer_norm", scale=0.1, dtype=F64)
    there = copy.deepcopy(host).to(device)
    x, y = torch.randn(6, 4, dtype=F64), torch.randn(6, 4, dtype=F64)
    for net, where in ((host, "cpu"), (there, device)):
        optimiser = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9)
        for _ in range(5):
            optimiser.zero_grad()
            (net(x.to(where)) - y.to(where)).square().mean().backward()
            optimiser.step()
    assert_close(on_host(list(there.parameters())), list(host.parameters()), factor=1e5)


# ---- derivatives and transforms -----------------------------------------------------------------


@pytest.mark.parametrize("chain", SMALL_CHAINS, ids=name_of)
def test_gradcheck(chain: Chain, device: torch.device) -> None:
    there = chain.to(F64, device).require_grad()
    torch.autograd.gradcheck(there.run, there.present, fast_mode=True, check_forward_ad=True)
    torch.autograd.gradgradcheck(there.run, there.present, fast_mode=True, nondet_tol=1e-12)


@pytest.mark.parametrize("blocks", BLOCK_KINDS)
def test_gradcheck_recurrence(blocks: str, device: torch.device) -> None:
    problem = Problem(blocks, 5, 2, 3, segments=3)
    function, leaves = present(problem.run, problem.tensors())
    leaves = [leaf.to(device).requires_grad_() for leaf in leaves]
    torch.autograd.gradcheck(function, leaves, fast_mode=True, check_forward_ad=True)
    torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


def test_transforms(device: torch.device) -> None:
    chain = Chain("mlp", 9, 2, 3, gain=0.8, solver={"segments": 3})
    there = chain.to(F64, device)
    z, *parameters = there.present

    def run(z: Tensor) -> Tensor:
        return there.run(z, *parameters)

    def loop(z: Tensor) -> Tensor:
        return there.loop(z, *parameters)

    many = torch.randn(5, *z.shape, device=device, dtype=F64)
    for transform in (
        lambda f: torch.vmap(f)(many),
        lambda f: torch.func.jacrev(f)(z),
        lambda f: torch.func.jacfwd(f)(z),
        lambda f: torch.func.hessian(lambda z: f(z).sum())(z),
        lambda f: torch.vmap(torch.func.grad(lambda z: f(z).square().sum()))(many),
        lambda f: torch.func.jvp(f, (z,), (torch.ones_like(z),)),
    ):
        assert_close(transform(run), transform(loop))
    b = torch.randn(5, 7, 2, 3, device=device, dtype=F64)
    summed = torch.vmap(lambda b: dpcr.linear_recurrence(None, b, segments=3))(b)
    assert_close(summed, b.cumsum(1))


def test_opcheck(device: torch.device) -> None:
    chain = Chain("residual", 5, 2, 3, norm="layer_norm").to(F64, device)
    solver = (2, "dense", "always", 1e-12, 0.0, 10, True, [])
    for keep in ("nothing", "states", "checkpoints"):
        torch.library.opcheck(
            ops.residual.default, (*chain.tensors, None, *chain.options, *solver, keep)
        )
    A, b, x0 = (t.to(device) for t in Problem("dense", 5, 2, 3).tensors())
    torch.library.opcheck(ops.linear_recurrence.default, (A.mT, b, x0, "dense", True, 3))


@pytest.mark.parametrize("kind", ["mlp", "residual-layer_norm", "layers"])
def test_compile(kind: str, device: torch.device) -> None:
    torch._dynamo.reset()
    net = MAKERS[kind](device=device, segments=2)
    function = torch.compile(net, fullgraph=True, backend="aot_eager")
    for batch in (9, 7):
        x = torch.randn(batch, 4, device=device, requires_grad=True)
        leaves = [x, *net.parameters()]
        ours, theirs = (
            [z := f(x), *torch.autograd.grad(z.square().sum(), leaves)] for f in (function, net)
        )
        assert_close(ours, theirs)


def test_autocast_computes_in_float32(device: torch.device) -> None:
    net = dpcr.nn.MLPChain(4, 9, device=device)
    x = torch.randn(3, 4, device=device)
    A, b = torch.randn(5, 3, 4, 4, device=device), torch.randn(5, 3, 4, device=device)
    with torch.autocast("cuda", torch.bfloat16):
        z, y = net(x.bfloat16()), dpcr.linear_recurrence(A.bfloat16(), b.bfloat16())
        z.sum().backward()
    assert z.dtype == y.dtype == net.weight.grad.dtype == F32
    assert_close(z, net(x.bfloat16().float()))


def test_half_precision_runs_the_loop(device: torch.device) -> None:
    chain = EASY.to(torch.bfloat16, device)
    z, info = chain.run(return_info=True)
    assert z.dtype == torch.bfloat16 and "PyTorch's loop" in info.why
    assert torch.equal(z, chain.loop())


# ---- streams, graphs, waiting -------------------------------------------------------------------


def step_of(net: nn.Module, x: Tensor) -> Callable[[], list[Tensor]]:
    """Forward and backward into fresh tensors."""
    parameters = list(net.parameters())

    def step() -> list[Tensor]:
        z = net(x)
        return [z, *torch.autograd.grad(z.square().sum(), parameters)]

    return step


def recurrence_step(A: Tensor, b: Tensor, x0: Tensor, **options: Any) -> Callable[[], list[Tensor]]:
    leaves = [t.requires_grad_() for t in (A, b, x0)]

    def step() -> list[Tensor]:
        x = dpcr.linear_recurrence(*leaves, **options)
        return [x, *torch.autograd.grad(x.square().sum(), leaves)]

    return step


def chain_steps(device: torch.device) -> list[tuple[Tensor, Callable[[], list[Tensor]]]]:
    """(an input that may be overwritten, a step that reads it)"""
    made = []
    for options in ({"segments": 1}, {"segments": 16}, {}, {"segments": 16, "memory": "recompute"}):
        net = dpcr.nn.MLPChain(4, 128, device=device, **options)
        x = torch.randn(8, 4, device=device)
        made.append((x, step_of(net, x)))
    net = dpcr.nn.ResidualChain(20, 64, norm="layer_norm", scale=0.1, device=device, segments=4)
    x = torch.randn(3, 20, device=device)
    made.append((x, step_of(net, x)))
    net = dpcr.nn.MLPChain(64, 6, device=device, segments=2)  # gradients by cuBLAS
    x = torch.randn(16, 64, device=device)
    return [*made, (x, step_of(net, x))]


def recurrence_steps(device: torch.device) -> list[tuple[Tensor, Callable[[], list[Tensor]]]]:
    made = []
    for width, options in ((3, {}), (3, {"segments": 1}), (9, {"segments": 8, "reverse": True})):
        A, b, x0 = (t.to(device) for t in Problem("dense", 200, 2, width).tensors(F32))
        made.append((b, recurrence_step(A, b, x0, **options)))
    return made


STEPS = {"chain": chain_steps, "recurrence": recurrence_steps}
each_step = pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)


@contextmanager
def busy(device: torch.device):
    """Something long is in the way on the current stream."""
    torch.cuda._sleep(int(2e9))
    yield
    assert not torch.cuda.current_stream(device).query(), "the call waited for the GPU"
    torch.cuda.synchronize(device)


@each_step
def test_nothing_waits(steps: Any, device: torch.device) -> None:
    """PyTorch would raise where it waits; where the library waited, the stream would be done."""
    for _, step in steps(device):
        first, expected = step(), step()
        del first  # memory for what follows: allocating may wait
        torch.cuda.synchronize(device)
        with busy(device):
            torch.cuda.set_sync_debug_mode("error")
            try:
                actual = step()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        assert_close(actual, expected)


@each_step
def test_side_stream(steps: Any, device: torch.device) -> None:
    """Work follows the current stream: results are right although the default one is busy, and
    right where the input arrives late on the side stream."""
    for x, step in steps(device):
        expected = step()
        value = x.detach().clone()
        torch.cuda.synchronize(device)
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            with torch.no_grad():
                x.zero_()
                torch.cuda._sleep(int(2e8))
                x.copy_(value)
            actual = step()
        side.synchronize()
        assert_close(actual, expected)


@each_step
def test_graph_capture(steps: Any, device: torch.device) -> None:
    for x, step in steps(device):
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(2):
                step()
        torch.cuda.current_stream(device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = step()
        for seed in (1, 2):
            torch.manual_seed(seed)
            with torch.no_grad():
                x.copy_(torch.randn(x.shape))
            graph.replay()
            replayed = [t.clone() for t in captured]
            assert_close(replayed, step())


def test_info_in_a_graph(device: torch.device) -> None:
    there = MARGINAL.to(F32, device)
    expected = there.run(segments=12, return_info=True)[1]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        _, info = there.run(segments=12, return_info=True)
    graph.replay()
    assert torch.equal(info.sweeps, expected.sweeps) and int(info.levels) == expected.levels
    with (
        pytest.raises(NotImplementedError, match="CUDA graph"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        there.run(segments=12, on_unconverged="raise")


# ---- mistakes -----------------------------------------------------------------------------------


def test_tensors_on_several_devices(device: torch.device) -> None:
    z, W, b = torch.randn(2, 4), torch.randn(3, 4, 4), torch.randn(3, 4)
    with pytest.raises(ValueError, match="weight must be on the device of input"):
        dpcr.mlp_chain(z.to(device), W, b.to(device))
    with pytest.raises(ValueError, match="weight must be on the device of input"):
        dpcr.mlp_chain(z, W.to(device), b)
    with pytest.raises(ValueError, match="x0 must be on the device of b"):
        dpcr.linear_recurrence(None, W.to(device), z)
    options = (None, "tanh", [], 1, "dense", "adaptive", 1e-6, 0.0, -1, True, [], "nothing")
    with pytest.raises(ValueError, match="weight must be on the CUDA device"):
        ops.mlp(z.to(device), W, b.to(device), *options)
    with pytest.raises(ValueError, match="z0 must be on the CUDA device"):
        ops.mlp(z, W.to(device), b.to(device), *options)
    with pytest.raises(ValueError, match="x0 must be on the CUDA device"):
        ops.linear_recurrence(None, W.to(device), torch.randn(4, 4), "identity", False, 1)
    if torch.cuda.device_count() > 1:
        other = torch.device("cuda", 1 - device.index)
        with pytest.raises(ValueError, match="bias must be on the CUDA device"):
            ops.mlp(z.to(device), W.to(device), b.to(other), *options)


def test_other_devices_work(device: torch.device) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    other = torch.device("cuda", 1 - device.index)
    check_chain(EASY, F64, other, segments=12)
    check_recurrence(Problem("dense", 33, 3, 5, segments=5), F64, other)
    assert torch.cuda.current_device() == device.index


def test_bad_arguments(device: torch.device) -> None:
    z, W, b = (torch.randn(*s, device=device) for s in ((2, 4), (3, 4, 4), (3, 4)))
    solver = (1, "dense", "adaptive", 1e-6, 0.0, -1, True, [], "nothing")
    with pytest.raises(ValueError, match="float32 or float64"):
        ops.mlp(z.half(), W.half(), b.half(), None, "tanh", [], *solver)
    with pytest.raises(ValueError, match="bias must have shape"):
        ops.mlp(z, W, b[:2], None, "tanh", [], *solver)
    with pytest.raises(ValueError, match="segments"):
        dpcr.mlp_chain(z, W, b, segments=4)


# ---- last, because it takes longest --------------------------------------------------------------


@pytest.mark.slow
def test_compile_with_graphs(device: torch.device) -> None:
    """mode="reduce-overhead" captures the operators, and replays them on other inputs."""
    from torch._dynamo.utils import counters

    if not torch.utils._triton.has_triton():
        pytest.skip("Inductor needs Triton")
    torch._dynamo.reset()
    counters.clear()
    net = dpcr.nn.MLPChain(4, 128, device=device)
    function = torch.compile(net, fullgraph=True, mode="reduce-overhead")
    for _ in range(5):
        x = torch.randn(8, 4, device=device)
        torch.compiler.cudagraph_mark_step_begin()
        z = function(x)
        z.square().sum().backward()
        ours = [z.detach().clone(), *(p.grad.clone() for p in net.parameters())]
        net.zero_grad()
        z = net(x)
        z.square().sum().backward()
        assert_close(ours, [z.detach(), *(p.grad for p in net.parameters())])
        net.zero_grad()
    assert counters["inductor"]["cudagraph_skips"] == 0
