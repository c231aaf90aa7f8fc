# SPDX-License-Identifier: Apache-2.0
"""Train small denoisers on digits, and sample from them in every way.

    python examples/diffusion/demo.py [--help]

Same network, same latents, same noise: the samples must agree, the times need not.  Writes tables,
pictures of the samples and of the errors by sweep, and all numbers to --out, where the trained
models stay for the next run, and says which of the promises in README.md hold.

Exit status: 0; 1 if a method failed or a promise does not hold; 2 for a mistake in the options or a
missing package.
"""

from __future__ import annotations

import sys
import time

import curves
import report
import torch
from data import DataError, Space, digits, spaces
from measure import ChainResult, draw, measure
from methods import Chain
from options import Options, parse
from picture import SHOWN, Block, draw_curves, draw_grid
from promises import promises
from quality import Judge
from schedules import SAMPLERS
from torch import Tensor
from training import Trained, build, trained
from unet import UNetResult, second_part

STARTED = time.monotonic()


def tell(sentence: str) -> None:
    print(f"{time.monotonic() - STARTED:6.0f} s  {sentence}", file=sys.stderr, flush=True)


def train_all(found: dict[str, Space], options: Options) -> dict[str, Trained]:
    models = {}
    for name, space in found.items():
        sizes = options.sizes(space.width)
        kept = {**sizes, "train": options.train, "seed": options.seed}
        model, path = build(space, sizes, options.seed), options.out / f"{name}.pt"
        models[name] = trained(model, space.data, kept, path, tell, name=name)
    return models


def first_part(
    found: dict[str, Space], models: dict[str, Trained], options: Options, judge: Judge
) -> tuple[list[ChainResult], dict[str, curves.Curves]]:
    results, errors = [], {}
    for name, space in found.items():
        for sampler, schedule in SAMPLERS.items():
            chain = Chain(space, sampler, schedule(options.steps), models[name].model)
            results.append(measure(chain, options, judge, tell))
            one = draw(chain, 1, options.seed + 1)
            errors[chain.name] = curves.curves(chain, one, tell)
    return results, errors


def pictures(
    chains: list[ChainResult],
    errors: dict[str, curves.Curves],
    unet: UNetResult,
    images: Tensor,
    options: Options,
) -> list[str]:
    blocks = [
        Block(
            each.chain.name,
            {
                result.method.title: each.chain.space.decode(result.many.samples[:SHOWN])
                for result in each.results.values()
                if result.many is not None
            },
        )
        for each in chains
    ]
    drawn = ["samples.png", "sweeps.png"]
    draw_grid(blocks, options.out / drawn[0])
    draw_curves(errors, 1e-4, options.out / drawn[1])
    if unet.rows:
        drawn.append("unet.png")
        rows = {each.title: each.images for each in unet.rows}
        draw_grid([Block("UNet, DDIM", {**rows, "digits": images})], options.out / drawn[2])
    return drawn


def run(options: Options) -> bool:
    """True if all ran and no promise about these options is broken."""
    torch.set_num_threads(options.threads)
    images, labels = digits()
    found, judge = spaces(images), Judge(images, labels, options.seed)
    models = train_all(found, options)
    unet = second_part(options, images, judge, tell)
    if unet.trained is not None:
        models["UNet"] = unet.trained
    chains, errors = first_part(found, models, options, judge)
    seconds = sum(each.seconds for each in models.values())
    made = [p for p in promises(chains, unet, seconds) if p.always or options.is_default()]
    tables = report.text(chains, unet, models, judge, options, made)
    files = pictures(chains, errors, unet, images, options)
    (options.out / "table.md").write_text(tables + "\n", encoding="utf-8")
    numbers = report.numbers(chains, errors, unet, models, options, made)
    (options.out / "results.json").write_text(numbers, encoding="utf-8")
    print(f"{tables}\n\n{options.out} has table.md, results.json, {' and '.join(files)}")
    return all(promise.kept for promise in made)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        return 0 if run(options) else 1
    except DataError as mistake:
        print(f"demo.py: {mistake}", file=sys.stderr)
    except OSError as error:
        print(f"demo.py: --out: {options.out} cannot be written ({error})", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
