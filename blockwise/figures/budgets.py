"""What studies of one comparison found at several budgets: whether a lead lasts, and what it is worth in steps."""

import json
import math
from itertools import cycle, pairwise
from pathlib import Path

import numpy as np

from blockwise import UserError
from blockwise.figures.style import COLOURS, literal, reading, start_figure, write


def draw(folders, out):
    """Loss and gap to the baseline against the training tokens, one point for each study; the table is printed.

    folders: out_dirs of studies that differ in max_iters alone. Drawn is what two of them or the longest have.
    Raises UserError for folders that hold no such studies.
    """
    studies = sorted((read(Path(folder)) for folder in folders), key=lambda study: study["tokens"])
    same = {(study["baseline"], study["dataset"], study["tokens a step"]) for study in studies}
    if len(same) > 1 or len({study["tokens"] for study in studies}) < max(len(studies), 2):
        raise UserError("expected two studies or more of one baseline, dataset and batch, each with another max_iters")
    baseline = studies[0]["baseline"]
    names = dict.fromkeys(arm for study in studies for arm in study["arms"])
    points = {arm: [(s["tokens"], s["arms"][arm]) for s in studies if arm in s["arms"]] for arm in names}
    lines = {arm: [(tokens, result["mean"]) for tokens, result in line] for arm, line in points.items()}

    print(*table(points, lines, baseline), sep="\n")
    figure, (left, right) = start_figure(2)
    styles = cycle(zip(COLOURS, "sD^v<>", strict=True))
    right.axhline(0, color="black", linestyle=(0, (5, 2)))
    for arm, line in points.items():
        if len(line) < 2 and arm not in studies[-1]["arms"]:
            continue
        colour, marker = ("black", "o") if arm == baseline else next(styles)
        style = {"color": colour, "marker": marker, "markersize": 5, "label": literal(arm), "capsize": 3}
        dash = (0, (5, 2)) if arm == baseline else "-"
        deviations = [result["deviation"] or 0 for _, result in line]
        left.errorbar(*zip(*lines[arm], strict=True), deviations, linestyle=dash, **style)
        gaps = [(tokens, *gap_of(result)) for tokens, result in line if gap_of(result)]
        if gaps:
            tokens, gap, low, high = zip(*gaps, strict=True)
            beside = np.array(tokens) * 1.04 ** len(right.containers)  # so that intervals do not cover each other
            right.errorbar(beside, gap, [np.subtract(gap, low), np.subtract(high, gap)], **style)
    for axes in (left, right):
        axes.set(xscale="log", xlabel="training tokens")
        axes.set_xticks([s["tokens"] for s in studies], [f"{s['tokens'] / 1e6:.3g}M" for s in studies])
        axes.minorticks_off()
    left.set(ylabel="final loss (nats per token)", title="bars: standard deviation of the seeds")
    right.set(ylabel=literal(f"loss less that of {baseline}"), title="below 0: lower loss; bars: 95 %")
    left.legend(frameon=False)
    write(figure, Path(out) if out else Path(folders[0]) / "budgets.png")


def read(folder):
    """What the figure needs of a study: its tokens, its baseline, and its arms as study.json has them."""
    with reading(folder, "study.json"):
        study = json.loads((folder / "study.json").read_text())
        config, (comparison, *others) = study["study"], study["places"].values()
        step = config["gradient_accumulation_steps"] * config["batch_size"] * config["block_size"]
        arms = {arm: r for arm, r in comparison.items() if r["mean"] is not None and r["role"] != "twice"}
        if others or config["baseline"] not in arms:
            raise UserError(f"{folder}: expected a study with one condition, one floor and a finished baseline")
    return {
        "tokens": step * config["max_iters"], "tokens a step": step, "arms": arms,
        "baseline": config["baseline"], "dataset": config["dataset"],
    }  # fmt: skip


def gap_of(result):
    """(gap to the baseline, the ends of its interval) of an arm, both the gap itself for one seed; None: no test."""
    test = result.get("test")
    if not test or test["gap"] is None:
        return None
    return test["gap"], *((test["gap"],) * 2 if test["low"] is None else (test["low"], test["high"]))


def table(points, lines, baseline):
    """The lines of a Markdown table with every arm at every budget."""
    yield "| tokens | arm | loss | gap | 95 % interval | speedup |"
    yield "|---|---|---|---|---|---|"
    for arm, line in points.items():
        for tokens, result in line:
            gap, low, high = gap_of(result) or (None, None, None)
            ratio = None if arm == baseline else speedup(lines[arm], lines[baseline], tokens)
            cells = [f"{tokens:,}", arm, f"{result['mean']:.3f}", "" if gap is None else f"{gap:+.3f}"]
            cells += [f"{low:+.3f} to {high:+.3f}" if low != high else "", "" if ratio is None else f"{ratio:.2f}x"]
            yield f"| {' | '.join(cells)} |"


def speedup(arm, baseline, tokens):
    """How many times fewer steps an arm needs than the baseline, at the budget `tokens`; None where it is not known.

    arm, baseline: [(tokens, final loss)], each tuned for its budget. The tokens with which the baseline ends at the
    arm's loss, over `tokens`; past the longest baseline, its tokens over those with which the arm ends at its loss.
    """
    if needed := budget_for(baseline, dict(arm)[tokens]):
        return needed / tokens
    longest, final = baseline[-1]
    needed = budget_for(arm, final) if tokens == longest else None
    return longest / needed if needed else None


def budget_for(line, loss):
    """The tokens at which a line through (tokens, loss) comes to `loss`, straight in log tokens; None outside of it."""
    for (t0, l0), (t1, l1) in pairwise(line):
        if l0 >= loss >= l1 and l0 > l1:
            return math.exp(math.log(t0) + (math.log(t1) - math.log(t0)) * (l0 - loss) / (l0 - l1))
    return None
