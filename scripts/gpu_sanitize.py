# SPDX-License-Identifier: Apache-2.0
"""A little of everything on a GPU, for compute-sanitizer, which makes it a hundred times slower.

Results are not looked at: that is what the tests do.
"""

from __future__ import annotations

import torch

import torch_deeppcr as dpcr


def pull(outputs: tuple[torch.Tensor, ...], leaves: list[torch.Tensor]) -> None:
    torch.autograd.grad(outputs, leaves, [torch.ones_like(o) for o in outputs])


def recurrences() -> None:
    for blocks, inner in (("dense", "ww"), ("diagonal", "w"), ("scalar", "1"), ("identity", "")):
        for w in (3, 9, 17) if blocks == "dense" else (3,):
            for L, B, segments in ((33, 3, 1), (33, 3, 7), (70, 2, 70)):
                shape = [w if letter == "w" else 1 for letter in inner]
                A = torch.randn(L, B, *shape).cuda().mul_(0.3).requires_grad_() if inner else None
                b, x0 = (torch.randn(*s).cuda().requires_grad_() for s in ((L, B, w), (B, w)))
                options = {"blocks": blocks, "segments": segments, "reverse": segments == 7}
                x = dpcr.linear_recurrence(A, b, x0, **options)
                pull((x,), [t for t in (A, b, x0) if t is not None])


def chains() -> None:
    for w in (4, 9, 17):
        for segments in (1, 5):
            options = {"segments": segments, "memory": "recompute" if w == 9 else "states"}
            for net in (
                dpcr.nn.MLPChain(w, 20, **options),
                dpcr.nn.ResidualChain(w, 20, w + 2, norm="layer_norm", scale=0.1, **options),
                dpcr.nn.LayersChain(w, 20, 2, norm="rms_norm", scale=0.1, **options),
            ):
                net.cuda()
                z = torch.randn(3, w).cuda().requires_grad_()
                try:
                    pull(net(z, return_states=True), [z, *net.parameters()])
                except NotImplementedError as error:
                    print(f"{type(net).__name__}, width {w}: {error}")
    for options in ({"segments": 1}, {"segments": 3, "jacobian": "identity"}):
        net = dpcr.nn.ResidualChain(1030, 3, 4, norm="layer_norm", scale=0.1, **options).cuda()
        z = torch.randn(2, 1030).cuda().requires_grad_()
        pull(net(z, return_states=True), [z, *net.parameters()])


if __name__ == "__main__":
    torch.manual_seed(0)
    recurrences()
    torch.cuda.synchronize()
    chains()
    torch.cuda.synchronize()
