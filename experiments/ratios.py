"""What the blocks' learning rates want to be, from a study whose arms draw them at random; does sharpness predict it?

    python compare.py config/study_ratios.py && python experiments/ratios.py out/study_ratios

The final losses of the arms named "draw ..." are fitted by a parabola in the logarithm of each factor that they set (a
response surface without interactions). A factor wants to be where its parabola is lowest within the range drawn; the
standard error is the jackknife's, over draws. The sharpness is that which the draws logged while they trained. p is the
slope, through the origin, of log(wanted rate / Norm's) over log(S_Norm / S_block). Writes ratios.png into the folder.
"""

import json
import re
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from blockwise import UserError, exit_on_user_error
from blockwise.curves import read_rows
from configurator import ArgumentParser
from experiments.figures import panels, save, table

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


def columns(z):
    """Of the fit: 1, every factor, every factor's square. z: (draws, factors), logarithms about their center."""
    return np.column_stack([np.ones(len(z)), z, z**2])


def fit(z, losses):
    """(constant, slopes (factors,), curvatures (factors,)) of the least squares fit."""
    constant, *rest = np.linalg.lstsq(columns(z), losses, rcond=None)[0]
    slopes, curvatures = np.split(np.array(rest), 2)
    return constant, slopes, curvatures


def lowest(slopes, curvatures, low, high):
    """Where each factor's parabola is lowest between low and high."""
    grid = np.linspace(low, high, 401)  # (401, factors)
    return np.take_along_axis(grid, (slopes * grid + curvatures * grid**2).argmin(axis=0)[None], axis=0)[0]


def jackknife(function, n):
    """Standard error of function(kept), kept being all but one of n draws in turn."""
    values = np.array([function(np.arange(n) != i) for i in range(n)])
    return np.sqrt((n - 1) / n * ((values - values.mean(axis=0)) ** 2).sum(axis=0))


def explained(z, losses):
    """The share of the losses' variance that the fit predicts for draws that it has not seen (leave one out)."""
    X = columns(z)
    residuals = losses - X @ np.linalg.lstsq(X, losses, rcond=None)[0]
    leverage = np.einsum("ij,ji->i", X, np.linalg.pinv(X))
    return 1 - ((residuals / (1 - leverage)) ** 2).sum() / ((losses - losses.mean()) ** 2).sum()


def sharpness_of(folders, share, blocks):
    """Geometric mean over the runs of every block's sharpness nearest to this share of the run, as an array."""
    found = []
    for folder in folders:
        rows = read_rows(folder)
        rows = [row for row in rows if "sharpness/Norm" in row], rows[-1]["step"]
        row = min(rows[0], key=lambda row: abs(row["step"] - share * rows[1]))
        found.append([row[f"sharpness/{block}"] for block in blocks])
    return np.exp(np.log(found).mean(axis=0))


def power(multipliers, sharpness, norm):
    """(p, correlation of the ranks of log multiplier and log sharpness) over the blocks other than Norm."""
    from scipy.stats import spearmanr

    others = np.arange(len(multipliers)) != norm
    y = np.log(multipliers[others] / multipliers[norm])
    x = np.log(sharpness[norm] / sharpness[others])
    return (x @ y) / (x @ x), spearmanr(x, y).statistic


def draw(names, values, z, losses, fitted, wanted, center, folder):
    """Per factor: the losses without what the fit says of the others, and its parabola."""
    constant, slopes, curvatures = fitted
    figure, axes = panels(2, (len(names) + 1) // 2, (3.2, 2.8))
    residuals = losses - columns(z) @ np.concatenate([[constant], slopes, curvatures])
    for i, (ax, name) in enumerate(zip(axes, names, strict=False)):
        part = slopes[i] * z[:, i] + curvatures[i] * z[:, i] ** 2
        grid = np.linspace(z[:, i].min(), z[:, i].max(), 100)
        ax.plot(values[:, i], constant + part + residuals, "o", ms=3, color="#0072B2")
        ax.plot(np.exp(grid + center[i]), constant + slopes[i] * grid + curvatures[i] * grid**2, color="black")
        ax.axvline(wanted[i], color="#D55E00", linestyle="--")
        ax.set(xscale="log", xlabel=name if name[0].islower() else f"learning rate of {name}")
    for ax in axes[:: (len(names) + 1) // 2]:
        ax.set_ylabel("validation loss")
    for ax in axes[len(names) :]:
        ax.remove()
    save(figure, folder, "ratios.png")


def main(folder):
    try:
        found = json.loads((Path(folder) / "study.json").read_text())
        names, values, losses, folders = draws_of(found)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder}: expected the folder of a finished study with one condition ({error})") from None
    center = np.log(values).mean(axis=0)
    z = np.log(values) - center
    low, high = z.min(axis=0), z.max(axis=0)

    def best(kept):
        _, slopes, curvatures = fit(z[kept], losses[kept])
        return lowest(slopes, curvatures, low, high)

    everything = np.ones(len(losses), dtype=bool)
    wanted, error = np.exp(best(everything) + center), np.exp(jackknife(best, len(losses)))
    fitted = fit(z, losses)
    print(f"{len(losses)} draws; the fit predicts {explained(z, losses):.0%} of the variance of a draw left out\n")
    ranked = np.argsort(losses)[: max(len(losses) // 8, 1)]
    curve = fitted[1] * z + fitted[2] * z**2
    rows = [
        [
            name, f"{low_:.3g} to {high_:.3g}", f"{w:.3g}" + (" (at an end)" if at_end else ""), f"x/ {e:.2f}",
            f"{np.ptp(part):.3f}", ", ".join(f"{v:.2g}" for v in values[ranked, i]),
        ]
        for i, (name, low_, high_, w, e, part, at_end) in enumerate(
            zip(
                names, values.min(axis=0), values.max(axis=0), wanted, error, curve.T,
                np.isclose(best(everything), low) | np.isclose(best(everything), high), strict=True,
            )
        )
    ]  # fmt: skip
    table(["factor", "drawn", "wanted", "standard error", "loss it moves", "in the best draws"], rows)

    blocks = [name for name in names if not name[0].islower()]
    at = [names.index(block) for block in blocks]
    norm = blocks.index("Norm")
    rows = []
    for share in SHARES:
        sharpness = sharpness_of(folders, share, blocks)
        p, rank = power(wanted[at], sharpness, norm)
        ratios = [f"{sharpness[norm] / s:.3g}" for s in sharpness]
        rows.append([f"{share:.0%}", *ratios, f"{p:.2f}", f"{rank:+.2f}"])
    rows.append(["wanted multiplier", *[f"{w:.3g}" for w in wanted[at] / wanted[at][norm]], "", ""])
    table(["S_Norm / S_block at", *blocks, "p", "rank correlation"], rows)
    draw(names, values, z, losses, fitted, wanted, center, folder)


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("folder", help="a study's out_dir")
    with exit_on_user_error():
        main(parser.parse_args().folder)
