"""What the blocks' learning rates want to be, from a study whose arms draw them at random; does sharpness predict it?

    python compare.py config/study_ratios.py && python experiments/ratios.py out/study_ratios

The final losses of the arms named "draw ..." are fitted by a Gaussian process over the logarithms of the factors that
they set, with a length scale of its own for each: the number of e-folds over which the loss bends, so that a short one
marks a factor that matters. A factor's course is the fit's mean over the other factors of all draws; it wants to be
where that is lowest within the range drawn, and the standard error is the jackknife's, over draws, the kernel kept.
The sharpness is that which the draws logged while they trained. p is the slope, through the origin, of log(wanted rate
/ Norm's) over log(S_Norm / S_block). What a block's sharpness owes to its own rate is the slope of a linear fit of its
logarithm over all factors'. Writes ratios.png into the folder.
"""

import re
import sys
import warnings
from pathlib import Path

import numpy as np
from figures import StudyFolder, table

from blockwise import UserError, exit_on_user_error
from blockwise.curves import read_rows
from blockwise.figures.style import start_figure, study_of, write
from configurator import configure

SHARES = (0.02, 0.1, 0.3, 0.5, 0.96)  # of the run, at which sharpness is read


def draws_of(found):
    """(names of the factors, their values (draws, factors), losses (draws,), folders of the runs) of study.json.

    A multiplier's value is the rate that it gives. Raises UserError where there are too few draws for the fit.
    """
    (arms,) = found["places"].values()
    runs = {run["run"].rpartition(" at ")[0]: run["folder"] for run in found["runs"]}
    rows, losses, folders = [], [], []
    for arm, words in found["study"]["arms"].items():
        if arm.startswith("draw ") and arms[arm]["mean"] is not None:
            values = {key: float(value) for key, value in re.findall(r"--([\w.]+)=(\S+)", words)}
            rate = arms[arm]["best"]
            rows.append([rate * v if key.startswith("lr_mult.") else v for key, v in values.items()])
            losses.append(arms[arm]["mean"])
            folders.append(runs[arm])
    names = [key.removeprefix("lr_mult.") for key in values] if rows else []
    if len(rows) < 2 * len(names) + 3:
        raise UserError(f"{len(rows)} draws of {len(names)} factors: expected at least {2 * len(names) + 3}")
    return names, np.array(rows), np.array(losses), folders


def process(z, losses, kernel=None):
    """A Gaussian process through losses (draws,) at z (draws, factors), centered logarithms; kernel: one to keep."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

    if kernel is not None:
        return GaussianProcessRegressor(kernel, optimizer=None, normalize_y=True).fit(z, losses)
    kernel = ConstantKernel() * RBF(np.ones(z.shape[1]), (0.3, 30)) + WhiteKernel(0.05, (1e-4, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a factor without effect goes to the longest length scale
        return GaussianProcessRegressor(kernel, normalize_y=True, n_restarts_optimizer=4, random_state=0).fit(z, losses)


def courses(model, z, grid):
    """(points, factors): what the fit says of a factor at the grid's points, on average over the others' draws."""
    result = np.empty_like(grid)
    for i in range(z.shape[1]):
        at = np.repeat(z[None], len(grid), axis=0)  # (points, draws, factors)
        at[:, :, i] = grid[:, i, None]
        result[:, i] = model.predict(at.reshape(-1, z.shape[1])).reshape(len(grid), -1).mean(axis=1)
    return result


def lowest(grid, course):
    return np.take_along_axis(grid, course.argmin(axis=0)[None], axis=0)[0]


def without_each(z, losses, kernel):
    """The same fit without the first draw, without the second, and so on."""
    for i in range(len(z)):
        kept = np.arange(len(z)) != i
        yield process(z[kept], losses[kept], kernel)


def sharpness_at(share, runs, blocks):
    """(runs, blocks): log of every block's sharpness nearest to this share of the run; runs: the rows of each."""
    found = []
    for rows in runs:
        at = share * rows[-1]["step"]
        row = min((row for row in rows if "sharpness/Norm" in row), key=lambda row: abs(row["step"] - at))
        found.append([row[f"sharpness/{block}"] for block in blocks])
    return np.log(found)


def power(multipliers, sharpness, norm):
    """(p, correlation of the ranks of log multiplier and log sharpness) over the blocks other than Norm."""
    from scipy.stats import spearmanr

    others = np.arange(len(multipliers)) != norm
    y = np.log(multipliers[others] / multipliers[norm])
    x = np.log(sharpness[norm] / sharpness[others])
    return (x @ y) / (x @ x), spearmanr(x, y).statistic


def draw(names, values, losses, grid, course, wanted, folder):
    """Per factor: the losses of the draws, the fit's course, and where it is lowest."""
    columns = (len(names) + 1) // 2
    figure, axes = start_figure(len(names), columns, (3.2, 2.8))
    for i, (ax, name) in enumerate(zip(axes, names, strict=True)):
        ax.plot(values[:, i], losses, "o", ms=3, color="#0072B2")
        ax.plot(grid[:, i], course[:, i], color="black")
        ax.axvline(wanted[i], color="#D55E00", linestyle="--")
        ax.set(xscale="log", xlabel=name if name[0].islower() else f"learning rate of {name}")
        ax.xaxis.set_minor_formatter("")
    for ax in axes[::columns]:
        ax.set_ylabel("validation loss")
    write(figure, folder / "ratios.png")


def main(argv):
    folder = Path(configure(StudyFolder, argv, __doc__)[0].folder)
    with study_of(folder) as found:
        names, values, losses, folders = draws_of(found)
    center = np.log(values).mean(axis=0)
    z = np.log(values) - center
    grid = np.linspace(z.min(axis=0), z.max(axis=0), 41)

    model = process(z, losses)
    course = courses(model, z, grid)
    at = lowest(grid, course)
    others = list(without_each(z, losses, model.kernel_))
    unseen = np.array([other.predict(z[i : i + 1])[0] for i, other in enumerate(others)])
    explained = 1 - ((unseen - losses) ** 2).sum() / ((losses - losses.mean()) ** 2).sum()
    print(f"{len(losses)} draws; the fit predicts {explained:.0%} of the variance of a draw left out\n")
    moved = np.array([lowest(grid, courses(other, z, grid)) for other in others])
    error = np.sqrt((len(z) - 1) / len(z) * ((moved - moved.mean(axis=0)) ** 2).sum(axis=0))
    wanted, best = np.exp(at + center), np.argsort(losses)[: max(len(losses) // 8, 1)]
    scales = model.kernel_.k1.k2.length_scale
    rows = []
    for i, name in enumerate(names):
        end = " (at an end)" if at[i] in (grid[0, i], grid[-1, i]) else ""
        drawn = f"{values[:, i].min():.3g} to {values[:, i].max():.3g}"
        row = [name, drawn, f"{scales[i]:.1f}", f"{np.ptp(course[:, i]):.3f}", f"{wanted[i]:.3g}{end}"]
        rows.append([*row, f"x/ {np.exp(error[i]):.2f}", ", ".join(f"{v:.2g}" for v in values[best, i])])
    table(["factor", "drawn", "length scale", "loss it moves", "wanted", "standard error", "in the best draws"], rows)

    blocks = [name for name in names if not name[0].islower()]
    rates, runs = wanted[[names.index(block) for block in blocks]], [read_rows(folder) for folder in folders]
    norm, rows, slopes = blocks.index("Norm"), [], []
    for share in SHARES:
        logs = sharpness_at(share, runs, blocks)
        sharpness = np.exp(logs.mean(axis=0))
        p, rank = power(rates, sharpness, norm)
        linear = np.linalg.lstsq(np.column_stack([z, np.ones(len(z))]), logs, rcond=None)[0]  # (factors + 1, blocks)
        slopes.append([f"{share:.0%}", *(f"{linear[names.index(b), i]:+.2f}" for i, b in enumerate(blocks))])
        rows.append([f"{share:.0%}", *(f"{sharpness[norm] / s:.3g}" for s in sharpness), f"{p:.2f}", f"{rank:+.2f}"])
    rows.append(["wanted multiplier", *(f"{rate:.3g}" for rate in rates / rates[norm]), "", ""])
    table(["S_Norm / S_block at", *blocks, "p", "rank correlation"], rows)
    table(["slope of log S over log of the own rate at", *blocks], slopes)
    draw(names, values, losses, np.exp(grid + center), course, wanted, folder)


if __name__ == "__main__":
    with exit_on_user_error():
        main(sys.argv[1:])
