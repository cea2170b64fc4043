"""Profiles of blocking and of mutexes as the table ``contention``: where goroutines waited, and how long.

A profile of blocking has the place that waited, one of mutexes the place that let go of the lock that others
waited for. Both count what is over since the process started: who still waits is in neither.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from diagtool.golang.goroutines import own_part
from diagtool.golang.waits import wait_of_frames
from diagtool.ingest.pprof.frames import Frames
from diagtool.ingest.pprof.profile import Profile
from diagtool.snapshot.model import Frame

__all__ = ["contention_table", "is_contention", "kind_of_contention"]

_MOST_SITES = 5_000
_MOST_FRAMES = 64
_SECONDS = {"nanoseconds": 1e-9, "microseconds": 1e-6, "milliseconds": 1e-3, "seconds": 1.0}

_UNLOCKS = re.compile(
    r"((?:internal/)?sync\.\(\*(?:RW)?Mutex\)\.R?Unlock(?:Slow)?|runtime\.(?:unlock.*|_Lost.*Lock))"
)


def is_contention(profile: Profile) -> bool:
    """Whether a profile counts waits that are over, and their time."""
    return profile.column("contentions") is not None and profile.unit("delay") in _SECONDS


def kind_of_contention(profile: Profile) -> str:
    """``mutex`` or ``block``: both have the same types, only their innermost functions differ."""
    frames = Frames(profile)
    first = [frames.of(stack)[:3] for stack in range(min(len(profile.stacks), 100))]
    unlock = sum(any(_UNLOCKS.fullmatch(f.function) for f in found) for found in first)
    return "mutex" if 2 * unlock > len(first) else "block"


def contention_table(profile: Profile, kind: str | None = None) -> list[dict[str, Any]]:
    """The rows, most time first. ``kind``: what the profile is, where that is known."""
    kind = kind or kind_of_contention(profile)
    frames = Frames(profile)
    count, delay = (np.zeros(len(profile.stacks), np.float64) for _ in range(2))
    for name, out in (("contentions", count), ("delay", delay)):
        column = profile.column(name)
        if column is not None:
            np.add.at(out, profile.stack, np.maximum(column, 0))
    delay *= _SECONDS[profile.unit("delay")]
    order = np.argsort(-delay, kind="stable")[:_MOST_SITES]
    rows = []
    for stack in order.tolist():
        if count[stack] <= 0:
            continue
        found = frames.of(stack)
        own = list(own_part(found))
        first = own[0] if own else None
        rows.append(
            {
                "source": "pprof",
                "kind": kind,
                "wait": _waited(kind, found),
                "count": int(min(count[stack], 1 << 60)),
                "seconds": float(delay[stack]),
                "mean_seconds": float(delay[stack] / count[stack]),
                "file": first.file if first else None,
                "line": first.line if first else None,
                "function": first.function if first else None,
                "frames": [[f.file, f.line, f.function] for f in own[:_MOST_FRAMES]],
                "language": first.language if first else "go",
            }
        )
    return rows


def _waited(kind: str, frames: list[Frame]) -> str | None:
    """What was waited on: by the functions of a wait, or by the one that ended it."""
    names = [f.function for f in frames[:24]]
    if kind == "block":
        return wait_of_frames(names)
    for name in names:
        if _UNLOCKS.fullmatch(name):
            if name.startswith("runtime."):
                return "runtime lock"
            return "sync.RWMutex.Lock" if "RWMutex" in name else "sync.Mutex.Lock"
    return None
