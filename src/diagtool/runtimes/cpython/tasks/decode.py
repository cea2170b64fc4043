"""From tasks to stacks: chain, state, wait, the thing waited on, who awaits whom; and tables about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.frames.generators import CREATED
from diagtool.runtimes.cpython.objects.addresssets import contains, distinct
from diagtool.runtimes.cpython.objects.census import Census, TypeNames
from diagtool.runtimes.cpython.objects.objectcounts import ObjectCounts
from diagtool.runtimes.cpython.objects.pooled import PooledConnections
from diagtool.runtimes.cpython.tasks import callbacks
from diagtool.runtimes.cpython.tasks.awaits import await_edges, describe_children, thread_edges
from diagtool.runtimes.cpython.tasks.callbackpiles import future_rows
from diagtool.runtimes.cpython.tasks.chains import Chains, follow, local_of
from diagtool.runtimes.cpython.tasks.creation import creation_traces
from diagtool.runtimes.cpython.tasks.executors import Executors
from diagtool.runtimes.cpython.tasks.find import TaskColumns, read_tasks, registered_tasks, task_types
from diagtool.runtimes.cpython.tasks.futures import (
    CANCELLED,
    PENDING,
    UNREADABLE,
    future_states,
    may_have_callbacks,
)
from diagtool.runtimes.cpython.tasks.futurethings import names_from
from diagtool.runtimes.cpython.tasks.inplace import made_in_place
from diagtool.runtimes.cpython.tasks.labels import ContextValues
from diagtool.runtimes.cpython.tasks.lockowners import add_owners
from diagtool.runtimes.cpython.tasks.loops import loop_types, note_time, read_loops
from diagtool.runtimes.cpython.tasks.offloaded import Offloaded
from diagtool.runtimes.cpython.tasks.orphans import Orphans, add_orphans, orphan_types
from diagtool.runtimes.cpython.tasks.selves import task_rows
from diagtool.runtimes.cpython.tasks.things import read_things
from diagtool.runtimes.cpython.tasks.timers import time_left_of_tasks, timer_rows
from diagtool.runtimes.cpython.tasks.waits import TaskWait, classify
from diagtool.runtimes.cpython.threads.decode import ThreadStack
from diagtool.runtimes.cpython.threads.interpreters import Interpreter
from diagtool.snapshot.model import KIND, STATE

#: CPython's own types by the name that they have in the module ``types``.
_NATIVE = {
    "coroutine": "CoroutineType",
    "generator": "GeneratorType",
    "async_generator": "AsyncGeneratorType",
}

_MAX_TIMEOUTS = 200_000  # rows of the table of timeouts

_0 = np.uint64(0)


@dataclass(slots=True)
class TaskStacks:
    """Tasks as they went into the builder: row ``first + i`` is task ``i``."""

    first: int
    tasks: TaskColumns
    chains: Chains
    things: U64  # address of the thing each waits on, 0 for none
    waits: list[TaskWait]  # by distinct trace
    wait_of: NDArray[np.intp]  # index into ``waits`` for each task
    waiting: NDArray[np.bool_]  # waits for a future that is not done
    time_left: NDArray[np.float64]  # seconds until a timer ends the wait, NaN where none does
    orphans: Orphans  # coroutines and async generators without a task


@dataclass(slots=True)
class _Sources:
    """What was found in memory: objects by type, and which types are which."""

    census: Census
    registered: U64  # tasks
    tasks: list[int]
    futures: list[int]
    loops: list[int]
    generators: dict[str, list[int]]
    counts: ObjectCounts
    pooled: PooledConnections


def decode_tasks(
    ctx: Context, interpreters: list[Interpreter], threads: Sequence[ThreadStack] = ()
) -> TaskStacks:
    """Decode all tasks, and coroutines that have none, and add them to the builder; ``threads`` are there."""
    note_time(ctx, interpreters)
    sources = _sources(ctx, interpreters)
    tasks = read_tasks(ctx, interpreters, sources.registered, sources.tasks, sources.census)
    chains = follow(ctx, tasks.coroutine)
    loops = read_loops(ctx, interpreters, sources.census, sources.loops, tasks.loop)
    state, waiting = _states(ctx, tasks, chains)
    waits, wait_of, things = _waits(ctx, tasks, chains, waiting)
    executors = Executors(ctx, interpreters)
    task_names = names_from(ctx, tasks.name)
    offloaded = Offloaded(ctx, executors, tasks.address, task_names)
    wait_names, thing_rows = _name_waits(ctx, tasks, chains, waits, wait_of, things, waiting, offloaded)
    trace = chains.trace.copy()
    _running_traces(ctx, interpreters, chains, trace)
    of_tasks, inverse = np.unique(tasks.loop, return_inverse=True)
    tids = np.array([loops.threads.get(int(a), 0) for a in of_tasks] or [0], np.int64)
    first = ctx.builder.add(
        task_names,
        kind=KIND["task"],
        state=state,
        address=tasks.address,
        trace=trace,
        wait=wait_names,
        thing=thing_rows,
        thread=tids[inverse] if len(tasks) else tids[:0],
        loop=tasks.loop,
        created_by=creation_traces(ctx, tasks.source),
    )
    add_owners(
        ctx, ctx.builder.snapshot.things, chains, tasks.address, task_names, things, tasks.state == PENDING
    )
    direct = waiting & (things == tasks.waiter)
    edges = await_edges(ctx, tasks, chains, waiting, direct, ctx.builder.frames_of, offloaded)
    describe_children(ctx.builder.snapshot.things, thing_rows, edges, task_names)
    of_threads = thread_edges(offloaded, first, threads)
    ctx.builder.snapshot.awaits = np.concatenate([of_threads, edges + np.int32(first)])
    waiters = np.where(waiting, tasks.waiter, _0)
    left = time_left_of_tasks(ctx, loops.timers, tasks.address, waiters)
    orphans = add_orphans(ctx, interpreters, sources.census, sources.generators, chains)
    tables = ctx.builder.snapshot.tables
    tables["executors"] = executors.table()
    tables["loops"] = loops.rows
    tables["tasks"] = task_rows(ctx, tasks.address, chains, waiting)
    tables["timers"] = timer_rows(ctx, loops.timers)
    tables["timeouts"] = _timeouts(first, left)
    _add_contexts(ctx, first, tasks)
    _add_counts(ctx, interpreters, sources, tasks, waiters)
    return TaskStacks(first, tasks, chains, things, waits, wait_of, waiting, left, orphans)


def _sources(ctx: Context, interpreters: list[Interpreter]) -> _Sources:
    names = TypeNames(ctx, interpreters)
    ctx.objects.set_native({n: t[0] for n, k in _NATIVE.items() if (t := names.types("types", k))})
    registered = registered_tasks(ctx, names)
    tasks, loops = task_types(ctx, names, registered), loop_types(names)
    futures = [*names.types("_asyncio", "Future"), *names.types("asyncio.futures", "Future", "_PyFuture")]
    generators = orphan_types(ctx, names)
    counts = ObjectCounts(ctx, names)
    pooled = PooledConnections(ctx, names)
    of_generators = (t for group in generators.values() for t in group)
    census = Census(ctx, [*tasks, *futures, *loops, *of_generators, *counts.types, *pooled.types])
    return _Sources(census, registered, tasks, futures, loops, generators, counts, pooled)


def _timeouts(first: int, left: NDArray[np.float64]) -> list[dict[str, Any]]:
    rows = np.flatnonzero(~np.isnan(left))[:_MAX_TIMEOUTS]
    return [
        {"stack": first + row, "left": round(seconds, 3)}
        for row, seconds in zip(rows.tolist(), left[rows].tolist(), strict=True)
    ]


def _add_contexts(ctx: Context, first: int, tasks: TaskColumns) -> None:
    contexts = ContextValues(ctx, tasks.context)
    ctx.builder.snapshot.labels += contexts.labels(first)
    ctx.builder.snapshot.tables["context_values"] = contexts.table()


def _add_counts(
    ctx: Context, interpreters: list[Interpreter], sources: _Sources, tasks: TaskColumns, waiters: U64
) -> None:
    tables, counts, census = ctx.builder.snapshot.tables, sources.counts, sources.census
    tables["object_counts"] = counts.counts(census)
    tables["pooled_connections"] = sources.pooled.table(census)
    tables["transports"] = counts.transports(census, interpreters)
    tables["threading"] = counts.threads(census, interpreters)
    pending = tasks.address[tasks.state == PENDING]
    pending = pending[may_have_callbacks(ctx, pending)]
    futures = census.of(sources.futures, test=lambda found: may_have_callbacks(ctx, found))
    futures = np.concatenate([futures, pending])
    tables["futures"] = future_rows(ctx, futures, waiters[waiters != 0], tasks.address[waiters != 0])


def _states(ctx: Context, tasks: TaskColumns, chains: Chains) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """(state of each task, whether it waits for a future that is not done yet)."""
    pending = tasks.state == PENDING
    state = np.full(len(tasks), STATE["done"], np.uint8)
    state[pending] = STATE["ready"]
    # A task whose future is done already is about to be woken: its wake-up is in the loop's queue.
    waiter = np.full(len(tasks), UNREADABLE, np.int64)
    has_waiter = pending & (tasks.waiter != 0)
    waiter[has_waiter] = future_states(ctx, tasks.waiter[has_waiter])
    waiting = waiter == PENDING
    state[waiting] = STATE["waiting"]
    state[pending & (tasks.waiter == 0) & (chains.state == CREATED)] = STATE["created"]
    # Asked to end, and not there yet: it will see the CancelledError, or saw it and went on waiting.
    state[pending & (tasks.must_cancel | (waiter == CANCELLED) | (tasks.cancels > 0))] = STATE["cancelling"]
    running = pending & chains.running
    state[running] = STATE["running"]
    return state, waiting & ~running


def _waits(
    ctx: Context, tasks: TaskColumns, chains: Chains, waiting: NDArray[np.bool_]
) -> tuple[list[TaskWait], NDArray[np.intp], U64]:
    """(waits by distinct trace, index of each task's, address of the thing each task waits on)."""
    traces, wait_of = np.unique(chains.trace, return_inverse=True)
    waits = [classify(ctx.builder.frames_of(int(t))) for t in traces]
    things = np.where(waiting, tasks.waiter, _0)
    order = np.argsort(wait_of, kind="stable")
    starts = np.searchsorted(wait_of[order], np.arange(len(traces) + 1))
    for i, wait in enumerate(waits):
        if wait.depth < 0 or not wait.local:
            continue
        rows = order[starts[i] : starts[i + 1]]
        rows = rows[waiting[rows]]
        if len(rows):
            found = local_of(ctx, chains, rows, wait.depth, wait.local)
            if wait.local == "fut":  # wait_for takes coroutines as well; those are part of the chain
                found = np.where(future_states(ctx, found) == UNREADABLE, _0, found)
            things[rows] = np.where(found != 0, found, things[rows])
    return waits, wait_of, things


def _name_waits(
    ctx: Context,
    tasks: TaskColumns,
    chains: Chains,
    waits: list[TaskWait],
    wait_of: NDArray[np.intp],
    things: U64,
    waiting: NDArray[np.bool_],
    offloaded: Offloaded,
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """(index of the wait's name, row of the thing) of each task; adds the things to the builder."""
    by_trace = np.array([ctx.builder.wait(w.name) for w in waits] or [0], np.int32)
    names = np.where(waiting, by_trace[wait_of], 0).astype(np.int32)
    bare = np.flatnonzero(waiting & (names == 0))
    if len(bare):
        words, which = callbacks.kinds_of_futures(ctx, tasks.waiter[bare])
        names[bare] = np.array([ctx.builder.wait(word) for word in words], np.int32)[which]
    rows = np.full(len(tasks), -1, np.int32)
    there = np.flatnonzero(things)
    if len(there):
        distinct_things, inverse = np.unique(things[there], return_inverse=True)
        read = read_things(ctx, distinct_things)
        elsewhere = distinct(np.array(offloaded.describe(read), np.uint64))
        names[contains(elsewhere, things) & (things != 0)] = ctx.builder.wait("asyncio.wrap_future")
        inline = there[made_in_place(ctx, chains, waits, wait_of, there)]
        for place in np.unique(np.searchsorted(distinct_things, things[inline])).tolist():
            read[place].state["made_in_place"] = True
        ids = [ctx.builder.thing(t) for t in read]
        rows[there] = np.array(ids, np.int32)[inverse]
    return names, rows


def _running_traces(
    ctx: Context, interpreters: list[Interpreter], chains: Chains, trace: NDArray[np.int32]
) -> None:
    """A running task's inner frames are its thread's: from its own frame inwards."""
    rows = np.flatnonzero(chains.running)
    if not len(rows):
        return
    where = {f.address: (t, i) for n in interpreters for t in n.threads for i, f in enumerate(t.frames)}
    frames = chains.level_of(rows, 0, "frame")
    for row, frame in zip(rows.tolist(), frames.tolist(), strict=True):
        if frame in where:
            thread, index = where[frame]
            inner = [ctx.frame_of(f) for f in reversed(thread.frames[: index + 1])]
            trace[row] = ctx.builder.trace([f for f in inner if f is not None])
