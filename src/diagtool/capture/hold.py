"""Threads of a process held: seized, interrupted, looked at until they stand, and let go again.

Runs in a thread of ours whose end makes the kernel let every thread go: so a thread that could not be
stopped (in uninterruptible sleep, or in vfork) is let go, too.
"""

from __future__ import annotations

import errno
import os
import time

import numpy as np
from numpy.typing import NDArray

from diagtool.capture import ptrace
from diagtool.capture.errors import NoSuchTarget, NotPermitted, TargetError
from diagtool.capture.procfs import parse_stat, task_ids, try_read

PATIENCE = 1.0  # seconds for all threads to stop
PATIENCE_ASLEEP = 0.02  # seconds, when all those that are missing are in uninterruptible sleep

_SPINS = 200  # looks at the threads before the first nap between looks
_NAP = 50e-6
_AGAIN = 20  # looks between two requests to the same thread
_ROUNDS = 1000  # times that the list of threads is read until no new one appears


class Asleep(NotPermitted):
    """No thread stopped in time: all of them sleep in the kernel, which most often is over in a moment."""


class Hold:
    """The threads of one process, as far as they stand."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.seen: set[int] = set()
        self.looker = ptrace.Looker()
        self.pending: list[int] = []  # seized, not seen to stop yet
        self.signals: dict[int, int] = {}  # stopped thread -> signal to give back to it
        self.rows: dict[int, int] = {}  # stopped thread -> row of self.registers
        self.registers: NDArray[np.uint64] = np.ones((64, ptrace.REGISTER_WORDS), dtype=np.uint64)
        self.began = 0.0  # time.perf_counter() of the first interrupt
        self.spins = _SPINS

    @property
    def progress(self) -> tuple[int, int, int]:
        """Changes as long as threads are being stopped."""
        return len(self.seen), len(self.pending), len(self.rows)

    @property
    def stopped(self) -> list[int]:
        """The threads with registers, the main thread first."""
        return sorted(self.rows, key=lambda tid: (tid != self.pid, tid))

    def reap_dead(self) -> None:
        """Take notice of threads that have ended. Not of the first one: its end is its parent's to see."""
        for tid in list(self.seen):
            if tid != self.pid:
                ptrace.reap(tid)

    def hold(self) -> None:
        """Stop every thread, new ones too, as far as they stop in time."""
        seized_at = time.perf_counter()
        self._seize_new()
        self.began = time.perf_counter()
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
            waited = time.perf_counter() - self.began
            if looks < self.spins:
                os.sched_yield()
            elif waited > PATIENCE or (waited > PATIENCE_ASLEEP and self._all_asleep()):
                break
            else:
                time.sleep(_NAP)
                if looks % _AGAIN == 0:
                    self._interrupt()  # a thread that does an exec forgets that it was asked to stop
        if any(self.signals.values()):
            # A thread that stopped for a signal may have stood since it was seized, before the interrupt.
            self.began = seized_at

    def hold_one(self, tid: int, patience: float) -> bool:
        """Stop one thread only; false when it does not stop within so many seconds."""
        error = ptrace.seize(tid)
        if error:
            raise OSError(error, os.strerror(error))
        self.seen.add(tid)
        self.pending.append(tid)
        self.began = time.perf_counter()
        self._interrupt()
        while self._look():
            if time.perf_counter() - self.began > patience:
                return False
            time.sleep(_NAP)
        return tid in self.rows

    def seize(self, tid: int) -> int:
        """Begin to trace a thread; 0 or an errno."""
        return ptrace.seize(tid)

    def _interrupt(self) -> None:
        for tid in self.pending.copy():
            if ptrace.interrupt(tid) == errno.ESRCH:
                # Not traced any more: it is gone, or an exec gave its id to another thread.
                self.pending.remove(tid)
                self.seen.discard(tid)

    def _seize_new(self) -> bool:
        """Seize the threads that were not seen before; true when there was one."""
        fresh = [tid for tid in task_ids(self.pid) if tid not in self.seen]
        for tid in fresh:
            error = self.seize(tid)
            if error == errno.EPERM:  # also said of a thread that is being replaced by an exec
                time.sleep(_NAP)
                error = self.seize(tid)
            self.seen.add(tid)
            if error == 0:
                self.pending.append(tid)
            elif error != errno.ESRCH and not _dead(self.pid, tid):
                raise OSError(error, os.strerror(error))
        return bool(fresh)

    def _look(self) -> bool:
        """Look at the threads that have not stopped yet; false when there is none left."""
        still = []
        for tid in self.pending:
            event = self.looker.look(tid)
            if event is None:
                still.append(tid)
            elif not event.gone:
                self.signals[tid] = event.signal
                row = len(self.rows)
                if row == len(self.registers):
                    self.registers = np.concatenate([self.registers, np.ones_like(self.registers)])
                at = int(self.registers.ctypes.data) + row * ptrace.REGISTER_WORDS * 8
                if self.looker.registers(tid, at):
                    self.rows[tid] = row
        self.pending = still
        return bool(still)

    def _all_asleep(self) -> bool:
        for tid in self.pending:
            stat = parse_stat(try_read(f"/proc/{self.pid}/task/{tid}/stat") or b"")
            if stat is not None and stat.state != "D":
                return False
        return True

    def let_go(self) -> None:
        """Let all threads go, each with the signal that it stopped for."""
        # A thread whose stop was not seen can't be detached: the end of this thread lets it go.
        while self.signals:
            ptrace.detach(*self.signals.popitem())

    def no_thread(self) -> TargetError:
        """Why no thread could be stopped."""
        if not self.pending or all(_dead(self.pid, tid) for tid in task_ids(self.pid)):
            return NoSuchTarget(f"process {self.pid} ended while it was being stopped")
        return Asleep(
            f"no thread of process {self.pid} could be stopped: it sleeps in the kernel",
            "Look at what it waits for (a device, a network file system, a vfork child), and try again.",
        )


def _dead(pid: int, tid: int) -> bool:
    stat = parse_stat(try_read(f"/proc/{pid}/task/{tid}/stat") or b"")
    return stat is None or stat.state in "ZX"
