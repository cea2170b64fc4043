"""ptrace(2) through ctypes: thin, and quick enough to run in the stop.

Only requests that read; those that change a thread are in steer.py. Threads are SEIZEd, never ATTACHed: no
SIGSTOP is sent, nothing is left behind.
All requests for one target must come from one thread of ours, and when that thread ends, for whatever
reason, the kernel lets go of every target thread (exit_ptrace in kernel/ptrace.c).

Stops are looked at with ``waitid(WNOWAIT)``: a stop that is not consumed keeps its signal in the target
(else ``wait_task_stopped`` in kernel/exit.c clears ``exit_code``), so even kill -9 of diagtool between the
look and the detach loses no signal of the target.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from dataclasses import dataclass, field

REGISTER_WORDS = 27  # sizeof(struct user_regs_struct) / 8 on x86-64

_SEIZE, _INTERRUPT, _DETACH, _GETREGSET = 0x4206, 0x4207, 17, 0x4204  # include/uapi/linux/ptrace.h
_NT_PRSTATUS = 1
_P_PID = 1
_WNOHANG, _WSTOPPED, _WEXITED, _WNOWAIT, _WALL = 1, 2, 4, 0x01000000, 0x40000000
_CLD_EXITED, _CLD_KILLED, _CLD_DUMPED = 1, 2, 3

# Short calls keep the interpreter lock (PyDLL): letting it go would invite another thread of ours to run
# Python in the stop. SEIZE, which waits for an exec of the target, lets it go.
_short = ctypes.PyDLL(None, use_errno=True)
_long = ctypes.CDLL(None, use_errno=True)
_ptrace = _short.ptrace
_ptrace.restype = ctypes.c_long
_ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_ptrace_waiting = _long.ptrace
_ptrace_waiting.restype = ctypes.c_long
_ptrace_waiting.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_waitid = _short.waitid
_waitid.restype = ctypes.c_int
_waitid.argtypes = [ctypes.c_int, ctypes.c_uint, ctypes.c_void_p, ctypes.c_int]


def supported() -> bool:
    """Whether this machine is one whose registers are known (Linux, x86-64, a 64-bit Python)."""
    return sys.platform == "linux" and os.uname().machine == "x86_64" and struct.calcsize("P") == 8


def seize(tid: int, options: int = 0) -> int:
    """Begin to trace a thread without stopping it, with PTRACE_O_…; 0 or an errno (EPERM, ESRCH)."""
    return 0 if _ptrace_waiting(_SEIZE, tid, None, options or None) == 0 else ctypes.get_errno()


def interrupt(tid: int) -> int:
    """Ask a seized thread to stop; 0 or an errno. It stops when it next comes to run."""
    return 0 if _ptrace(_INTERRUPT, tid, None, None) == 0 else ctypes.get_errno()


def detach(tid: int, signal: int = 0) -> int:
    """Let a stopped thread go, with the signal it stopped for; 0 or an errno (ESRCH: not stopped)."""
    return 0 if _ptrace(_DETACH, tid, None, signal or None) == 0 else ctypes.get_errno()


def reap(tid: int) -> None:
    """Take notice of a traced thread that has ended; nothing happens when it has not.

    Any thread of ours may do it. An exec in the target waits until its dead threads have been reaped, and a
    SEIZE waits for the exec (cred_guard_mutex): somebody has to break that circle.
    """
    event = Looker().look(tid)
    # Only then: a wait for dead threads consumes the stop of one that has stopped, too ("we see ptrace'd
    # stopped tasks regardless of options", wait_task_stopped in kernel/exit.c).
    if event is not None and event.gone:
        info = ctypes.create_string_buffer(128)
        _waitid(_P_PID, tid, ctypes.addressof(info), _WNOHANG | _WEXITED | _WALL)


@dataclass(frozen=True, slots=True)
class Event:
    """What a look at one thread found: stopped (with the signal that it must get back), or gone.

    ``status`` is what the kernel said: signal | PTRACE_EVENT_… << 8.
    """

    gone: bool
    signal: int = 0
    status: int = field(default=0, compare=False)


class Looker:
    """Looks at traced threads. Its buffers are made once; use it from one thread."""

    def __init__(self) -> None:
        self._info = ctypes.create_string_buffer(128)  # siginfo_t
        self._info_at = ctypes.addressof(self._info)
        self._vector = (ctypes.c_uint64 * 2)()  # struct iovec
        self._vector_at = ctypes.addressof(self._vector)

    def look(self, tid: int) -> Event | None:
        """Whether a thread has stopped or gone; None: not yet. Doesn't wait, doesn't consume the stop."""
        if _waitid(_P_PID, tid, self._info_at, _WNOHANG | _WSTOPPED | _WEXITED | _WNOWAIT | _WALL) != 0:
            return Event(gone=True)  # ECHILD: not ours any more
        # siginfo of SIGCHLD: si_signo, si_errno, si_code, -, si_pid, si_uid, si_status
        code, pid, status = struct.unpack_from("<8xi4xi4xi", self._info)
        if pid == 0:
            return None
        if code in (_CLD_EXITED, _CLD_KILLED, _CLD_DUMPED):
            return Event(gone=True)
        # status is signal | event << 8. With an event it is our own interrupt (SIGTRAP) or a group-stop
        # (SIGSTOP …), which the kernel reinstates by itself on detach (__ptrace_unlink). Without one a
        # signal was on its way to the thread: it has to be given back.
        given_back = 0 if status >> 8 or status & 0x80 else status  # 0x80: a system call (TRACESYSGOOD)
        return Event(gone=False, signal=given_back, status=status)

    def registers(self, tid: int, into: int) -> bool:
        """Write the general registers of a stopped thread, REGISTER_WORDS words, to our address ``into``."""
        self._vector[0], self._vector[1] = into, REGISTER_WORDS * 8
        if _ptrace(_GETREGSET, tid, _NT_PRSTATUS, self._vector_at) != 0:
            return False
        return int(self._vector[1]) == REGISTER_WORDS * 8  # fewer: the thread runs 32-bit code
