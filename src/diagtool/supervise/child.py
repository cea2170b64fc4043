"""The command as our child: started as a shell would start it, and its end passed on."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

__all__ = ["NotStarted", "die_of", "gains_privileges", "is_subreaper", "start"]

_PR_SET_CHILD_SUBREAPER, _PR_GET_CHILD_SUBREAPER = 36, 37  # include/uapi/linux/prctl.h
_IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)  # Python/pylifecycle.c, init_signals()

_libc = ctypes.CDLL(None, use_errno=True)


class NotStarted(Exception):
    """The command can't be run. ``status`` is what a shell would give: 127 not found, 126 not executable."""

    def __init__(self, command: str, error: int) -> None:
        missing = error in (errno.ENOENT, errno.ENOTDIR)
        self.status = 127 if missing else 126
        super().__init__(f"{command}: {'command not found' if missing else os.strerror(error).lower()}")
        self.hint = "What follows -- is run as it stands, without a shell: its first word is a program."


def start(command: Sequence[str], mask: set[int], before: Callable[[int], None]) -> int:
    """Start a command in our process group, with our files and environment; gives its pid.

    ``before`` is called with the pid when it is there and has not begun to run the program. ``mask`` are the
    signals that were blocked when we were started. Raises NotStarted, or OSError where there may be no more
    processes.
    """
    go_read, go_write = os.pipe()
    failed_read, failed_write = os.pipe()
    try:
        pid = os.fork()
        if not pid:
            _become(command, mask, go_read, go_write, failed_write)
        os.close(failed_write)
        failed_write = -1
        before(pid)
        os.write(go_write, b"x")
        os.close(go_write)
        go_write = -1
        said = os.read(failed_read, 16)
    finally:
        for fd in (go_read, go_write, failed_read, failed_write):
            if fd >= 0:
                os.close(fd)
    if said:
        raise NotStarted(command[0], int(said))
    return pid


def _become(command: Sequence[str], mask: set[int], go: int, other: int, failed: int) -> NoReturn:
    try:
        os.close(other)
        if os.read(go, 1):  # else diagtool was killed before it could say so
            for number in signal.valid_signals():
                if callable(signal.getsignal(number)):
                    signal.signal(number, signal.SIG_DFL)  # as exec does, but none may run before
            for number in _IGNORED_BY_PYTHON:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            os.execvp(command[0], list(command))
    except OSError as error:
        os.write(failed, str(error.errno).encode())
    finally:
        os._exit(127)


def gains_privileges(program: str) -> bool:
    """Whether a program gets other rights when it is run, which it would not if it were traced."""
    import shutil

    path = shutil.which(program)
    if path is None or os.geteuid() == 0:
        return False
    with suppress(OSError):
        if Path(path).stat().st_mode & 0o6000:
            return True
        return "security.capability" in os.listxattr(path)
    return False


def is_subreaper(wanted: bool) -> bool:
    """Have processes that lose their parent become our children (or no more); gives what it was before."""
    before = ctypes.c_int()
    _libc.prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(before), 0, 0, 0)
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0)
    return bool(before.value)


def die_of(number: int) -> NoReturn:
    """End by a signal, as the command did, without a core of our own."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    with suppress(OSError, ValueError):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    os.kill(os.getpid(), number)
    os._exit(128 + number)  # of a signal that does not end anybody by default
