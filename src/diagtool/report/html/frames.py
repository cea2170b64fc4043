"""Frames as a page has them: each once, and stacks as lists of their numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diagtool.leaks.own import is_internal, is_own
from diagtool.report.sources import Sources
from diagtool.report.terminal import place
from diagtool.report.text import clean
from diagtool.snapshot.model import Frame

__all__ = ["Frames", "function_name", "short_name"]

#: Of one stack: the innermost frames say where it hangs, the outermost ones where it came from.
_INNERMOST, _OUTERMOST = 40, 20


def function_name(frame: Frame) -> str:
    """The function, as its language has it: ``main.<locals>.worker`` is ``worker``."""
    return clean(frame.function.rpartition("<locals>.")[2] or "?", 160)


def short_name(frame: Frame) -> str:
    """The function without arguments, which of C++ are as long as they are."""
    name = function_name(frame)
    return (name.partition("(")[0] or name) if frame.library is not None else name


class Frames:
    """Collects frames.

    ``rows`` has for each ``[function, file:line, whole path, whose, source]``, whose being own, library or
    internal. Row 0 stands for frames that are left out.
    """

    def __init__(self, most: int, sources: Sources | None = None) -> None:
        self.rows: list[list[Any]] = [["…", "", "", "internal", ""]]
        self._most = most
        self._sources = sources
        self._known: dict[Frame, int] = {}

    def ids(self, frames: Sequence[Frame], *, with_source: bool = False) -> list[int]:
        """The numbers of ``frames``, innermost first; the middle of a deep stack is one 0."""
        if len(frames) <= _INNERMOST + _OUTERMOST:
            return [self._id(f, with_source) for f in frames]
        return [
            *(self._id(f, with_source) for f in frames[:_INNERMOST]),
            0,
            *(self._id(f, with_source) for f in frames[-_OUTERMOST:]),
        ]

    def _id(self, frame: Frame, with_source: bool) -> int:
        known = self._known.get(frame)
        if known is None:
            if len(self.rows) > self._most:
                return 0
            known = self._known[frame] = len(self.rows)
            path = frame.file or frame.library or ""
            whole = f"{path}:{frame.line}" if frame.line is not None else path
            self.rows.append([function_name(frame), place(frame), clean(whole), whose(frame), ""])
        if with_source and self._sources is not None and is_own(frame):
            self.rows[known][4] = self._sources.line(frame)
        return known


def whose(frame: Frame) -> str:
    """own, library, or internal: of the interpreter or the C library."""
    if is_own(frame):
        return "own"
    return "internal" if is_internal(frame) else "library"
