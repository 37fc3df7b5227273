"""Accuracy and cost of the curvature that train.py measures while it trains. On a CPU, in float32, eager.

    python bench/curvature.py accuracy --rate=2.5e-4 --steps=200
    python bench/curvature.py cost --others --rounds=9

accuracy: a LLaMA of 4 layers trains on bytes, by default the King James Bible; after the warmup every step has its
eigenvalue estimated on one fixed batch: by few products from the vector of the step before, by twice as many from a
random vector, and until it has converged, from a random vector too. The figure shows how the errors are distributed.
cost: a further Hessian-vector product against a training step's forward and backward pass on the same tokens, and a
measurement on an eighth of a step's tokens against twenty steps (--others: compiled and bfloat16 ones too, beside which
the measurement stays eager and in float32). The sides take turns, so that the machine's own drift
cancels; figures are medians of the ratios.
"""

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import Annotated

import numpy as np
import torch
from harness import ROOT, in_turns, model_config, ratios

from blockwise import exit_on_user_error
from blockwise.blocks import param_groups
from blockwise.curvature.eigenvalues import largest_eigenvalue, power_iteration
from blockwise.curvature.hessian import Batch, HessianVectorProduct
from blockwise.curvature.tracker import CurvatureTracker
from blockwise.figures.style import COLOURS, start_figure, write
from blockwise.keys import ABOVE_0, PATH, Keys, Range
from blockwise.loader import Dataset, probe_batch, train_batch
from blockwise.optimizers import build_optimizer, preconditioner, stability_threshold
from blockwise.schedules import learning_rate
from configurator import configure_command
from model import Transformer

METHODS = {"krylov": largest_eigenvalue, "power": power_iteration}
BETAS = (0.9, 0.95)
EVERY = 20  # steps between measurements


@dataclass
class AccuracyConfig(Keys):
    """The keys of bench/curvature.py accuracy."""

    flags = MappingProxyType({"tiny": "a smaller model, to test this script"})

    rate: Annotated[float, "peak learning rate of Norm", ABOVE_0] = 2.5e-4
    warmup: Annotated[int, "steps before the first measurement", Range(1)] = 100
    steps: Annotated[int, "steps that are measured", Range(1)] = 200
    products: Annotated[int, "Hessian-vector products of a measurement", Range(1)] = 5
    dataset: Annotated[str, "data set of bytes"] = "kjv"
    data_dir: Annotated[str, "folder of data sets", PATH] = str(ROOT / "data")
    out: Annotated[str, "figure", PATH] = str(ROOT / "docs/curvature_error.png")


@dataclass
class CostConfig(Keys):
    """The keys of bench/curvature.py cost."""

    flags = MappingProxyType({"others": "beside compiled and bfloat16 steps too"})

    rounds: Annotated[int, "turns of each side", Range(1)] = 9
    layers: Annotated[int, "layers of the LLaMA", Range(1)] = 4
    heads: Annotated[int, "attention heads", Range(1)] = 4
    width: Annotated[int, "width of the model", Range(1)] = 128
    block: Annotated[int, "tokens per sequence", Range(1)] = 256
    vocab: Annotated[int, "vocabulary", Range(1)] = 4096
    batch: Annotated[int, "sequences of a step", Range(1)] = 16
    products: Annotated[int, "Hessian-vector products of a measurement", Range(1)] = 5


def make(*shape):
    """A LLaMA and its AdamW."""
    torch.manual_seed(0)
    model = Transformer(model_config("llama", *shape))
    return model, build_optimizer("adamw", param_groups(model, 1e-4, weight_decay=0.1), BETAS)


def live(model, batch, method, products, tolerance=0.0, seed=0):
    """What train.py measures by, with this method."""

    def solve(matvec, start):
        return METHODS[method](matvec, start, products, tolerance)

    return CurvatureTracker(model, batch, solve, stability_threshold("adamw", BETAS[0]), seed=seed)


def take_step(model, optimizer, x, y, way):
    """way: the model, or another way to its loss."""
    way(x, y).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def accuracy(args, flags):
    """Prints how |estimate / converged - 1| is distributed over the steps, by method and start, and draws it."""
    block, sequences, windows = (8, 2, 2) if "tiny" in flags else (64, 16, 4)
    data = Dataset.open(Path(args.data_dir), args.dataset, block)
    model, optimizer = make(data.embedding_rows, block, *((1, 1, 4) if "tiny" in flags else (4, 4, 64)))
    x, y = probe_batch(data.train, 0, 0, range(windows), block)
    batch = Batch(x, y, list(range(windows)), windows * block)
    warm = {method: live(model, batch, method, args.products) for method in METHODS}
    rare = {method: live(model, batch, method, args.products) for method in METHODS}
    errors = {}
    end = args.warmup + args.steps
    for step in range(end):
        rate = learning_rate("cosine", step, peak=args.rate, floor=args.rate / 20, warmup=args.warmup, end=4 * end)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["lr_mult"]
        if step >= args.warmup:
            met = optimizer.param_groups, preconditioner(optimizer)
            exact = live(model, batch, "krylov", 300, 1e-3, seed=step).curvature(*met)["curvature/lambda_max"]
            for method in METHODS:
                cold = live(model, batch, method, 2 * args.products, seed=end + step)
                trackers = {"from the step before": warm[method], "cold, twice the products": cold}
                if step % EVERY == 0:
                    trackers[f"from {EVERY} steps before"] = rare[method]
                for start, tracker in trackers.items():
                    error = abs(tracker.curvature(*met)["curvature/lambda_max"] / exact - 1)
                    errors.setdefault((method, start), []).append(error)
        take_step(model, optimizer, *train_batch(data.train, 0, step, 0, sequences, block), model)
    print(f"torch {torch.__version__}; {vars(args)}")
    print(f"{'relative error of the eigenvalue':<36}{'median':>9}{'75 %':>9}{'90 %':>9}{'within 1 %':>12}{'steps':>7}")
    for (method, start), found in errors.items():
        quantiles = "".join(f"{value:>9.1e}" for value in np.quantile(found, [0.5, 0.75, 0.9]))
        print(f"{method + ', ' + start:<36}{quantiles}{np.mean(np.array(found) <= 0.01):>12.2f}{len(found):>7}")
    draw(errors, args)


def draw(errors, args):
    """Share of the steps whose error is at most x, for each method and start."""
    figure, (axes,) = start_figure()
    colours = dict(zip(METHODS, COLOURS, strict=False))
    for (method, start), found in errors.items():
        style = "-" if start == "from the step before" else "--" if start.startswith("cold") else ":"
        x, shares = np.sort(np.maximum(found, 1e-8)), np.arange(1, len(found) + 1) / len(found)
        axes.step(x, shares, style, where="post", color=colours[method], label=f"{method}, {start}")
    axes.axvline(0.01, color="black", linewidth=0.8)
    axes.set(xscale="log", xlabel="relative error of the eigenvalue (line: 1 %)")
    axes.set(ylabel="share of the steps with at most this error", ylim=(0, 1))
    axes.set_title(f"{args.products} products, learning rate {args.rate:g}, {args.steps} steps after the warmup")
    axes.legend(frameon=False)
    write(figure, Path(args.out))


def cost(args, flags):
    model, optimizer = make(args.vocab, args.block, args.layers, args.heads, args.width)
    chunk = torch.randint(args.vocab, (args.batch, args.block + 1), generator=torch.Generator().manual_seed(0))
    x, y = chunk[:, :-1].contiguous(), chunk[:, 1:].contiguous()  # (B, T) each
    windows = max(1, args.batch // 8)
    batch = Batch(x[:windows], y[:windows], list(range(windows)), windows * args.block)
    params = list(model.parameters())
    tracker = live(model, batch, "krylov", args.products)
    take_step(model, optimizer, x, y, model)
    products = HessianVectorProduct(model, batch, params)
    v = torch.randn(products.size)

    def forward_and_backward():
        torch.autograd.grad(model(batch.x, batch.y), params)

    def in_bfloat16(x, y):
        with torch.autocast("cpu", torch.bfloat16):
            return model(x, y)

    ways = {"a whole step": model}
    if "others" in flags:
        ways |= {"a compiled step": torch.compile(model), "a bfloat16 step": in_bfloat16}
    sides = {
        "forward and backward": forward_and_backward,
        "graph of the gradient": lambda: HessianVectorProduct(model, batch, params),
        "a further product": lambda: products(v),
        "a measurement": lambda: tracker.curvature(optimizer.param_groups, preconditioner(optimizer)),
    }
    for name, way in ways.items():
        sides[name] = partial(take_step, model, optimizer, x, y, way)
    times = in_turns(sides, args.rounds)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; {vars(args)}")
    for name, took in times.items():
        print(f"{name:<24}{1000 * median(took):>8.1f} ms")
    for name in ("graph of the gradient", "a further product"):
        times_of = ratios(times[name], times["forward and backward"])[0]
        print(f"{name}: {times_of:.2f}x the forward and backward pass on the same tokens")
    for name in ways:
        share = 100 / EVERY * ratios(times["a measurement"], times[name])[0]
        what = f"{args.products} products on an eighth of its tokens"
        print(f"{what}, beside {EVERY} times {name}: {share:.1f} % of their time")


COMMANDS = {"accuracy": AccuracyConfig, "cost": CostConfig}


def main(argv):
    command, config, _, flags = configure_command(COMMANDS, argv, __doc__)
    {"accuracy": accuracy, "cost": cost}[command](config, flags)


if __name__ == "__main__":
    with exit_on_user_error():
        main(sys.argv[1:])
