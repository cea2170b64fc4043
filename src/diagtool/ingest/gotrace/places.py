"""Stacks and reasons of all parts under one number each: every generation numbers them anew."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from diagtool.golang.goroutines import go_frame
from diagtool.golang.names import function_name
from diagtool.golang.waits import wait_of, wait_of_frames
from diagtool.ingest.gotrace.alive import IN_SYSCALL
from diagtool.ingest.gotrace.model import Part, Steps
from diagtool.ingest.gotrace.oldwire import REASONS
from diagtool.snapshot.model import Frame

__all__ = ["Places", "wait_word"]

#: Reasons of traces as the runtime's wait reasons have them.
_WAITS = {
    "network": "IO wait",
    "sync.(*Cond).Wait": "sync.Cond.Wait",
    "sync": "semacquire",
    "unspecified": "waiting",
    "GC mark assist wait for work": "GC assist wait",
    "GC background sweeper wait": "GC sweep wait",
    "wait for debug call": "debug call",
    "wait until GC ends": "wait for GC cycle",
    "system goroutine wait": "waiting",
}

#: What the runtime's own goroutines wait for, by a function of theirs: traces call all of these unspecified.
_SYSTEM = {
    "runtime.bgsweep": "GC sweep wait",
    "runtime.bgscavenge": "GC scavenge wait",
    "runtime.forcegchelper": "force gc (idle)",
    "runtime.gcBgMarkWorker": "GC worker (idle)",
    "runtime.runfinq": "finalizer wait",
    "runtime.runFinalizers": "finalizer wait",
    "runtime.runCleanups": "cleanup wait",
    "runtime.updateMaxProcsGoroutine": "GOMAXPROCS updater (idle)",
    "runtime.ReadTrace": "trace reader (blocked)",
    "runtime/trace.Start.func1": "trace reader (blocked)",
    "runtime/trace.(*traceMultiplexer).startLocked.func1": "trace reader (blocked)",
}

#: More different stacks than these are not kept apart.
MAX_STACKS = 1 << 20


def wait_word(reason: str, frames: list[Frame]) -> str:
    """What a dump of goroutines would say of a goroutine that a trace says waits for ``reason``."""
    functions = [f.function for f in frames]
    if reason == "forever":
        shown = wait_of_frames(functions)
        return f"{shown} (nil chan)" if shown in ("chan receive", "chan send") else "select (no cases)"
    if reason == "sync" and any(".(*WaitGroup).Wait" in f for f in functions[:8]):
        return "sync.WaitGroup.Wait"
    said = _WAITS.get(reason, reason) or "waiting"
    if said == "waiting" and functions and functions[-1] in _SYSTEM:
        return _SYSTEM[functions[-1]]
    return wait_of(said, functions)


class Places:
    """Interns stacks and reasons. Number 0 of both is none."""

    def __init__(self) -> None:
        self.reasons: list[str] = ["", "syscall"]
        self._reasons: dict[str, int] = {"": 0, "syscall": IN_SYSCALL}
        self.stacks: list[tuple[int, ...]] = [()]
        self._stacks: dict[tuple[int, ...], int] = {(): 0}
        self._frames: list[tuple[str, str, int]] = []
        self._numbers: dict[tuple[str, str, int], int] = {}

    def settle(self, steps: Steps, part: Part) -> None:
        """Put these numbers in the place of those of ``part``."""
        cache: dict[int, int] = {}
        for column in (steps.stack, steps.births.made, steps.births.begin):
            _renumber(column, lambda id_: self._stack(id_, part, cache))
        _renumber(steps.reason, lambda id_: self._reason(id_, part))

    def _reason(self, id_: int, part: Part) -> int:
        text = REASONS.get(-2 - id_, "") if id_ < -1 else part.strings.get(id_, "")[:200] if id_ > 0 else ""
        known = self._reasons.get(text)
        if known is None:
            known = self._reasons[text] = len(self.reasons)
            self.reasons.append(text)
        return known

    def _stack(self, id_: int, part: Part, cache: dict[int, int]) -> int:
        if id_ <= 0:
            return 0
        known = cache.get(id_)
        if known is None:
            frames = tuple(self._frame(part, *f) for f in part.stacks.frames(id_))
            known = self._stacks.get(frames)
            if known is None:
                if len(self.stacks) >= MAX_STACKS:
                    return 0
                known = self._stacks[frames] = len(self.stacks)
                self.stacks.append(frames)
            cache[id_] = known
        return known

    def _frame(self, part: Part, function: int, file: int, line: int) -> int:
        key = part.strings.get(function, ""), part.strings.get(file, ""), min(line, 1 << 30)
        known = self._numbers.get(key)
        if known is None:
            known = self._numbers[key] = len(self._frames)
            self._frames.append(key)
        return known

    def frames(self, stack: int) -> list[Frame]:
        """The frames of a stack, innermost first."""
        return [self._made(*self._frames[i]) for i in self.stacks[stack]]

    @staticmethod
    @lru_cache(maxsize=1 << 16)
    def _made(function: str, file: str, line: int) -> Frame:
        return go_frame(function_name(function) or "?", file, line or None)

    def maker(self, stack: int) -> Frame | None:
        """The go statement, from the stack of who made a goroutine."""
        frames = self.stacks[stack]
        return self._made(*self._frames[frames[0]]) if frames else None


def _renumber(column: NDArray[np.int32], number: Callable[[int], int]) -> None:
    """Put ``number`` of each value in its place; each value is asked for once."""
    if not len(column):
        return
    low, high = int(column.min()), int(column.max())
    if high - low < 1 << 22:
        there = np.zeros(high - low + 1, np.bool_)
        there[column - low] = True
        new = np.zeros(len(there), np.int32)
        values = np.flatnonzero(there)
        new[values] = [number(value + low) for value in values.tolist()]
        column[:] = new[column - low]
        return
    distinct, inverse = np.unique(column, return_inverse=True)
    column[:] = np.array([number(value) for value in distinct.tolist()], np.int32)[inverse]
