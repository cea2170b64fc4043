"""Patterns of frames and stacks: what a template says about where stacks are.

A frame pattern is ``FILE:FUNCTION``, as in ``asyncio/queues.py:Queue.get``: the end of a path (whole
components; ``*`` allowed) and a function. The class part of the function is compared only when the frame has
one: Python 3.10 and before record no qualified names (``co_qualname`` came with 3.11). With ``=`` before the
function the frame must have it: ``threading.py:=Timer.run`` is never ``Thread.run``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from diagtool.leaks.condition import Condition
from diagtool.snapshot.model import Frame, Snapshot

#: 2**MAX_ROUNDS frames is the deepest trace in which a pattern is looked for.
MAX_ROUNDS = 20


@dataclass(frozen=True, slots=True)
class FramePattern:
    """The end of a path and a function, both possibly with ``*``."""

    file: str
    function: str
    exact: bool = False

    @classmethod
    def parse(cls, text: str) -> FramePattern:
        """From ``FILE:FUNCTION``. Raises ValueError."""
        file, colon, function = text.rpartition(":")
        if not colon or not file or not function:
            raise ValueError(f"not a frame pattern: {text!r} (expected FILE:FUNCTION)")
        return cls(file, function.removeprefix("="), function.startswith("="))

    def matches(self, frame: Frame) -> bool:
        """True for a frame of that function in a file whose path ends so."""
        return self._function(frame.function, frame.language) and self.in_file(frame.file)

    def _function(self, name: str, language: str) -> bool:
        if self.function == "*" or fnmatchcase(name, self.function):
            return True
        if self.exact:
            return False
        pattern = self.function.rpartition(".")[2]
        if "." in self.function and "." not in name:  # no qualified names in this version of Python
            return language == "python" and fnmatchcase(name, pattern)
        return "." not in self.function and fnmatchcase(name.rpartition(".")[2], pattern)

    def in_file(self, path: str) -> bool:
        """True for a path that ends so."""
        if "*" in self.file:
            return fnmatchcase(path, self.file) or fnmatchcase(path, "*/" + self.file)
        return path == self.file or path.endswith("/" + self.file)

    def __str__(self) -> str:
        return f"{self.file}:{'=' * self.exact}{self.function}"


@dataclass(frozen=True, slots=True)
class StackPattern:
    """What a stack must be like. Empty fields ask for nothing.

    ``kinds``, ``states``: names of KINDS and STATES. ``wait``, ``not_wait``, ``names``: globs of wait names
    and of stack names. ``frames``: these in this order, innermost first, others may lie between. ``top`` and
    ``bottom``: the innermost and outermost frames exactly. ``any_frames``: at least one of these.
    ``not_frames``: none of these. ``thing``, ``stack``: conditions on what it waits on, and on the stack.
    """

    kinds: tuple[str, ...] = ()
    states: tuple[str, ...] = ()
    wait: tuple[str, ...] = ()
    not_wait: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    frames: tuple[FramePattern, ...] = ()
    top: tuple[FramePattern, ...] = ()
    bottom: tuple[FramePattern, ...] = ()
    any_frames: tuple[FramePattern, ...] = ()
    not_frames: tuple[FramePattern, ...] = ()
    thing: tuple[Condition, ...] = ()
    stack: tuple[Condition, ...] = ()
    same: str = "process"  # for with and without: "process" | "thing" | "loop" | "executor"

    @property
    def is_place(self) -> bool:
        """True when it says where stacks are, not only what state they are in."""
        return bool(self.wait or self.frames or self.top or self.bottom or self.any_frames)


class FrameIndex:
    """Finds frames and traces of one snapshot that match patterns, each pattern worked out once."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._traces = snapshot.traces
        self._waits = snapshot.waits
        self._masks: dict[FramePattern, NDArray[np.bool_]] = {}
        self._containing: dict[FramePattern, NDArray[np.bool_]] = {}
        self._ids: dict[int, list[int]] = {}

    @cached_property
    def _by_function(self) -> dict[str, list[int]]:
        table: dict[str, list[int]] = defaultdict(list)
        for i, frame in enumerate(self._traces.frames):
            table[frame.function.rpartition(".")[2]].append(i)
        return table

    @cached_property
    def _by_file(self) -> dict[str, list[int]]:
        table: dict[str, list[int]] = defaultdict(list)
        for i, frame in enumerate(self._traces.frames):
            table[frame.file].append(i)
        return table

    @cached_property
    def _jumps(self) -> list[NDArray[np.int32]]:
        """``parent`` composed with itself 1, 2, 4 … times, as far as any trace is deep."""
        size = len(self._traces.parent)
        parent = self._traces.parent
        jump = np.where((parent >= 0) & (parent < size), parent, 0).astype(np.int32)
        jump[0] = 0
        jumps: list[NDArray[np.int32]] = []
        while jump.any() and len(jumps) < MAX_ROUNDS:
            jumps.append(jump)
            jump = jump[jump]
        return jumps

    def frames(self, pattern: FramePattern) -> NDArray[np.bool_]:
        """Which of the snapshot's frames match."""
        mask = self._masks.get(pattern)
        if mask is None:
            frames = self._traces.frames
            mask = np.zeros(len(frames) + 1, np.bool_)  # the last one: "no frame", index -1
            for i in self._candidates(pattern):
                mask[i] = pattern.matches(frames[i])
            self._masks[pattern] = mask
        return mask

    def _candidates(self, pattern: FramePattern) -> Sequence[int]:
        function = pattern.function.rpartition(".")[2]
        if "*" not in function and "?" not in function and "[" not in function:
            return self._by_function.get(function, ())
        return [i for file, ids in self._by_file.items() if pattern.in_file(file) for i in ids]

    def containing(self, pattern: FramePattern) -> NDArray[np.bool_]:
        """For every trace: whether it contains a frame that matches."""
        known = self._containing.get(pattern)
        if known is None:
            known = self._containing[pattern] = self.spread(self.frames(pattern))
        return known

    def spread(self, frames: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """For every trace: whether it contains one of the marked ``frames`` (length: frames + 1)."""
        size = len(frames) - 1
        ids = self._traces.frame
        has = frames[np.where((ids >= 0) & (ids < size), ids, -1)]
        if has.any():
            for jump in self._jumps:
                has = has | has[jump]
        return has

    def ids(self, trace: int) -> list[int]:
        """Indices of a trace's frames, innermost first; native frames left out."""
        known = self._ids.get(trace)
        if known is None:
            frames = self._traces.frames
            known = [
                i for i in self._traces.frame_ids(trace) if 0 <= i < len(frames) and frames[i].library is None
            ]
            if len(self._ids) < 10_000:
                self._ids[trace] = known
        return known

    def waits(self, patterns: Sequence[str]) -> NDArray[np.bool_]:
        """Which of the snapshot's wait names match one of ``patterns``."""
        return np.array([any(fnmatchcase(w, p) for p in patterns) for w in self._waits], np.bool_)

    def traces(self, pattern: StackPattern, traces: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Which of ``traces`` satisfy the frame part of ``pattern``."""
        ok = np.ones(len(traces), np.bool_)
        safe = np.where((traces >= 0) & (traces < len(self._traces.parent)), traces, 0)
        for needed in (*pattern.frames, *pattern.top, *pattern.bottom):
            ok &= self.containing(needed)[safe]
        for refused in pattern.not_frames:
            ok &= ~self.containing(refused)[safe]
        if pattern.any_frames:
            ok &= np.logical_or.reduce([self.containing(p)[safe] for p in pattern.any_frames])
        if len(pattern.frames) > 1 or pattern.top or pattern.bottom:
            for at in np.flatnonzero(ok):
                ok[at] = self._in_place(pattern, self.ids(int(safe[at])))
        return ok

    def _in_place(self, pattern: StackPattern, ids: list[int]) -> bool:
        top, bottom = pattern.top, pattern.bottom
        if len(ids) < max(len(top), len(bottom)):
            return False
        if not all(self.frames(p)[i] for p, i in zip(top, ids, strict=False)):
            return False
        if bottom and not all(self.frames(p)[i] for p, i in zip(bottom, ids[-len(bottom) :], strict=True)):
            return False
        rest = iter(ids)
        return all(any(self.frames(p)[i] for i in rest) for p in pattern.frames)
