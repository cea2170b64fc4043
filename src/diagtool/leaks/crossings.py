"""Where stacks go from the program into a library that waits, and from a library back into Python."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from diagtool.leaks.own import is_internal
from diagtool.snapshot.model import KIND, Frame, Snapshot

__all__ = ["TRAMPOLINES", "callback_of", "merged_frames", "team_of", "team_threads"]

#: Libraries through which others are called, and call: how their names begin.
TRAMPOLINES = ("libffi", "_ctypes", "_cffi_backend")
#: Libraries that divide the work of one thread among a team of threads: GNU's, LLVM's and Intel's OpenMP.
_TEAMS = ("libgomp", "libomp.", "libomp-", "libomp5", "libiomp5")


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


def team_of(frames: Sequence[Frame]) -> str | None:
    """The library in which a thread waits for the team of threads that it called together; None: it does not.

    Of a stack whose innermost frames, the C library's left aside, are an OpenMP library's, which the program
    called. A thread of the team itself begins in the library: nothing calls that.
    """
    library = None
    for frame in frames:
        if frame.library is None:
            return library  # Python called it
        if library is None:
            if _is_team(frame.library):
                library = frame.library
            elif not is_internal(frame):
                return None
        elif not _is_team(frame.library) and not is_internal(frame):
            return library
    return None


def team_threads(snapshot: Snapshot, rows: NDArray[np.intp]) -> int | None:
    """Threads besides ``rows`` that are in the library in which the first of ``rows`` waits for its team.

    None where it waits for none, and where the frames of a thread are not known.
    """
    library = team_of(merged_frames(snapshot, int(rows[0])))
    others = np.setdiff1d(np.flatnonzero(snapshot.stacks.kind == KIND["thread"]), rows)
    stacks = [merged_frames(snapshot, row) for row in others.tolist()]
    if library is None or not all(stacks):
        return None
    return sum(any(frame.library == library for frame in frames) for frames in stacks)


def merged_frames(snapshot: Snapshot, row: int) -> list[Frame]:
    """The frames of a stack, native ones between those of Python where these are known."""
    stack = snapshot.stack(row)
    return stack.merged or stack.frames


def _is_team(library: str) -> bool:
    return library.rpartition("/")[2].startswith(_TEAMS)
