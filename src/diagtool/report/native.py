"""Threads with their native frames, for ``diagtool stacks --native``: a block for all threads that are alike.

2 threads  waiting in time.sleep                                    Thread-1, Thread-2 (4243, 4244)
        libc.so.6         __clock_nanosleep
        timemodule.c:2159 pysleep
        worker.py:41      work                   time.sleep(1)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from diagtool.leaks.cluster import frames_of
from diagtool.leaks.model import MAX_EXAMPLES
from diagtool.leaks.own import is_internal
from diagtool.report.terminal import View, closing, doing, frame_lines, labelled, thing, warnings
from diagtool.report.text import Line, cells, clean, count
from diagtool.snapshot.model import KIND, STATES, Frame, Snapshot, Thing
from diagtool.snapshot.names import without_arguments

__all__ = ["Shown", "lines", "rows"]

_MAX_BLOCKS = 200
_MAX_THINGS = 3
_MAX_LOOKED_AT = 64


@dataclass(frozen=True, slots=True)
class Shown:
    """Which frames are shown. ``hide``, ``only``: patterns of functions or of names of libraries;
    ``internals``: also those of the C library and of the interpreter."""

    hide: Sequence[str] = ()
    only: Sequence[str] = ()
    internals: bool = False

    def kept(self, frames: Iterable[Frame]) -> list[Frame]:
        """The frames that are shown; of marks that stand side by side then, one."""
        out: list[Frame] = []
        for frame in frames:
            if self._is_shown(frame) and not (out and _is_mark(frame) and frame == out[-1]):
                out.append(frame)
        return out

    def folded(self, frames: Iterable[Frame]) -> int:
        """How many frames are not shown, without marks."""
        return sum(not self._is_shown(f) and not _is_mark(f) for f in frames)

    def _is_shown(self, frame: Frame) -> bool:
        if self.only:
            return any(_matches(frame, p) for p in self.only)
        if any(_matches(frame, p) for p in self.hide):
            return False
        return self.internals or not is_internal(frame)


# What merging says in place of frames.
def _is_mark(frame: Frame) -> bool:
    return not frame.library and not frame.file and frame.function.startswith("[")


def _matches(frame: Frame, pattern: str) -> bool:
    names = [frame.function, without_arguments(frame.function)]
    place = frame.library or frame.file
    names += [place, place.rpartition("/")[2], frame.module or ""]
    return any(fnmatchcase(name, pattern) for name in names)


def rows(snapshot: Snapshot, shown: Shown) -> list[dict[str, Any]]:
    """A row a thread: ``tid``, ``name``, ``python``, ``state``, ``wait``, ``waiting_on``, ``frames``."""
    out = []
    for info in snapshot.threads:
        if not 0 <= info.stack < len(snapshot.stacks):
            continue
        stack = snapshot.stack(info.stack)
        out.append(
            {
                "tid": info.tid,
                "name": info.name,
                "python": info.python,
                "state": stack.state,
                "wait": stack.wait,
                "waiting_on": stack.thing,
                "frames": shown.kept(stack.merged or stack.frames),
            }
        )
    return out


def lines(snapshot: Snapshot, shown: Shown, view: View) -> Iterator[Line]:
    """All threads, those that are alike as one block, the largest first."""
    s = snapshot.stacks
    threads = np.flatnonzero(s.kind == KIND["thread"])
    trace = np.where(s.merged[threads] > 0, s.merged[threads], s.trace[threads])
    key = np.stack([trace, s.wait[threads], s.state[threads].astype(np.int32)], axis=1)
    distinct, of, counts = np.unique(key, axis=0, return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable").tolist()
    for number in order[:_MAX_BLOCKS] if not view.idle else order:
        mine = threads[of.reshape(-1) == number]
        node, wait, state = (int(word) for word in distinct[number])
        yield _head(snapshot, mine.tolist(), doing(STATES[state], snapshot.waits[wait] or None), view)
        every = frames_of(snapshot, node)
        kept = shown.kept(every)
        yield from frame_lines(kept, view, shown.folded(every))
        yield from _things(snapshot, mine.tolist(), view)
        yield []
    if len(order) > _MAX_BLOCKS and not view.idle:
        yield [(f"… {count(len(order) - _MAX_BLOCKS, 'stack')} more (--all)", "label")]
    yield from warnings(snapshot.warnings, view)
    yield from closing(count(len(threads), "thread"), snapshot.target, snapshot.pause_ms, view)


def _things(snapshot: Snapshot, mine: Sequence[int], view: View) -> Iterator[Line]:
    """What the threads wait on: one line a thing, of timers and of more than a few none."""
    found: dict[str, Thing] = {}
    for row in mine[:_MAX_LOOKED_AT]:
        waited = snapshot.stack(row).thing
        if waited is not None and (waited.address or waited.detail):
            found.setdefault(thing(waited), waited)
    for number, text in enumerate(list(found)[:_MAX_THINGS]):
        yield from labelled("" if number else "waits on", text, view)
    if len(found) > _MAX_THINGS:
        yield from labelled("", f"… {count(len(found) - _MAX_THINGS, 'thing')} more", view)


def _head(snapshot: Snapshot, mine: Sequence[int], does: str, view: View) -> Line:
    line: Line = [(count(len(mine), "thread"), "count"), ("  " + does, "")]
    some = [f"{clean(snapshot.stacks.name[r], 40)} {int(snapshot.stacks.address[r])}".strip() for r in mine]
    names = ", ".join(some[:MAX_EXAMPLES]) + (" …" if len(some) > MAX_EXAMPLES else "")
    used = sum(cells(text) for text, _ in line)
    if used + cells(names) + 2 <= view.width:
        line.append((" " * (view.width - used - cells(names)) + names, "label"))
    else:
        line.append(("  " + names, "label"))
    return line
