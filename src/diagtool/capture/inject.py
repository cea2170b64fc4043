"""One system call that a stopped thread of the target makes, and returns from by itself if need be.

The thread is prepared so that whatever happens to us, it comes back to where it was: a signal frame on its
stack (sigframe.py), then one change of its registers, then it runs. As long as we live, it does not come back
that way: it is stopped behind the call and gets its registers and signal mask back, in the very place in the
kernel where it had stopped, so that an interrupted system call is restarted as after any stop, with what is
left of its time, and a signal that came meanwhile interrupts it. The frame is for kill -9.

No single-stepping (who dies in a step leaves TF set, and SIGTRAP kills the target).
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from diagtool.capture import procfs, ptrace, seccomp, sigframe, steer
from diagtool.capture.errors import NoSuchTarget, Refused, TargetError, Unsuitable
from diagtool.capture.gadgets import Gadgets
from diagtool.capture.gosignalstack import go_signal_stack
from diagtool.capture.hold import Hold
from diagtool.capture.memory import PAGE
from diagtool.capture.model import REGISTERS_X86_64
from diagtool.capture.plan import MappingOrder, is_anonymous, is_writable_private

__all__ = ["Call", "Injection", "Place", "find_place"]

CLONE, EXIT_GROUP, WAIT4, RT_SIGRETURN, CLOSE_RANGE = 56, 231, 61, 15, 436  # syscall_64.tbl

_SPARE = 16 << 10  # bytes of stack that must be left below what is written there
_GUARDS = 16 << 20  # bytes below a stack pointer in which a guard is looked for
_PAGE_IS_GUARD = 1 << 58  # Documentation/admin-guide/mm/pagemap.rst: Linux 6.15
_USER_64 = 0x33  # the code segment of 64-bit programs
_SPINS = 200  # looks before the first nap between looks
_NAPS = (50e-6, 500e-6)  # seconds of a nap, from and to: each may take the processor from who is waited for
_PATIENCE = 20.0  # seconds for the call

#: A system call: number and arguments.
Call = tuple[int, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Place:
    """A thread that may be used, and where on its stack."""

    tid: int
    words: tuple[int, ...]  # its registers, in the order of REGISTERS_X86_64
    fp: bytes  # its floating-point state as a frame holds it
    frames: sigframe.FrameLayout


# -- which thread ---------------------------------------------------------------------------------------


def find_place(
    hold: Hold, order: MappingOrder, gadgets: Gadgets, calls: Sequence[Call], last_resort: bool = False
) -> Place:
    """The thread for whom the calls mean least, should we be killed just then. Raises Unsuitable.

    First who waits in a call that is restarted whole, then who runs, then who gets EINTR from any stop
    (epoll_wait). A call with a time limit that only the kernel can go on with (nanosleep, poll, futex) would
    return EINTR from a signal frame: such a thread is taken as a ``last_resort`` only.
    """
    ranked = []
    for tid in hold.stopped:
        words = tuple(hold.registers[hold.rows[tid]].tolist())
        ranked.append((_rank(words, hold.signals.get(tid, 0)), tid == hold.pid, tid, words))
    reasons = []
    for (rank, reason), _, tid, words in sorted(ranked, key=lambda entry: entry[:3]):
        if rank >= (_NEVER if last_resort else _TIMED):
            reasons.append(reason)
            continue
        try:
            return _place(hold.pid, tid, words, order, gadgets, calls)
        except (Refused, OSError) as error:
            reasons.append(str(error))
    counted = sorted(set(reasons), key=lambda reason: -reasons.count(reason))
    raise Unsuitable("; ".join(["no thread will do", *counted[:3]]))


_RESTARTED, _RUNNING, _INTERRUPTED, _TIMED, _NEVER = range(5)


def _rank(words: Sequence[int], sig: int) -> tuple[int, str]:
    registers = dict(zip(REGISTERS_X86_64, words, strict=True))
    if sig:
        return _NEVER, "a signal is on its way to it"
    if registers["cs"] & 0xFFFF != _USER_64:
        return _NEVER, "it runs 32-bit code"
    result = _signed(registers["rax"])
    if registers["orig_rax"] >> 63:
        return _RUNNING, ""
    if result == -516:
        return _TIMED, "it is in a system call with a time limit"
    if result in (-512, -513, -514):
        return _RESTARTED, ""
    return (_INTERRUPTED if result == -4 else _RUNNING), ""


def _place(
    pid: int, tid: int, words: tuple[int, ...], order: MappingOrder, gadgets: Gadgets, calls: Sequence[Call]
) -> Place:
    registers = dict(zip(REGISTERS_X86_64, words, strict=True))
    status = procfs.parse_status(procfs.try_read(f"/proc/{pid}/task/{tid}/status") or b"")
    top = registers["rsp"]
    low = _stack_end(pid, tid, top, registers["fs_base"], order)
    if low is None:
        spare = go_signal_stack(pid, _inner_tid(status, tid), top, registers["fs_base"])
        if spare is None or not _is_anonymous_at(order, *spare):
            raise Refused("it does not run on a stack of its own")
        low, top = spare
    if "shstk" in status.get("x86_Thread_features", ""):
        raise Refused("it has a shadow stack (CET)")
    if status.get("Seccomp", "0") not in ("0", "2"):
        raise Refused("seccomp (strict) forbids it")
    if status.get("Seccomp") == "2":
        _check_filters(tid, gadgets, calls)
    if steer.dispatches_syscalls(tid):
        raise Refused("its system calls go to a handler of its own (syscall user dispatch)")
    if _in_restartable_sequence(pid, tid, registers["rip"]):
        raise Refused("it is in a restartable sequence")
    try:
        fp = sigframe.fp_state(steer.get_xstate(tid))
    except sigframe.Unrestorable as error:
        raise Refused(f"it has {error}") from None
    frames = sigframe.layout_below(top, len(fp))
    if frames.own - _SPARE < low:
        raise Refused("its stack is near its end")
    return Place(tid, words, fp, frames)


def _inner_tid(status: Mapping[str, str], tid: int) -> int:
    numbers = status.get("NSpid", "").split()
    return int(numbers[-1]) if numbers and numbers[-1].isdigit() else tid


def _is_anonymous_at(order: MappingOrder, low: int, high: int) -> bool:
    place = order.holding(low)
    if place is None:
        return False
    mapping = order.mappings[place]
    return high <= mapping.end and is_writable_private(mapping) and is_anonymous(mapping)


def _stack_end(pid: int, tid: int, pointer: int, thread_block: int, order: MappingOrder) -> int | None:
    """The lowest address that is surely stack, for a thread on the stack that its C library gave it.

    Not for one on an alternate signal stack, a coroutine's or a goroutine's stack: what lies below its stack
    pointer may be something else (gosignalstack.py). glibc and musl keep the thread's block (fs) at the top
    of its stack.
    """
    place = order.holding(pointer)
    if place is None:
        return None
    mapping = order.mappings[place]
    if not is_writable_private(mapping) or not is_anonymous(mapping):
        return None
    if mapping.path == "[stack]":
        return mapping.start if tid == pid else None
    if mapping.path == "[heap]" or not pointer < thread_block <= mapping.end:
        return None
    return mapping.start if order.is_stack(place) else _guard_end(pid, mapping.start, pointer)


# glibc 2.42 makes guards within the mapping (MADV_GUARD_INSTALL): only pagemap tells.
def _guard_end(pid: int, start: int, pointer: int) -> int | None:
    first = max(start, pointer - _GUARDS & -PAGE)
    try:
        fd = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY)
        try:
            bits = os.pread(fd, (pointer // PAGE - first // PAGE) * 8, first // PAGE * 8)
        finally:
            os.close(fd)
    except OSError:
        return None
    for number in range(len(bits) // 8 - 1, -1, -1):
        if int.from_bytes(bits[8 * number : 8 * number + 8], "little") & _PAGE_IS_GUARD:
            return first + (number + 1) * PAGE
    return None


def _check_filters(tid: int, gadgets: Gadgets, calls: Sequence[Call]) -> None:
    try:
        filters = steer.seccomp_filters(tid)
    except OSError:
        raise Refused("it has a seccomp filter, which only root of the host may read") from None
    everything = [(number, arguments, gadgets.call + 2) for number, arguments in calls]
    everything.append((RT_SIGRETURN, (), gadgets.restore + 9))
    for number, arguments, instruction in everything:
        if not seccomp.passes(filters, number, arguments, instruction):
            raise Refused(f"seccomp forbids it system call {number}")


# The kernel aborts a restartable sequence that was interrupted (rseq(2)): it must see the thread in it.
def _in_restartable_sequence(pid: int, tid: int, instruction: int) -> bool:
    area = steer.rseq_area(tid)
    if not area:
        return False
    fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    try:
        sequence = int.from_bytes(os.pread(fd, 8, area + 8), "little")  # struct rseq, rseq_cs
        if not sequence:
            return False
        code = os.pread(fd, 24, sequence + 8)  # struct rseq_cs: start_ip, post_commit_offset, abort_ip
        start, length = int.from_bytes(code[:8], "little"), int.from_bytes(code[8:16], "little")
        return start <= instruction < start + length
    finally:
        os.close(fd)


# -- the call -------------------------------------------------------------------------------------------


class Injection:
    """Makes one call in one stopped thread; used from the thread of ours that traces it."""

    def __init__(self, pid: int, place: Place, gadgets: Gadgets, looker: ptrace.Looker) -> None:
        self._pid = pid
        self._place = place
        self._gadgets = gadgets
        self._looker = looker

    def make(self, call: Call, on_child: Callable[[int], None] | None = None) -> int:
        """The result of the call; the thread stands afterwards as it did before.

        ``on_child`` is told of a new process, as our pid namespace numbers it, while the thread stands in the
        call. Raises Refused, NoSuchTarget, TargetError, or OSError; then the thread may not stand, but comes
        back by itself once it is let go.
        """
        tid, words = self._place.tid, self._place.words
        mask = steer.get_mask(tid)
        steer.set_options(tid, steer.TRACESYSGOOD | steer.TRACECLONES)
        self._write(mask)
        number, arguments = call
        changed = dict(zip(REGISTERS_X86_64, words, strict=True))
        changed.update(rip=self._gadgets.call, rax=number, orig_rax=(1 << 64) - 1, rsp=self._place.frames.own)
        names = ("rdi", "rsi", "rdx", "r10", "r8", "r9")
        changed.update(zip(names, [*arguments, *[0] * 6][:6], strict=True))
        # From here on it comes back by itself, and it must run to do so.
        steer.set_registers(tid, list(changed.values()))
        # No handler runs before the frame brings the mask back; and a child is born deaf.
        steer.set_mask(tid, sigframe.ALL_SIGNALS)
        result = self._made(tid, on_child)
        self._to_signal_stop(tid)
        steer.set_mask(tid, mask)  # first: should we be killed now, the frame brings the registers back
        steer.set_registers(tid, words)
        return result

    def _write(self, mask: int) -> None:
        frames, gadgets = self._place.frames, self._gadgets
        own = sigframe.frame(gadgets.restore, sigframe.resumed(self._place.words), mask, frames.fp)
        # What a child does once it runs: it ends. Not one instruction of the program.
        ends = dict.fromkeys(REGISTERS_X86_64, 0)
        segments = dict(zip(REGISTERS_X86_64, self._place.words, strict=True))
        ends.update(rax=EXIT_GROUP, rip=gadgets.call, rsp=frames.child, eflags=0x202)
        ends.update(cs=segments["cs"], ss=segments["ss"])
        child = sigframe.frame(gadgets.restore, ends, sigframe.ALL_SIGNALS, 0)
        fd = os.open(f"/proc/{self._pid}/mem", os.O_RDWR)
        try:
            for address, data in ((frames.fp, self._place.fp), (frames.child, child), (frames.own, own)):
                if os.pwrite(fd, data, address) != len(data):
                    raise Refused("its stack can't be written to")
        except OSError as error:
            raise Refused(f"its stack can't be written to ({error.strerror})") from None
        finally:
            os.close(fd)

    def _made(self, tid: int, on_child: Callable[[int], None] | None) -> int:
        entered = False
        steer.to_syscall(tid)
        while True:
            event = wait_for_stop(self._looker, tid)
            kind = event.status >> 8
            if event.status == steer.SYSCALL_STOP:
                if entered:
                    return _signed(steer.get_registers(tid)[REGISTERS_X86_64.index("rax")])
                entered = True
            elif kind in steer.EVENTS_CLONE:
                if on_child is not None:
                    on_child(steer.event_message(tid))
            elif kind != steer.EVENT_STOP and event.signal != signal.SIGSTOP:
                raise TargetError(f"thread {tid} met signal {event.signal} in an injected system call")
            steer.to_syscall(tid, event.signal)

    # Behind the call, to where a stop for a signal is: there the kernel decides on restarts.
    def _to_signal_stop(self, tid: int) -> None:
        ptrace.interrupt(tid)
        given_back = 0
        while True:
            steer.go_on(tid, given_back)
            event = wait_for_stop(self._looker, tid)
            if event.status >> 8 == steer.EVENT_STOP:
                return
            given_back = event.signal


def wait_for_stop(looker: ptrace.Looker, tid: int, patience: float = _PATIENCE) -> ptrace.Event:
    """The next stop of a thread that runs. Raises NoSuchTarget, or TargetError when it does not come."""
    began = time.monotonic()
    looks = 0
    while (event := looker.look(tid)) is None:
        looks += 1
        if looks < _SPINS:
            os.sched_yield()
        elif time.monotonic() - began > patience:
            raise TargetError(f"thread {tid} did not come back from the kernel in time", "Try again.")
        else:
            time.sleep(min(_NAPS[1], max(_NAPS[0], (time.monotonic() - began) / 40)))
    if event.gone:
        raise NoSuchTarget(f"thread {tid} ended while it was being stopped")
    return event


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word
