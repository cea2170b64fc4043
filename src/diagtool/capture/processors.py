"""Which processors diagtool runs on: not those that the target is running on, if others are free.

A busy thread of the target that has to share its processor with the analysis stands still for a whole tick
of the scheduler (4 ms at 250 Hz) each time it is the other's turn, and the scheduler takes up to 0.2 s to
move one of the two to a processor that is idle. Measured so on Linux 6.18 with two processors. Small and
free of heavy imports: it is called before numpy is there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_MAX_THREADS = 4096  # of the target that are looked at
_STATE, _PROCESSOR = 0, 36  # fields of /proc/PID/stat behind the name: proc(5), (3) and (39)

#: What we were allowed when we first gave some up.
_allowed: set[int] | None = None


def keep_off(pid: int) -> None:
    """Keep this thread of ours, and those it starts, off the processors that threads of ``pid`` run on now.

    Nothing happens where no processor would be left, or for a process that is gone or our own.
    """
    global _allowed
    if pid == os.getpid():
        return
    with suppress(OSError):
        allowed = _allowed or os.sched_getaffinity(0)
        left = allowed - _running_on(pid)
        if left and left != os.sched_getaffinity(0):
            os.sched_setaffinity(0, left)
            _allowed = allowed


def keep_off_again(pid: int) -> None:
    """The same for where the threads run after the stop; nothing for who never asked for it."""
    if _allowed is not None:
        keep_off(pid)


def use_all() -> None:
    """Let this thread of ours run wherever we were allowed to at first: in the stop nobody else runs."""
    if _allowed is not None:
        with suppress(OSError):
            os.sched_setaffinity(0, _allowed)


@contextmanager
def kept() -> Iterator[None]:
    """Give back in the end what was given up, for a caller that goes on."""
    global _allowed
    try:
        yield
    finally:
        use_all()
        _allowed = None


def _running_on(pid: int) -> set[int]:
    found = set()
    for folder in list(Path(f"/proc/{pid}/task").iterdir())[:_MAX_THREADS]:
        with suppress(OSError, ValueError, IndexError):
            fields = (folder / "stat").read_bytes().rpartition(b")")[2].split()
            if fields[_STATE] == b"R":
                found.add(int(fields[_PROCESSOR]))
    return found
