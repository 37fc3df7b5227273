"""The rules of a fair comparison, on numbers made up so that the answer is known."""

import json
import math

import numpy as np
import pytest
from conftest import ROOT
from scipy.stats import norm, t, ttest_1samp, ttest_rel

from blockwise.curves import SPIKE_HEIGHT, mean_curve, speedups, spikes
from blockwise.study.rules import best_of_k, coordinate, halving, refined_grid, sobol, sweep
from blockwise.study.verdict import (
    bad_starts,
    holm,
    judge,
    look_levels,
    paired_test,
    power,
    seeds_needed,
    sentence,
    spread,
    verdict,
)  # fmt: skip


def valley(best):
    """A loss whose lowest point is at the learning rate `best`."""
    return lambda rate: 3 + math.log2(rate / best) ** 2


def finish(grid, loss, extensions=6):
    """The rates that a sweep asks for until it has its best: (rates, best)."""
    losses = {}
    while True:
        rates, best = sweep(grid, losses, extensions)
        if best is not None:
            return rates, best
        assert any(rate not in losses for rate in rates)
        losses |= {rate: loss(rate) for rate in rates}


def test_a_sweep_waits_for_its_grid():
    assert sweep([2.0, 1.0], {1.0: 3.0}, 6) == ([1.0, 2.0], None)
    assert sweep([2.0, 1.0, 4.0], {1.0: 3.0, 2.0: 2.0, 4.0: 3.0}, 6) == ([1.0, 2.0, 4.0], 2.0)


@pytest.mark.parametrize(
    "grid,lowest,extensions,rates,best",
    [
        ([1.0, 2.0, 4.0], 16, 6, [1, 2, 4, 8, 16, 32], 16),  # until its best is inside
        ([1.0, 2.0, 4.0], 0.25, 6, [0.125, 0.25, 0.5, 1, 2, 4], 0.25),
        ([1.0, 2.0, 4.0], 2, 6, [1, 2, 4], 2),
        ([1e-3, 3e-3, 1e-2], 1.0, 2, [1e-3, 3e-3, 1e-2, 0.0333333, 0.111111], 0.111111),  # by its own step
        ([1.0, 2.0], 100, 0, [1.0, 2.0], 2.0),
        ([1.0], 1.0, 6, [0.5, 1.0, 2.0], 1.0),
    ],
)
def test_a_grid_grows(grid, lowest, extensions, rates, best):
    assert finish(grid, valley(lowest), extensions) == (rates, best)


def test_divergence_sends_the_sweep_down():
    rates, best = finish([1.0, 2.0], lambda rate: math.inf if rate > 0.3 else valley(0.125)(rate))
    assert best == 0.125 and rates[0] == 0.0625
    assert finish([1.0, 2.0], lambda rate: math.inf, extensions=3) == ([0.125, 0.25, 0.5, 1.0, 2.0], 0.125)


def tune(loss, start, axes, grid=(1.0, 2.0, 4.0)):
    """(points, best) of a search whose losses come as they are asked for."""
    losses = {}
    while True:
        points, best = coordinate(grid, start, axes, losses, 6)
        if best is not None:
            return points, best
        missing = [point for point in points if point not in losses]
        assert missing
        losses |= {point: loss(point) for point in missing}


def test_search_follows_a_valley_that_turns():
    """With the other value of the key the best rate is four times as high; both are found, one after the other."""
    points, best = tune(lambda p: valley(8)(p[0]) if p[1] == 0.99 else valley(2)(p[0]) + 5, [0.95], [[0.95, 0.99]])
    assert best == (8.0, 0.99)
    assert points[:4] == [(1.0, 0.95), (2.0, 0.95), (4.0, 0.95), (2.0, 0.99)]
    assert len(points) == len(set(points)) == 9  # and 1, 4, 8, 16 with 0.99, and 8 with 0.95


@pytest.mark.parametrize(
    "loss,start,axes,best",
    [
        # two keys, where no single step helps any more
        (lambda p: valley(2)(p[0]) + 3 * (p[1] - 3) ** 2 + (p[2] - p[1]) ** 2, [1, 1], [[1, 2, 3]] * 2, (2.0, 3, 3)),
        (lambda p: valley(2)(p[0]) - 0.002 * p[1], [0], [[0, 1]], (2.0, 0)),  # less than 0.003 is noise
        (lambda p: valley(2)(p[0]) - 0.004 * p[1], [0], [[0, 1]], (2.0, 1)),
        (lambda p: math.inf if p[1] == 1 else valley(2)(p[0]), [1], [[1, 0]], (2.0, 0)),  # it leaves what diverges
    ],
)
def test_search_ends_at_the_best(loss, start, axes, best):
    points, found = tune(loss, start, axes)
    assert found == best and loss(found) <= min(map(loss, points)) + 0.003


def test_refined_grid():
    assert refined_grid(4.0, [1.0, 2.0, 4.0, 8.0]) == [2.0, 4.0, 8.0]
    assert refined_grid(3e-3, [3e-3]) == [1.5e-3, 3e-3, 6e-3]


def test_paired_by_hand():
    """Differences -0.1, -0.2, -0.4: Walsh averages -0.4, -0.3, -0.25, -0.2, -0.15, -0.1, with a median of -0.225."""
    losses, baseline = {1: 2.9, 2: 2.8, 3: 2.6}, {1: 3.0, 2: 3.0, 3: 3.0}
    test, reference = paired_test(losses, baseline, 0.01), ttest_rel(list(losses.values()), list(baseline.values()))
    assert test["seeds"] == 3 and test["gap"] == pytest.approx(-0.7 / 3) and test["median"] == pytest.approx(-0.225)
    assert (test["low"], test["high"]) == pytest.approx(tuple(reference.confidence_interval(0.95)))
    assert test["narrow"] == pytest.approx(list(reference.confidence_interval(0.9)))
    assert test["p"] == pytest.approx(reference.pvalue)
    shifted = ttest_1samp([-0.1, -0.2, -0.4], -0.01)
    assert test["p_beyond"] == pytest.approx(shifted.pvalue)


def test_pairing_is_by_seed_and_leaves_out_what_diverged():
    test = paired_test({1: 2.0, 2: 3.0, 3: math.inf, 4: 2.0}, {2: 3.1, 1: 2.1, 3: 2.0}, 0.01)
    assert test["seeds"] == 2 and test["gap"] == pytest.approx(-0.1)


def judged(differences, margin=0.01, **others):
    """The test of an arm with these differences to a baseline, beside other arms with theirs."""
    seeds = range(len(differences))
    arms = {"adamw": [dict.fromkeys(seeds, 3.0)]}
    for arm, own in {"ours": differences, **others}.items():
        arms[arm] = [{s: 3.0 + d for s, d in zip(seeds, own, strict=True)}]
    return judge(arms, "adamw", margin)["ours"]


def around(gap, half=0.001, n=8):
    return [gap + (-1) ** i * half for i in range(n)]


@pytest.mark.parametrize(
    "differences,margin,expected",
    [
        (around(-0.05), 0.01, "lower by more than 0.01"),
        (around(+0.05), 0.01, "higher by more than 0.01"),
        (around(-0.011, 0.003), 0.01, "lower"),  # below 0 for certain, but perhaps by less than the margin
        (around(+0.011, 0.003), 0.01, "higher"),
        (around(-0.001), 0.01, "equivalent within 0.01"),
        (around(-0.005), 0.01, "equivalent within 0.01"),  # lower too, but not worth it
        (around(-0.005), 0.0045, "lower"),
        (around(-0.02), 0.03, "equivalent within 0.03"),
        (around(-0.037, 0.05), 0.01, "undecided"),
        ([-0.3], 0.01, "no verdict"),
        ([0.0, 0.0], 0.01, "equivalent within 0.01"),  # no spread to divide by
        ([-0.5, -0.5], 0.01, "lower by more than 0.01"),
    ],
)
def test_words(differences, margin, expected):
    test = judged(differences, margin)
    assert test["word"] == expected and expected in sentence("ours", "adamw", test)


def test_holm_over_the_arms():
    """0.01, 0.02 and 0.04 become 0.03, 0.04 and 0.04; a verdict that one arm alone would get may be lost."""
    assert holm({"a": 0.04, "b": 0.01, "c": 0.02}) == pytest.approx({"b": 0.03, "c": 0.04, "a": 0.04})
    assert judged(around(-0.05, 0.05))["word"] == "lower"
    noise = around(0.0, 0.05)
    assert judged(around(-0.05, 0.05), a=noise, b=noise, c=noise)["word"] == "undecided"


def test_undecided_says_what_the_power_was():
    text = sentence("ours", "adamw", judged(around(-0.0368, 0.047, 4)))
    assert "the power for a gap of this size was" in text and "seeds would have 80%" in text
    assert (seeds_needed(0.037, 0.047), seeds_needed(0.02, 0.02), seeds_needed(0.01, 0.01)) == (15, 10, 10)


@pytest.mark.parametrize("gap,deviation,seeds", [(0.037, 0.047, 3), (0.02, 0.02, 10), (0.01, 0.01, 6)])
def test_power_by_simulation(gap, deviation, seeds):
    rng = np.random.default_rng(0)
    simulated = ttest_1samp(rng.normal(gap, deviation, (20_000, seeds)), 0, axis=1).pvalue < 0.05
    assert power(gap, deviation, seeds) == pytest.approx(simulated.mean(), abs=0.01)


def test_looks_err_together_as_often_as_one():
    """O'Brien and Fleming's published bounds; by simulation, one of the looks sees something in 5 % of all studies."""
    assert look_levels((8,)) == [0.05]
    assert look_levels((8, 16)) == pytest.approx([0.0052, 0.0480], abs=2e-4)
    levels = look_levels((8, 16, 32))
    sums = np.cumsum(np.random.default_rng(0).normal(size=(100_000, 32)), axis=1)
    z = np.abs(sums[:, [7, 15, 31]]) / np.sqrt([8, 16, 32])
    assert (2 * norm.sf(z) < levels).any(axis=1).mean() == pytest.approx(0.05, abs=0.003)


def test_what_one_seed_and_none_can_say():
    assert "one seed ran" in sentence("ours", "adamw", judged([-0.1]))
    none = judged([math.inf])
    assert none["gap"] is None and "no pair of runs ended without diverging" in sentence("ours", "adamw", none)
    assert judge({"adamw": [], "ours": [{1: 2.0}]}, "adamw", 0.01) == {"ours": None}
    assert "not complete" in sentence("ours", "adamw", None)


def test_spread_and_bad_starts():
    assert spread({1: 1.0, 2: 3.0, 3: math.inf}) == (2.0, pytest.approx(math.sqrt(2)))
    assert spread({1: 1.0}) == (1.0, None) and spread({}) == (None, None)
    assert bad_starts({1: 3.0, 2: 3.04, 3: 3.1, 4: math.inf, 5: 2.0}) == 2 and bad_starts({}) == 0


def test_a_verdict_over_several_comparisons_counts_the_words():
    tests = [judged(around(-0.05)), judged(around(-0.06)), judged(around(0.0, 0.05)), None]
    text = verdict("ours", "adamw", tests)
    assert "lower by more than 0.01 in 2, " in text and "undecided in 1" in text and "of 4 comparisons" in text
    assert "not complete in 1" in text


def test_sobol_points_are_the_same_for_every_arm():
    """By number and by quantile, whatever else the space holds that an arm does not have."""
    quantiles = sobol(["learning_rate", "beta2", "lr_mult.Emb"], 24, 7)
    assert len(quantiles) == 24 == len({q["beta2"] for q in quantiles})
    assert quantiles[:5] == sobol(["learning_rate", "beta2", "lr_mult.Emb"], 5, 7)
    assert quantiles != sobol(["learning_rate", "beta2", "lr_mult.Emb"], 24, 8)
    for key in quantiles[0]:  # even: each quarter of the range has its share
        assert all(5 <= sum(low <= q[key] < low + 0.25 for q in quantiles) <= 7 for low in (0, 0.25, 0.5, 0.75))


def test_halving_keeps_the_best():
    """Of 8 points 3 go on, of 3 one: by the mean over all seeds at that budget, in rungs with seeds of their own."""
    rungs, losses = [(0.25, 2, 3), (1.0, 1, 2), (1.0, 2, 1)], {}
    points, asked = [(float(i),) for i in range(8)], []
    short = {point: abs(point[0] - 5) for point in points}
    whole = {(5.0,): [2.0, 1.0, 1.0], (4.0,): [1.0, 3.0, 3.0], (6.0,): [math.inf, 0.0, 0.0]}
    while True:
        runs, best = halving(points, rungs, 11, losses)
        if best:
            break
        new = [run for run in runs if run not in losses]
        asked.append(len(new))
        losses |= {(p, s, b): short[p] if b < 1 else whole[p][s - 13] for p, s, b in new}
    assert asked == [16, 3, 4] and best == [(5.0,)]
    assert {seed for _, seed, budget in runs if budget < 1} == {11, 12}
    assert {(p, s) for p, s, b in runs if b == 1} == {
        *(((x,), 13) for x in (4.0, 5.0, 6.0)), *(((x,), s) for x in (4.0, 5.0) for s in (14, 15)),
    }  # fmt: skip


@pytest.fixture(scope="module")
def spread_of_seeds():
    """Deviations of what a seed does to all runs alike, and to one run alone, as in docs/studies."""
    places = json.loads((ROOT / "docs/studies/study_budget_20/study.json").read_text())["places"]["floor 0"]
    return places["adamw"]["deviation"], places["fitted"]["test"]["deviation"] / math.sqrt(2)


def equal_arms(repetition, rungs, shared, both, single):
    """The word for an arm against itself: a search of 16 points and 8 seeds on made-up losses, noise on each run.

    Deviations of the noise: shared by all runs of a seed, by both arms' runs of one point and seed, and of one run.
    """
    keys, losses = ("learning_rate", "beta2", "warmup_iters"), {}
    points = [tuple(q.values()) for q in sobol(keys, 16, repetition)]

    def loss(arm, point, seed, budget):
        noise = ((shared, seed), (both, seed, points.index(point)), (single, seed, points.index(point), arm))
        noise = sum(
            np.random.default_rng((repetition, *at)).normal(0, deviation) for deviation, *at in noise if deviation
        )
        return 3 + sum(c * (x - 0.6) ** 2 for c, x in zip((1.6, 4.4, 0.6), point, strict=True)) + noise

    for arm in (0, 1):
        known, best = {}, None
        while best is None:
            runs, best = halving(points, rungs, 1001, known)
            known |= {run: loss(arm, *run) for run in runs if run not in known}
        losses[arm] = [{seed: loss(arm, point, seed, 1.0) for seed in range(1, 9)} for point in best]
    return judge(losses, 0, 0.01)[1]["word"]


@pytest.mark.parametrize("alone", [0.004 / 0.033, 1])
def test_two_equal_arms_are_equal(alone, spread_of_seeds):
    """At most one search in twenty says more: where both arms have the same noise but for the chaos of a run (0.004, as
    between two machines), and where each run has its own, so that the searches end at different points."""
    shared, single = spread_of_seeds
    words = [
        equal_arms(i, [(0.25, 1, 4), (1.0, 1, 2)], shared, single * math.sqrt(1 - alone**2), single * alone)
        for i in range(40)
    ]
    assert sum(word in ("undecided", "equivalent within 0.01") for word in words) >= 38, words


def test_the_best_of_k():
    assert best_of_k([3.0, 1.0, 2.0]) == {1: 2.0, 2: 1.0, 3: 1.0}  # two of three hold the best in two draws of three
    assert best_of_k([1.0, *[2.0] * 7]) == {1: 2.0, 2: 2.0, 4: 1.0, 8: 1.0}
    assert best_of_k([math.inf, math.inf, 1.0]) == {1: math.inf, 2: 1.0, 3: 1.0}


def test_mean_curve_is_over_the_steps_that_all_have():
    assert mean_curve([[(0, 1.0), (5, 2.0)], [(0, 3.0), (4, 9.0), (5, 2.0)]]) == [
        (0, 2.0, pytest.approx(math.sqrt(2))), (5, 2.0, 0.0),
    ]  # fmt: skip
    assert mean_curve([[(0, 1.0)]]) == [(0, 1.0, 0.0)]


def test_speedup_is_read_on_the_mean_curve():
    """The doubled baseline reaches 3.0 at step 100 with one seed and 200 with the other, on the mean between them."""
    ours = {1: [(0, 5.0), (100, 3.0)], 2: [(0, 5.0), (100, 3.0)]}
    double = {1: [(0, 5.0), (100, 3.0), (200, 2.0)], 2: [(0, 5.0), (100, 4.0), (200, 3.0)]}
    read = speedups(ours, double)
    half = t.ppf(0.975, 1) * math.log(2) / 2  # of the seeds' logarithms, 0 and log 2
    assert read["ratio"] == 1.5 and read["loss"] == 3.0
    assert (read["low"], read["high"]) == pytest.approx([math.sqrt(2) * math.exp(x) for x in (-half, half)])
    assert speedups(ours, {}) is None


def test_spikes_by_hand():
    def count(*losses):
        return spikes([{"step": 0, "val/loss": 99.0}, *({"train/loss": loss} for loss in losses)])

    up = 3 + SPIKE_HEIGHT + 1e-6
    assert count() == 0
    assert count(*[3.0] * 30) == count(*[5 - i / 10 for i in range(30)]) == count(*[3.0] * 30, up - 1e-5) == 0
    assert count(3.0, up) == count(*[3.0] * 30, up, 9.0, up, 3.0) == 1  # in a row they are one
    assert count(*[3.0] * 30, up, 3.0, up) == 2
    noise = [3 + (-1) ** i * 0.2 for i in range(30)]  # a standard deviation of 0.3 by the median absolute one
    assert count(*noise, 4.7) == 0 and count(*noise, 4.9) == 1
    assert count(*[3.0] * 30, *[9.0] * 30) == 1  # a level that stays becomes the course
    assert count(3.0, 3.0, "NaN") == count(3.0, "inf", 3.0) == count(3.0, "NaN", 3.0, 3.0) == 1
