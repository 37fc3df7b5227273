"""Loss against step, with the terminal gap and the speedup over a baseline."""

import json
from itertools import pairwise
from pathlib import Path

from blockwise import UserError, warn
from blockwise.curves import curve, read_rows, speedup
from blockwise.figures.style import COLOURS, literal, reading, start_figure, write

LEGEND = "validation loss at the end (training loss: light)"
BELOW = 12  # with more runs the legend stands below the axes


class Run:
    """A run's curves, (step, loss) pairs in the order of steps."""

    def __init__(self, folder):
        """Raises UserError if the folder holds no run, or one without a validation loss."""
        folder = Path(folder)
        with reading(folder, "config.json and metrics.jsonl of a run"):
            config, rows = json.loads((folder / "config.json").read_text()), read_rows(folder)
            self.name, self.blockwise, self.max_iters = folder.name, config["blockwise"], config["max_iters"]
            self.data = config.get("data")  # identity of the data set; None where a run did not note it
            self.train, self.val = (curve(rows, key) for key in ("train/loss", "val/loss"))
        if not self.val:
            raise UserError(f"{folder} has no validation loss yet: let the run reach its first evaluation")
        last, self.final = self.val[-1]
        self.finished = last == self.max_iters
        self.unfinished = "" if self.finished else f", stopped at {last} of {self.max_iters}"


def check_data(runs):
    """Raises UserError for runs of different tokenizers, whose losses do not compare; warns of different text."""
    for one, other in pairwise(run for run in runs if run.data):
        if one.data["tokenizer"] != other.data["tokenizer"]:
            problem = f"{one.name} and {other.name} were trained with different tokenizers"
            raise UserError(f"{problem}: their losses per token cannot be compared, draw them in two figures")
        if one.data["val"] != other.data["val"]:
            warn(f"{one.name} and {other.name} were evaluated on different text")


def draw(folders, baseline=None, out=None):
    """Draw the runs in these folders to `out`, by default curves.png in the first; prints what each ended at.

    baseline: folder of another run, a baseline whatever its config says. Raises UserError for a folder without a run.
    """
    runs = [Run(folder) for folder in folders]
    if baseline:
        runs.append(Run(baseline))
        runs[-1].blockwise = False
    if len({run.name for run in runs}) < len(runs):
        for run, folder in zip(runs, [*folders, baseline], strict=False):
            run.name = str(folder)
    check_data(runs)
    baselines = {run.max_iters: run for run in reversed(runs) if run.finished and not run.blockwise}
    figure, (axes,) = start_figure()
    colours = iter(COLOURS * len(runs))
    for run in runs:
        style = {"color": next(colours)} if run.blockwise else {"color": "black", "linestyle": (0, (5, 2))}
        axes.plot(*zip(*run.train, strict=True), alpha=0.25, linewidth=0.8, color=style["color"]) if run.train else None
        label = literal(f"{run.name}: {run.final:.3f}{run.unfinished}")
        axes.plot(*zip(*run.val, strict=True), linewidth=2, label=label, **style)
        print(f"{run.name}: validation loss {run.final:.4f} at step {run.val[-1][0]}{run.unfinished}")
    for run in runs:
        if run.blockwise:
            draw_gap(axes, run, baselines.get(run.max_iters) if run.finished else None)
            draw_speedup(axes, run, baselines.get(2 * run.max_iters) if run.finished else None)
    zoom(axes, runs)
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    legend, more = axes.legend, {}
    if len(runs) > BELOW:
        legend, more = figure.legend, {"loc": "outside lower center", "ncols": 5, "fontsize": "x-small"}
    legend(*axes.get_legend_handles_labels(), title=LEGEND, frameon=False, **more)
    write(figure, Path(out or Path(folders[0]) / "curves.png"))


def draw_gap(axes, run, baseline):
    if baseline is None:
        print(f"{run.name}: gap not measured (give a finished baseline of {run.max_iters} steps)")
        return
    difference = baseline.final - run.final
    side = "below" if difference > 0 else "above"
    print(f"{run.name}: {abs(difference):.4f} {side} {baseline.name} after {run.max_iters} steps")
    arrow = {"arrowstyle": "|-|,widthA=0.3,widthB=0.3", "shrinkA": 0, "shrinkB": 0, "linewidth": 1.2}
    x = run.max_iters
    axes.annotate("", (x, run.final), (x, baseline.final), annotation_clip=False, arrowprops=arrow)
    text = f"{abs(difference):.3f} {'lower' if difference > 0 else 'higher'}"
    middle = (x, (run.final + baseline.final) / 2)
    axes.annotate(text, middle, (6, 0), textcoords="offset points", va="center", annotation_clip=False)


def draw_speedup(axes, run, baseline):
    read = baseline and speedup(run.val, baseline.val)
    if not read:
        print(f"{run.name}: speedup not measured (give a finished baseline of {2 * run.max_iters} steps)")
        return
    ratio, start, end, loss = read
    print(f"{run.name}: {ratio:.2f}x as fast as the baseline with twice the steps")
    arrow = {"arrowstyle": "<->", "shrinkA": 0, "shrinkB": 0, "linewidth": 1.2}
    axes.annotate("", (end, loss), (start, loss), arrowprops=arrow)
    axes.annotate(f"{ratio:.2f}x", ((start + end) / 2, loss), (0, 5), textcoords="offset points", ha="center")


def zoom(axes, runs):
    """Show the part of the loss axis that matters: what comes after the first tenth of the longest run."""
    longest = max(run.val[-1][0] for run in runs)
    late = [loss for run in runs for step, loss in [*run.val, run.val[-1]] if step >= longest / 10]
    low, high = min(late), max(late)
    margin = 0.05 * (high - low) or 0.05
    axes.set(xlim=(0, max(longest, 1)), ylim=(low - margin, high + margin))
