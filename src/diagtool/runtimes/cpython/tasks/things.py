"""The things that are waited on: queues, locks, futures, timers, streams …, thousands at a time.

For each kind of thing a reader gives its state by field names (snapshot.model.Thing.state) and a few words.
Attributes are gathered for all things of a kind at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diagtool.capture.memory import U64
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.tasks.futurethings import read_futures, read_gathers, read_tasks_as_things
from diagtool.runtimes.cpython.tasks.iothings import (
    read_processes,
    read_servers,
    read_sockets,
    read_streams,
)
from diagtool.runtimes.cpython.tasks.timers import timer_things
from diagtool.snapshot.model import Thing

State = dict[str, Any]
Reader = Callable[[Context, U64], tuple[list[State], list[str]]]


def read_things(ctx: Context, addresses: U64) -> list[Thing]:
    """A Thing for each address (none of them 0); unknown types get their name only."""
    out: list[Thing | None] = [None] * len(addresses)
    for t, rows in ctx.vectors.by_type(addresses):
        group = addresses[rows]
        reader, name = _reader_of(ctx, t, int(group[0]))
        states, details = reader(ctx, group)
        references = ctx.vectors.references(group).tolist()
        for row, address, state, detail, refs in zip(
            rows.tolist(), group.tolist(), states, details, references, strict=True
        ):
            out[row] = Thing(address, name, detail, state, refs if refs >= 0 else None)
    return [t or Thing(a, "unreadable") for a, t in zip(addresses.tolist(), out, strict=True)]


def _reader_of(ctx: Context, type_address: int, sample: int) -> tuple[Reader, str]:
    name = ctx.objects.qualified_kind(sample) or "unreadable"
    for base in ctx.objects.mro(type_address) if type_address else []:
        reader = _READERS.get(ctx.objects.qualified_type(base))
        if reader is not None:
            return reader, name
    return _unknown, name


def _unknown(ctx: Context, things: U64) -> tuple[list[State], list[str]]:
    return [{} for _ in things], [""] * len(things)


def _number(ctx: Context, things: U64, name: str) -> list[int]:
    values: list[int] = ctx.vectors.integers(ctx.vectors.attribute(things, name)).tolist()
    return values


def _length(ctx: Context, things: U64, name: str) -> list[int]:
    values: list[int] = ctx.vectors.sizes(ctx.vectors.attribute(things, name)).tolist()
    return values


def _plural(n: int, word: str) -> str:
    return f"{n:,} {word}" + ("" if n == 1 else "s")


def _queue(ctx: Context, things: U64) -> tuple[list[State], list[str]]:
    columns = zip(
        _length(ctx, things, "_queue"),
        _number(ctx, things, "_maxsize"),
        _length(ctx, things, "_getters"),
        _length(ctx, things, "_putters"),
        _number(ctx, things, "_unfinished_tasks"),
        strict=True,
    )
    states, details = [], []
    for size, maxsize, getters, putters, unfinished in columns:
        states.append(
            {
                "size": size,
                "maxsize": max(maxsize, 0),
                "getters": getters,
                "putters": putters,
                "waiters": max(getters, 0) + max(putters, 0),
                "unfinished": unfinished,
            }
        )
        words = [
            "empty"
            if size == 0
            else f"full, {size:,} items"
            if 0 < maxsize <= size
            else _plural(size, "item")
        ]
        if getters > 0:
            words.append(_plural(getters, "getter"))
        if putters > 0:
            words.append(_plural(putters, "putter"))
        if unfinished > 0:
            words.append(f"{unfinished:,} unfinished")
        details.append(", ".join(words))
    return states, details


def _lock(ctx: Context, things: U64) -> tuple[list[State], list[str]]:
    states, details = [], []
    for locked, waiters in zip(
        _number(ctx, things, "_locked"), _length(ctx, things, "_waiters"), strict=True
    ):
        states.append({"locked": bool(locked > 0), "waiters": max(waiters, 0)})
        details.append(f"{'locked' if locked > 0 else 'not locked'}, {_plural(max(waiters, 0), 'waiter')}")
    return states, details


def _semaphore(ctx: Context, things: U64) -> tuple[list[State], list[str]]:
    states, details = [], []
    bounds = ctx.vectors.integers(ctx.vectors.attribute(things, "_bound_value")).tolist()
    for value, waiters, bound in zip(
        _number(ctx, things, "_value"), _length(ctx, things, "_waiters"), bounds, strict=True
    ):
        state: State = {"value": value, "waiters": max(waiters, 0)}
        if bound >= 0:
            state["bound"] = bound
        states.append(state)
        details.append(f"{value:,} permits left, {_plural(max(waiters, 0), 'waiter')}")
    return states, details


def _event(ctx: Context, things: U64) -> tuple[list[State], list[str]]:
    states, details = [], []
    for value, waiters in zip(_number(ctx, things, "_value"), _length(ctx, things, "_waiters"), strict=True):
        states.append({"set": value > 0, "waiters": max(waiters, 0)})
        details.append(f"{'set' if value > 0 else 'not set'}, {_plural(max(waiters, 0), 'waiter')}")
    return states, details


def _condition(ctx: Context, things: U64) -> tuple[list[State], list[str]]:
    locked = ctx.vectors.integers(
        ctx.vectors.attribute(ctx.vectors.attribute(things, "_lock"), "_locked")
    ).tolist()
    states: list[State] = []
    details = []
    for waiters, taken in zip(_length(ctx, things, "_waiters"), locked, strict=True):
        states.append({"waiters": max(waiters, 0)} | ({"locked": bool(taken)} if taken >= 0 else {}))
        details.append(_plural(max(waiters, 0), "waiter") + (", lock taken" if taken > 0 else ""))
    return states, details


def _barrier(ctx: Context, things: U64) -> tuple[list[State], list[str]]:
    states, details = [], []
    for count, parties in zip(_number(ctx, things, "_count"), _number(ctx, things, "_parties"), strict=True):
        states.append({"count": count, "parties": parties, "waiters": max(count, 0)})
        details.append(f"{count:,} of {_plural(parties, 'party').replace('partys', 'parties')} arrived")
    return states, details


def _task_group(ctx: Context, things: U64) -> tuple[list[State], list[str]]:
    children = [max(n, 0) for n in _length(ctx, things, "_tasks")]
    return [{"children": n} for n in children], [f"{_plural(n, 'unfinished task')}" for n in children]


_READERS: dict[str, Reader] = {
    "asyncio.queues.Queue": _queue,
    "asyncio.locks.Lock": _lock,
    "asyncio.locks.Semaphore": _semaphore,
    "asyncio.locks.Event": _event,
    "asyncio.locks.Condition": _condition,
    "asyncio.locks.Barrier": _barrier,
    "asyncio.taskgroups.TaskGroup": _task_group,
    "asyncio.events.TimerHandle": timer_things,
    "uvloop.loop.TimerHandle": timer_things,
    "asyncio.tasks._GatheringFuture": read_gathers,
    "asyncio.tasks.Task": read_tasks_as_things,
    "_asyncio.Task": read_tasks_as_things,
    "asyncio.futures.Future": read_futures,
    "_asyncio.Future": read_futures,
    "asyncio.streams.StreamReader": read_streams,
    "asyncio.streams.StreamWriter": read_streams,
    "asyncio.streams.StreamReaderProtocol": read_streams,
    "asyncio.base_events.Server": read_servers,
    "asyncio.subprocess.Process": read_processes,
    "_socket.socket": read_sockets,
}
