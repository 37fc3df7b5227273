"""The rules of a fair search, on plain numbers: which runs it needs, and what they say of its luck.

A search is a function of the losses so far: it names the runs that it needs and, once it has their losses, its best
point: (learning rate, value of each further key).
"""

import math
from statistics import mean

WORTH_MOVING = 0.003  # nats that another value of a tuned key must gain: less is noise, and each move costs a round


def round_digits(number):
    """Six digits, so that numbers read well and a repeated study finds its runs again."""
    return float(f"{number:.6g}")


def middle(grid):
    """The middle of a grid of rates: their geometric mean."""
    return round_digits(math.exp(mean(map(math.log, grid))))


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
            rates.insert(0, round_digits(rates[0] / below))
        else:
            rates.append(round_digits(rates[-1] * above))
    return rates, best


def coordinate(grid, start, axes, losses, extensions):
    """(points that the search needs, its best or None while losses are missing), coordinate by coordinate.

    start: the values to begin with; axes: all values of each key; losses: {point: loss}. The rate is swept over `grid`;
    then each key takes its best value; then the rate again, over its neighbours, until a whole round changes nothing.
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


def refined_grid(best, rates):
    """A grid of three for the same arm at another budget: its best so far and a grid step on either side."""
    rates = sorted(rates)
    at = rates.index(best)
    below = rates[at - 1] if at > 0 else round_digits(best / 2)
    above = rates[at + 1] if at + 1 < len(rates) else round_digits(best * 2)
    return [below, best, above]


def sobol(keys, count, seed):
    """[{key: quantile}] of `count` scrambled Sobol points. The same for all arms: each takes the keys that it has."""
    from scipy.stats import qmc

    numbers = qmc.Sobol(len(keys), rng=seed).random_base2(max(count - 1, 1).bit_length())
    return [dict(zip(keys, map(float, row), strict=True)) for row in numbers[:count]]


def halving(points, rungs, seed, losses):
    """(runs that successive halving needs, the points that are left, best first, or None while losses are missing).

    rungs: [(share of the budget, seeds, points kept), ...]; each has further seeds, counted from `seed`, and goes by
    the mean over all seeds at its budget. A run is (point, seed, share of the budget); losses: {run: loss}.
    """
    runs, seeds = [], {}
    for budget, count, keep in rungs:
        seeds[budget] = [*seeds.get(budget, []), *range(seed, seed + count)]
        seed += count
        runs += [(point, s, budget) for point in points for s in seeds[budget] if (point, s, budget) not in runs]
        if any(run not in losses for run in runs):
            return runs, None
        points = sorted(points, key=lambda point: mean(losses[point, s, budget] for s in seeds[budget]))[:keep]
    return runs, points


def best_of_k(losses):
    """{k: the median of the best of k of these losses drawn at random}, for k = 1, 2, 4, ... and all."""
    losses, n, result = sorted(losses), len(losses), {}
    for k in sorted({2**i for i in range(n.bit_length())} - {0} | {n}):
        above = 1.0  # the probability that none of the i + 1 lowest is among the k
        for i, loss in enumerate(losses):
            above *= max(n - k - i, 0) / (n - i)
            if above <= 0.5:
                result[k] = loss
                break
    return result
