"""Thread pools (concurrent.futures): which worker belongs to which executor, what runs, what is queued.

Read from the workers' own frames (Lib/concurrent/futures/thread.py, 3.9 to 3.15), so executors that nobody
refers to any more are found too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

from diagtool.capture.memory import MemoryFault
from diagtool.runtimes.cpython.context import Context, RawFrame
from diagtool.runtimes.cpython.threads.interpreters import Interpreter, PythonThread

__all__ = ("Executors",)

_FILE = "concurrent/futures/thread.py"
_MAX_WALK = 2000  # frames of one thread that are looked through


class Executors:
    """The thread pools of one process."""

    def __init__(self, ctx: Context, interpreters: Sequence[Interpreter]) -> None:
        self.ctx = ctx
        self._threads = [t for i in interpreters for t in i.threads]

    def worker_frame(self, thread: PythonThread) -> RawFrame | None:
        """The frame of ``_worker`` that makes a thread one of a pool, or None."""
        return self._find(thread, "_worker")

    def _find(self, thread: PythonThread, name: str) -> RawFrame | None:
        return next(self._all(thread, name), None)

    def _all(self, thread: PythonThread, name: str) -> Iterator[RawFrame]:
        return (f for f in thread.frames[-_MAX_WALK:] if self._is(f, name))

    def _is(self, frame: RawFrame, name: str) -> bool:
        code = self.ctx.codes.get(frame.code)
        return code is not None and code.name == name and code.filename.endswith(_FILE)

    @cached_property
    def running(self) -> dict[int, PythonThread]:
        """Address of a concurrent.futures.Future -> the worker that works for it."""
        out: dict[int, PythonThread] = {}
        for thread in self._threads:
            for frame in self._all(thread, "run"):  # of the _WorkItem; 3.14 has a WorkerContext.run as well
                future = self.ctx.objects.attribute(self.ctx.local_of(frame, "self"), "future")
                if future:
                    out[future] = thread
        return out

    def of_frame(self, frame: RawFrame) -> dict[str, Any]:
        """Which executor an idle worker belongs to, for its queue's state; {} for any other frame."""
        if not self._is(frame, "_worker"):
            return {}
        executor = self._executor(frame)
        if not executor:
            return {"executor": None, "executor_alive": False}
        row = self._row(executor)
        return {
            "executor": executor,
            "executor_alive": True,
            "executor_prefix": row["prefix"],
            "executor_shutdown": row["shutdown"],
            "max_workers": row["max_workers"],
        }

    def table(self) -> list[dict[str, Any]]:
        """A row for each executor that has threads, for the snapshot's table "executors".

            {"address": 0x7f…, "prefix": "ThreadPoolExecutor-0", "max_workers": 8, "shutdown": False,
             "alive": True, "threads": [4243, 4244], "busy": 1, "queued": 17}

        ``address`` is that of the executor, 0 when it is gone; ``threads`` are tids.
        """
        rows: dict[int, dict[str, Any]] = {}
        for thread in self._threads:
            frame = self.worker_frame(thread)
            if frame is None:
                continue
            executor = self._executor(frame)
            queue = self.ctx.local_of(frame, "work_queue")
            row = rows.get(queue)
            if row is None:
                row = rows[queue] = {
                    "address": executor,
                    **self._row(executor),
                    "alive": bool(executor),
                    "threads": [],
                    "busy": 0,
                    "queued": simple_queue_size(self.ctx, queue),
                }
            if thread.captured is not None:
                row["threads"].append(thread.captured.tid)
            row["busy"] += self._find(thread, "run") is not None
        return list(rows.values())

    def _executor(self, frame: RawFrame) -> int:
        o, lay = self.ctx.objects, self.ctx.runtime.layout
        reference = self.ctx.local_of(frame, "executor_reference")
        try:
            executor = o.memory.u64(reference + lay["PyWeakReference.wr_object"]) if reference else 0
        except MemoryFault:
            return 0
        return 0 if o.is_none(executor) else executor

    def _row(self, executor: int) -> dict[str, Any]:
        o = self.ctx.objects
        return {
            "prefix": o.text(o.attribute(executor, "_thread_name_prefix")) or "",
            "max_workers": o.integer(o.attribute(executor, "_max_workers")),
            "shutdown": o.truth(o.attribute(executor, "_shutdown")),
        }


def simple_queue_size(ctx: Context, address: int) -> int | None:
    """Items in a ``_queue.SimpleQueue``; None when it is none."""
    o, lay = ctx.objects, ctx.runtime.layout
    if o.kind(address) != "_queue.SimpleQueue":
        return None
    try:
        if "simplequeueobject.buf.num_items" in lay:  # 3.13+
            size = o.memory.u64(address + lay["simplequeueobject.buf.num_items"])
        else:
            items = o.memory.u64(address + lay["simplequeueobject.lst"])
            size = o.size(items) - o.memory.u64(address + lay["simplequeueobject.lst_pos"])
    except MemoryFault:
        return None
    return size if 0 <= size < 1 << 48 else None
