"""The learning rate at the corners of its schedule. Peaks and floors are chosen so that nothing rounds."""

import math

import pytest

from blockwise.schedules import block_rate, learning_rate, schedule_notes
from blockwise.settings import TrainConfig


def cosine(step, peak=1.0, floor=0.25, warmup=3, end=11):
    return learning_rate("cosine", step, peak=peak, floor=floor, warmup=warmup, end=end)


def constant(step, warmup=3, end=11):
    return learning_rate("constant", step, peak=1.0, floor=0.25, warmup=warmup, end=end)


FAR = 10**9


@pytest.mark.parametrize(
    "rate, options, steps, expected",
    [
        (cosine, {}, range(4), [0.25, 0.5, 0.75, 1.0]),  # a warmup rises from above zero to below the peak
        (constant, {}, range(4), [0.25, 0.5, 0.75, 1.0]),
        (cosine, {}, (5, 7), [0.25 + 0.75 * (2 + math.sqrt(2)) / 4, 0.625]),
        (cosine, {}, (11, 12, FAR), [0.25] * 3),
        (constant, {}, (3, 7, 11, 12, FAR), [1.0] * 5),
        (cosine, {"warmup": 0, "end": 8}, (0, 4), [1.0, 0.625]),
        (constant, {"warmup": 0}, (0,), [1.0]),
        (cosine, {"warmup": 99}, (0, 10, 11, 98), [0.01, 0.11, 0.12, 0.99]),  # longer than the run
        (constant, {"warmup": 99}, (0, 10, 11, 98), [0.01, 0.11, 0.12, 0.99]),
        (cosine, {"end": 3}, (2, 3, 4), [0.75, 0.25, 0.25]),  # its end at the end of the warmup, or before
        (cosine, {"end": 0}, (2, 3, 4), [0.75, 0.25, 0.25]),
        (cosine, {"warmup": 0, "end": 0}, (0,), [0.25]),
        (cosine, {"floor": 0.0}, (11,), [0.0]),
        (cosine, {"floor": 1.0}, range(3, 14), [1.0] * 11),
        (cosine, {"peak": 10.0}, (3, 11), [10.0, 0.25]),  # the floor is not scaled with the peak
    ],
)
def test_the_corners(rate, options, steps, expected):
    assert [rate(step, **options) for step in steps] == pytest.approx(expected, rel=1e-15, abs=0)


def test_cosine_is_nano_gpts():
    for step in range(300, 2000, 50):
        ratio = (step - 300) / (2000 - 300)
        expected = 6e-5 + 0.5 * (1.0 + math.cos(math.pi * ratio)) * (6e-4 - 6e-5)
        assert cosine(step, peak=6e-4, floor=6e-5, warmup=300, end=2000) == pytest.approx(expected, rel=1e-14)


def test_linear_after_the_warmup():
    def linear(step, **options):
        return learning_rate("linear", step, peak=1.0, **{"floor": 0.25, "warmup": 3, "end": 11, **options})

    assert [linear(step) for step in (0, 2, 3, 7, 9, 10, 11, 12, 10**9)] == [
        0.25, 0.75, 1.0, 0.625, 0.4375, 0.34375, 0.25, 0.25, 0.25,
    ]  # fmt: skip
    assert [linear(step, warmup=0, end=4) for step in range(5)] == [1.0, 0.8125, 0.625, 0.4375, 0.25]
    assert [linear(step, end=3) for step in (2, 3)] == [0.75, 0.25]
    assert linear(7, floor=0.0) == 0.5 and linear(11, floor=0.0) == 0.0


def wsd(step, mult=8, **options):
    """A block's rate at T=3000 with the paper's third of decay; the base rate is 1."""
    keys = {"learning_rate": 1.0, "min_lr": 0.25, "lr_decay_iters": 3000, "max_iters": 3000, "warmup_iters": 99}
    return block_rate(TrainConfig(schedule="wsd", **{**keys, **options}), step, mult)


def test_wsd_full_keeps_the_multiples_until_it_falls():
    assert [wsd(step) for step in (0, 49, 98, 99, 1000, 1500, 2000)] == [0.08, 4.0, 7.92, 8.0, 8.0, 8.0, 8.0]
    assert wsd(2500) == pytest.approx((8 + 0.25) / 2, rel=1e-12)
    assert [wsd(step) for step in (3000, 3001)] == [0.25, 0.25]
    assert wsd(1999) == 8.0 > wsd(2001) > wsd(2002)


def test_wsd_paper_boosts_until_a_third():
    """Boosted until T/3, at the base rate by 2T/3, at the floor by T; a multiplier of 1 is flat until 2T/3."""

    def paper(step, mult=8, **options):
        return wsd(step, mult, wsd_boost="paper", **options)

    assert [paper(step) for step in (49, 99, 999, 1000)] == [4.0, 8.0, 8.0, 8.0]
    assert paper(1001) == pytest.approx(8 - 7 / 1000, rel=1e-12)
    assert paper(1500) == pytest.approx(4.5, rel=1e-12)
    assert paper(2000) == pytest.approx(1.0, rel=1e-12)
    assert paper(2500) == pytest.approx(0.625, rel=1e-12)
    assert [paper(step) for step in (3000, 4000)] == [0.25, 0.25]
    assert {paper(step, mult=1) for step in range(99, 2001)} == {1.0}
    assert [paper(step, mult=1) for step in (2250, 2500, 3000)] == pytest.approx([0.8125, 0.625, 0.25], rel=1e-12)
    assert all(paper(step, mult=1) == wsd(step, mult=1) for step in range(0, 3001, 7))
    assert [paper(step, mult=0.5) for step in (1000, 2000)] == pytest.approx([0.5, 1.0], rel=1e-12)


@pytest.mark.parametrize("boost,at", [("full", 8.0), ("paper", 1.0)])
def test_wsd_decay_shares(boost, at):
    def rate(step, decay):
        return wsd(step, wsd_boost=boost, wsd_decay=decay, warmup_iters=0)

    assert [rate(step, 0.0) for step in (0, 3000)] == [8.0, 0.25]  # no fall: the floor at once
    assert rate(2999, 0.0) == pytest.approx(at, rel=0.01)
    assert rate(1500, 0.0) == 8.0
    assert [rate(step, 0.5) for step in (750, 1500, 3000)] == [8.0, at, 0.25]
    assert rate(2250, 0.5) == (at + 0.25) / 2
    assert rate(0, 1.0) == at and rate(3000, 1.0) == 0.25  # all of it a fall: no stable time to come down in
    assert rate(1500, 1.0) == (at + 0.25) / 2


def test_warmup_scaled_gives_all_blocks_one_slope():
    def rate(step, mult, scaled, schedule="constant"):
        config = TrainConfig(
            schedule=schedule, learning_rate=1.0, min_lr=0.25, warmup_iters=3, lr_decay_iters=40, warmup_scaled=scaled
        )
        return block_rate(config, step, mult)

    assert [rate(step, 5, False) for step in range(4)] == [1.25, 2.5, 3.75, 5.0]
    assert [rate(step, 5, True) for step in (0, 7, 14, 15, 16)] == [5 / 16, 2.5, 75 / 16, 5.0, 5.0]
    assert [rate(step, 1, True) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert rate(40, 5, True, "cosine") == rate(40, 5, True, "linear") == 0.25
    assert [rate(step, 20, True, "linear") for step in (0, 50)] == [20 / 61, 51 * 20 / 61]  # it outlasts the end
    assert rate(2, 0, True) == 0.0


def test_block_rate_floors():
    config = {"learning_rate": 1.0, "min_lr": 0.25, "warmup_iters": 0, "lr_decay_iters": 8}
    for schedule in ("cosine", "linear", "wsd"):
        assert block_rate(TrainConfig(schedule=schedule, **config), 8, 6) == 0.25
        assert block_rate(TrainConfig(schedule=schedule, min_lr_scaled=True, **config), 8, 6) == 1.5
    constant = TrainConfig(schedule="constant", min_lr_scaled=True, **config)
    assert block_rate(constant, 8, 6) == block_rate(TrainConfig(decay_lr=False, **config), 8, 6) == 6.0
    paper = TrainConfig(schedule="wsd", wsd_boost="paper", min_lr_scaled=True, wsd_decay=0.5, **config)
    assert [block_rate(paper, step, 6) for step in (2, 4, 8)] == [6.0, 1.0, 1.5]  # a scaled floor above the base


USUAL = {"learning_rate": 1e-3, "min_lr": 1e-4, "warmup_iters": 10, "max_iters": 100, "lr_decay_iters": 100}


@pytest.mark.parametrize(
    "keys, expected",
    [
        ({}, []),
        ({"decay_lr": False, "warmup_iters": 200}, []),
        ({"schedule": "constant", "lr_decay_iters": 10, "min_lr": 1.0}, []),
        ({"learning_rate": 5e-5}, ["above the peak learning rate of Norm: after the warmup it rises"]),
        ({"lr_mult": {"VO": 0.05}}, ["above the peak learning rate of VO:"]),
        ({"lr_mult": {"VO": 0}}, ["above the peak learning rate of VO:"]),  # it is not frozen
        ({"lr_mult": {"VO": 0}, "min_lr_scaled": True}, []),
        ({"learning_rate": 5e-5, "min_lr_ratio": 0.1}, []),
        ({"lr_mult": {"VO": 0.05}, "min_lr_scaled": True}, []),
        ({"lr_decay_iters": 40}, ["from step 40 on the learning rate stays at its floor, min_lr=0.0001"]),
        ({"max_iters": 55, "lr_mult": "auto"}, ["the learning rate of Norm ends at 0.00056"]),
        (
            {"warmup_iters": 199},
            ["warmup_iters=199 is not over by max_iters=100: the learning rate rises to 0.5 of its peak"],
        ),
        (
            {"warmup_iters": 15, "warmup_scaled": True},
            ["warmup_iters=15 times the multiplier of Emb is not over by max_iters=100: the learning rate rises to"],
        ),
        ({"warmup_iters": 70, "lr_decay_iters": 40}, ["from step 70 on the learning rate stays at its floor"]),
    ],
)
def test_what_a_schedule_will_do_against_what_its_keys_say(keys, expected):
    notes = schedule_notes(TrainConfig(**{**USUAL, **keys}).resolved())
    assert len(notes) == len(expected) and all(part in note for part, note in zip(expected, notes, strict=True)), notes
