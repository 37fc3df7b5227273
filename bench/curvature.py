"""Accuracy and cost of the curvature that train.py measures while it trains. On a CPU, in float32, eager.

    python bench/curvature.py accuracy [--rate=2.5e-4 --warmup=100 --steps=200 --products=5 --out=FILE.png]
    python bench/curvature.py cost [--others --rounds=9 --layers=4 --heads=4 --width=128 --block=256 --vocab=4096 ...]

accuracy: a LLaMA of 4 layers trains on the King James Bible (data set kjv); after the warmup every step has its
eigenvalue estimated on one fixed batch: by few products from the vector of the step before, by twice as many from a
random vector, and until it has converged, from a random vector too. The figure shows how the errors are distributed.
cost: a further Hessian-vector product against a training step's forward and backward pass on the same tokens, and a
measurement on an eighth of a step's tokens against twenty steps (--others: compiled and bfloat16 ones too, beside which
the measurement stays eager and in float32). The sides take turns, so that the machine's own drift
cancels; figures are medians of the ratios.
"""

import sys
import time
from functools import partial
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
import torch

from blockwise import exit_on_user_error
from blockwise.blocks import param_groups
from blockwise.curvature.eigenvalues import largest_eigenvalue, power_iteration
from blockwise.curvature.hessian import Batch, HessianVectorProduct
from blockwise.curvature.tracker import CurvatureTracker
from blockwise.loader import Dataset, probe_batch, train_batch
from blockwise.optimizers import build_optimizer, preconditioner, stability_threshold
from blockwise.schedules import learning_rate
from configurator import ArgumentParser
from model import ModelConfig, Transformer

METHODS = {"krylov": largest_eigenvalue, "power": power_iteration}
BETAS = (0.9, 0.95)
EVERY = 20  # steps between measurements


def make(vocab, block, layers, heads, width):
    """A LLaMA and its AdamW."""
    torch.manual_seed(0)
    model = Transformer(
        ModelConfig(
            "llama", vocab, block, layers, heads, heads, width, 4 * width, bias=False, dropout=0.0, rope_theta=10000.0,
            norm_eps=1e-6, tie_weights=False,
        )
    )  # fmt: skip
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


def accuracy(args):
    """Prints how |estimate / converged - 1| is distributed over the steps, by method and start, and draws it."""
    block, sequences, windows = 64, 16, 4
    data = Dataset.open(ROOT / "data", "kjv", block)
    model, optimizer = make(data.embedding_rows, block, layers=4, heads=4, width=64)
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
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5), dpi=150, layout="constrained")
    colours = {"krylov": "#0072B2", "power": "#D55E00"}
    for (method, start), found in errors.items():
        style = "-" if start == "from the step before" else "--" if start.startswith("cold") else ":"
        x, shares = np.sort(np.maximum(found, 1e-8)), np.arange(1, len(found) + 1) / len(found)
        axes.step(x, shares, style, where="post", color=colours[method], label=f"{method}, {start}")
    axes.axvline(0.01, color="black", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    axes.set(xscale="log", xlabel="relative error of the eigenvalue (line: 1 %)")
    axes.set(ylabel="share of the steps with at most this error", ylim=(0, 1))
    axes.set_title(f"{args.products} products, learning rate {args.rate:g}, {args.steps} steps after the warmup")
    axes.legend(frameon=False)
    figure.savefig(args.out)
    print(f"wrote {args.out}")


def seconds(function):
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def in_turns(sides, rounds):
    """{name: seconds, one a round} of functions that take turns, after two rounds that do not count."""
    times = [{name: seconds(function) for name, function in sides.items()} for _ in range(rounds + 2)][2:]
    return {name: np.array([one[name] for one in times]) for name in sides}


def cost(args):
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
    if args.others:
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
    base = times["forward and backward"]
    for name in ("graph of the gradient", "a further product"):
        print(f"{name}: {median(times[name] / base):.2f}x the forward and backward pass on the same tokens")
    for name in ways:
        share = 100 * median(times["a measurement"] / (EVERY * times[name]))
        what = f"{args.products} products on an eighth of its tokens"
        print(f"{what}, beside {EVERY} times {name}: {share:.1f} % of their time")


def main():
    parser = ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="accuracy|cost", dest="command")
    command = commands.add_parser("accuracy")
    command.add_argument("--rate", type=float, default=2.5e-4, help="peak learning rate of Norm")
    command.add_argument("--out", type=Path, default=ROOT / "docs/curvature_error.png")
    for name, default in {"warmup": 100, "steps": 200, "products": 5}.items():
        command.add_argument(f"--{name}", type=int, default=default)
    command = commands.add_parser("cost")
    defaults = {"rounds": 9, "layers": 4, "heads": 4, "width": 128, "block": 256, "vocab": 4096, "batch": 16}
    for name, default in (defaults | {"products": 5}).items():
        command.add_argument(f"--{name}", type=int, default=default)
    command.add_argument("--others", action="store_true", help="beside compiled and bfloat16 steps too")
    args = parser.parse_args()
    {"accuracy": accuracy, "cost": cost}[args.command](args)


if __name__ == "__main__":
    with exit_on_user_error():
        main()
