"""The stop: every thread of a process held for as few milliseconds as it takes to copy what was planned.

The stop runs in a thread of its own. That is what keeps the target safe: Ctrl-C can't cut it in two; when
that thread ends, by whatever error, the kernel lets every traced thread go; and a thread that could not be
stopped (in uninterruptible sleep, or in vfork) can only be let go that way.

What the target can notice: system calls that were interrupted are restarted by the kernel, with what is left
of their time. The exceptions are those of signal(7), "Interruption of system calls and library functions by
stop signals": epoll_wait, semop, sigtimedwait, io_getevents, io_uring_enter and sockets with SO_RCVTIMEO
return EINTR, as they do under any debugger and after Ctrl-Z.
"""

from __future__ import annotations

import _thread
import gc
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from diagtool.capture import plan
from diagtool.capture.copier import Copier, hurry
from diagtool.capture.errors import NoSuchTarget, TargetError
from diagtool.capture.hold import Hold
from diagtool.capture.memory import Bytes
from diagtool.capture.model import REGISTERS_X86_64, Mapping
from diagtool.capture.procfs import parse_maps, read_descriptor
from diagtool.capture.residency import Residency
from diagtool.capture.vmread import MemoryReader

RSP = REGISTERS_X86_64.index("rsp")

_LONG = 0.01  # seconds between two looks at whether the stop needs help
_SWITCH = 1e-4  # seconds that another thread of ours may keep the interpreter from the stop
_LAST_RESORT = 20.0  # seconds after which the caller is let go without a result


class Keeper(Protocol):
    """Who traces a process for longer than a stop (capture/traced.py): its stops are carried out there."""

    def hold(self, pid: int) -> Hold:
        """For a stop of a process that is traced already."""

    def freeze(self, pid: int) -> None:
        """In a stop of a process: let none of its threads go when it is over."""

    def thaw(self, pid: int) -> None:
        """Let them go that stand for that stop only."""

    def call(self, work: Callable[[], None]) -> None:
        """Have the tracing thread do something; returns at once."""


@dataclass(slots=True)
class Preparation:
    """All that the stop needs, made before it."""

    pid: int
    reader: MemoryReader
    maps_fd: int
    maps_text: bytes
    known_lines: dict[bytes, Mapping]
    order: plan.MappingOrder
    residency: Residency
    buffer: Bytes
    asked: Sequence[tuple[int, int]] = ()
    skipped: Sequence[tuple[int, int]] = ()
    keeper: Keeper | None = None

    def close(self) -> None:
        """Close the files that only the stop needs."""
        os.close(self.maps_fd)
        self.residency.close()


@dataclass(slots=True)
class Stopped:
    """What the stop brought home."""

    tids: list[int]  # those with registers, the main thread first
    registers: dict[int, tuple[int, ...]]  # tid -> words, in the order of REGISTERS_X86_64
    mappings: list[Mapping]
    layout: plan.Layout
    lost: list[tuple[int, int]]  # address ranges of the layout that could not be read
    unstopped: list[int]  # threads that did not stop in time
    at: float  # time.time() in the stop
    monotonic: float  # time.monotonic() in the stop
    pause_seconds: float  # from the first interrupt to the last detach
    steps_ms: dict[str, float] = field(default_factory=dict)


def stop_and_copy(prepared: Preparation) -> Stopped:
    """Stop the process, copy, let it go. The target runs on in every case.

    Ctrl-C in the stop acts right after it. SIGTERM ends diagtool at once, as kill -9 does, and the kernel
    lets the target go. Raises TargetError, or OSError with what the kernel said about tracing or reading.
    """
    return carried_out(_CopyStop(prepared))


def carried_out(stop: Stop) -> Stopped:
    """Run a stop in a thread of its own and see it through. Raises what stop_and_copy() raises."""
    collecting = gc.isenabled()
    gc.disable()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH)
    try:
        interruption = _see_through(stop)
    finally:
        sys.setswitchinterval(interval)
        if collecting:
            gc.enable()
    if interruption is not None:
        raise interruption
    if stop.error is not None:
        raise stop.error
    if stop.result is None:
        raise TargetError(
            f"the kernel did not answer about process {stop.hold.pid} within {_LAST_RESORT:g} s", "Try again."
        )
    return stop.result


# Begin the stop and wait for its end. Gives what a signal handler raised meanwhile, as Ctrl-C does.
# (Blocking the signals would not do: numpy's threads take them, and Python's handler still runs here.)
def _see_through(stop: Stop) -> BaseException | None:
    raised: BaseException | None = None
    deadline = time.monotonic() + _LAST_RESORT
    try:
        # Not threading.Thread: an interrupted start() or join() of that leaves one not knowing whether the
        # thread runs (bpo-45274).
        if stop.prepared.keeper is None:
            _thread.start_new_thread(stop.run, ())
        else:
            stop.prepared.keeper.call(stop.run)
    except KeyboardInterrupt as error:
        raised = error
    except RuntimeError:
        raise TargetError(
            "no thread can be started here",
            "Raise the limit on processes: ulimit -u, or the container's pids limit.",
        ) from None
    while True:
        try:
            _attend(stop, deadline)
            return raised
        except BaseException as error:  # noqa: BLE001 (the caller raises it)
            raised = raised or error


def _attend(stop: Stop, deadline: float) -> None:
    before = None
    while not stop.ended.wait(_LONG) and time.monotonic() < deadline:
        # An exec in the target waits until its dead threads have been reaped, and the stop waits for the exec
        # (SEIZE for cred_guard_mutex, which no signal interrupts). Seen 2 times in 4,000.
        if stop.hold.progress == before:
            stop.hold.reap_dead()
        before = stop.hold.progress


class Stop:
    """One stop, in a thread of its own: hold, take what is to be taken, let go."""

    def __init__(self, prepared: Preparation) -> None:
        self.prepared = prepared
        keeper = prepared.keeper
        self.hold = Hold(prepared.pid) if keeper is None else keeper.hold(prepared.pid)
        self.result: Stopped | None = None
        self.error: BaseException | None = None
        self.ended = threading.Event()

    def run(self) -> None:
        """The whole stop; leaves ``result`` or ``error``."""
        try:
            # A thread that goes on after the stop must not keep what this asks for.
            if self.prepared.keeper is None and hurry():
                self.hold.spins = 0
            self.ready()
            try:
                self.hold.hold()
                self.result = self.take()
            finally:
                self.hold.let_go()
                self.done()
        except BaseException as error:  # noqa: BLE001 (raised again in the caller's thread)
            self.error = error
        finally:
            self.ended.set()

    def ready(self) -> None:
        """Called just before the stop."""

    def take(self) -> Stopped:
        """Called while all threads stand; lets them go as soon as it can."""
        raise NotImplementedError

    def done(self) -> None:
        """Called after the stop, whatever became of it."""

    def order_now(self) -> plan.MappingOrder:
        """The mappings as they are while all threads stand."""
        text = read_descriptor(self.prepared.maps_fd)
        if not text:  # the open file is that of an address space that is gone
            raise NoSuchTarget(
                f"process {self.prepared.pid} went on with another program (exec) just now", "Try again."
            )
        if text == self.prepared.maps_text:
            return self.prepared.order
        return plan.MappingOrder(parse_maps(text, self.prepared.known_lines))


def stop_and_stay(prepared: Preparation) -> Stopped:
    """Stop a process that a keeper traces, and have it stand: nothing is copied.

    ``prepared.keeper.thaw()`` ends that, to be called in the tracing thread. Raises as stop_and_copy() does.
    """
    return carried_out(_StandingStop(prepared))


class _StandingStop(Stop):
    """The process stands as long as somebody reads it."""

    def take(self) -> Stopped:
        at, monotonic = time.time(), time.monotonic()
        hold, prepared = self.hold, self.prepared
        assert prepared.keeper is not None
        tids = hold.stopped
        if not tids:
            raise hold.no_thread()
        order = self.order_now()
        prepared.keeper.freeze(prepared.pid)
        values = hold.registers[[hold.rows[tid] for tid in tids]].tolist()
        return Stopped(
            tids=tids,
            registers={tid: tuple(words) for tid, words in zip(tids, values, strict=True)},
            mappings=order.mappings,
            layout=plan.nothing(),
            lost=[],
            unstopped=list(hold.pending),
            at=at,
            monotonic=monotonic,
            pause_seconds=time.perf_counter() - hold.began,
        )


class _CopyStop(Stop):
    """What is needed is copied while all threads stand."""

    def ready(self) -> None:
        self._copier = Copier(self.prepared.reader, self.prepared.buffer)

    def done(self) -> None:
        self._copier.finish()

    def take(self) -> Stopped:
        marks = [("hold", time.perf_counter())]
        at, monotonic = time.time(), time.monotonic()
        hold, prepared = self.hold, self.prepared
        tids = hold.stopped
        if not tids:
            raise hold.no_thread()
        order = self.order_now()
        rows = [hold.rows[tid] for tid in tids]
        pointers = hold.registers[rows, RSP].tolist()
        layout = plan.choose(
            order, prepared.residency, pointers, len(prepared.buffer), prepared.asked, prepared.skipped
        )
        chunks = plan.chunked(layout)
        marks.append(("plan", time.perf_counter()))
        self._copier.copy(chunks, layout.size)
        marks.append(("copy", time.perf_counter()))
        hold.let_go()
        ended = time.perf_counter()
        marks.append(("let go", ended))
        values = hold.registers[rows].tolist()
        return Stopped(
            tids=tids,
            registers={tid: tuple(words) for tid, words in zip(tids, values, strict=True)},
            mappings=order.mappings,
            layout=layout,
            lost=plan.joined(self._copier.lost),
            unstopped=list(hold.pending),
            at=at,
            monotonic=monotonic,
            pause_seconds=ended - hold.began,
            steps_ms=steps(hold.began, marks),
        )


def steps(began: float, marks: list[tuple[str, float]]) -> dict[str, float]:
    """Milliseconds of each part of a stop, from the times at which each ended."""
    out = {}
    for name, at in marks:
        out[name] = (at - began) * 1e3
        began = at
    return out
