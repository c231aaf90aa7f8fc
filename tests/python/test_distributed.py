# SPDX-License-Identifier: Apache-2.0
"""Parallelized models in two processes (gloo): DistributedDataParallel and FSDP2."""

from __future__ import annotations

import socket
from typing import Any

import pytest
import ranks
import torch

pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="torch.distributed with gloo is not there",
)


def both(name: str, *arguments: Any) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(ranks.start, (port, name, arguments), nprocs=ranks.RANKS)


@pytest.mark.parametrize("bucket_views", [False, True])
@pytest.mark.parametrize("stack", [False, True], ids=["per-layer", "stacked"])
def test_data_parallel(stack: bool, bucket_views: bool) -> None:
    both("data_parallel", stack, bucket_views)


@pytest.mark.parametrize("stack", [False, True], ids=["per-layer", "stacked"])
def test_the_root_sharded(stack: bool) -> None:
    both("sharded_root", stack)


@pytest.mark.parametrize("before", [False, True], ids=["after", "before"])
def test_every_layer_sharded_is_left_to_the_loop(before: bool) -> None:
    both("sharded_layers", before)


def test_stacked_layers_cannot_be_sharded_alone() -> None:
    both("stacked_layers_cannot_be_sharded_alone")
