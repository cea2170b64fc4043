"""Threads of native libraries that are inside a Python function that was given to the library to call."""

from __future__ import annotations

from collections.abc import Sequence

from diagtool.leaks.model import is_internal
from diagtool.snapshot.model import Frame

__all__ = ["TRAMPOLINES", "callback_of"]

#: Libraries through which others are called, and call: how their names begin.
TRAMPOLINES = ("libffi", "_ctypes", "_cffi_backend")


def callback_of(frames: Sequence[Frame]) -> str | None:
    """The library that called the Python function that a stack is in; None if that is nobody's callback.

    ``frames``: native and Python ones, innermost first. Only calls through libffi (ctypes, cffi) are told
    from others. A thread that begins with the Python function (pthread_create) is no callback.
    """
    python = through = False
    for frame in frames:
        if frame.library is None:
            python, through = frame.language == "python", False
            continue
        name = frame.library.rpartition("/")[2]
        if name.startswith(TRAMPOLINES):
            through = python
        elif through and not is_internal(frame):
            return frame.library
    return None
