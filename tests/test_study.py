"""The rules of a fair comparison, on numbers made up so that the answer is known."""

import math

import pytest
from scipy.stats import t

from blockwise.curves import SPIKE_HEIGHT, mean_curve, speedups, spikes
from blockwise.study.rules import (
    paired_test,
    refined_grid,
    required_runs,
    search,
    sentence,
    sign,
    spread,
    sweep,
    verdict,
)


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
    "best,rates", [(16, [1, 2, 4, 8, 16, 32]), (0.25, [0.125, 0.25, 0.5, 1, 2, 4]), (2, [1, 2, 4])]
)
def test_a_grid_grows_until_its_best_is_inside(best, rates):
    assert finish([1.0, 2.0, 4.0], valley(best)) == (rates, best)


def test_a_grid_grows_by_its_own_step_and_not_for_ever():
    assert finish([1e-3, 3e-3, 1e-2], valley(1.0), extensions=2)[0] == [1e-3, 3e-3, 1e-2, 0.0333333, 0.111111]
    assert finish([1.0, 2.0], valley(100), extensions=0) == ([1.0, 2.0], 2.0)
    assert finish([1.0], valley(1.0)) == ([0.5, 1.0, 2.0], 1.0)


def test_divergence_sends_the_sweep_down():
    rates, best = finish([1.0, 2.0], lambda rate: math.inf if rate > 0.3 else valley(0.125)(rate))
    assert best == 0.125 and rates[0] == 0.0625
    assert finish([1.0, 2.0], lambda rate: math.inf, extensions=3) == ([0.125, 0.25, 0.5, 1.0, 2.0], 0.125)


def test_seeds_come_once_the_best_is_known():
    losses = {((rate,), 5): valley(2)(rate) for rate in (1.0, 2.0)}
    assert required_runs([1.0, 2.0, 4.0], [5, 6, 7], losses, 6) == ([((1.0,), 5), ((2.0,), 5), ((4.0,), 5)], None)
    losses[(4.0,), 5] = valley(2)(4.0)
    runs, best = required_runs([1.0, 2.0, 4.0], [5, 6, 7], losses, 6)
    assert best == (2.0,) and runs[3:] == [((2.0,), 6), ((2.0,), 7)]
    losses |= {((2.0,), 6): 99.0, ((2.0,), 7): 99.0}  # other seeds do not change what the sweep chose
    assert required_runs([1.0, 2.0, 4.0], [5, 6, 7], losses, 6) == (runs, (2.0,))


def tune(loss, start, axes, grid=(1.0, 2.0, 4.0)):
    """(points, best) of a search whose losses come as they are asked for."""
    losses = {}
    while True:
        points, best = search(grid, start, axes, losses, 6)
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


def test_search_of_two_keys_ends_where_no_single_step_helps():
    def loss(point):
        rate, a, b = point
        return valley(2)(rate) + 3 * (a - 3) ** 2 + (b - a) ** 2

    points, best = tune(loss, [1, 1], [[1, 2, 3], [1, 2, 3]])
    assert best == (2.0, 3, 3)
    assert min(points, key=loss) == best


def test_search_does_not_move_for_noise():
    """Another value that gains less than three thousandths of a nat is no reason for another round."""
    assert tune(lambda p: valley(2)(p[0]) - 0.002 * p[1], [0], [[0, 1]])[1] == (2.0, 0)
    assert tune(lambda p: valley(2)(p[0]) - 0.004 * p[1], [0], [[0, 1]])[1] == (2.0, 1)


def test_search_leaves_a_value_that_diverges():
    assert tune(lambda p: math.inf if p[1] == 1 else valley(2)(p[0]), [1], [[1, 0]])[1] == (2.0, 0)


def test_refined_grid():
    assert refined_grid(4.0, [1.0, 2.0, 4.0, 8.0]) == [2.0, 4.0, 8.0]
    assert refined_grid(3e-3, [3e-3]) == [1.5e-3, 3e-3, 6e-3]


def test_paired_by_hand():
    """Differences -0.1, -0.2, -0.3: mean -0.2, deviation 0.1, standard error 0.1 / sqrt(3)."""
    test = paired_test({1: 2.9, 2: 2.8, 3: 2.7}, {1: 3.0, 2: 3.0, 3: 3.0})
    half = t.ppf(0.975, 2) * 0.1 / math.sqrt(3)
    assert test["seeds"] == 3 and test["gap"] == pytest.approx(-0.2)
    assert (test["low"], test["high"]) == (pytest.approx(-0.2 - half), pytest.approx(-0.2 + half))
    assert test["p"] == pytest.approx(2 * t.cdf(-0.2 / (0.1 / math.sqrt(3)), 2))
    assert sign(test) == 0 and "no difference seen" in sentence("ours", "adamw", test)


def test_pairing_is_by_seed_and_leaves_out_what_diverged():
    ours, theirs = {1: 2.0, 2: 3.0, 3: math.inf, 4: 2.0}, {2: 3.1, 1: 2.1, 3: 2.0}
    test = paired_test(ours, theirs)
    assert test["seeds"] == 2 and test["gap"] == pytest.approx(-0.1)
    assert sign(test) == -1 and "lower" in sentence("ours", "adamw", test)


def test_what_one_seed_and_none_can_say():
    one = paired_test({1: 2.0}, {1: 2.1})
    assert sign(one) is None and "no verdict" in sentence("ours", "adamw", one)
    none = paired_test({1: math.inf}, {1: 2.1})
    assert none["gap"] is None and "without diverging: no verdict" in sentence("ours", "adamw", none)
    assert "no verdict, because" in verdict("ours", "adamw", [one, none])


def test_equal_differences_have_no_spread_to_divide_by():
    same = paired_test({1: 2.0, 2: 3.0}, {1: 2.0, 2: 3.0})
    assert (same["gap"], same["low"], same["high"], same["p"]) == (0, 0, 0, 1)
    assert sign(same) == 0
    lower = paired_test({1: 2.0, 2: 3.0}, {1: 2.5, 2: 3.5})
    assert lower["p"] == 0 and sign(lower) == -1


def test_spread():
    assert spread({1: 1.0, 2: 3.0, 3: math.inf}) == (2.0, pytest.approx(math.sqrt(2)))
    assert spread({1: 1.0}) == (1.0, None) and spread({}) == (None, None)


@pytest.mark.parametrize(
    "signs,words",
    [
        ([-1, -1], "ours ended lower than adamw in all 2 comparisons, by 0.1000 to 0.2000"),
        ([1, 1], "ours ended higher than adamw in all 2 comparisons"),
        ([0, 0], "ours and adamw: no difference seen in any of 2 comparisons."),
        ([-1, 1, 0, 0], "lower in 1, higher in 1, no difference seen in 2 of 4 comparisons."),
        ([-1, None], "lower than adamw in one comparison, by 0.1000 to 0.1000 nats per token (1 more could not"),
        ([0], "ours and adamw: no difference seen (gap"),
    ],
)
def test_verdict(signs, words):
    tests = []
    for i, one in enumerate(signs):
        gap = 0.1 * (i + 1) * (one or 1)
        half = None if one is None else 0.05 if one else 1.0
        low, high = (None, None) if half is None else (gap - half, gap + half)
        tests.append({"gap": gap, "low": low, "high": high, "p": 0.5, "seeds": 3})
    assert words in verdict("ours", "adamw", tests)


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
    assert (read["ratio"], read["low"], read["high"]) == (1.5, 1.0, 2.0) and read["loss"] == 3.0
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
