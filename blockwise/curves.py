"""Loss curves: reading them from a run's folder, and how many steps one saves over another. Loads no torch."""

import json
import math
from pathlib import Path
from statistics import mean, median, stdev

# A spike: a training loss so many nats above the median of so many logged steps before it
SPIKE_HEIGHT, SPIKE_ROWS = 0.3, 20
SPIKE_DEVIATIONS = 6  # small batches alone scatter the loss by more than the height


def read_rows(folder):
    """The whole rows of a run's metrics.jsonl, as dicts. Raises OSError or ValueError where there are none to read."""
    path = Path(folder) / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
    if not all(isinstance(row, dict) and isinstance(row.get("step"), int) for row in rows):
        raise ValueError(f"{path} has a line that is no row of a run")
    return rows


def curve(rows, key):
    """The finite (step, value) pairs of one key."""
    points = [(row["step"], float(row[key])) for row in rows if key in row]
    return [(step, value) for step, value in points if math.isfinite(value)]


def spikes(rows):
    """How often the training loss spikes: stands above the median of the SPIKE_ROWS logged steps before it.

    By more than SPIKE_HEIGHT nats, and by more than SPIKE_DEVIATIONS of their standard deviations. Steps in a row count
    as one spike. A loss that is not finite is a spike too. Only logged steps are seen: log_interval=1 for all of them.
    """
    losses = [float(row["train/loss"]) for row in rows if "train/loss" in row]
    count, above = 0, False
    for i, loss in enumerate(losses):
        before = [x for x in losses[max(i - SPIKE_ROWS, 0) : i] if math.isfinite(x)]
        was = above
        above = bool(before) and not loss <= median(before) + max(SPIKE_HEIGHT, SPIKE_DEVIATIONS * deviation(before))
        count += above and not was
    return count


def deviation(values):
    """The standard deviation by the median absolute deviation, which a few outliers do not move."""
    middle = median(values)
    return 1.4826 * median(abs(value - middle) for value in values)


def mean_curve(curves):
    """[(step, mean, standard deviation)] of several (step, value) curves, at the steps that all of them have."""
    tables = [dict(points) for points in curves]
    common = sorted(set.intersection(*(set(table) for table in tables)))
    result = []
    for step in common:
        values = [table[step] for table in tables]
        result.append((step, mean(values), stdev(values) if len(values) > 1 else 0.0))
    return result


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

    run, double: whole curves of (step, loss). Steps the baseline needs for the run's final loss, over the run's steps;
    where it never gets there, the baseline's steps over those in which the run reaches the baseline's final loss
    (arXiv 2502.19002, figure 1). None where either was there from the start, as after a divergence.
    """
    (steps, final), (double_steps, double_final) = run[-1], double[-1]
    if (step := reaches(double, final)) is not None:
        return (step / steps, steps, step, final) if step > 0 else None
    step = reaches(run, double_final)
    return (double_steps / step, step, double_steps, double_final) if step else None


def speedups(curves, double):
    """Speedup over a baseline with twice the steps, read on the mean curves of the seeds that both have, or None.

    curves, double: {seed: [(step, loss), ...]} of finished runs. Returns {"ratio", "from", "to", "loss", "seeds",
    "low", "high", "unread"}; low and high end the 95 % interval of the seeds' geometric mean, None for fewer than two;
    `unread` seeds gave no reading.
    """
    from scipy.stats import t

    seeds = [seed for seed in curves if seed in double]
    if not seeds:
        return None
    run, twice = ([point[:2] for point in mean_curve([c[seed] for seed in seeds])] for c in (curves, double))
    read = speedup(run, twice)
    if read is None:
        return None
    single = [speedup(curves[seed], double[seed]) for seed in seeds]
    logs, low, high = [math.log(one[0]) for one in single if one], None, None
    if len(logs) > 1:
        half = t.ppf(0.975, len(logs) - 1) * stdev(logs) / math.sqrt(len(logs))
        low, high = (math.exp(mean(logs) + side * float(half)) for side in (-1, 1))
    interval = {"low": low, "high": high, "unread": single.count(None)}
    return dict(zip(("ratio", "from", "to", "loss"), read, strict=True), seeds=len(seeds), **interval)
