# SPDX-License-Identifier: Apache-2.0
"""How many sweeps the paper's method needs along the whole training, of which it makes a part.

deeppcr's training is made once more (it is the cheapest, and all have one loss curve).  At equal
distances it stops, and the chain of that moment is solved for a few test images, always the same:

    cold      from the usual guess, the chain's input everywhere
    warm      from the states of the same images at the stop before
    adaptive  as cold, with refresh="adaptive"
"""

from __future__ import annotations

import torch
from contenders import CONTENDERS, DeepPCR
from data import Data
from options import Options
from training import Training
from watched import summary

import torch_deeppcr as dpcr

STOPS = 16
IMAGES = 8

Stop = dict[str, dict[str, float]]


def probe(options: Options, data: Data) -> dict[int, Stop]:
    """Training steps done -> the summaries of the solves there."""
    training = Training(CONTENDERS[DeepPCR.name], options, data)
    stops = {round(training.total * i / STOPS) for i in range(STOPS + 1)}
    found: dict[int, Stop] = {}
    states = None
    for step in range(training.total + 1):
        if step in stops:
            found[step], states = solves(training, states)
        if step < training.total:
            training.train_step()
    return found


def solves(training: Training, before: torch.Tensor | None) -> tuple[Stop, torch.Tensor]:
    """The summaries, and the states for the next stop.  before: those of the last one."""
    data, chain = training.data, training.net.chain
    spread = torch.linspace(0, len(data.test_y) - 1, IMAGES).long()
    with torch.no_grad():
        input = training.net.stem(data.normalise(data.test_x[spread]))
        states, cold = paper(chain, input)
        stop = {"cold": summary(cold)}
        if before is not None:
            stop["warm"] = summary(paper(chain, input, warm_start=before)[1])
        stop["adaptive"] = summary(paper(chain, input, refresh="adaptive")[1])
    return stop, states


def paper(
    chain: dpcr.nn.ResidualChain,
    input: torch.Tensor,
    refresh: str = "always",
    warm_start: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dpcr.ChainInfo]:
    """States and report of the chain with as many segments as it has blocks."""
    _, states, info = dpcr.residual_chain(
        input,
        chain.weight1,
        chain.bias1,
        chain.weight2,
        chain.bias2,
        chain.norm_weight,
        chain.norm_bias,
        activation=chain.activation,
        norm=chain.norm,
        norm_eps=chain.norm_eps,
        scale=chain.scale,
        segments=chain.depth,
        refresh=refresh,
        warm_start=warm_start,
        return_states=True,
        return_info=True,
    )
    return states, info
