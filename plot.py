"""Figures of what runs leave behind and of what configs ask for; needs no torch.

    python plot.py curves DIR [DIR ...] [--baseline=DIR] [--out=FILE.png]
    python plot.py study DIR
    python plot.py sharpness DIR
    python plot.py spectrum DIR
    python plot.py curvature DIR
    python plot.py lr FILE.py [--key=value ...] [--out=FILE.png]
"""

import json
import re
import sys
from dataclasses import dataclass
from itertools import cycle, product
from pathlib import Path

import numpy as np

from blockwise import UserError, exit_on_user_error
from blockwise.curves import curve, mean_curve, read_rows, speedup
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
            rows = read_rows(folder)
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


def compare(run, baselines):
    """(gap or None, speedup or None) of a finished run against finished baselines."""
    finished = [b for b in baselines if b.finished and run.finished]
    same = next((b for b in finished if b.max_iters == run.max_iters), None)
    double = next((b for b in finished if b.max_iters == 2 * run.max_iters), None)
    return same and (same.final - run.final, same), double and speedup(run.val, double.val)


def curves(args):
    runs = [Run.read(folder) for folder in args.folders]
    if args.baseline:
        runs.append(Run.read(args.baseline))
        runs[-1].blockwise = False
    if len({run.name for run in runs}) < len(runs):
        for run, folder in zip(runs, [*args.folders, args.baseline], strict=False):
            run.name = str(folder)
    baselines = [run for run in runs if not run.blockwise]
    figure, (axes,) = start_figure()
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
    write(figure, Path(args.out or Path(args.folders[0]) / "curves.png"))


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


def study(args):
    """learning_rates.png and curves.png of a comparison, one panel for each condition."""
    folder = Path(args.folder)
    try:
        places = json.loads((folder / "study.json").read_text())["places"]
        names = {arm: one["role"] for arms in places.values() for arm, one in arms.items()}
        others = cycle(product(("-", ":", "-."), COLOURS))  # line by line, not only colour by colour
        black = {"baseline": (0, (5, 2)), "twice": (0, (1, 1))}  # the baseline's lines
        styles = {}
        for arm, role in names.items():
            line, colour = (black[role], "black") if role in black else next(others)
            styles[arm] = {"color": colour, "linestyle": line}
        markers = dict(zip(names, cycle("osD^v<>pP*Xh"), strict=False))
        for name, draw in (("learning_rates.png", draw_sweep), ("curves.png", draw_bands)):
            figure, panels = start_figure(len(places))
            for axes, (place, arms) in zip(panels, places.items(), strict=True):
                for arm, one in arms.items():
                    draw(axes, arm, one, {**styles[arm], "marker": markers[arm]})
                axes.set_title(place.replace("$", r"\$"), fontsize="medium")
                if axes.get_legend_handles_labels()[0] and (draw is draw_bands or axes is panels[0]):
                    axes.legend(frameon=False)
                if draw is draw_bands:
                    axes.set_ylim(late_range(arms))
                else:
                    mark_rates(axes, arms)
            write(figure, folder / name)
    except OSError as error:
        raise UserError(f"{folder} holds no study: {error.strerror}: expected study.json in it") from None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, ZeroDivisionError) as error:
        raise UserError(f"{folder / 'study.json'} is broken: {type(error).__name__}: {error}") from None


def draw_sweep(axes, arm, one, style):
    """Final loss against learning rate, one seed; the best is filled. What has no loss stands at the top, in words."""
    points = [(p["learning_rate"], p["loss"]) for p in one["sweep"] if p["loss"] is not None]
    axes.set(xscale="log", xlabel="learning_rate (of Norm)", ylabel="final validation loss (nats per token)")
    if points:
        axes.plot(*zip(*points, strict=True), label=arm, markersize=5, markerfacecolor="white", **style)
        best = [point for point in points if point[0] == one["best"]]
        axes.plot(*zip(*best, strict=True), markersize=7, **style) if best else None
    for point in one["sweep"]:
        if point["loss"] is None:
            axes.annotate(
                point["status"], (point["learning_rate"], 0.99), xycoords=axes.get_xaxis_transform(), rotation=90,
                ha="center", va="top", fontsize="x-small", color=style["color"],
            )  # fmt: skip


def mark_rates(axes, arms):
    """A tick at every learning rate that was tried."""
    rates = sorted({point["learning_rate"] for one in arms.values() for point in one["sweep"]})
    axes.set_xticks(rates, [f"{rate:.3g}" for rate in rates], rotation=45, ha="right", fontsize="small")
    axes.minorticks_off()


def draw_bands(axes, arm, one, style):
    """Mean validation loss over seeds at the arm's best learning rate, with a band of one standard deviation."""
    axes.set(xlabel="step", ylabel="validation loss (nats per token)")
    if not one["curves"]:
        return
    steps, mean, spread = map(np.array, zip(*mean_curve(list(one["curves"].values())), strict=True))
    label = f"{arm} at {one['best']:g}: {one['mean']:.3f}"
    axes.plot(steps, mean, label=label, color=style["color"], linestyle=style["linestyle"])
    axes.fill_between(steps, mean - spread, mean + spread, color=style["color"], alpha=0.2, linewidth=0)


def late_range(arms):
    """Loss axis for the bands after the first quarter of each run: what comes before would flatten the rest."""
    bands = [mean_curve(list(one["curves"].values())) for one in arms.values() if one["curves"]]
    late = [point for band in bands for point in band[len(band) // 4 :]]
    low = min((mean - spread for _, mean, spread in late), default=0.0)
    high = max((mean + spread for _, mean, spread in late), default=1.0)
    return low - 0.05 * (high - low or 1), high + 0.05 * (high - low or 1)


def sharpness(args):
    """sharpness_KIND.png of what measure.py found of each kind, and sharpness_KIND_evolution.png over the steps."""
    folder, kinds = Path(args.folder), {}
    for path in sorted(folder.glob("sharpness_*_*.json")):
        try:
            found = json.loads(path.read_text())
            kinds.setdefault(found["kind"], {})[found["step"]] = found
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is broken: {error}") from None
    if not kinds:
        raise UserError(f"{folder} holds no measurement: expected what measure.py sharpness writes")
    for kind, steps in kinds.items():
        newest = steps[max(steps)]
        figure, (bars, density, layers) = start_figure(3)
        draw_bars(bars, newest)
        draw_density(density, newest)
        draw_layers(figure, layers, newest)
        batches = f"{newest['batches']} batches of {newest['positions']:,} tokens"
        figure.suptitle(f"{KINDS.get(kind, kind)}, step {newest['step']}: {batches}")
        write(figure, folder / f"sharpness_{kind}.png")
        if len(steps) > 1:
            figure, (axes,) = start_figure()
            draw_evolution(axes, steps)
            axes.set_title(KINDS.get(kind, kind))
            write(figure, folder / f"sharpness_{kind}_evolution.png")


# What a kind of sharpness is called in a figure
KINDS = {
    "fisher": "Fisher (Gauss-Newton-Bartlett)", "hessian": "Hessian (Hutchinson)",
    "empirical": "empirical Fisher (per sequence)", "data_labels": "squared gradient on the data's labels",
}  # fmt: skip
ORDER = ("Emb", "Head", "QK", "FFN", "VO", "Norm")  # the paper's, from flat to sharp; it has no Head
BLOCK_COLOURS = dict(zip(("Emb", "QK", "FFN", "VO", "Norm", "Head"), COLOURS, strict=True))
BLOCK_MARKERS = dict(zip(ORDER, "oPs^Dv", strict=True))


def in_order(blocks):
    return [block for block in ORDER if block in blocks]


def draw_bars(axes, found):
    """Average sharpness with its standard error; the geometric mean as a dotted line across the bar."""
    names = in_order(found["blocks"])
    for at, block in enumerate(names):
        one = found["blocks"][block]
        if one["mean"] > 0:
            axes.bar(at, one["mean"], yerr=one["error"], color=BLOCK_COLOURS[block], capsize=4, edgecolor="black")
        else:  # a trace of the Hessian may be negative: no bar on a logarithmic axis
            place = {"xycoords": axes.get_xaxis_transform(), "ha": "center", "fontsize": 8}
            axes.annotate(f"{one['mean']:.1e}", (at, 0.02), **place)
        if one["geometric"] and found["kind"] != "hessian":  # whose single entries are noise, of either sign
            axes.plot([at - 0.4, at + 0.4], [one["geometric"]] * 2, color="black", linestyle=":", linewidth=2)
    axes.set_xticks(range(len(names)), names)
    axes.set(yscale="log", ylabel="average sharpness (per parameter)")
    dotted = "" if found["kind"] == "hessian" else "; dotted: geometric mean"
    axes.set_title(f"mean and standard error{dotted}", fontsize="medium")


def draw_density(axes, found):
    """How the diagonal's entries above zero are spread, each block's share by log10."""
    low, high = found["log10_bins"][0], found["log10_bins"][-1]
    edges = np.linspace(low, high, len(found["log10_bins"]))
    for block in in_order(found["blocks"]):
        shares = np.array(found["blocks"][block]["histogram"])
        axes.stairs(shares, edges, label=block, color=BLOCK_COLOURS[block], linewidth=1.5)
    seen = np.flatnonzero(np.sum([one["histogram"] for one in found["blocks"].values()], axis=0) > 1e-4)
    if len(seen):
        axes.set_xlim(edges[seen[0]] - 1, edges[seen[-1] + 1] + 1)
    axes.set(xlabel="log10 of a parameter's diagonal curvature", ylabel="share of the block", title="distribution")
    axes.legend(frameon=False)


def draw_layers(figure, axes, found):
    """Layer by block, on a logarithmic scale of grey."""
    from matplotlib.colors import LogNorm

    names = in_order({one["block"] for one in found["layers"]})
    rows = sorted({one["layer"] for one in found["layers"]}, key=lambda layer: -1 if layer is None else layer)
    table = np.full((len(rows), len(names)), np.nan)
    for one in found["layers"]:
        table[rows.index(one["layer"]), names.index(one["block"])] = one["mean"] if one["mean"] > 0 else np.nan
    image = axes.imshow(table, norm=LogNorm(), cmap="viridis", aspect="auto")
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(rows)), ["outside" if row is None else str(row) for row in rows])
    axes.set(ylabel="layer", title="average sharpness, layer by block")
    axes.grid(visible=False)
    figure.colorbar(image, ax=axes)


def draw_evolution(axes, steps):
    """Each block's average sharpness against the step."""
    blocks = {block for found in steps.values() for block in found["blocks"]}
    for block in in_order(blocks):
        points = [(step, steps[step]["blocks"][block]) for step in sorted(steps) if block in steps[step]["blocks"]]
        x, y = [step for step, _ in points], [one["mean"] for _, one in points]
        error = [one["error"] or 0 for _, one in points]
        axes.errorbar(x, y, error, label=block, color=BLOCK_COLOURS[block], marker=BLOCK_MARKERS[block], capsize=3)
    axes.set(yscale="log", xlabel="step", ylabel="average sharpness (per parameter)")
    axes.legend(frameon=False)


def spectrum(args):
    """spectrum.png and spectrum_distances.png of the newest step measured, spectrum_evolution.png over several."""
    folder, steps = Path(args.folder), {}
    for path in sorted(folder.glob("spectrum_*.json")):
        try:
            found = json.loads(path.read_text())
            steps[found["step"]] = found
            found["js"]["distances"], found["blocks"]  # what is drawn below
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is broken: {error}") from None
    if not steps:
        raise UserError(f"{folder} holds no measurement: expected what measure.py spectrum writes")
    newest = steps[max(steps)]
    kinds = {}  # 'attn.q_proj' -> {layer: one}: a panel each, its layers from dark to light
    for name, one in newest["blocks"].items():
        kinds.setdefault(re.sub(r"^blocks\.\d+\.|\.weight$", "", name), {})[layer_in(name)] = one
    figure, panels = start_figure(len(kinds))
    for axes, (kind, layers) in zip(panels, sorted(kinds.items(), key=lambda item: item[0] != "full"), strict=True):
        draw_spectra(axes, layers, newest["edges"])
        axes.set_title({"full": "the whole model"}.get(kind, kind), fontsize="medium")
    figure.suptitle(f"Hessian, step {newest['step']}: {newest['probes']} probes, {newest['positions']:,} tokens")
    write(figure, folder / "spectrum.png")
    if newest["js"]["mean"] is not None:
        figure, (axes,) = start_figure()
        draw_distances(figure, axes, newest["js"])
        write(figure, folder / "spectrum_distances.png")
    if len(steps) > 1:
        figure, (left, right) = start_figure(2)
        draw_js0(left, steps)
        draw_extremes(right, steps)
        write(figure, folder / "spectrum_evolution.png")


def layer_in(name):
    found = re.match(r"blocks\.(\d+)\.", name)
    return int(found[1]) if found else None


def draw_spectra(axes, layers, edges):
    """Share of a block's eigenvalues in each bin, in units of its tenth largest: what distances compare.

    edges: of the bins but the outermost two, which have no other end. The axis is linear around zero.
    """
    import matplotlib.pyplot as plt

    shades = plt.get_cmap("viridis")(np.linspace(0, 0.85, max(2, len(layers))))
    ends = [10 * edges[0], *edges, 10 * edges[-1]]
    for (layer, one), shade, style in zip(layers.items(), shades, cycle(["-", "--", "-.", ":"]), strict=False):
        if one["histogram"] is not None:
            label = f"layer {layer}" if layer is not None else None
            axes.stairs(one["histogram"], ends, label=label, color=shade, linestyle=style, linewidth=1.3)
    axes.set_xscale("symlog", linthresh=1e-6, linscale=0.3)
    axes.set_xticks([-1, -1e-2, -1e-4, 0, 1e-4, 1e-2, 1], ["-1", "-0.01", "-1e-4", "0", "1e-4", "0.01", "1"])
    axes.minorticks_off()
    axes.set(yscale="log", ylim=(1e-6, 2), xlim=(-30, 30))
    axes.set(xlabel="eigenvalue / tenth largest", ylabel="share of the eigenvalues")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize="small")


def draw_distances(figure, axes, js):
    """Jensen-Shannon distance between the spectra of each two blocks."""
    names, table = [name.removeprefix("blocks.").removesuffix(".weight") for name in js["blocks"]], js["distances"]
    figure.set_size_inches(2 + max(5, 0.45 * len(names)), 1 + max(4.5, 0.42 * len(names)))
    image = axes.imshow(table, cmap="viridis", vmin=0)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize="small")
    axes.set_yticks(range(len(names)), names, fontsize="small")
    axes.grid(visible=False)
    if len(names) <= 20:
        middle = np.max(table) / 2
        for (row, column), value in np.ndenumerate(table):
            shade = "white" if value < middle else "black"
            axes.annotate(f"{value:.2f}", (column, row), ha="center", va="center", fontsize=6, color=shade)
    noise = "" if js["noise"] is None else f"; between halves of a block's own probes: {js['noise']:.3f}"
    axes.set_title(f"JS0, mean over pairs: {js['mean']:.3f}{noise}", fontsize="medium")
    figure.colorbar(image, ax=axes, label="Jensen-Shannon distance (base 2)")


def draw_js0(axes, steps):
    points = [(step, steps[step]["js"]["mean"]) for step in sorted(steps) if steps[step]["js"]["mean"] is not None]
    if points:
        axes.plot(*zip(*points, strict=True), color="black", marker="o")
    axes.set(xlabel="step", ylabel="JS0 (base 2)", ylim=(0, None), title="mean distance between blocks")


def draw_extremes(axes, steps):
    """Largest and smallest eigenvalue of the whole model, or of the one block with the largest."""
    for key, style in (("largest", "-"), ("smallest", "--")):
        pick = max if key == "largest" else min
        points = [(step, pick(one[key] for one in steps[step]["blocks"].values())) for step in sorted(steps)]
        axes.plot(*zip(*points, strict=True), color="black", linestyle=style, marker="o", label=key)
    axes.set(yscale="symlog", xlabel="step", ylabel="eigenvalue", title="extremes over all blocks")
    axes.legend(frameon=False)


def curvature(args):
    """curvature.png: the largest eigenvalues against the step, of checkpoints and as train.py logged them."""
    folder = Path(args.folder)
    try:
        found = [json.loads(path.read_text()) for path in sorted(folder.glob("curvature_*.json"))]
        found = sorted(found, key=lambda one: one["step"])
        rows = read_rows(folder) if (folder / "metrics.jsonl").is_file() else []
        live = [row for row in rows if isinstance(row.get("curvature/lr_lambda"), int | float)]  # NaN is a string
        met = [(one["step"], one["preconditioned"]) for one in found if "preconditioned" in one]
        plain = [(one["step"], one["hessian"]) for one in found]
        if not plain and not live:
            raise UserError(f"{folder} holds no curvature: expected what measure.py curvature or train.py writes")
        figure, panels = start_figure(bool(met or live) + bool(plain))
        if met or live:
            draw_stability(panels[0], met, live)
        if plain:
            draw_eigenvalues(panels[-1], plain, "lambda_max", "Hessian")
            panels[-1].set(xlabel="step", ylabel="largest eigenvalue of the Hessian")
            panels[-1].legend(frameon=False)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{folder}: its curvature_*.json or metrics.jsonl is broken: {error!r}") from None
    write(figure, folder / "curvature.png")


def draw_stability(axes, met, live):
    """Learning rate times the largest preconditioned eigenvalue, and the threshold."""
    thresholds = {one["threshold"] for _, one in met} | {row["curvature/threshold"] for row in live}
    for threshold in sorted(thresholds):
        axes.axhline(threshold, color="black", linestyle=(0, (5, 2)), label=f"threshold, {threshold:.3g}")
    if live:
        x, y = [row["step"] for row in live], [row["curvature/lr_lambda"] for row in live]
        axes.plot(x, y, color=COLOURS[0], linewidth=1, label="while training")
    if met:
        draw_eigenvalues(axes, met, "lr_lambda", "checkpoints")
    axes.set(xlabel="step", ylabel="rate of Norm x largest preconditioned eigenvalue")
    low, high = axes.get_ylim()
    axes.set_ylim(min(0, low), 1.05 * high)
    axes.legend(frameon=False)


def draw_eigenvalues(axes, points, key, label):
    """Values against the step, (step, value) pairs; those that have not converged are open circles."""
    x, y = [step for step, _ in points], [one[key] for _, one in points]
    axes.plot(x, y, color=COLOURS[1], marker="o", markersize=5, label=label)
    unsure = [(step, one[key]) for step, one in points if not one["converged"]]
    if unsure:
        style = {"color": COLOURS[1], "linestyle": "", "marker": "o", "markersize": 5, "markerfacecolor": "white"}
        axes.plot(*zip(*unsure, strict=True), label="not converged", zorder=3, **style)


def zoom(axes, runs):
    """Show the part of the loss axis that matters: what comes after the first tenth of the longest run."""
    longest = max(run.val[-1][0] for run in runs)
    late = [loss for run in runs for step, loss in [*run.val, run.val[-1]] if step >= longest / 10]
    low, high = min(late), max(late)
    margin = 0.05 * (high - low) or 0.05
    axes.set(xlim=(0, longest), ylim=(low - margin, high + margin))


def start_figure(panels=1):
    """A figure and its axes; with more than one panel, two in a row, as a list of axes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = min(panels, 2)
    rows = -(-panels // columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(8 if columns == 1 else 11, 5 if rows == 1 else 4 * rows), dpi=150, layout="constrained",
        squeeze=False,
    )  # fmt: skip
    for axes in grid.flat:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    for axes in grid.flat[panels:]:
        axes.remove()
    return figure, list(grid.flat[:panels])


def lr(words):
    """Draw the learning rate of every block against the step, under the config that train.py would make of `words`."""
    about = "The learning rate of every block against the step; --out=FILE.png, else the file's name and _lr.png."
    outs = [word.removeprefix("--out=") for word in words if word.startswith("--out=")]
    words = [word for word in words if not word.startswith("--out=")]
    config = configure(TrainConfig, words, about)[0].resolved()
    if config.lr_mult == "auto":
        raise UserError("lr_mult=auto: expected numbers; a run measures them, and its rows have them as lr_mult/QK ...")
    names = {}  # multiplier -> the blocks that have it, which run at one rate
    for block, mult in config.lr_mult.items():
        if block != "Head" or not config.tie_weights:
            names.setdefault(mult, []).append(block)
    steps = [*range(0, config.max_iters, max(1, config.max_iters // 2000)), config.max_iters]
    rates = {mult: [block_rate(config, step, mult) for step in steps] for mult in sorted(names, reverse=True)}
    figure, (axes,) = start_figure()
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
    commands = parser.add_subparsers(required=True, metavar="curves|study|sharpness|spectrum|curvature|lr")
    command = commands.add_parser("curves", help="loss against step, with the terminal gap and the speedup")
    command.add_argument("folders", nargs="+", metavar="DIR", help="out_dir of a run")
    command.add_argument("--baseline", metavar="DIR", help="another run, a baseline whatever its config says")
    command.add_argument("--out", metavar="FILE.png", help="default: curves.png in the first DIR")
    command.set_defaults(function=curves)
    command = commands.add_parser("study", help="what compare.py found: loss against learning rate, curves with bands")
    command.add_argument("folder", metavar="DIR", help="out_dir of a study")
    command.set_defaults(function=study)
    command = commands.add_parser("sharpness", help="what measure.py found of each block's curvature")
    command.add_argument("folder", metavar="DIR", help="where measure.py wrote")
    command.set_defaults(function=sharpness)
    command = commands.add_parser("spectrum", help="eigenvalues of each block, and distances between their spectra")
    command.add_argument("folder", metavar="DIR", help="where measure.py wrote")
    command.set_defaults(function=spectrum)
    command = commands.add_parser("curvature", help="largest eigenvalues against the step, and the threshold")
    command.add_argument("folder", metavar="DIR", help="where measure.py wrote, or a run that logged them")
    command.set_defaults(function=curvature)
    commands.add_parser("lr", help="the learning rate of every block under a config")
    args = parser.parse_args()
    args.function(args)


if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(main())
