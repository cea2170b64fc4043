"""A number over several snapshots: did it grow steadily, did it settle, how fast.

A number is compared with itself only, three points at least before anything is called steady. What grew much
at first and little at last is a warm-up that settles; what also fell is unsteady, a saw-tooth or the load.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import numpy as np

#: grows: steadily, over three points or more. grew: from one point to the other, which proves little.
#: settles: it grew, ever less. unsteady: it grew, and fell in between, or by leaps. flat: neither. fell.
#: unknown: it is not known at two points at least.
Course = Literal["grows", "grew", "settles", "unsteady", "flat", "fell", "unknown"]

#: The last interval's rate must be this part of those before it, or the growth settles.
STILL_GROWING = 0.5
#: The slowest interval's rate must be this part of the fastest one's: a leap is no slope.
EVEN = 0.2

Number = int | float | None


def course(values: Sequence[Number], times: Sequence[float], least: float, ratio: float = 0.02) -> Course:
    """What ``values`` did, oldest first; ``times`` in seconds (NaN: not known, then intervals are equal).

    Less than ``least``, or than ``ratio`` of the first value, is no growth.
    """
    points = [(float(v), t) for v, t in zip(values, times, strict=True) if v is not None]
    if len(points) < 2 or values[-1] is None:
        return "unknown"
    first, last = points[0][0], points[-1][0]
    enough = max(least, ratio * abs(first))
    if last - first < enough:
        return "fell" if first - last >= enough else "flat"
    if len(points) == 2:
        return "grew"
    rates = _rates(points)
    if min(rates[:-1]) <= 0 or rates[-1] < 0:
        return "unsteady"
    if rates[-1] < STILL_GROWING * float(np.median(rates[:-1])):
        return "settles"
    return "grows" if min(rates) >= EVEN * max(rates) else "unsteady"


def _rates(points: Sequence[tuple[float, float]]) -> list[float]:
    timed = all(b > a for (_, a), (_, b) in pairwise(points))  # false for NaN, too
    return [(w - v) / (b - a if timed else 1.0) for (v, a), (w, b) in pairwise(points)]


def slope(values: Sequence[Number], at: Sequence[float]) -> float | None:
    """Growth per unit of ``at`` (seconds, units of work), None where nothing is known.

    The median of the slopes between all pairs of points (Theil and Sen), which one odd point does not move.
    """
    known = [(float(v), t) for v, t in zip(values, at, strict=True) if v is not None and math.isfinite(t)]
    value, place = np.array(known, np.float64).reshape(-1, 2).T
    i, j = np.triu_indices(len(value), 1)
    apart = place[j] - place[i]
    slopes = (value[j] - value[i])[apart > 0] / apart[apart > 0]
    return float(np.median(slopes)) if len(slopes) else None
