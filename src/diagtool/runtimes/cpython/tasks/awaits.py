"""Who awaits whom: from each waiting task to the tasks whose end it waits for.

A task that awaits another one says so itself. Where something of asyncio stands in between (gather, wait,
TaskGroup, shield, wait_for before 3.12, as_completed), the children are found in the library's frame or in
the future that it made. Children that are done are left out: nobody waits for them any more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.objects.referents import Edges, Referents, joined, no_edges
from diagtool.runtimes.cpython.tasks.callbacks import called, closure_variable
from diagtool.runtimes.cpython.tasks.chains import Chains, local_of
from diagtool.runtimes.cpython.tasks.find import TaskColumns
from diagtool.runtimes.cpython.tasks.futures import PENDING, all_callbacks, first_callbacks
from diagtool.runtimes.cpython.tasks.offloaded import Offloaded
from diagtool.runtimes.cpython.tasks.waits import module_of
from diagtool.runtimes.cpython.threads.decode import ThreadStack
from diagtool.snapshot.model import Frame, Thing

__all__ = ("await_edges", "describe_children", "thread_edges")

_MAX_NESTING = 16  # gathers of gathers, shields of shields
_MAX_EDGES = 1 << 22
_CONTAINERS = ("list", "tuple", "set", "frozenset", "dict")

#: (module, function) of library frames whose local leads to what they wait for: the local's name, and the
#: attribute of it that holds the children. Lib/asyncio/tasks.py and taskgroups.py of 3.9 to 3.15.
_FRAMES: dict[tuple[str, str], tuple[str, str]] = {
    ("asyncio.taskgroups", "TaskGroup.__aexit__"): ("self", "_tasks"),
    ("asyncio.taskgroups", "TaskGroup._aexit"): ("self", "_tasks"),
    ("asyncio.tasks", "_wait"): ("fs", ""),
    ("asyncio.tasks", "wait_for"): ("fut", ""),
    ("asyncio.tasks", "_cancel_and_wait"): ("fut", ""),
    ("asyncio.tasks", "_AsCompletedIterator._wait_for_one"): ("self", "_todo"),
}

#: as_completed before 3.13: its children know the queue that they will be put into, the frame does too.
_AS_COMPLETED = ("asyncio.tasks", "as_completed.<locals>._wait_for_one")
_ON_COMPLETION = "as_completed.<locals>._on_completion"

_PLAIN = ("_asyncio.Future", "Future")
_SHIELD = "shield.<locals>._outer_done_callback"
_CONCURRENT = "concurrent.futures._base.Future"
_CHAINED = "_chain_future.<locals>._call_check_cancel"

_0 = np.uint64(0)


def await_edges(
    ctx: Context,
    tasks: TaskColumns,
    chains: Chains,
    waiting: NDArray[np.bool_],
    direct: NDArray[np.bool_],
    frames_of: Callable[[int], list[Frame]],
    offloaded: Offloaded,
) -> NDArray[np.int32]:
    """Rows (index of the awaiting task, index of the awaited task), sorted, each pair once.

    ``waiting`` says which tasks wait, ``direct`` which of them for a future of the program rather than one
    inside of a queue, lock, timer …; ``frames_of`` gives the frames of a trace, innermost first.
    """
    plain = np.isin(ctx.vectors.kinds(np.where(waiting, tasks.waiter, _0)), _PLAIN)
    rows = np.flatnonzero(waiting & (direct | ~plain))
    parts: list[Edges] = [(rows, tasks.waiter[rows])]
    parts += _from_frames(ctx, tasks, chains, waiting, frames_of)
    owner, target = _through(ctx, tasks, *joined(parts), offloaded)
    at = np.minimum(np.searchsorted(tasks.address, target), max(len(tasks) - 1, 0))
    hit = tasks.address[at] == target if len(tasks) else np.zeros(0, np.bool_)
    hit &= tasks.state[at] == PENDING if len(tasks) else hit
    owner, at = owner[hit], at[hit]
    keep = owner != at
    pairs = np.unique(owner[keep].astype(np.int64) << 32 | at[keep])
    return np.stack([pairs >> 32, pairs & 0xFFFFFFFF], axis=1).astype(np.int32)


def describe_children(
    things: Sequence[Thing], thing_of: NDArray[np.int32], edges: NDArray[np.int32], names: Sequence[str]
) -> None:
    """Say of bare futures that stand for other tasks (asyncio.wait, shield) how many these are, or who.

    ``thing_of`` is the row in ``things`` of what each task waits on, ``edges`` are those of await_edges.
    """
    rows, first, counts = np.unique(edges[:, 0], return_index=True, return_counts=True)
    for row, at, count in zip(rows.tolist(), first.tolist(), counts.tolist(), strict=True):
        thing = things[thing_of[row]] if thing_of[row] >= 0 else None
        if thing is None or "callbacks" not in thing.state or "task" in thing.state:
            continue
        thing.state["children"] = count
        word = f"task {names[int(edges[at, 1])]}" if count == 1 else f"{count:,} tasks"
        thing.detail = f"{thing.state['future']}, stands for {word}"


def thread_edges(offloaded: Offloaded, first: int, threads: Iterable[ThreadStack]) -> NDArray[np.int32]:
    """Rows (stack of a thread, stack of the task whose result it waits for): run_coroutine_threadsafe().

    ``first`` is the stack of the first task.
    """
    kind = offloaded.ctx.objects.qualified_kind
    waiting = [(t.row, t.thing) for t in threads if t.thing and kind(t.thing) == _CONCURRENT]
    found = [(row, first + offloaded.by_future[f]) for row, f in waiting if f in offloaded.by_future]
    return np.array(found, np.int32).reshape(-1, 2)


def _from_frames(
    ctx: Context,
    tasks: TaskColumns,
    chains: Chains,
    waiting: NDArray[np.bool_],
    frames_of: Callable[[int], list[Frame]],
) -> list[Edges]:
    parts: list[Edges] = []
    queues: list[Edges] = []
    traces, inverse = np.unique(chains.trace, return_inverse=True)
    by_trace: list[tuple[int, int, tuple[str, str]]] = []  # (index of the trace, depth, what)
    for i, trace in enumerate(traces.tolist()):
        frames = frames_of(trace)
        for at, frame in enumerate(frames):
            module = module_of(frame)
            if not module.startswith("asyncio"):
                break
            key = (module, frame.function)
            if key in _FRAMES or key == _AS_COMPLETED:
                by_trace.append((i, len(frames) - 1 - at, key))
    if not by_trace:
        return parts
    order = np.argsort(inverse, kind="stable")
    starts = np.searchsorted(inverse[order], np.arange(len(traces) + 1))
    for i, depth, key in by_trace:
        rows = order[starts[i] : starts[i + 1]]
        rows = np.sort(rows[waiting[rows]])
        if not len(rows):
            continue
        local, attribute = _FRAMES.get(key, ("done", ""))
        found = local_of(ctx, chains, rows, depth, local)
        if attribute:
            found = ctx.vectors.attribute(found, attribute)
        (queues if key == _AS_COMPLETED else parts).append((rows, found))
    if queues:
        parts.append(_as_completed(ctx, tasks, joined(queues)))
    return parts


def _as_completed(ctx: Context, tasks: TaskColumns, queues: Edges) -> Edges:
    """Children of as_completed before 3.13: tasks that will put themselves into the queue of the frame."""
    children = np.flatnonzero(tasks.state == PENDING)
    owner, callbacks = all_callbacks(ctx, tasks.address[children])
    (pick,) = called(ctx, callbacks, _ON_COMPLETION)
    child = tasks.address[children[owner[pick]]]
    done = closure_variable(ctx, callbacks[pick], "done")
    rows, wanted = queues
    parts: list[Edges] = []
    for queue in np.unique(wanted[wanted != 0]).tolist():
        of_queue = child[done == queue]
        for row in rows[wanted == queue].tolist():
            parts.append((np.full(len(of_queue), row), of_queue))
    return joined(parts)


def _through(
    ctx: Context, tasks: TaskColumns, owner: NDArray[np.intp], target: U64, offloaded: Offloaded
) -> Edges:
    """Replace containers by their items, gathers by their children, shields by what they shield."""
    referents = Referents(ctx)
    found: list[Edges] = []
    seen = np.zeros(0, np.uint64)
    for _ in range(_MAX_NESTING):
        if not len(target):
            break
        at = np.minimum(np.searchsorted(tasks.address, target), max(len(tasks) - 1, 0))
        is_task = tasks.address[at] == target if len(tasks) else np.zeros(len(target), np.bool_)
        found.append((owner[is_task], target[is_task]))
        owner, target = owner[~is_task], target[~is_task]
        fresh = ~np.isin(target, seen)  # nested futures that lead back to themselves end here
        owner, target = owner[fresh], target[fresh]
        distinct, inverse = np.unique(target, return_inverse=True)
        seen = np.union1d(seen, distinct)
        source, inner = joined([_items(ctx, referents, distinct), _children(ctx, distinct, offloaded)])
        owner, target = _compose(owner, inverse, source, inner)
        if len(target) > _MAX_EDGES:
            ctx.warn(f"who awaits whom was cut at {_MAX_EDGES:,} pairs")
            owner, target = owner[:_MAX_EDGES], target[:_MAX_EDGES]
    return joined(found)


def _compose(owner: NDArray[np.intp], via: NDArray[np.intp], source: NDArray[np.intp], inner: U64) -> Edges:
    """Edges owner -> via and source -> inner, joined where via == source."""
    order = np.argsort(source, kind="stable")
    source, inner = source[order], inner[order]
    first = np.searchsorted(source, via, side="left")
    counts = np.searchsorted(source, via, side="right") - first
    total = int(counts.sum())
    if not total:
        return no_edges()
    out = np.repeat(owner, counts)
    begin = np.repeat(np.cumsum(counts) - counts, counts)
    return out, inner[np.repeat(first, counts) + np.arange(total) - begin]


def _items(ctx: Context, referents: Referents, objects: U64) -> Edges:
    rows = np.flatnonzero(ctx.vectors.are(objects, *_CONTAINERS))
    source, target = referents.of(objects[rows])
    return rows[source], target


def _children(ctx: Context, futures: U64, offloaded: Offloaded) -> Edges:
    """The children of gathers (a list), what shields stand before, tasks that work for another loop."""
    children = ctx.vectors.attribute(futures, "_children")
    rows = np.arange(len(futures))
    plain = np.flatnonzero(children == 0)
    callbacks = first_callbacks(ctx, futures[plain])
    shields, chained = called(ctx, callbacks, _SHIELD, _CHAINED)
    inner = closure_variable(ctx, callbacks[shields], "inner")
    sources = closure_variable(ctx, callbacks[chained], "source").tolist()
    known = [offloaded.by_future.get(s, -1) for s in sources]
    elsewhere = np.array([offloaded.tasks[i] if i >= 0 else 0 for i in known], np.uint64)
    return joined([(rows, children), (plain[shields], inner), (plain[chained], elsewhere)])
