"""Signals as the kernel knows them: what happens on each, who blocks which, which one ended a process.

Who blocks what is in /proc/PID/task/TID/status (proc(5)) and in NT_PRSTATUS of a kernel's core. The address
of a handler is in no file of /proc and in no core: only a process may ask for its own. So it is asked for in
the copy-on-write image, which has inherited the dispositions (clone.py), where there is one. Structures:
include/uapi/asm-generic/siginfo.h, arch/x86/include/uapi/asm/signal.h (kernel's sigaction, stack_t).
"""

from __future__ import annotations

import signal
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

__all__ = [
    "LAST",
    "AlternateStack",
    "Disposition",
    "Masks",
    "SignalInfo",
    "Signals",
    "bits",
    "name_of",
    "pack",
    "pack_siginfo",
    "parse_siginfo",
    "unpack",
]

LAST = 64  # _NSIG
_FIRST_REAL_TIME = 34  # of glibc, which keeps 32 and 33 for itself (pthread_cancel, setuid in all threads)
_OF_LIBC = {32: "SIGCANCEL", 33: "SIGSETXID"}
_HEAD, _ACTION, _STACK = struct.Struct("<6Q"), struct.Struct("<5Q"), struct.Struct("<4Q")
_MOST_STACKS = 4096
_SIGINFO = 48  # bytes of a siginfo that are looked at
_FAULTS = {4, 5, 7, 8, 11}  # ILL, TRAP, BUS, FPE, SEGV: with an address
_SI_KERNEL = 0x80


@dataclass(frozen=True, slots=True)
class Disposition:
    """struct kernel_sigaction: handler (0: the default, 1: ignored), SA_… flags, what it blocks."""

    handler: int
    flags: int
    restorer: int
    mask: int


@dataclass(frozen=True, slots=True)
class AlternateStack:
    """stack_t of one thread: where, how large in bytes, SS_… flags (2: it has none)."""

    start: int
    flags: int
    size: int


@dataclass(frozen=True, slots=True)
class SignalInfo:
    """What came with a signal (siginfo_t). ``address`` of a fault; ``pid`` and ``uid`` of who sent it."""

    number: int
    code: int
    address: int | None = None
    pid: int | None = None
    uid: int | None = None
    syscall: int | None = None  # that seccomp refused (SIGSYS)


@dataclass(slots=True)
class Masks:
    """Sets of signals as bits, signal 1 the lowest; None where nobody says."""

    caught: int | None = None
    ignored: int | None = None
    pending: int | None = None  # for the process as a whole
    blocked: dict[int, int] = field(default_factory=dict)  # by thread id
    thread_pending: dict[int, int] = field(default_factory=dict)


@dataclass(slots=True)
class Signals:
    """All of one process. ``actions`` by number, as far as asked; None: not known, ``why_not`` says why."""

    masks: Masks = field(default_factory=Masks)
    actions: dict[int, Disposition] | None = None
    stacks: dict[int, AlternateStack] = field(default_factory=dict)  # alternate ones, by thread id
    why_not: str = ""
    info: SignalInfo | None = None


def name_of(number: int) -> str:
    """ "SIGTERM", "SIGRTMIN+3" as glibc counts them, "signal 77" for what is none."""
    if number in _OF_LIBC:
        return _OF_LIBC[number]
    if _FIRST_REAL_TIME <= number <= LAST:
        return f"SIGRTMIN+{number - _FIRST_REAL_TIME}" if number > _FIRST_REAL_TIME else "SIGRTMIN"
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def bits(mask: int | None) -> Iterator[int]:
    """The numbers of the signals in a set."""
    mask = (mask or 0) & (1 << LAST) - 1
    return (number for number in range(1, LAST + 1) if mask >> number - 1 & 1)


def parse_siginfo(raw: bytes) -> SignalInfo | None:
    """siginfo_t as NT_SIGINFO holds it; None where it says nothing (gcore of a process that runs)."""
    if len(raw) < 16:
        return None
    raw = raw[:_SIGINFO].ljust(_SIGINFO, b"\0")
    number, _, code = struct.unpack_from("<3i", raw)
    if not 0 < number <= LAST:
        return None
    if number == signal.SIGSYS and code > 0:
        return SignalInfo(number, code, syscall=struct.unpack_from("<i", raw, 24)[0])
    if number in _FAULTS and code > 0:
        # A general protection fault has no address: the kernel says SI_KERNEL, and 0.
        return SignalInfo(number, code, None if code == _SI_KERNEL else struct.unpack_from("<Q", raw, 16)[0])
    if code <= 0 and code != -2:  # not of a timer
        pid, uid = struct.unpack_from("<iI", raw, 16)
        return SignalInfo(number, code, pid=pid, uid=uid)
    return SignalInfo(number, code)


def pack_siginfo(info: SignalInfo | None) -> bytes:
    """What :func:`parse_siginfo` reads; zeros for None."""
    if info is None:
        return b""
    head = struct.pack("<3i4x", info.number, 0, info.code)
    if info.syscall is not None:
        return head + bytes(8) + struct.pack("<i", info.syscall)
    if info.address is not None:
        return head + struct.pack("<Q", info.address)
    return head + struct.pack("<iI", info.pid or 0, info.uid or 0)


def pack(signals: Signals) -> bytes:
    """What no note of the kernel has, for our own (NT_SIGNALS); the masks of threads are in NT_PRSTATUS.

    Which of caught, ignored, pending and actions are known (bits 0 to 3), these three sets, the numbers of
    actions and of alternate stacks; for each action its signal and the four words of Disposition; for each
    stack the thread as the process numbers it, start, flags, size. All are 64-bit words.
    """
    masks = (signals.masks.caught, signals.masks.ignored, signals.masks.pending)
    known = sum(1 << at for at, mask in enumerate(masks) if mask is not None)
    known |= 8 if signals.actions is not None else 0
    actions = signals.actions or {}
    out = _HEAD.pack(known, *(mask or 0 for mask in masks), len(actions), len(signals.stacks))
    out += b"".join(
        _ACTION.pack(number, a.handler, a.flags, a.restorer, a.mask) for number, a in sorted(actions.items())
    )
    return out + b"".join(
        _STACK.pack(tid, s.start, s.flags & 0xFFFFFFFF, s.size) for tid, s in signals.stacks.items()
    )


def unpack(raw: bytes, into: Signals) -> None:
    """Read what :func:`pack` wrote, as far as it goes."""
    if len(raw) < _HEAD.size:
        return
    known, caught, ignored, pending, actions, stacks = _HEAD.unpack_from(raw)
    into.masks.caught = caught if known & 1 else None
    into.masks.ignored = ignored if known & 2 else None
    into.masks.pending = pending if known & 4 else None
    at = _HEAD.size
    if known & 8:
        into.actions = {}
    for _ in range(min(actions, LAST, (len(raw) - at) // _ACTION.size)):
        number, *words = _ACTION.unpack_from(raw, at)
        if into.actions is not None and 0 < number <= LAST:
            into.actions[number] = Disposition(*words)
        at += _ACTION.size
    for _ in range(min(stacks, _MOST_STACKS, (len(raw) - at) // _STACK.size)):
        tid, start, flags, size = _STACK.unpack_from(raw, at)
        into.stacks[tid] = AlternateStack(start, flags, size)
        at += _STACK.size
