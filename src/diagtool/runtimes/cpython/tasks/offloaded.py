"""Work that tasks gave away: to a thread pool (who is at it, or how many come before it), to another loop.

``loop.run_in_executor`` chains two futures: the task awaits an asyncio one, the pool fulfils a concurrent
one, and the first callback of the former knows the latter (asyncio/futures.py, ``_chain_future``, 3.9 to
3.15).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from diagtool.capture.memory import U64, MemoryFault
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.tasks.callbacks import called, closure_variable
from diagtool.runtimes.cpython.tasks.executors import Executors
from diagtool.runtimes.cpython.tasks.futures import all_callbacks, first_callbacks
from diagtool.snapshot.model import Thing

__all__ = ("Offloaded", "chained_sources", "chained_tasks")

_CHAINED = "_chain_future.<locals>._call_check_cancel"
_FULFILS = "_chain_future.<locals>._call_set_state"
_MAX_QUEUED = 1 << 20  # items of one queue

_0 = np.uint64(0)


def chained_sources(ctx: Context, futures: U64) -> U64:
    """Of asyncio futures the concurrent future whose result each will get; 0 where there is none."""
    callbacks = first_callbacks(ctx, futures)
    (chained,) = called(ctx, callbacks, _CHAINED)
    return closure_variable(ctx, np.where(chained, callbacks, _0), "source")


def chained_tasks(ctx: Context, tasks: U64) -> dict[int, int]:
    """Concurrent future -> index of the task that fulfils it (``asyncio.run_coroutine_threadsafe``)."""
    owner, callbacks = all_callbacks(ctx, tasks)
    pick = np.flatnonzero(called(ctx, callbacks, _FULFILS)[0])
    futures = closure_variable(ctx, callbacks[pick], "destination")
    return {f: i for f, i in zip(futures.tolist(), owner[pick].tolist(), strict=True) if f}


class Offloaded:
    """Finds who works for futures of ``run_in_executor``, ``to_thread`` and ``wrap_future``.

    ``tasks`` are addresses of all tasks, ``names`` their names.
    """

    def __init__(self, ctx: Context, executors: Executors, tasks: U64, names: Sequence[str]) -> None:
        self.ctx = ctx
        self.executors = executors
        self.tasks = tasks
        self.names = names

    @cached_property
    def by_future(self) -> dict[int, int]:
        """:func:`chained_tasks`, worked out when somebody asks."""
        return chained_tasks(self.ctx, self.tasks)

    def describe(self, things: Sequence[Thing]) -> list[int]:
        """Complete the things that are futures of offloaded work; returns those that tasks work for.

        ``executor_thread`` is the tid of the worker, None while the work is queued; then ``queued_behind``
        says how many others come before it. ``executor`` and ``executor_prefix`` name the pool. ``task`` is
        the name of the task, of another loop perhaps, that does the work.
        """
        futures = [t for t in things if "callbacks" in t.state]
        if not futures:
            return []
        sources = chained_sources(self.ctx, np.array([t.address for t in futures], np.uint64))
        for thing, source in zip(futures, sources.tolist(), strict=True):
            if source:
                self._describe(thing, source)
        return [t.address for t in futures if "task" in t.state]

    def _describe(self, thing: Thing, source: int) -> None:
        thread = self.executors.running.get(source)
        if thread is not None:
            tid = thread.captured.tid if thread.captured else None
            thing.state["executor_thread"] = tid
            thing.detail = f"executor thread {thread.name or ''} (tid {tid or 'unknown'})"
        elif source in self._queued:
            executor, prefix, before = self._queued[source]
            thing.state.update(
                executor_thread=None, queued_behind=before, executor=executor, executor_prefix=prefix
            )
            others = "1 other" if before == 1 else f"{before:,} others"
            thing.detail = f"queued behind {others} in executor {prefix}"
        elif source in self.by_future:
            name = self.names[self.by_future[source]]
            thing.state.update(task=name)
            thing.detail = f"{thing.state['future']}, work of task {name}"

    @cached_property
    def _queued(self) -> dict[int, tuple[int, str, int]]:
        # concurrent future -> (executor, its prefix, how many come before it)
        out: dict[int, tuple[int, str, int]] = {}
        for row in self.executors.table():
            if row["address"]:
                queue = self.ctx.objects.attribute(row["address"], "_work_queue")
                items = queue_items(self.ctx, queue)
                for before, future in enumerate(self.ctx.vectors.attribute(items, "future").tolist()):
                    if future:
                        out[future] = (row["address"], row["prefix"], before)
        return out


def queue_items(ctx: Context, queue: int) -> U64:
    """Addresses of the items of a ``_queue.SimpleQueue``, the next one first."""
    o, lay = ctx.objects, ctx.runtime.layout
    none = np.zeros(0, np.uint64)
    if o.kind(queue) != "_queue.SimpleQueue":
        return none
    try:
        if "simplequeueobject.lst" in lay:  # to 3.12: a list, of which the first lst_pos items are gone
            gone = o.memory.u64(queue + lay["simplequeueobject.lst_pos"])
            items = o.list_items(o.memory.u64(queue + lay["simplequeueobject.lst"]), _MAX_QUEUED)
            return np.array(items[gone:] if gone <= len(items) else [], np.uint64)
        first, buffer, capacity, count = (
            o.memory.u64(queue + lay[f"simplequeueobject.buf.{name}"])
            for name in ("get_idx", "items", "items_cap", "num_items")
        )
    except MemoryFault:
        return none
    if not 0 < count <= min(capacity, _MAX_QUEUED) or first >= capacity:
        return none
    at = (np.arange(count, dtype=np.uint64) + np.uint64(first)) % np.uint64(capacity)
    return ctx.vectors.words(np.uint64(buffer) + at * np.uint64(8))
