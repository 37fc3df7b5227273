"""Gradient descent, blockwise gradient descent and Adam on the four quadratic problems of arXiv 2402.16788, section 3.

    python experiments/quadratic.py
    python experiments/quadratic.py --condition=10 --results=out/quadratic10

f(x) = x^T H x / 2 with a block-diagonal H of condition number 2000. Blocks are heterogeneous (cases 1 and 3) or alike
(2 and 4). The spectra of cases 3 and 4 are the paper's. Those of 1 and 2 were drawn there from a GPT-2's and a
ResNet18's and are not published; here they are spaced evenly on a logarithmic axis: in case 2 four blocks from 1 to
2000; in case 1 four blocks from low to high, each of condition number 100, which gives the paper's gain of 20 from one
rate a block. What Adam makes of case 1 hangs on that number: --condition.

Each optimizer at its own best step: GD and blockwise GD at 2 / (smallest + largest eigenvalue), of H and of each block;
Adam (beta1 = 0, epsilon = 0, no bias correction, second moment starting at the first gradient's square) with beta2 = 1
at the same formula for the matrix as it preconditions it, and with beta2 = 0.999 at the best of a grid: the two of Adam
for each start anew, which favours it.
"""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from figures import PANEL, STYLES, table

from blockwise import exit_on_user_error
from blockwise.figures.style import start_figure, write
from blockwise.keys import PATH, Keys, Range
from configurator import configure

TARGET = 1e-8  # of the first loss: iterations are counted until it is reached for good


@dataclass
class QuadraticConfig(Keys):
    """The keys of quadratic.py."""

    iterations: Annotated[int, "steps of every optimizer", Range(2)] = 10000
    starts: Annotated[int, "Gaussian starts, each with its own eigenvectors", Range(1)] = 8
    condition: Annotated[float, "condition number of each block of case 1", Range(1, 2000, "(]")] = 100.0
    size: Annotated[int, "eigenvalues of a block in cases 1 and 2", Range(2)] = 100
    grid: Annotated[int, "step sizes, from 1e-4 to 10, of which Adam with beta2 = 0.999 takes the best", Range(2)] = 26
    seed: Annotated[int, "random seed of starts and eigenvectors", Range(0)] = 0
    results: Annotated[str, "folder of quadratic.json and quadratic.png", PATH] = "out/experiments"


def cases(size, condition):
    """{name: eigenvalues of each block, (L, n)}"""
    ladder = (2000 / condition) ** (np.arange(4) / 3)[:, None]
    return {
        "case 1: heterogeneous": ladder * np.geomspace(1, condition, size),
        "case 2: homogeneous": np.tile(np.geomspace(1, 2000, size), (4, 1)),
        "case 3: heterogeneous": np.array([[1.0, 2, 3], [99, 100, 101], [1998, 1999, 2000]]),
        "case 4: homogeneous": np.array([[1.0, 99, 1998], [2, 100, 1999], [3, 101, 2000]]),
    }


def problem(spectra, starts, rng):
    """H (S, L, n, n) with these eigenvalues (L, n) and random eigenvectors, and Gaussian starts (S, L, n, 1)."""
    L, n = spectra.shape
    Q, _ = np.linalg.qr(rng.standard_normal((starts, L, n, n)))
    return (Q * spectra[:, None, :]) @ Q.swapaxes(-1, -2), rng.standard_normal((starts, L, n, 1))


def descend(H, x, step, iterations, beta2=None):
    """The loss before each step and after the last, over the first one: (iterations + 1, S, G).

    H: (S, L, n, n); x: (S, L, n, 1); step: broadcasts with (S, L, n, G), G step sizes side by side.
    beta2: None for gradient descent, else Adam's.
    """
    x = np.broadcast_to(x, np.broadcast_shapes(x.shape, step.shape))
    losses, second = [], None
    for _ in range(iterations + 1):
        g = H @ x  # (S, L, n, G)
        losses.append((x * g).sum((1, 2)) / 2)
        if beta2 is not None:
            second = g**2 if second is None else beta2 * second + (1 - beta2) * g**2
            g = g / np.sqrt(second)
        x = x - step * g
    return np.array(losses) / losses[0]


def best_step(eigenvalues, axes):
    """2 / (smallest + largest), and the condition number, over these axes."""
    low, high = eigenvalues.min(axes, keepdims=True), eigenvalues.max(axes, keepdims=True)
    return 2 / (low + high), high / low


def run(spectra, config):
    """{optimizer: (step sizes, condition number or None, losses (iterations + 1, S))}"""
    H, x = problem(spectra, config.starts, np.random.default_rng(config.seed))
    eigenvalues = spectra[None, :, :, None]  # (1, L, n, 1)
    scale = np.abs(H @ x)  # (S, L, n, 1): Adam's preconditioner, the first gradient's size
    preconditioned = np.linalg.eigvalsh(H / np.sqrt(scale * scale.swapaxes(-1, -2)))[..., None]  # (S, L, n, 1)
    found = {}
    for name, (step, kappa), divisor in (
        ("GD", best_step(eigenvalues, (1, 2)), 1),
        ("blockwise GD", best_step(eigenvalues, 2), 1),
        ("Adam, β2 = 1", best_step(preconditioned, (1, 2)), scale),
    ):
        slowest = kappa.max((1, 2, 3))  # (S,) or (1,)
        found[name] = step.squeeze((2, 3)), slowest, descend(H, x, step / divisor, config.iterations)[..., 0]
    grid = np.geomspace(1e-4, 10, config.grid)
    losses = descend(H, x, grid * np.ones((1, 1, 1, 1)), config.iterations, beta2=0.999)  # (iterations + 1, S, G)
    late = np.median(losses[-min(100, len(losses)) :], 0)  # (S, G): decides where no step arrives
    best = np.lexsort((late, arrival(losses)), axis=-1)[:, 0]
    found["Adam, β2 = 0.999"] = grid[best][:, None], None, np.take_along_axis(losses, best[None, :, None], 2)[..., 0]
    return found


def arrival(losses):
    """Iterations until the loss is at the target for good, inf where it is not in the end; along the first axis."""
    after_the_last_above = len(losses) - (losses > TARGET)[::-1].argmax(0)
    return np.where(losses[-1] > TARGET, np.inf, np.where((losses > TARGET).any(0), after_the_last_above, 0))


def rate(losses):
    """Decades that the loss falls per iteration, over the later half of the curve (before it leaves float64)."""
    end = min(len(losses), int((losses > 1e-250).sum())) - 1
    return float(np.log10(losses[end // 2] / losses[end]) / (end - end // 2))


def theory(kappa):
    """The same for gradient descent at its best step: the loss falls by ((kappa - 1) / (kappa + 1))^2."""
    return float(2 * np.log10((kappa + 1) / (kappa - 1)))


def summary(steps, kappa, losses):
    """Medians over the starts, as plain data."""
    middle = float(np.median(arrival(losses)))
    return {
        "step": np.median(steps, 0).tolist(),
        "condition_number": None if kappa is None else float(np.median(kappa)),
        "iterations_to_target": middle if np.isfinite(middle) else None,
        "final": float(np.median(losses[-1])),
        "final_range": [float(losses[-1].min()), float(losses[-1].max())],
        "rate": None if kappa is None else float(np.median([rate(one) for one in losses.T])),
        "rate_theory": None if kappa is None else float(np.median([theory(k) for k in kappa])),
    }


def rows_of(found, iterations):
    for case, optimizers in found.items():
        for name, one in optimizers.items():
            count, kappa = one["iterations_to_target"], one["condition_number"]
            yield (
                case, name, f"{min(one['step']):.2g}" + (f" to {max(one['step']):.2g}" if len(one["step"]) > 1 else ""),
                "-" if kappa is None else f"{kappa:.4g}",
                f"above {iterations:,}" if count is None else f"{count:,.0f}",
                f"{one['final']:.1e}",
                "-" if one["rate"] is None else f"{one['rate']:.4g}",
                "-" if one["rate"] is None else f"{one['rate_theory']:.4g}",
            )  # fmt: skip


def conclude(found, iterations):
    """The paper's claims against what was measured."""

    def times(one, other):
        """How many of `other`'s iterations `one` takes; bounds, where one of them has not arrived."""
        a, b = one["iterations_to_target"], other["iterations_to_target"]
        if a is None and b is None:
            return f"unknown (neither arrives in {iterations:,})"
        bound = "more than " if a is None else "less than " if b is None else ""
        return f"{bound}{(a or iterations) / max(b or iterations, 1):.2g}"

    print(f"Iterations of GD to {TARGET:g} of the first loss, over those of another (the paper: many in 1 and 3 only)")
    for case, optimizers in found.items():
        print(f"  {case}: " + "; ".join(f"{times(optimizers['GD'], o)} x {n}" for n, o in [*optimizers.items()][1:]))
    ratios = [one["rate"] / one["rate_theory"] for one in (each["blockwise GD"] for each in found.values())]
    print("Rate of blockwise GD over that of its slowest block in theory: " + ", ".join(f"{r:.3f}" for r in ratios))


def draw(curves, folder):
    figure, grid = start_figure(len(curves), size=PANEL)
    for axes, (case, optimizers) in zip(grid, curves.items(), strict=True):
        for style, (name, (_, kappa, losses)) in zip(STYLES, optimizers.items(), strict=True):
            middle = np.median(losses, 1)
            x = np.arange(len(middle))
            axes.plot(x[1:], middle[1:], label=name, linewidth=1.8, **style)
            if name == "blockwise GD":
                anchor = int((middle > 1e-9).sum() - 1)
                line = middle[anchor] * 10 ** (theory(kappa.max()) * (anchor - x[1:]))
                label = "rate of the slowest block"
                axes.plot(x[1:], line, color="grey", linewidth=5, alpha=0.35, zorder=0, label=label)
        axes.set(xscale="log", yscale="log", ylim=(1e-12, 2), xlim=(1, len(middle) - 1), title=case)
        axes.set(xlabel="iterations", ylabel="loss over the first loss")
    grid[0].legend(frameon=False, fontsize=8, loc="lower left")
    write(figure, folder / "quadratic.png")


def main(argv):
    config = configure(QuadraticConfig, argv, __doc__)[0]
    folder = Path(config.results)
    folder.mkdir(parents=True, exist_ok=True)
    curves = {case: run(spectra, config) for case, spectra in cases(config.size, config.condition).items()}
    found = {case: {name: summary(*one) for name, one in each.items()} for case, each in curves.items()}
    table(
        (
            "case", "optimizer", "step size", "κ", f"iterations to {TARGET:g} of the first loss",
            f"loss after {config.iterations:,}", "decades an iteration", "theory",
        ),
        rows_of(found, config.iterations),
    )  # fmt: skip
    conclude(found, config.iterations)
    (folder / "quadratic.json").write_text(json.dumps({"config": asdict(config), "cases": found}, indent=1) + "\n")
    draw(curves, folder)


if __name__ == "__main__":
    with exit_on_user_error():
        main(sys.argv[1:])
