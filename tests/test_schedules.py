"""The learning rate at the corners of its schedule. Peaks and floors are chosen so that nothing rounds."""

import math

import pytest

from blockwise.schedules import learning_rate


def cosine(step, peak=1.0, floor=0.25, warmup=3, end=11):
    return learning_rate("cosine", step, peak=peak, floor=floor, warmup=warmup, end=end)


def constant(step, warmup=3, end=11):
    return learning_rate("constant", step, peak=1.0, floor=0.25, warmup=warmup, end=end)


@pytest.mark.parametrize("rate", [cosine, constant])
def test_warmup_rises_from_above_zero_to_below_the_peak(rate):
    assert [rate(step) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]


def test_cosine_after_the_warmup():
    assert cosine(3) == 1.0
    assert cosine(5) == pytest.approx(0.25 + 0.75 * (2 + math.sqrt(2)) / 4, rel=1e-15)
    assert cosine(7) == pytest.approx(0.625, rel=1e-15)
    assert 0.25 < cosine(10) < cosine(9)
    assert [cosine(step) for step in (11, 12, 10**9)] == [0.25] * 3


def test_constant_after_the_warmup():
    assert [constant(step) for step in (3, 7, 11, 12, 10**9)] == [1.0] * 5


def test_without_warmup():
    assert (cosine(0, warmup=0), constant(0, warmup=0)) == (1.0, 1.0)
    assert cosine(4, warmup=0, end=8) == pytest.approx(0.625, rel=1e-15)


@pytest.mark.parametrize("rate", [cosine, constant])
def test_warmup_longer_than_the_run(rate):
    assert [rate(step, warmup=99, end=11) for step in (0, 10, 11, 98)] == [0.01, 0.11, 0.12, 0.99]


def test_end_at_the_end_of_the_warmup_or_before():
    assert [cosine(step, warmup=3, end=3) for step in (2, 3, 4)] == [0.75, 0.25, 0.25]
    assert [cosine(step, warmup=3, end=0) for step in (2, 3, 4)] == [0.75, 0.25, 0.25]
    assert cosine(0, warmup=0, end=0) == 0.25


def test_floor_may_be_zero_or_the_peak():
    assert cosine(11, floor=0.0) == 0.0
    assert {cosine(step, floor=1.0) for step in range(3, 14)} == {1.0}


def test_floor_is_not_scaled_with_the_peak():
    assert cosine(11, peak=10.0) == cosine(11, peak=1.0) == 0.25
    assert cosine(3, peak=10.0) == 10.0


def test_cosine_is_nano_gpts():
    for step in range(300, 2000, 50):
        ratio = (step - 300) / (2000 - 300)
        expected = 6e-5 + 0.5 * (1.0 + math.cos(math.pi * ratio)) * (6e-4 - 6e-5)
        assert cosine(step, peak=6e-4, floor=6e-5, warmup=300, end=2000) == pytest.approx(expected, rel=1e-14)
