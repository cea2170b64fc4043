"""What counts as steady growth: three points, ever on, and no warm-up, no saw-tooth, no single leap."""

from __future__ import annotations

import math

import pytest

from diagtool.snapshot.trend import course, slope

EVERY_MINUTE = (0.0, 60.0, 120.0, 180.0, 240.0, 300.0)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ((1000, 2000, 3000), "grows"),
        ((1000, 2000, 2700, 3500), "grows"),
        ((0, 500, 1000), "grows"),
        ((1000, 2000), "grew"),
        ((0, 9000, 10_000), "settles"),  # a cache that fills
        ((0, 9000, 9500, 9600), "settles"),
        ((0, 10_000, 10_000), "settles"),  # what is loaded at first use
        ((1000, 2000, 1500), "unsteady"),  # a saw-tooth
        ((1000, 3000, 2000, 4000), "unsteady"),
        ((1000, 1010, 9000), "unsteady"),  # one leap: what is in flight now
        ((1000, 1000, 3000), "unsteady"),
        ((1000, 1005, 1010), "flat"),
        ((5000, 5000, 5000), "flat"),
        ((3000, 2000, 1000), "fell"),
        ((None, 1000, 2000), "grew"),
        ((None, 1000, 2000, 3000), "grows"),
        ((1000, 2000, None), "unknown"),
        ((1000,), "unknown"),
        ((None, None), "unknown"),
    ],
)
def test_what_a_number_did(values: tuple[int | None, ...], said: str) -> None:
    assert course(values, EVERY_MINUTE[: len(values)], 100) == said


def test_unequal_intervals_are_compared_by_rate() -> None:
    assert course((0, 1000, 1100), (0.0, 1000.0, 1100.0), 100) == "grows"
    assert course((0, 1000, 2000), (0.0, 10.0, 1000.0), 100) == "settles"


def test_without_times_intervals_are_equal() -> None:
    unknown = (0.0, math.nan, math.nan)
    assert course((0, 1000, 2000), unknown, 100) == "grows"
    assert course((0, 1000, 1100), unknown, 100) == "settles"


def test_a_small_part_of_much_is_no_growth() -> None:
    assert course((1_000_000, 1_001_000, 1_002_000), EVERY_MINUTE[:3], 100) == "flat"
    assert course((1_000_000, 1_001_000, 1_002_000), EVERY_MINUTE[:3], 100, ratio=0.001) == "grows"


def test_the_slope_is_not_moved_by_one_odd_point() -> None:
    assert slope((0, 100, 200, 9000, 400, 500), EVERY_MINUTE) == pytest.approx(100 / 60)
    assert slope((5, 5, 5), EVERY_MINUTE[:3]) == 0


@pytest.mark.parametrize("values", [(1,), (None, 3), (1, 2)])
def test_a_slope_that_is_not_known(values: tuple[int | None, ...]) -> None:
    assert slope(values, (0.0, math.nan)[: len(values)]) is None
