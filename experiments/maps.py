"""Where the best rate lies and what moves it, from a study whose arms name their rates.

    python experiments/maps.py out/study_mechanism
    python experiments/maps.py out/study_exponents

The arms "WHAT, rate 4e-3", "WHAT, rate 12e-3", ... are points of one line, in each condition of the study; a number
that ends WHAT tells the lines of one panel apart. A line's best rate is the vertex of the parabola, over the logarithm
of the rate, through its lowest point and the two beside it; where the lowest is at an end, the best lies there or
beyond. Writes maps.png into the folder; a dashed line is the baseline, where the study has one condition.
"""

import re
import sys
from pathlib import Path

import numpy as np
from figures import PANEL, STYLES, StudyFolder, table

from blockwise import UserError, exit_on_user_error
from blockwise.figures.style import COLOURS, start_figure, study_of, write
from configurator import configure

MARKERS = "osD^v<>pP*"


def lines_of(found):
    """{panel: {line: [(rate, loss), ...] by rate}} of study.json; a line's name is its condition's or its number's."""
    result = {}
    for condition, arms in found["places"].items():
        for arm, one in arms.items():
            if (named := re.fullmatch(r"(.+), rate ([\d.]+)e-3", arm)) and one["mean"] is not None:
                panel, number = re.fullmatch(r"(.*?)\s*([\d.]*)", named[1]).groups()
                line = ", ".join(filter(None, (number, condition if len(found["places"]) > 1 else "")))
                result.setdefault(panel, {}).setdefault(line, []).append((float(named[2]) * 1e-3, one["mean"]))
    return {panel: {line: sorted(points) for line, points in lines.items()} for panel, lines in result.items()}


def best_of(points):
    """(best rate, its loss, "" or which end the lowest point lies at) of [(rate, loss), ...], sorted by rate."""
    rates, losses = np.log([rate for rate, _ in points]), [loss for _, loss in points]
    low = int(np.argmin(losses))
    if low in (0, len(points) - 1):
        return *points[low], "at most" if low == 0 else "at least"
    a, b, c = np.polyfit(rates[low - 1 : low + 2] - rates[low], losses[low - 1 : low + 2], 2)
    return float(np.exp(rates[low] - b / (2 * a))), float(c - b * b / (4 * a)), ""


def main(argv):
    folder = Path(configure(StudyFolder, argv, __doc__)[0].folder)
    with study_of(folder) as found:
        lines = lines_of(found)
        baselines = {name: arms[found["study"]["baseline"]]["mean"] for name, arms in found["places"].items()}
    if not lines:
        raise UserError(f"{folder}: no arm is named like 'tables, rate 12e-3'")
    for panel, by_line in lines.items():
        rows = []
        for line, points in by_line.items():
            rate, loss, end = best_of(points)
            losses = "; ".join(f"{r:.3g}: {value:.3f}" for r, value in points)
            rows.append([line or panel, f"{end} {rate:.2g}".strip(), f"{loss:.3f}", losses])
        table([panel, "best rate", "loss there", "rate: loss"], rows)
    draw(lines, baselines, folder)


def draw(lines, baselines, folder):
    several = len(baselines) > 1
    figure, grid = start_figure(len(lines), 3, PANEL)
    for axes, (panel, by_line) in zip(grid, lines.items(), strict=True):
        for number, (line, points) in enumerate(by_line.items()):
            style = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)], "markersize": 4}
            lowest = min(loss for _, loss in points) if several else 0.0
            axes.plot([rate for rate, _ in points], [loss - lowest for _, loss in points], label=line, **style)
        if not several:
            axes.axhline(*baselines.values(), label="baseline", **STYLES[0])
        what = "loss above the line's lowest (nats)" if several else "final loss (nats per token)"  # they lie far apart
        axes.set(xscale="log", xlabel="rate", ylabel=what, title=panel)
        rates = sorted({rate for points in by_line.values() for rate, _ in points})
        axes.set_xticks(rates, [f"{rate:.3g}" for rate in rates], rotation=45)
        axes.minorticks_off()
        axes.legend(frameon=False, fontsize="small")
    write(figure, folder / "maps.png")


if __name__ == "__main__":
    with exit_on_user_error():
        main(sys.argv[1:])
