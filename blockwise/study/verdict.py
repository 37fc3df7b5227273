"""What may be said of losses that are paired by seed: intervals, power, and the words for them."""

import math
from collections import Counter
from functools import cache
from statistics import mean, median, stdev

ALPHA = 0.05
BAD_START = 0.05  # nats above the arm's median: a seed that stayed behind, which says little of the arm
POWER = 0.8


@cache
def look_levels(looks):
    """Levels of the tests at these numbers of seeds, 0.05 in all, by O'Brien and Fleming (Biometrics 35, 1979).

    At each look the bound on z is one constant times sqrt(last / seeds): early, only what is clear is believed.
    """
    import numpy as np
    from scipy.optimize import brentq
    from scipy.stats import multivariate_normal, norm

    if len(looks) == 1:
        return [ALPHA]
    share = np.array(looks) / looks[-1]
    correlation = np.sqrt(np.minimum.outer(share, share) / np.maximum.outer(share, share))

    def chance(constant):
        bounds = constant / np.sqrt(share)
        return 1 - multivariate_normal.cdf(bounds, cov=correlation, lower_limit=-bounds, rng=0)

    constant = brentq(lambda c: chance(c) - ALPHA, 1.9, 3, xtol=1e-5)
    return [float(2 * norm.sf(constant / math.sqrt(s))) for s in share]


def power(gap, deviation, seeds, alpha=ALPHA):
    """The chance that a paired t-test of so many seeds sees a true gap, where differences have this deviation."""
    import numpy as np
    from scipy.stats import chi2, norm, t

    if seeds < 2 or deviation == 0:
        return float(seeds > 1 and gap != 0)
    shift, bound = abs(gap) / deviation * math.sqrt(seeds), t.ppf(1 - alpha / 2, seeds - 1)
    # Over the deviations that so many seeds may show; scipy's own distribution has no value for some of these
    bounds = bound * np.sqrt(chi2.ppf((np.arange(2000) + 0.5) / 2000, seeds - 1) / (seeds - 1))
    return float(np.mean(norm.sf(bounds - shift) + norm.cdf(-bounds - shift)))


def seeds_needed(gap, deviation, alpha=ALPHA):
    """Seeds with which a paired t-test sees such a gap with a power of 0.8, from the normal approximation."""
    from scipy.stats import norm

    z = norm.isf(alpha / 2)
    return math.ceil(((z + norm.ppf(POWER)) * deviation / gap) ** 2 + z * z / 2) if gap else None


def paired_test(losses, baseline, margin, alpha=ALPHA, arms=1):
    """The differences losses - baseline of paired runs, {seed: final loss}: their mean "gap", its interval, its tests.

    Seeds count that both have and that diverged in neither. Also in the result: "median", Hodges and Lehmann's
    estimate; "low" and "high", the interval of confidence 1 - alpha; "narrow", that of 1 - 2 alpha, which shows
    equivalence; "p" for no gap and "p_beyond" for one of the margin; "power", and "needed", the seeds for one of 0.8,
    for the gap that was seen, with so many arms sharing alpha. What too few pairs cannot say is None.
    """
    from scipy.stats import t

    seeds = [s for s in losses if s in baseline and math.isfinite(losses[s]) and math.isfinite(baseline[s])]
    differences, n = [losses[s] - baseline[s] for s in seeds], len(seeds)
    result = dict.fromkeys(("gap", "median", "deviation", "low", "high", "p", "p_beyond", "narrow", "power", "needed"))
    result |= {"seeds": n, "alpha": alpha}
    if n:
        pairs = [(a + b) / 2 for i, a in enumerate(differences) for b in differences[i:]]
        result |= {"gap": mean(differences), "median": median(pairs)}
    if n > 1:
        gap, deviation = result["gap"], stdev(differences)
        error = deviation / math.sqrt(n)

        def two_sided(distance):  # how likely a mean so far from its true value is
            return min(1.0, 2 * float(t.sf(distance / error, n - 1))) if error else float(distance <= 0)

        half, short = (float(t.ppf(1 - a, n - 1)) * error for a in (alpha / 2, alpha))
        result |= {
            "deviation": deviation, "low": gap - half, "high": gap + half, "p": two_sided(abs(gap)),
            "p_beyond": two_sided(abs(gap) - margin), "narrow": [gap - short, gap + short],
            "power": power(gap, deviation, n, alpha / arms),
            "needed": seeds_needed(gap, deviation, alpha / arms),
        }  # fmt: skip
    return result


def holm(p_values):
    """{name: p adjusted by Holm's method, so that none of all these tests is wrong with more than its own level}"""
    adjusted, least = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=p_values.get)):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = least
    return adjusted


def judge(losses, baseline, margin, levels=None):
    """{arm: its `arm_test` with "word", None where runs are missing} of all arms but the baseline.

    losses: {arm: [{seed: loss} of its best point, and of each runner-up], empty where runs are missing}. levels: {arm:
    alpha of its look} (none: 0.05). "p" and "p_beyond" become Holm's over the arms, an early look's by its level.
    """
    levels = levels or {}
    tests = {
        arm: arm_test(points, losses[baseline], margin, levels.get(arm, ALPHA), len(losses) - 1)
        for arm, points in losses.items()
        if arm != baseline
    }
    tested = {arm: test for arm, test in tests.items() if test and test["low"] is not None}
    for key in ("p", "p_beyond"):
        adjusted = holm({arm: test[key] * ALPHA / test["alpha"] for arm, test in tested.items()})
        for arm, test in tested.items():
            test[key] = adjusted[arm]
    for test in filter(None, tests.values()):
        test["word"] = word(test, margin)
    return tests


def arm_test(points, baseline, margin, alpha, arms):
    """`paired_test` of two arms' best points, where a lead must hold against the other's runners-up too.

    A search that was unlucky ends at a point that is worse than its second best. p and p_beyond are therefore the
    largest over the points of the arm that is behind (an intersection-union test, whose level is that of each), 1 where
    one of them leads; "runner_up" is the gap to the nearest.
    """
    if not points or not baseline:
        return None
    test = paired_test(points[0], baseline[0], margin, alpha, arms)
    if test["low"] is None:
        return test
    pairs = [(points[0], other) for other in baseline[1:]]
    if test["gap"] > 0:
        pairs = [(other, baseline[0]) for other in points[1:]]
    side = math.copysign(1, test["gap"])
    for rival in (paired_test(*pair, margin, alpha, arms) for pair in pairs):
        if rival["low"] is None:
            continue
        for key in ("p", "p_beyond"):
            test[key] = max(test[key], rival[key] if side * rival["gap"] > 0 else 1.0)
        test["runner_up"] = side * min(side * rival["gap"], side * test.get("runner_up", rival["gap"]))
    return test


def word(test, margin):
    """The verdict on one test: what is beyond the margin comes first, then what is within it."""
    if test["low"] is None:
        return "no verdict"
    side = "lower" if test["gap"] < 0 else "higher"
    if test["p_beyond"] < ALPHA:
        return f"{side} by more than {margin:g}"
    if -margin < test["narrow"][0] and test["narrow"][1] < margin:
        return f"equivalent within {margin:g}"
    return side if test["p"] < ALPHA else "undecided"


def sentence(arm, baseline, test):
    """The result of one comparison as a sentence without its full stop."""
    if test is None:
        return f"{arm} against {baseline}: not complete, since runs failed or have not run"
    if test["gap"] is None:
        return f"{arm} against {baseline}: no verdict, since no pair of runs ended without diverging"
    if test["low"] is None:
        return f"{arm} against {baseline}: no verdict, since one seed ran (gap {test['gap']:+.4f})"
    text = (
        f"{arm} against {baseline}: {test['word']} (gap {test['gap']:+.4f}, {interval(test)}, {test['seeds']} seeds, "
        f"Hodges-Lehmann {test['median']:+.4f}, p {test['p']:.2g} by Holm)"
    )
    if "runner_up" in test:
        text += f"; to the other's runner-up {test['runner_up']:+.4f}"
    if test["word"] == "undecided" and test["gap"]:
        needed = f"{test['needed']} seeds would have {POWER:.0%}"
        text += f"; the power for a gap of this size was {test['power']:.0%}, {needed}"
    return text


def interval(test):
    return f"{100 * (1 - test['alpha']):.3g} % interval {test['low']:+.4f} to {test['high']:+.4f}"


def verdict(arm, baseline, tests):
    """One plain sentence over all comparisons of an arm. tests: results of `judge`, or None."""
    if len(tests) == 1:
        return sentence(arm, baseline, tests[0]) + "."
    words = [test["word"] if test else "not complete" for test in tests]
    gaps = sorted(test["gap"] for test in tests if test and test["low"] is not None)
    size = f" (gaps {gaps[0]:+.4f} to {gaps[-1]:+.4f})" if gaps else ""
    counts = ", ".join(f"{word} in {count}" for word, count in Counter(words).most_common())
    return f"{arm} against {baseline}: {counts} of {len(tests)} comparisons{size}."


def spread(losses):
    """(mean, standard deviation or None for fewer than two) of the finite ones among {seed: loss}."""
    finite = [loss for loss in losses.values() if math.isfinite(loss)]
    return (mean(finite) if finite else None), (stdev(finite) if len(finite) > 1 else None)


def bad_starts(losses):
    """How many of {seed: loss} are more than 0.05 above their median; a run that diverged is one."""
    middle = median(losses.values()) if losses else 0.0
    return sum(not loss <= middle + BAD_START for loss in losses.values())
