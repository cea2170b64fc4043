"""Threads that are alive: of ``threading``, started below it, and those that only the kernel knows.

The kernel's list (``/proc/self/task``) is the truth; ``threading`` gives names, where they were started, and
``sys._current_frames()`` where they wait.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Collection, Hashable
from types import FrameType

from diagtool.probes import ignore
from diagtool.probes.left import Left
from diagtool.probes.origins import Notes, origin_of_thread
from diagtool.probes.proc import Folder
from diagtool.probes.sites import by_import, frames, spelled


class Threads:
    """See :class:`diagtool.probes.left.Probe`. Keys are thread ids of the kernel."""

    def __init__(self, notes: Notes) -> None:
        self._notes = notes
        self.folder = Folder("/proc/self/task")
        self._known: set[int] = set()
        self._started = self._links = self._libraries = 0

    def changed(self) -> bool:
        """Threads were started, or there are more or fewer than there were."""
        # The number of links of the folder is that of threads, and two (fs/proc/base.c).
        return self._notes.threads != self._started or self.folder.links() != self._links

    def adopt(self, pending: Collection[Hashable] = (), same: bool = False) -> None:
        """See Probe."""
        self._started, self._links = self._notes.threads, self.folder.links()
        self._libraries = self._notes.libraries
        if not same or self._links != len(self._known) + 2:
            self._known = self._tids()

    def new(self) -> list[int]:
        """See Probe."""
        return sorted(self._tids() - self._known)

    def describe(self, key: Hashable) -> Left | None:
        """See Probe."""
        assert isinstance(key, int)
        thread = next((t for t in threading.enumerate() if t.native_id == key), None)
        if thread is not None and not isinstance(thread, threading._DummyThread):
            return _python_thread(thread, key)
        try:
            with open(f"/proc/self/task/{key}/comm") as file:
                name = file.read().strip()
        except OSError:
            return None
        frame = _frames_by_tid().get(key)
        if frame is not None and thread is None:
            waiting = frames(frame)
            return Left("threads", key, f'thread "{name}"', "started by _thread", (), waiting, native_id=key)
        left = Left("native-threads", key, f'native thread "{name}"', native_id=key)
        if self._notes.libraries != self._libraries:
            left.ignored = "started with a library"
        return left

    def _tids(self) -> set[int]:
        return {int(name) for name in self.folder.names()}

    def close(self) -> None:
        """Give the folder back."""
        self.folder.close()


def _python_thread(thread: threading.Thread, key: int) -> Left | None:
    if not thread.is_alive():
        return None
    frame = sys._current_frames().get(thread.ident or 0)
    origin = origin_of_thread(thread)
    target = getattr(thread, "_target", None)
    detail = "daemon" if thread.daemon else "not a daemon: the interpreter waits for it when it ends"
    left = Left(
        "threads",
        key,
        f'thread "{thread.name}"',
        detail,
        spelled(origin),
        frames(frame),
        native_id=key,
        label=thread.name,
    )
    if by_import(origin):
        left.ignored = "started by an import"
    else:
        left.ignored = ignore.thread(thread, target, left.waiting)
    return left


# Threads by tid with their Python frames. What Python calls the ident of a thread is its pthread_t, with
# glibc the address of a struct in which the tid is; where, is found with the thread that asks.
# It is read as a file is: a thread that ends meanwhile gives an error and no fault.
def _frames_by_tid() -> dict[int, FrameType]:
    every = sys._current_frames()
    known = {t.ident: t.native_id for t in threading.enumerate() if t.ident and t.native_id}
    unknown = [ident for ident in every if ident not in known]
    if not unknown:
        return {}
    out = {}
    try:
        memory = os.open("/proc/self/mem", os.O_RDONLY)
    except OSError:
        return {}
    try:
        offset = _tid_offset(memory)
        for ident in unknown if offset is not None else ():
            tid = int.from_bytes(os.pread(memory, 4, ident + (offset or 0)), sys.byteorder)
            if tid and os.path.exists(f"/proc/self/task/{tid}"):
                out[tid] = every[ident]
    except (OSError, OverflowError):
        pass
    finally:
        os.close(memory)
    return out


# struct pthread has more than 1 KiB; the tid stands at 720 on x86-64 (glibc 2.3 to 2.42, nptl/descr.h).
def _tid_offset(memory: int) -> int | None:
    tid = threading.get_native_id().to_bytes(4, sys.byteorder)
    mine = os.pread(memory, 1024, threading.get_ident())
    return next((i for i in range(0, len(mine), 4) if mine[i : i + 4] == tid), None)
