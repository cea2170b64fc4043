"""What frames are called in other programs. Names come from a process that may be hostile: all are clean."""

from __future__ import annotations

from diagtool.report.terminal import place
from diagtool.report.text import clean
from diagtool.snapshot.model import Frame

__all__ = ("CUT", "NOTHING", "file", "function", "labelled")

#: In the place of the frames of a stack that has none, and of those that a very deep one has too many.
NOTHING = "(no frames)"
CUT = "(outer frames left out)"

_MOST = 400
_MOST_PATH = 4096


def function(frame: Frame) -> str:
    """``Queue.get``; where the name is not known, the place."""
    return clean(frame.function, _MOST) or place(frame)


def file(frame: Frame) -> str:
    """The path of the source, else of the library; "" where neither is known."""
    return clean(frame.file or frame.library or "", _MOST_PATH)


def labelled(frame: Frame) -> str:
    """``leaf (worker.py:41)``, as py-spy has it."""
    name, at = function(frame), place(frame)
    return name if name == at or at == "?" else f"{name} ({at})"
