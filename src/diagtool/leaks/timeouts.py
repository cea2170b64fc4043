"""For how long a wait can last at most: the timers that end it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diagtool.leaks.pattern import FrameIndex, FramePattern
from diagtool.snapshot.model import Snapshot

__all__ = ["timeouts_left"]

_MAX_STEPS = 10_000  # from stack to stack that are followed

_WAIT_FOR = FramePattern.parse("asyncio/tasks.py:wait_for")


def timeouts_left(snapshot: Snapshot, frames: FrameIndex) -> NDArray[np.float64]:
    """Seconds until a timer ends each stack's wait; NaN: no timer. Who is awaited by a stack that a
    timer ends counts as ended with it: the doubt speaks for a healthy program."""
    s = snapshot.stacks
    left = np.full(len(s), np.nan)
    for row in snapshot.tables.get("timeouts", ()):
        at, seconds = row.get("stack"), row.get("left")
        if isinstance(at, int) and 0 <= at < len(left) and isinstance(seconds, (int, float)):
            left[at] = seconds
    of_thing = np.full(len(snapshot.things) + 1, np.nan)  # the last one: of no thing
    for i, thing in enumerate(snapshot.things):
        timeout = thing.state.get("timeout")
        if isinstance(timeout, (int, float)) and not isinstance(timeout, bool):
            of_thing[i] = timeout
    left = np.where(np.isnan(left), of_thing[s.thing], left)
    if "timeouts" not in snapshot.tables:  # then wait_for() is the only sign of a timer
        left[frames.containing(_WAIT_FOR)[s.trace] & np.isnan(left)] = np.inf
    return _inherited(snapshot, left)


def _inherited(snapshot: Snapshot, left: NDArray[np.float64]) -> NDArray[np.float64]:
    edges = snapshot.awaits.reshape(-1, 2)
    edges = edges[((edges >= 0) & (edges < len(left))).all(axis=1)]
    for _ in range(_MAX_STEPS):
        passes_on = ~np.isnan(left[edges[:, 0]]) & np.isnan(left[edges[:, 1]])
        if not passes_on.any():
            break
        left[edges[passes_on, 1]] = left[edges[passes_on, 0]]
        edges = edges[~passes_on]
    return left
