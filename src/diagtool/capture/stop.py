"""The stop: every thread of a process held for as few milliseconds as it takes to copy what was planned.

The stop runs in a thread of its own. That is what keeps the target safe: Ctrl-C can't cut it in two; when
that thread ends, by whatever error, the kernel lets every traced thread go; and a thread that could not be
stopped (in uninterruptible sleep, or in vfork) can only be let go that way.

What the target can notice: system calls that were interrupted are restarted by the kernel, with what is left
of their time. The exceptions are those of signal(7), "Interruption of system calls and library functions by
stop signals": epoll_wait, semop, sigtimedwait, io_getevents and sockets with SO_RCVTIMEO return EINTR, as
they do under any debugger and after Ctrl-Z.
"""

from __future__ import annotations

import _thread
import errno
import gc
import os
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from diagtool.capture import plan, ptrace
from diagtool.capture.copier import Copier, hurry
from diagtool.capture.errors import NoSuchTarget, NotPermitted, TargetError
from diagtool.capture.memory import Bytes
from diagtool.capture.model import REGISTERS_X86_64, Mapping
from diagtool.capture.procfs import parse_maps, parse_stat, read_descriptor, task_ids, try_read
from diagtool.capture.residency import Residency
from diagtool.capture.vmread import MemoryReader

PATIENCE = 1.0  # seconds for all threads to stop
PATIENCE_ASLEEP = 0.02  # seconds, when all those that are missing are in uninterruptible sleep

_SPINS = 200  # looks at the threads before the first nap between looks
_NAP = 50e-6
_AGAIN = 20  # looks between two requests to the same thread
_LONG = 0.01  # seconds between two looks at whether the stop needs help
_ROUNDS = 1000  # times that the list of threads is read until no new one appears
_SWITCH = 1e-4  # seconds that another thread of ours may keep the interpreter from the stop
_RSP = REGISTERS_X86_64.index("rsp")
_LAST_RESORT = 20.0  # seconds after which the caller is let go without a result


class Asleep(NotPermitted):
    """No thread stopped in time: all of them sleep in the kernel, which most often is over in a moment."""


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
    stop = _Stop(prepared)
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
            f"the kernel did not answer about process {prepared.pid} within {_LAST_RESORT:g} s", "Try again."
        )
    return stop.result


# Begin the stop and wait for its end. Gives what a signal handler raised meanwhile, as Ctrl-C does.
# (Blocking the signals would not do: numpy's threads take them, and Python's handler still runs here.)
def _see_through(stop: _Stop) -> BaseException | None:
    raised: BaseException | None = None
    deadline = time.monotonic() + _LAST_RESORT
    try:
        # Not threading.Thread: an interrupted start() or join() of that leaves one not knowing whether the
        # thread runs (bpo-45274).
        _thread.start_new_thread(stop.run, ())
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


def _attend(stop: _Stop, deadline: float) -> None:
    before = None
    while not stop.ended.wait(_LONG) and time.monotonic() < deadline:
        # An exec in the target waits until its dead threads have been reaped, and the stop waits for the exec
        # (SEIZE for cred_guard_mutex, which no signal interrupts). Seen 2 times in 4,000.
        if stop.progress == before:
            stop.reap_dead()
        before = stop.progress


class _Stop:
    def __init__(self, prepared: Preparation) -> None:
        self.seen: set[int] = set()
        self.result: Stopped | None = None
        self.error: BaseException | None = None
        self.ended = threading.Event()
        self._prepared = prepared
        self._pid = prepared.pid
        self._looker = ptrace.Looker()
        self._pending: list[int] = []  # seized, not seen to stop yet
        self._signals: dict[int, int] = {}  # stopped thread -> signal to give back to it
        self._rows: dict[int, int] = {}  # stopped thread -> row of self._registers
        self._registers: NDArray[np.uint64] = np.ones((64, ptrace.REGISTER_WORDS), dtype=np.uint64)
        self._seized_at = self._began = 0.0
        self._spins = _SPINS

    @property
    def progress(self) -> tuple[int, int, int]:
        """Changes as long as threads are being stopped."""
        return len(self.seen), len(self._pending), len(self._rows)

    def reap_dead(self) -> None:
        """Take notice of threads that have ended. Not of the first one: its end is its parent's to see."""
        for tid in list(self.seen):
            if tid != self._pid:
                ptrace.reap(tid)

    def run(self) -> None:
        """The whole stop; leaves ``result`` or ``error``."""
        try:
            self._spins = 0 if hurry() else _SPINS
            copier = Copier(self._prepared.reader, self._prepared.buffer)
            try:
                self._hold()
                self.result = self._copy(copier)
            finally:
                self._let_go()
                copier.finish()
        except BaseException as error:  # noqa: BLE001 (raised again in the caller's thread)
            self.error = error
        finally:
            self.ended.set()

    def _copy(self, copier: Copier) -> Stopped:
        marks = [("hold", time.perf_counter())]
        at, monotonic = time.time(), time.monotonic()
        if not self._rows:
            raise self._no_thread()
        order = self._order_now()
        tids = sorted(self._rows, key=lambda tid: (tid != self._pid, tid))
        rows = [self._rows[tid] for tid in tids]
        pointers = self._registers[rows, _RSP].tolist()
        prepared = self._prepared
        layout = plan.choose(
            order, prepared.residency, pointers, len(prepared.buffer), prepared.asked, prepared.skipped
        )
        chunks = plan.chunked(layout)
        marks.append(("plan", time.perf_counter()))
        copier.copy(chunks, layout.size)
        marks.append(("copy", time.perf_counter()))
        self._let_go()
        ended = time.perf_counter()
        marks.append(("let go", ended))
        values = self._registers[rows].tolist()
        return Stopped(
            tids=tids,
            registers={tid: tuple(words) for tid, words in zip(tids, values, strict=True)},
            mappings=order.mappings,
            layout=layout,
            lost=plan.joined(copier.lost),
            unstopped=list(self._pending),
            at=at,
            monotonic=monotonic,
            pause_seconds=ended - self._began,
            steps_ms=_steps(self._began, marks),
        )

    # -- threads ----------------------------------------------------------------------------------------

    def _hold(self) -> None:
        """Stop every thread, new ones too, as far as they stop in time."""
        self._seized_at = time.perf_counter()
        self._seize_new()
        self._began = time.perf_counter()
        self._interrupt()
        looks = rounds = 0
        while True:
            if not self._look():
                rounds += 1
                if rounds > _ROUNDS or not self._seize_new():
                    break
                self._interrupt()
                continue
            looks += 1
            waited = time.perf_counter() - self._began
            if looks < self._spins:
                os.sched_yield()
            elif waited > PATIENCE or (waited > PATIENCE_ASLEEP and self._all_asleep()):
                break
            else:
                time.sleep(_NAP)
                if looks % _AGAIN == 0:
                    self._interrupt()  # a thread that does an exec forgets that it was asked to stop
        if any(self._signals.values()):
            # A thread that stopped for a signal may have stood since it was seized, before the interrupt.
            self._began = self._seized_at

    def _interrupt(self) -> None:
        for tid in self._pending.copy():
            if ptrace.interrupt(tid) == errno.ESRCH:
                # Not traced any more: it is gone, or an exec gave its id to another thread.
                self._pending.remove(tid)
                self.seen.discard(tid)

    def _seize_new(self) -> bool:
        """Seize the threads that were not seen before; true when there was one."""
        fresh = [tid for tid in task_ids(self._pid) if tid not in self.seen]
        for tid in fresh:
            error = ptrace.seize(tid)
            if error == errno.EPERM:  # also said of a thread that is being replaced by an exec
                time.sleep(_NAP)
                error = ptrace.seize(tid)
            self.seen.add(tid)
            if error == 0:
                self._pending.append(tid)
            elif error != errno.ESRCH and not _dead(self._pid, tid):
                raise OSError(error, os.strerror(error))
        return bool(fresh)

    def _look(self) -> bool:
        """Look at the threads that have not stopped yet; false when there is none left."""
        still = []
        for tid in self._pending:
            event = self._looker.look(tid)
            if event is None:
                still.append(tid)
            elif not event.gone:
                self._signals[tid] = event.signal
                row = len(self._rows)
                if row == len(self._registers):
                    self._registers = np.concatenate([self._registers, np.ones_like(self._registers)])
                at = int(self._registers.ctypes.data) + row * ptrace.REGISTER_WORDS * 8
                if self._looker.registers(tid, at):
                    self._rows[tid] = row
        self._pending = still
        return bool(still)

    def _all_asleep(self) -> bool:
        for tid in self._pending:
            stat = parse_stat(try_read(f"/proc/{self._pid}/task/{tid}/stat") or b"")
            if stat is not None and stat.state != "D":
                return False
        return True

    def _let_go(self) -> None:
        # A thread whose stop was not seen can't be detached: the end of this thread lets it go.
        while self._signals:
            ptrace.detach(*self._signals.popitem())

    def _no_thread(self) -> TargetError:
        if not self._pending or all(_dead(self._pid, tid) for tid in task_ids(self._pid)):
            return NoSuchTarget(f"process {self._pid} ended while it was being stopped")
        return Asleep(
            f"no thread of process {self._pid} could be stopped: it sleeps in the kernel",
            "Look at what it waits for (a device, a network file system, a vfork child), and try again.",
        )

    def _order_now(self) -> plan.MappingOrder:
        text = read_descriptor(self._prepared.maps_fd)
        if not text:  # the open file is that of an address space that is gone
            raise NoSuchTarget(
                f"process {self._pid} went on with another program (exec) just now", "Try again."
            )
        if text == self._prepared.maps_text:
            return self._prepared.order
        return plan.MappingOrder(parse_maps(text, self._prepared.known_lines))


def _dead(pid: int, tid: int) -> bool:
    stat = parse_stat(try_read(f"/proc/{pid}/task/{tid}/stat") or b"")
    return stat is None or stat.state in "ZX"


def _steps(began: float, marks: list[tuple[str, float]]) -> dict[str, float]:
    out = {}
    for name, at in marks:
        out[name] = (at - began) * 1e3
        began = at
    return out
