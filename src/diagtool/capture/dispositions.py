"""Signal handlers and the alternate signal stack of a process, asked for in its copy-on-write image.

The frozen child has inherited both: all dispositions, and the alternate stack of the thread that made the
clone (that of another thread is known to nobody but itself). Each question is one system call that only
reads, ``rt_sigaction`` or ``sigaltstack`` without a new value, made at the same ``syscall; ret`` as all
others and watched from its begin to its end; what it writes goes to the child's copy of the dead stack below.
The process itself is asked nothing.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress

from diagtool.capture import procfs, seccomp, steer
from diagtool.capture.gadgets import Gadgets
from diagtool.capture.signals import AlternateStack, Disposition, Signals, bits

__all__ = ["ask_image"]

RT_SIGACTION, SIGALTSTACK = 13, 131  # syscall_64.tbl
_ACTION, _STACK = struct.Struct("<4Q"), struct.Struct("<Qi4xQ")  # struct sigaction of the kernel, stack_t
_SIGSET = 8  # bytes
_SIGCHLD = 17  # its flags count also where nobody handles it (SA_NOCLDWAIT)

#: Makes a system call in the child: number and arguments to result.
Caller = Callable[[int, tuple[int, ...]], int]


def ask_image(child: int, tid: int, gadgets: Gadgets, room: int, call: Caller) -> Signals:
    """What the child knows. ``room``: an address below its stack where 32 bytes may be written.

    ``tid``: the thread of the process whose copy the child is. What can't be asked is said in ``why_not``.
    Raises what ``call`` does.
    """
    out = Signals()
    status = procfs.parse_status(procfs.try_read(f"/proc/{child}/status") or b"")
    wanted = _wanted(status)
    calls: list[tuple[int, tuple[int, ...]]] = []
    calls += [(RT_SIGACTION, (number, 0, room, _SIGSET)) for number in wanted]
    calls.append((SIGALTSTACK, (0, room)))
    refusal = _refusal(child, status, gadgets, calls)
    if refusal is not None:
        out.why_not = refusal
        return out
    fd = os.open(f"/proc/{child}/mem", os.O_RDONLY)
    try:
        out.actions = {}
        for number, arguments in calls[:-1]:
            result = call(number, arguments)
            raw = os.pread(fd, _ACTION.size, room) if result == 0 else b""
            if len(raw) == _ACTION.size:
                out.actions[arguments[0]] = Disposition(*_ACTION.unpack(raw))
        if call(*calls[-1]) == 0:
            raw = os.pread(fd, _STACK.size, room)
            if len(raw) == _STACK.size:
                out.stacks[tid] = AlternateStack(*_STACK.unpack(raw))
    finally:
        os.close(fd)
    return out


# Those that are caught; of the rest /proc says all there is.
def _wanted(status: Mapping[str, str]) -> list[int]:
    caught = 0
    with suppress(ValueError):
        caught = int(status.get("SigCgt", "0"), 16)
    return sorted({*bits(caught), _SIGCHLD})


# A filter may end the caller: no call that was not seen to pass.
def _refusal(
    child: int, status: Mapping[str, str], gadgets: Gadgets, calls: Iterable[tuple[int, tuple[int, ...]]]
) -> str | None:
    if status.get("Seccomp", "0") == "0":
        return None
    try:
        filters = steer.seccomp_filters(child)
    except OSError:
        return "it has a seccomp filter, which only root of the host may read"
    if all(seccomp.passes(filters, number, arguments, gadgets.call + 2) for number, arguments in calls):
        return None
    return "seccomp forbids it to ask for its own handlers"
