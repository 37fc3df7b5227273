"""What compare.py found: loss against learning rate, and mean curves with bands."""

import json
from itertools import cycle, product

import numpy as np

from blockwise.curves import mean_curve
from blockwise.figures.style import COLOURS, literal, start_figure

LEGIBLE = 12  # arms in a figure
BESIDE = 6  # with more of them the legend stands beside the axes


def figures(folder):
    """learning_rates.png and curves.png of a comparison, one panel for each condition.

    Of a map of many arms only those with more than one learning rate are drawn.
    """
    study = json.loads((folder / "study.json").read_text())
    comparisons = {name: legible(arms) for name, arms in study["places"].items()}
    config = study.get("study", {})
    scattered = config.get("search") == "sobol"  # its points differ in every key
    test = config.get("test_loss")
    roles = {arm: result["role"] for arms in comparisons.values() for arm, result in arms.items()}
    others = cycle(product(("-", ":", "-."), COLOURS))  # line by line, not only colour by colour
    black = {"baseline": ((0, (5, 2)), "black"), "twice": ((0, (1, 1)), "black")}
    styles = {}
    for (arm, role), marker in zip(roles.items(), cycle("osD^v<>pP*Xh"), strict=False):
        line, colour = black.get(role) or next(others)
        styles[arm] = {"color": colour, "linestyle": line, "marker": marker}

    sweeps, panels = start_figure(len(comparisons))
    bands, more_panels = start_figure(len(comparisons))
    for sweep, band, (comparison, arms) in zip(panels, more_panels, comparisons.items(), strict=True):
        for arm, result in arms.items():
            draw_sweep(sweep, arm, result, styles[arm] | ({"linestyle": "none"} if scattered else {}))
            draw_bands(band, arm, result, styles[arm])
        mark_rates(sweep, arms)
        band.set_ylim(late_range(arms))
        beside = {"loc": "center left", "bbox_to_anchor": (1, 0.5), "fontsize": "small", "title_fontsize": "small"}
        end = f"{'test ' if test else ''}loss at the end{' (lines: first half)' if test and band.get_xlabel() else ''}"
        for axes, title in ((band, end), (sweep, None)):
            axes.set_title(literal(comparison), fontsize="medium")
            if axes.get_legend_handles_labels()[0] and axes not in panels[1:]:
                axes.legend(title=title, frameon=False, **beside if len(arms) > BESIDE else {})
    return [("learning_rates.png", sweeps), ("curves.png", bands)]


def legible(arms):
    """The arms that a figure can show."""
    swept = {arm: result for arm, result in arms.items() if len(result["sweep"]) > 1 or result["role"] != "arm"}
    return arms if len(arms) <= LEGIBLE or len(swept) < 2 else swept


def draw_sweep(axes, arm, result, style):
    """Final loss against learning rate, one seed; the best is filled. Runs without a loss: their status, at the top."""
    points = [(p["learning_rate"], p["loss"]) for p in result["sweep"] if p["loss"] is not None]
    axes.set(xscale="log", xlabel="learning_rate (of Norm)", ylabel="final validation loss (nats per token)")
    if points:
        axes.plot(*zip(*points, strict=True), label=arm, markersize=5, markerfacecolor="white", **style)
        best = [point for point in points if point[0] == result["best"]]
        axes.plot(*zip(*best, strict=True), markersize=7, **style) if best else None
    for point in result["sweep"]:
        if point["loss"] is None:
            axes.annotate(
                point["status"], (point["learning_rate"], 0.99), xycoords=axes.get_xaxis_transform(), rotation=90,
                ha="center", va="top", fontsize="x-small", color=style["color"],
            )  # fmt: skip


def mark_rates(axes, arms):
    """A tick at every learning rate that was tried, where there is room for their numbers."""
    rates = sorted({point["learning_rate"] for result in arms.values() for point in result["sweep"]})
    if len(rates) > LEGIBLE:
        return
    axes.set_xticks(rates, [f"{rate:.3g}" for rate in rates], rotation=45, ha="right", fontsize="small")
    axes.minorticks_off()


def draw_bands(axes, arm, result, style):
    """Mean validation loss over seeds at the arm's best learning rate, with a band of one standard deviation.

    Of runs that were evaluated at their ends only: what each seed came to.
    """
    axes.set(xlabel="step", ylabel="validation loss (nats per token)")
    if not result["curves"]:
        return
    label = f"{arm} at {result['best']:g}: {result['mean']:.3f}"
    steps, mean, spread = map(np.array, zip(*mean_curve(list(result["curves"].values())), strict=True))
    if len(steps) < 3:
        ends = list(result["losses"].values())
        axes.plot([arm] * len(ends), ends, label=label, **{**style, "linestyle": "none", "markerfacecolor": "none"})
        axes.set(xlabel="")
        axes.tick_params(axis="x", labelbottom=False)  # the legend has the names
        return
    axes.plot(steps, mean, label=label, color=style["color"], linestyle=style["linestyle"])
    axes.fill_between(steps, mean - spread, mean + spread, color=style["color"], alpha=0.2, linewidth=0)


def late_range(arms):
    """Loss axis for the bands after the first quarter of each run: what comes before would flatten the rest."""
    bands = [mean_curve(list(result["curves"].values())) for result in arms.values() if result["curves"]]
    late = [point for band in bands if len(band) > 2 for point in band[len(band) // 4 :]]
    if not late:
        return None, None
    low, high = min(mean - spread for _, mean, spread in late), max(mean + spread for _, mean, spread in late)
    return low - 0.05 * (high - low or 1), high + 0.05 * (high - low or 1)
