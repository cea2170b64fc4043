"""What time it is for a Go runtime, so that it can be said how long its goroutines have waited.

``g.waitsince`` is set by the first garbage collection that sees a goroutine wait, to when the one before it
ended, in nanotime(): Linux's CLOCK_MONOTONIC. It is 0 before the second collection of a process. So a wait is
known to within the time between two collections, as in the runtime's own tracebacks; at the latest one is
forced after two minutes. A live process has that clock now; a core has none: the latest time that is noted
anywhere in the runtime is then taken for the time of death.
"""

from __future__ import annotations

import numpy as np

from diagtool.runtimes.golang.model import GoRuntime, Status

__all__ = ["now_of", "wait_seconds"]

_MOST_SECONDS = 10 * 365 * 86400.0
_LEAST = 1.0  # seconds that an estimate must come to, to say anything


def now_of(runtime: GoRuntime) -> tuple[int, bool]:
    """(nanotime() at the capture, whether it is an estimate); 0 where nothing is known."""
    monotonic = runtime.capture.process.monotonic
    if monotonic:
        return int(monotonic * 1e9), False
    g = runtime.goroutines
    times = [g.waitsince]
    for struct, name in (("p", "sysmontick.schedwhen"), ("p", "sysmontick.syscallwhen")):
        machines = np.unique(g.m[g.m != 0])
        if runtime.has("m", "p") and runtime.has(struct, name) and len(machines):
            processors, ok = runtime.load(machines, "m", "p")
            when, fine = runtime.load(processors[ok & (processors != 0)], struct, name, "<i8")
            times.append(when[fine])
    every = np.concatenate(times)
    every = every[(every > 0) & (every < _MOST_SECONDS * 1e9)]
    return (int(every.max()) if len(every) else 0), True


def wait_seconds(
    runtime: GoRuntime, now: int, estimated: bool = False
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Seconds for which each goroutine has waited, about; NaN where that is not known."""
    g = runtime.goroutines
    seconds = (now - g.waitsince).astype(np.float64) / 1e9
    waits = np.isin(g.status, (Status.WAITING, Status.SYSCALL, Status.LEAKED))
    good = waits & (g.waitsince > 0) & (seconds >= (_LEAST if estimated else 0)) & (seconds < _MOST_SECONDS)
    out: np.ndarray[tuple[int], np.dtype[np.float64]] = np.where(good, seconds, np.nan)
    return out
