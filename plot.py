"""Figures of what runs leave behind and of what configs ask for; needs no torch.

    python plot.py curves DIR [DIR ...] [--baseline=DIR] [--out=FILE.png]
    python plot.py lr FILE.py [--key=value ...] [--out=FILE.png]
"""

import json
import math
import sys
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

from blockwise import UserError, exit_on_user_error
from blockwise.schedules import block_rate
from blockwise.settings import TrainConfig
from configurator import ArgumentParser, configure

# Okabe and Ito's colours, which differ in lightness too; the baseline is black and dashed
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]


@dataclass
class Run:
    """A run's curves: (step, loss) pairs in the order of steps."""

    name: str
    blockwise: bool
    max_iters: int
    train: list
    val: list

    @classmethod
    def read(cls, folder):
        """Raises UserError if the folder holds no run, or one without a validation loss."""
        folder = Path(folder)
        try:
            config = json.loads((folder / "config.json").read_text())
            lines = (folder / "metrics.jsonl").read_bytes().split(b"\n")[:-1]
            rows = [json.loads(line) for line in lines]
            train, val = (curve(rows, key) for key in ("train/loss", "val/loss"))
            run = cls(folder.name, config["blockwise"], config["max_iters"], train, val)
        except OSError:
            raise UserError(f"{folder} holds no run: expected config.json and metrics.jsonl in it") from None
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{folder}: its config.json or metrics.jsonl is broken: {error}") from None
        if not run.val:
            raise UserError(f"{folder} has no validation loss yet: let the run reach its first evaluation")
        return run

    @property
    def finished(self):
        return self.val[-1][0] == self.max_iters

    @property
    def final(self):
        return self.val[-1][1]


def curve(rows, key):
    """The finite (step, value) pairs of one key."""
    points = [(row["step"], float(row[key])) for row in rows if key in row]
    return [(step, value) for step, value in points if math.isfinite(value)]


def reaches(curve, loss):
    """Step from which on a curve stays at or below `loss`, between two evaluations by a straight line; else None.

    The last crossing, not the first: the first would be a lucky dip of a noisy curve.
    """
    above = [i for i, (_, value) in enumerate(curve) if value > loss]
    if not above:
        return float(curve[0][0])
    if above[-1] == len(curve) - 1:
        return None
    (s0, l0), (s1, l1) = curve[above[-1]], curve[above[-1] + 1]
    return s0 + (s1 - s0) * (l0 - loss) / (l0 - l1)


def speedup(run, double):
    """How many times fewer steps a run needs than a baseline given twice its steps: (ratio, from, to, loss), or None.

    Steps the baseline needs for the run's final loss, over the run's steps; where it never gets there, the baseline's
    steps over those in which the run reaches the baseline's final loss (arXiv 2502.19002, figure 1). None where
    either was there from the start, as after a divergence.
    """
    if (step := reaches(double.val, run.final)) is not None:
        return (step / run.max_iters, run.max_iters, step, run.final) if step > 0 else None
    step = reaches(run.val, double.final)
    return (double.max_iters / step, step, double.max_iters, double.final) if step else None


def compare(run, baselines):
    """(gap or None, speedup or None) of a finished run against finished baselines."""
    finished = [b for b in baselines if b.finished and run.finished]
    same = next((b for b in finished if b.max_iters == run.max_iters), None)
    double = next((b for b in finished if b.max_iters == 2 * run.max_iters), None)
    return same and (same.final - run.final, same), double and speedup(run, double)


def curves(args):
    runs = [Run.read(folder) for folder in args.folders]
    if args.baseline:
        runs.append(Run.read(args.baseline))
        runs[-1].blockwise = False
    if len({run.name for run in runs}) < len(runs):
        for run, folder in zip(runs, [*args.folders, args.baseline], strict=False):
            run.name = str(folder)
    baselines = [run for run in runs if not run.blockwise]
    figure, axes = start_figure()
    colours = iter(COLOURS * len(runs))
    for run in runs:
        style = {"color": next(colours)} if run.blockwise else {"color": "black", "linestyle": (0, (5, 2))}
        axes.plot(*zip(*run.train, strict=True), alpha=0.25, linewidth=0.8, color=style["color"]) if run.train else None
        unfinished = "" if run.finished else f", stopped at {run.val[-1][0]} of {run.max_iters}"
        label = f"{run.name}: {run.final:.3f}{unfinished}".replace("$", r"\$")  # a dollar would begin a formula
        axes.plot(*zip(*run.val, strict=True), linewidth=2, label=label, **style)
        print(f"{run.name}: validation loss {run.final:.4f} at step {run.val[-1][0]}{unfinished}")
    for run in runs:
        if run.blockwise:
            gap, faster = compare(run, baselines)
            draw_gap(axes, run, gap)
            draw_speedup(axes, run, faster)
    zoom(axes, runs)
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    axes.legend(title="validation loss at the end (training loss: light)", frameon=False)
    out = Path(args.out or Path(args.folders[0]) / "curves.png")
    if out.suffix[1:] not in figure.canvas.get_supported_filetypes():
        raise UserError(f"--out={out}: expected the name of a .png, .pdf or .svg file")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)
    print(f"wrote {out}")


def draw_gap(axes, run, gap):
    if gap is None:
        print(f"{run.name}: gap not measured (give a finished baseline of {run.max_iters} steps)")
        return
    difference, baseline = gap
    side = "below" if difference > 0 else "above"
    print(f"{run.name}: {abs(difference):.4f} {side} {baseline.name} after {run.max_iters} steps")
    axes.annotate(
        "", (run.max_iters, run.final), (run.max_iters, baseline.final), annotation_clip=False,
        arrowprops={"arrowstyle": "|-|,widthA=0.3,widthB=0.3", "shrinkA": 0, "shrinkB": 0, "linewidth": 1.2},
    )  # fmt: skip
    text = f"{abs(difference):.3f} {'lower' if difference > 0 else 'higher'}"
    middle = (run.max_iters, (run.final + baseline.final) / 2)
    axes.annotate(text, middle, (6, 0), textcoords="offset points", va="center", annotation_clip=False)


def draw_speedup(axes, run, faster):
    if faster is None:
        print(f"{run.name}: speedup not measured (give a finished baseline of {2 * run.max_iters} steps)")
        axes.plot([], [], " ", label="speedup: not measured")
        return
    ratio, start, end, loss = faster
    print(f"{run.name}: {ratio:.2f}x as fast as the baseline with twice the steps")
    axes.annotate(
        "", (end, loss), (start, loss), arrowprops={"arrowstyle": "<->", "shrinkA": 0, "shrinkB": 0, "linewidth": 1.2}
    )
    axes.annotate(f"{ratio:.2f}x", ((start + end) / 2, loss), (0, 5), textcoords="offset points", ha="center")


def zoom(axes, runs):
    """Show the part of the loss axis that matters: what comes after the first tenth of the longest run."""
    longest = max(run.val[-1][0] for run in runs)
    late = [loss for run in runs for step, loss in [*run.val, run.val[-1]] if step >= longest / 10]
    low, high = min(late), max(late)
    margin = 0.05 * (high - low) or 0.05
    axes.set(xlim=(0, longest), ylim=(low - margin, high + margin))


def start_figure():
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5), dpi=150, layout="constrained")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    return figure, axes


def lr(words):
    """Draw the learning rate of every block against the step, under the config that train.py would make of `words`."""
    about = "The learning rate of every block against the step; --out=FILE.png, else the file's name and _lr.png."
    outs = [word.removeprefix("--out=") for word in words if word.startswith("--out=")]
    words = [word for word in words if not word.startswith("--out=")]
    config = configure(TrainConfig, words, about)[0].resolved()
    names = {}  # multiplier -> the blocks that have it, which run at one rate
    for block, mult in config.lr_mult.items():
        if block != "Head" or not config.tie_weights:
            names.setdefault(mult, []).append(block)
    steps = [*range(0, config.max_iters, max(1, config.max_iters // 2000)), config.max_iters]
    rates = {mult: [block_rate(config, step, mult) for step in steps] for mult in sorted(names, reverse=True)}
    figure, axes = start_figure()
    top, bottom = max(map(max, rates.values())), min(min(r[r.index(max(r)) :]) for r in rates.values())
    if bottom > 0:  # the start of the warmup is cut off: it would take most of the axis
        axes.set(yscale="log", ylim=(max(0.8 * bottom, 1e-4 * top), 1.25 * top))
    for (mult, values), colour, share in zip(rates.items(), COLOURS, cycle((0.4, 0.8)), strict=False):
        spot = label_spot(values, share)  # neighbours not on top of each other: their rates may be close
        axes.plot(steps, values, linewidth=2, color=colour)
        text = f"{', '.join(names[mult])} {mult:g}x" if len(names) > 1 else "all blocks"
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        axes.annotate(text, (steps[spot], values[spot]), ha="center", va="center", color=colour, bbox=box, fontsize=9)
        print(f"{text}: up to {max(values):.3g}, {values[-1]:.3g} at step {steps[-1]}")
    schedule = config.schedule if config.decay_lr else "constant, no warmup"
    schedule += ", wsd_boost=paper" if (config.schedule, config.wsd_boost) == ("wsd", "paper") else ""
    files = [word for word in words if not word.startswith("-")]
    title = f"{config.optimizer}, {schedule}: {' '.join(words) or 'defaults'}"
    axes.set_title(title.replace("$", r"\$"), wrap=True)  # a dollar would begin a formula
    axes.set(xlabel="step", ylabel="learning rate")
    axes.margins(x=0)
    write(figure, Path(outs[-1] if outs else f"{Path(files[-1]).stem if files else 'defaults'}_lr.png"))


def label_spot(values, share):
    """Index on the near side of a curve's peak (0) to its far side (1), the peak being all from 75% of the most."""
    peak = [i for i, value in enumerate(values) if value >= 0.75 * max(values)]
    return peak[round(share * (len(peak) - 1))]


def write(figure, out):
    if out.suffix[1:] not in figure.canvas.get_supported_filetypes():
        raise UserError(f"--out={out}: expected the name of a .png, .pdf or .svg file")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)
    print(f"wrote {out}")


def main():
    if sys.argv[1:2] == ["lr"]:  # its words are train.py's
        return lr(sys.argv[2:])
    parser = ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="curves or lr")
    command = commands.add_parser("curves", help="loss against step, with the terminal gap and the speedup")
    command.add_argument("folders", nargs="+", metavar="DIR", help="out_dir of a run")
    command.add_argument("--baseline", metavar="DIR", help="another run, a baseline whatever its config says")
    command.add_argument("--out", metavar="FILE.png", help="default: curves.png in the first DIR")
    command.set_defaults(function=curves)
    commands.add_parser("lr", help="the learning rate of every block under a config")
    args = parser.parse_args()
    args.function(args)


if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(main())
