"""The copy in the stop: several threads that share the work and run before all else."""

from __future__ import annotations

import os
import threading
from contextlib import suppress

from diagtool.capture import plan, processors
from diagtool.capture.memory import Bytes
from diagtool.capture.vmread import MemoryReader

_COPIERS = 4  # threads that copy, at most
_ALONE = 6 << 20  # bytes that one thread copies quicker than another one wakes up


def hurry() -> bool:
    """Let this thread of ours run before all others: while it waits for a processor, the target stands.

    For root with CAP_SYS_NICE; the thread ends with the stop. On a busy machine it halves the stop. True when
    the scheduler lets no ordinary thread of this machine in before: then one must sleep, not spin.
    """
    processors.use_all()
    try:
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))
        return True
    except OSError:  # no right to, or control groups that have no real-time share
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), -20)
        return False


class Copier:
    """Copies chunks with several threads, which wait ready-made for the stop."""

    def __init__(self, reader: MemoryReader, buffer: Bytes) -> None:
        self.lost: list[tuple[int, int]] = []
        self._reader = reader
        self._base = int(buffer.ctypes.data)
        self._chunks: plan.Chunks | None = None
        self._left = 0  # chunks that nobody has taken yet
        self._undone = 0  # chunks that are not there yet
        self._lock = threading.Lock()
        self._go = threading.Event()
        self._done = threading.Event()
        self._errors: list[OSError] = []
        cores = len(os.sched_getaffinity(0))
        helpers = min(cores, _COPIERS) - 1 if len(buffer) > _ALONE else 0
        self._threads: list[threading.Thread] = []
        with suppress(RuntimeError):  # no more threads may be started here: fewer do
            for _ in range(helpers):
                thread = threading.Thread(target=self._help, name="diagtool-copy", daemon=True)
                thread.start()
                self._threads.append(thread)

    def copy(self, chunks: plan.Chunks, size: int) -> None:
        """Copy all chunks; returns when the last byte is there. Raises OSError."""
        self._chunks = chunks
        self._left = self._undone = len(chunks)
        if size > _ALONE:
            self._go.set()
        self._work()
        if len(chunks):
            self._done.wait()
        if self._errors:
            raise self._errors[0]

    def finish(self) -> None:
        """Let the helpers end, whether they were needed or not."""
        self._go.set()
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def _help(self) -> None:
        hurry()
        self._go.wait()
        self._work()

    def _work(self) -> None:
        chunks = self._chunks
        while chunks is not None:
            with self._lock:
                self._left -= 1
                number = self._left
            if number < 0:
                return
            vectors = chunks.vectors[chunks.first[number] : chunks.first[number + 1]]
            try:
                self.lost.extend(self._reader.read(vectors, self._base + chunks.offset[number]))
            except OSError as error:
                self._errors.append(error)
            with self._lock:
                self._undone -= 1
                if not self._undone:
                    self._done.set()
