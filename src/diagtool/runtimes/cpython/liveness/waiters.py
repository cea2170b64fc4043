"""The references that waiting stacks hold, and which things only their own waiters reach."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.frames.generators import GENERATOR_KINDS
from diagtool.runtimes.cpython.liveness.exclusive import (
    KnownObjects,
    Relevance,
    StuckCandidates,
    find_exclusive,
    timed_targets,
)
from diagtool.runtimes.cpython.objects.addresssets import contains, distinct
from diagtool.runtimes.cpython.objects.referents import (
    Edges,
    Referents,
    handled_exceptions,
    joined,
    slot_edges,
)
from diagtool.runtimes.cpython.tasks.decode import TaskStacks
from diagtool.runtimes.cpython.tasks.futures import PENDING
from diagtool.runtimes.cpython.threads.decode import ThreadStack
from diagtool.runtimes.cpython.threads.references import thread_edges, thread_objects
from diagtool.snapshot.model import Thing

#: Objects in a frame that mean that a time limit encloses its wait (asyncio.timeout, async_timeout, anyio).
_TIME_LIMITS = ("Timeout", "timeout", "CancelScope")

_0 = np.uint64(0)


def judge_exclusive(ctx: Context, tasks: TaskStacks, threads: list[ThreadStack]) -> NDArray[np.bool_]:
    """Set ``references``, ``from_waiters`` and ``exclusive`` of all things that are waited on.

    Returns which stacks are stuck: the tasks, then the threads.
    """
    waiting = (tasks.tasks.state == PENDING) & (tasks.things != 0)
    waited = np.concatenate(
        [np.where(waiting, tasks.things, _0), np.array([w.thing for w in threads], np.uint64)]
    )
    relevance = Relevance(ctx, distinct(waited[waited != 0]))
    task_edges = _task_edges(ctx, tasks, relevance)
    timed = timed_targets(ctx, np.unique(tasks.tasks.loop), tasks.tasks.address)
    timed |= _in_time_limit(ctx, tasks, task_edges)
    timed |= np.isin(ctx.vectors.kinds(tasks.things), ("TimerHandle", "uvloop.loop.TimerHandle"))
    n = len(tasks.tasks)
    owner, target = thread_edges(ctx, threads)
    edges = joined([task_edges, (owner + n, target)])
    things = np.concatenate(
        [np.where(waiting & ~timed, tasks.things, _0), np.array([w.thing for w in threads], np.uint64)]
    )
    all_timed = np.concatenate([timed, np.array([w.timed for w in threads], np.bool_)])
    owners = np.concatenate([tasks.tasks.address, np.zeros(len(threads), np.uint64)])
    parts = distinct(
        np.concatenate(
            [tasks.tasks.address, *(level.objects for level in tasks.chains.levels), tasks.chains.leaf]
        )
    )
    known = thread_objects(ctx, threads)
    result = find_exclusive(ctx, StuckCandidates(things, edges, all_timed, owners, parts, known))
    rows = {t.address: t for t in ctx.builder.snapshot.things}
    _find_abandoned(ctx, threads, (owner, target), known, rows)
    _count_other_frames(ctx, edges, waited, rows)
    for address, refs, explained, exclusive in zip(
        result.things.tolist(),
        result.references.tolist(),
        result.explained.tolist(),
        result.exclusive.tolist(),
        strict=True,
    ):
        thing = rows.get(address)
        if thing is not None and refs >= 0:
            thing.references, thing.from_waiters, thing.exclusive = refs, explained, exclusive
    ctx.builder.snapshot.target.details["exact"] = ctx.capture.of_one_instant
    return result.stuck


def _find_abandoned(
    ctx: Context, threads: list[ThreadStack], edges: Edges, known: KnownObjects, things: dict[int, Thing]
) -> None:
    """Thing.state["abandoned"]: whether only the threads that wait for it have it, with a time limit.

    They will wake, but nobody else can wake or cancel them: timers that nobody keeps.
    """
    waited = np.array([t.thing if t.time_left is not None else 0 for t in threads], np.uint64)
    if not waited.any():
        return
    no_limits = np.zeros(len(threads), np.bool_)
    nobody = np.zeros(len(threads), np.uint64)
    result = find_exclusive(ctx, StuckCandidates(waited, edges, no_limits, nobody, nobody[:0], known))
    for address, alone in zip(result.things.tolist(), result.exclusive.tolist(), strict=True):
        if address in things:
            things[address].state["abandoned"] = alone


def _count_other_frames(ctx: Context, edges: Edges, waited: U64, things: dict[int, Thing]) -> None:
    """Thing.state["other_frames"]: references from stacks that do not wait on the thing themselves.

    A bound method in a frame counts as its object: that is how ``async with`` keeps a lock.
    """
    owner, target = edges
    methods = np.flatnonzero(ctx.vectors.is_kind(target, "method"))
    bound = ctx.vectors.field(target[methods], "PyMethodObject.im_self")
    owner, target = np.concatenate([owner, owner[methods]]), np.concatenate([target, bound])
    known = distinct(waited[waited != 0])
    elsewhere = contains(known, target) & (waited[owner] != target)
    at, counts = np.unique(target[elsewhere], return_counts=True)
    others = dict(zip(at.tolist(), counts.tolist(), strict=True))
    for address in known.tolist():
        thing = things.get(address)
        if thing is not None:
            thing.state["other_frames"] = others.get(address, 0)


def _task_edges(ctx: Context, tasks: TaskStacks, relevance: Relevance) -> Edges:
    """What tasks hold: slots of all frames of their chains, exceptions that these handle, and the fields of
    the task itself."""
    parts: list[Edges] = []
    for level in tasks.chains.levels:
        c = level.columns
        owner, target = relevance.of_edges(slot_edges(ctx, c.frame, c.locals, c.depth))
        parts.append((level.rows[owner], target))
        native = np.flatnonzero(ctx.vectors.is_kind(level.objects, *GENERATOR_KINDS))
        owner, target = relevance.of_edges(handled_exceptions(ctx, level.objects[native]))
        parts.append((level.rows[native[owner]], target))
    referents = Referents(ctx)
    parts.append(relevance.of_edges(referents.of(tasks.tasks.address)))
    # The iterator of the future at the end of the chain belongs to the stack: step over it.
    rows = np.flatnonzero(ctx.vectors.is_kind(tasks.chains.leaf, "_asyncio.FutureIter"))
    through, future = relevance.of_edges(referents.of(tasks.chains.leaf[rows]))
    parts.append((rows[through], future))
    return joined(parts)


def _in_time_limit(ctx: Context, tasks: TaskStacks, edges: Edges) -> NDArray[np.bool_]:
    """Tasks with a time-limit object in a frame whose loop hides its timers (loops written in C)."""
    out = np.zeros(len(tasks.tasks), np.bool_)
    loops = np.unique(tasks.tasks.loop)
    hidden = loops[ctx.vectors.attribute(loops, "_scheduled") == 0]
    rows = np.isin(tasks.tasks.loop, hidden)
    if rows.any():
        owner, target = edges
        pick = rows[owner]
        limits = np.isin(ctx.vectors.kinds(target[pick]), _TIME_LIMITS)
        out[owner[pick][limits]] = True
    return out
