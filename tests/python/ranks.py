# SPDX-License-Identifier: Apache-2.0
"""What two processes of test_distributed.py run; each function is one test, called in both."""

from __future__ import annotations

import copy
import os
import warnings
from typing import Any

import pytest
import torch
import torch.distributed as dist
from cases import Spy
from models import mlp
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import torch_deeppcr as dpcr

RANKS = 2


def start(rank: int, port: int, name: str, arguments: tuple[Any, ...]) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", rank=rank, world_size=RANKS)
    globals()[name](rank, *arguments)
    dist.barrier()  # nobody leaves while the other still needs it
    dist.destroy_process_group()
    os._exit(0)  # the interpreter's own end may meet a thread of gloo's or of autograd's, and abort


def batch(rank: int, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(10 * step + rank)
    return torch.randn(5, 4, generator=generator, dtype=torch.float64)


def train(net: Any, optimizer: Any, inputs: Any) -> None:
    for step in range(3):
        optimizer.zero_grad()
        losses = [net(input).square().mean() for input in inputs(step)]
        (sum(losses) / len(losses)).backward()
        optimizer.step()


def trained_alone() -> nn.Module:
    """What all ranks together must arrive at: the plain model on both batches."""
    torch.manual_seed(0)
    plain = mlp()
    optimizer = torch.optim.SGD(plain.parameters(), 0.1)
    train(plain, optimizer, lambda step: [batch(rank, step) for rank in range(RANKS)])
    return plain


def fresh(stack: bool) -> nn.Module:
    torch.manual_seed(0)
    return dpcr.parallelize(mlp(), stack=stack)


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, msg=lambda text, name=name: f"{name}: {text}")


def runs_the_operator(net: nn.Module) -> None:
    with Spy() as spy:
        net(batch(0, 0)).sum().backward()
    assert [name for name, _ in spy.calls] == ["mlp", "mlp_backward"]


def data_parallel(rank: int, stack: bool, bucket_views: bool) -> None:
    net = DistributedDataParallel(fresh(stack), gradient_as_bucket_view=bucket_views)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    train(net, optimizer, lambda step: [batch(rank, step)])
    assert_equal(dict(net.module.state_dict()), dict(trained_alone().state_dict()))
    runs_the_operator(net)


def sharded_root(rank: int, stack: bool) -> None:
    net = fully_shard(fresh(stack))
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    train(net, optimizer, lambda step: [batch(rank, step)])
    full = {name: _full(value) for name, value in net.state_dict().items()}
    assert_equal(full, dict(trained_alone().state_dict()))
    runs_the_operator(net)


def _full(value: Any) -> Tensor:
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def sharded_layers(rank: int, before: bool) -> None:
    """fully_shard of every Linear: its parameters are there only while it is called by itself."""
    torch.manual_seed(0)
    net: Any = mlp()
    if not before:
        dpcr.parallelize(net)
        net(batch(rank, 0))
    for module in net:
        if isinstance(module, nn.Linear):
            fully_shard(module)
    fully_shard(net)
    if before:
        dpcr.parallelize(net)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    train(net, optimizer, lambda step: [batch(rank, step)])
    full = {name: _full(value) for name, value in net.state_dict().items()}
    assert_equal(full, dict(trained_alone().state_dict()))
    report = dpcr.report(net)
    assert not report.chains
    assert any("sharded by itself (fully_shard)" in module.reason for module in report.left), report


def stacked_layers_cannot_be_sharded_alone(rank: int) -> None:
    net: Any = fresh(True)
    expected = copy.deepcopy(net)(batch(rank, 0))
    fully_shard(net[4])  # it has no parameters of its own: nothing is sharded
    torch.testing.assert_close(net(batch(rank, 0)), expected)
    with pytest.raises(NotImplementedError, match="rows of stacked Parameters"):
        net[6].requires_grad_(False)
