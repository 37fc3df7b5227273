"""The rules of a fair comparison, on plain numbers: which runs it needs, and what may be said of their losses.

An arm is a way to train. Each arm is judged at the best learning rate of its own grid, which grows where its best lies
at an end, so that no arm is undertuned for lack of a wider grid; then over several seeds, paired with the baseline's.
"""

import math
from statistics import mean, stdev

CONFIDENCE = 0.95
WORTH_MOVING = 0.003  # nats that another value of a tuned key must gain: less is noise, and each move costs a round


def round_rate(rate):
    """Six digits, so that a grid that grew reads well and a repeated study finds its runs again."""
    return float(f"{rate:.6g}")


def sweep(grid, losses, extensions):
    """(learning rates that the sweep needs, its best or None while losses are missing).

    grid: learning rates to begin with. losses: {learning rate: loss, inf for a run that diverged}.
    extensions: rates that may be added in all, each one grid step beyond the end at which the best lies.
    """
    rates = sorted(grid)
    for added in range(extensions + 1):
        if any(rate not in losses for rate in rates):
            return rates, None
        best = min(rates, key=losses.get)  # where all diverged: the lowest
        if added == extensions or best not in (rates[0], rates[-1]):
            break
        below = rates[1] / rates[0] if len(rates) > 1 else 2.0
        above = rates[-1] / rates[-2] if len(rates) > 1 else 2.0
        if best == rates[0]:
            rates.insert(0, round_rate(rates[0] / below))
        else:
            rates.append(round_rate(rates[-1] * above))
    return rates, best


def search(grid, start, axes, losses, extensions):
    """(points that the tuning needs, its best or None while losses are missing), coordinate by coordinate.

    A point is (learning rate, value of each tuned key). start: the values to begin with; axes: all values of each key;
    losses: {point: loss}. The rate is swept over `grid`; then one key after another takes its best value, the others
    kept; then the rate again, over its neighbours, and so on until a whole round changes nothing.
    """
    points, values, here, settled, axis = [], tuple(start), None, 0, 0
    while settled <= len(axes):
        if axis == 0:
            known = {point[0]: loss for point, loss in losses.items() if point[1:] == values}
            rates, rate = sweep(grid, known, extensions)
            tried = [(rate, *values) for rate in rates]
            best = rate and (rate, *values)
        else:
            tried = [(*here[:axis], value, *here[axis + 1 :]) for value in axes[axis - 1]]
            best = min(tried, key=losses.get) if all(point in losses for point in tried) else None
            if best and not losses[best] < losses[here] - WORTH_MOVING:
                best = here
        points += [point for point in tried if point not in points]
        if best is None:
            return points, None
        settled = settled + 1 if best == here else 1
        here, values = best, best[1:]
        if axis == 0:
            grid = refined_grid(here[0], rates)
        axis = (axis + 1) % (len(axes) + 1)
    return points, here


def required_runs(grid, seeds, losses, extensions, start=(), axes=()):
    """([(point, seed), ...] that an arm needs, as far as is known now; its best point or None).

    losses: {(point, seed): loss}; the rest as in `search`, made with the first seed. The others run at its best.
    """
    first = {point: loss for (point, seed), loss in losses.items() if seed == seeds[0]}
    points, best = search(grid, start, axes, first, extensions)
    runs = [(point, seeds[0]) for point in points]
    return runs + [(best, seed) for seed in seeds[1:] if best is not None], best


def refined_grid(best, rates):
    """A grid of three for the same arm at another budget: its best so far and a grid step on either side."""
    rates = sorted(rates)
    at = rates.index(best)
    below = rates[at - 1] if at > 0 else round_rate(best / 2)
    above = rates[at + 1] if at + 1 < len(rates) else round_rate(best * 2)
    return [below, best, above]


def paired_test(losses, baseline):
    """The mean difference losses - baseline of paired runs with its confidence interval, and the paired t-test.

    losses, baseline: {seed: final loss}; seeds that both have, and that diverged in neither, count.
    Returns {"gap", "low", "high", "p", "seeds"}; low, high and p are None for a single seed, all but seeds for none.
    """
    from scipy.stats import ttest_rel

    seeds = [s for s in losses if s in baseline and math.isfinite(losses[s]) and math.isfinite(baseline[s])]
    ours, theirs = [losses[s] for s in seeds], [baseline[s] for s in seeds]
    result = {"gap": None, "low": None, "high": None, "p": None, "seeds": len(seeds)}
    if seeds:
        result["gap"] = mean(a - b for a, b in zip(ours, theirs, strict=True))
    if len(seeds) > 1:
        differences = [a - b for a, b in zip(ours, theirs, strict=True)]
        if stdev(differences) == 0:  # the test divides by it
            result |= {"low": result["gap"], "high": result["gap"], "p": float(result["gap"] == 0)}
        else:
            test = ttest_rel(ours, theirs)
            low, high = test.confidence_interval(CONFIDENCE)
            result |= {"low": float(low), "high": float(high), "p": float(test.pvalue)}
    return result


def spread(losses):
    """(mean, standard deviation or None for fewer than two) of the finite ones among {seed: loss}."""
    finite = [loss for loss in losses.values() if math.isfinite(loss)]
    return (mean(finite) if finite else None), (stdev(finite) if len(finite) > 1 else None)


def sign(test):
    """-1 lower, 1 higher, 0 no difference seen, None without a verdict.

    test: a result of `paired_test`; None where runs are missing.
    """
    if test is None or test["low"] is None:
        return None
    return -1 if test["high"] < 0 else 1 if test["low"] > 0 else 0


def sentence(arm, baseline, test):
    """The result of one comparison as a sentence."""
    if test is None:
        return f"{arm} against {baseline}: not complete, since runs failed or have not run"
    if test["gap"] is None:
        return f"{arm}: no pair of runs with {baseline} ended without diverging: no verdict"
    side = "lower" if test["gap"] < 0 else "higher"
    if test["low"] is None:
        return f"{arm} ended {abs(test['gap']):.4f} {side} than {baseline} with the one seed that ran: no verdict"
    interval = f"{CONFIDENCE:.0%} interval {test['low']:+.4f} to {test['high']:+.4f}, {test['seeds']} seeds"
    if sign(test) == 0:
        return f"{arm} and {baseline}: no difference seen (gap {test['gap']:+.4f}, {interval})"
    return f"{arm} ended {abs(test['gap']):.4f} {side} than {baseline} ({interval})"


def verdict(arm, baseline, tests):
    """One plain sentence over all comparisons of an arm. tests: results of `paired_test`, or None."""
    if len(tests) == 1:
        return sentence(arm, baseline, tests[0]) + "."
    found = [sign(test) for test in tests]
    judged = [one for one in found if one is not None]
    if not judged:
        return f"{arm} against {baseline}: no verdict, because too few seeds ran or too few runs ended well."
    gaps = sorted(abs(test["gap"]) for test, one in zip(tests, found, strict=True) if one)
    size = f"by {gaps[0]:.4f} to {gaps[-1]:.4f} nats per token" if gaps else ""
    missing = f" ({len(found) - len(judged)} more could not be judged)" if len(judged) < len(found) else ""
    if set(judged) == {0}:
        return f"{arm} and {baseline}: no difference seen in any of {len(judged)} comparisons{missing}."
    if len(set(judged)) == 1:
        side = "lower" if judged[0] < 0 else "higher"
        every = f"in all {len(judged)} comparisons" if len(judged) > 1 else "in one comparison"
        return f"{arm} ended {side} than {baseline} {every}, {size}{missing}."
    counts = [f"{side} in {judged.count(one)}" for one, side in ((-1, "lower"), (1, "higher")) if one in judged]
    counts += [f"no difference seen in {judged.count(0)}"] if 0 in judged else []
    return f"{arm} against {baseline}: {', '.join(counts)} of {len(judged)} comparisons{missing}."
