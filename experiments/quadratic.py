"""Gradient descent, blockwise gradient descent and Adam on the four quadratic problems of arXiv 2402.16788, section 3.

    python experiments/quadratic.py
    python experiments/quadratic.py --condition=10 --results=out/quadratic10

f(x) = x^T H x / 2 with a block-diagonal H of condition number 2000. Blocks are heterogeneous (cases 1 and 3) or alike
(2 and 4). The spectra of cases 3 and 4 are the paper's. Those of 1 and 2 are not published; here they are evenly spaced
on a logarithmic axis: in case 2 four blocks from 1 to 2000, in case 1 four from low to high, each of --condition.

Each optimizer at its own best step: GD and blockwise GD at 2 / (smallest + largest eigenvalue), of H and of each block;
Adam (beta1 = 0, epsilon = 0, no bias correction, second moment starting at the first gradient's square) with beta2 = 1
at the same formula for the matrix as it preconditions it, and with beta2 = 0.999 at the best of a grid: the two of Adam
for each start anew, which favours it.
"""

import sys
from dataclasses import dataclass
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
    results: Annotated[str, "folder of quadratic.png", PATH] = "out/experiments"


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
    """{optimizer: (condition numbers (S,) or (1,), None where no formula has one; losses (iterations + 1, S))}"""
    H, x = problem(spectra, config.starts, np.random.default_rng(0))
    eigenvalues = spectra[None, :, :, None]  # (1, L, n, 1)
    scale = np.abs(H @ x)  # (S, L, n, 1): Adam's preconditioner, the first gradient's size
    preconditioned = np.linalg.eigvalsh(H / np.sqrt(scale * scale.swapaxes(-1, -2)))[..., None]  # (S, L, n, 1)
    results = {}
    for name, (step, kappa), divisor in (
        ("GD", best_step(eigenvalues, (1, 2)), 1),
        ("blockwise GD", best_step(eigenvalues, 2), 1),
        ("Adam, β2 = 1", best_step(preconditioned, (1, 2)), scale),
    ):
        results[name] = kappa.max((1, 2, 3)), descend(H, x, step / divisor, config.iterations)[..., 0]
    grid = np.geomspace(1e-4, 10, config.grid).reshape(1, 1, 1, -1)
    losses = descend(H, x, grid, config.iterations, beta2=0.999)  # (iterations + 1, S, G)
    late = np.median(losses[-100:], 0)  # (S, G): decides where no step arrives
    best = np.lexsort((late, arrival(losses)), axis=-1)[:, 0]
    results["Adam, β2 = 0.999"] = None, np.take_along_axis(losses, best[None, :, None], 2)[..., 0]
    return results


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
    return 2 * np.log10((kappa + 1) / (kappa - 1))


def row(kappa, losses):
    """Cells of the table; medians over the starts."""
    middle = np.median(arrival(losses))
    yield f"{middle:,.0f}" if np.isfinite(middle) else f"above {len(losses) - 1:,}"
    yield f"{np.median(losses[-1]):.1e}"
    if kappa is None:
        yield from "---"
    else:
        yield f"{np.median(kappa):.4g}"
        yield f"{np.median([rate(one_start) for one_start in losses.T]):.4g}"
        yield f"{np.median(theory(kappa)):.4g}"


def draw(results, folder):
    figure, grid = start_figure(len(results), size=PANEL)
    for axes, (case, optimizers) in zip(grid, results.items(), strict=True):
        for style, (name, (kappa, losses)) in zip(STYLES, optimizers.items(), strict=True):
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
    results = {case: run(spectra, config) for case, spectra in cases(config.size, config.condition).items()}
    arrived, final = f"iterations to {TARGET:g} of the first loss", f"loss after {config.iterations:,}"
    table(
        ("case", "optimizer", arrived, final, "κ", "decades an iteration", "theory"),
        [(case, name, *row(*one)) for case, optimizers in results.items() for name, one in optimizers.items()],
    )
    draw(results, Path(config.results))


if __name__ == "__main__":
    with exit_on_user_error():
        main(sys.argv[1:])
