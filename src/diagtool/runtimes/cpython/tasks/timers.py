"""Timers of event loops: what is due when, which tasks they lead to, how many of a kind there are.

``loop.call_later`` keeps TimerHandle objects in a heap of the loop (asyncio) or in a set (uvloop). Whoever
waits with a time limit has one: the timer's callback is a method of an object that knows the task
(asyncio.timeout, async_timeout, anyio), or it gets a future that the task waits for (asyncio.sleep, wait,
wait_for before 3.12).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.objects.referents import Edges, Referents
from diagtool.runtimes.cpython.tasks.callbacks import callback_names
from diagtool.runtimes.cpython.tasks.labels import ContextValues
from diagtool.runtimes.cpython.tasks.uvloops import TIMER_KIND, read_timers

__all__ = ("Timers", "read_handles", "time_left_of_tasks", "timer_rows", "timer_things")

_MAX_ROWS = 500  # of the table of timers
_LONG = 60.0  # seconds; timers due later are rows of their own
_ARGUMENTS = 3  # of a timer's callback that are looked at

#: Attributes of the object that a timer's method belongs to, which lead to tasks.
_TASK_ATTRIBUTES = ("_task", "_host_task", "_tasks")

_0 = np.uint64(0)


@dataclass(slots=True)
class Timers:
    """Arrays of one length; ``when`` in seconds of CLOCK_MONOTONIC, ``left`` until then; NaN: unknown."""

    address: U64
    callback: U64
    args: U64
    context: U64
    when: NDArray[np.float64]
    cancelled: NDArray[np.bool_]
    left: NDArray[np.float64]


def read_handles(ctx: Context, handles: U64) -> Timers:
    """TimerHandles of asyncio and uvloop, in the order given."""
    v = ctx.vectors
    uv = v.are(handles, TIMER_KIND)
    own = np.where(uv, _0, handles)
    when = v.reals(v.attribute(own, "_when"))
    callback, args, context = (v.attribute(own, name) for name in ("_callback", "_args", "_context"))
    cancelled = v.integers(v.attribute(own, "_cancelled")) == 1
    if uv.any():
        theirs = read_timers(ctx, handles[uv])
        when[uv], callback[uv], args[uv] = theirs.when, theirs.callback, theirs.args
        context[uv] = theirs.context
        cancelled[uv] = v.are(theirs.callback, "NoneType")
    now = ctx.now if ctx.now is not None else np.nan
    return Timers(handles, callback, args, context, when, cancelled, when - now)


def timer_things(ctx: Context, things: U64) -> tuple[list[dict[str, Any]], list[str]]:
    """``when`` a timer is due (CLOCK_MONOTONIC) and ``time_left`` until then, in seconds.

    The time left in a core is an upper limit: the loop noted the time when it last looked.
    """
    timers = read_handles(ctx, things)
    at_most = "" if ctx.now_exact else "at most "
    states: list[dict[str, Any]] = []
    details = []
    for when, left, cancelled in zip(
        timers.when.tolist(), timers.left.tolist(), timers.cancelled.tolist(), strict=True
    ):
        known = left == left
        states.append(
            {"when": when if when == when else None, "time_left": round(left, 3) if known else None}
        )
        if cancelled:
            details.append("cancelled")
        elif not known:
            details.append("")
        elif left < 0:
            details.append(f"overdue by {-left:,.1f} s")
        else:
            details.append(f"due in {at_most}{left:,.1f} s")
    return states, details


# -- who is timed -----------------------------------------------------------------------------------------


def time_left_of_tasks(ctx: Context, timers: Timers, tasks: U64, waiters: U64) -> NDArray[np.float64]:
    """Seconds until the first timer that leads to each task (sorted addresses) or to the future that it waits
    for; NaN where none does, 0 where it is not known when that is due."""
    out = np.full(len(tasks), np.nan)
    live = np.flatnonzero(~timers.cancelled)
    if not len(live) or not len(tasks):
        return out
    left = timers.left[live]
    left = np.where(np.isnan(left), 0.0, left)
    by_waiter = np.argsort(waiters, kind="stable")
    for owner, target in _targets(ctx, timers.callback[live], timers.args[live]):
        for addresses, row_of in ((tasks, None), (waiters[by_waiter], by_waiter)):
            at = np.minimum(np.searchsorted(addresses, target), len(addresses) - 1)
            hit = (addresses[at] == target) & (target != 0)
            rows = at[hit] if row_of is None else row_of[at[hit]]
            soonest = np.full(len(tasks), np.inf)
            np.minimum.at(soonest, rows, left[owner[hit]])
            out = np.fmin(out, np.where(np.isinf(soonest), np.nan, soonest))
    return out


def _targets(ctx: Context, callbacks: U64, args: U64) -> list[Edges]:
    """(index of the timer, what it may be about)."""
    v = ctx.vectors
    rows = np.arange(len(callbacks))
    out = _arguments(ctx, rows, args)
    for _ in range(3):  # partials within partials
        partial = v.only(callbacks, "functools.partial")
        if not partial.any():
            break
        out += _arguments(ctx, rows, v.field(partial, "partialobject.args"))
        callbacks = np.where(partial != 0, v.field(partial, "partialobject.fn"), callbacks)
    owner = _owners(ctx, callbacks)
    out += _tasks_of(ctx, rows, owner)
    # aiohttp's TimeoutHandle keeps (callback, args) pairs
    source, pairs = _items(ctx, rows, v.attribute(owner, "_callbacks"))
    pairs = v.only(pairs, "tuple")
    inner = _owners(ctx, v.words(pairs, ctx.runtime.layout["PyTupleObject.ob_item"]))
    return out + _tasks_of(ctx, source, inner)


def _owners(ctx: Context, methods: U64) -> U64:
    """The objects that methods are bound to."""
    v = ctx.vectors
    kinds = v.kinds(methods)
    builtin = np.where(np.isin(kinds, ("builtin_function_or_method", "builtin_method")), methods, _0)
    bound = np.where(kinds == "method", methods, _0)
    return v.field(builtin, "PyCFunctionObject.m_self") | v.field(bound, "PyMethodObject.im_self")


def _tasks_of(ctx: Context, rows: NDArray[np.intp], owners: U64) -> list[Edges]:
    out: list[Edges] = [(rows, owners)]
    for name in _TASK_ATTRIBUTES:
        found = ctx.vectors.attribute(owners, name)
        out += [(rows, found), _items(ctx, rows, found)]
    return out


def _items(ctx: Context, rows: NDArray[np.intp], containers: U64) -> Edges:
    there = ctx.vectors.are(containers, "list", "set", "tuple")
    source, target = Referents(ctx).of(containers[there])
    return rows[there][source], target


def _arguments(ctx: Context, rows: NDArray[np.intp], tuples: U64) -> list[Edges]:
    v, first = ctx.vectors, ctx.runtime.layout["PyTupleObject.ob_item"]
    tuples = v.only(tuples, "tuple")
    sizes = v.field(tuples, "PyVarObject.ob_size")
    return [(rows, v.words(np.where(sizes > i, tuples, _0), first + 8 * i)) for i in range(_ARGUMENTS)]


# -- the table --------------------------------------------------------------------------------------------


def timer_rows(ctx: Context, timers: Timers) -> list[dict[str, Any]]:
    """Timers by callback, the most numerous first:

    {"callback": "Session.expire", "count": 3000, "soonest": 1.5, "latest": 3599.0, "time_left": 1.5,
     "cancelled": False, "context_private": True, "context_vars": 2}

    ``soonest`` and ``latest`` are seconds left. ``context_private``: nothing but timers holds what the
    context has; ``context_vars``: variables set in it, at least. Timers of one callback that differ in these,
    or of which some are due within a minute and some later, are rows of their own.
    """
    contexts = ContextValues(ctx, timers.context)
    sizes, private = contexts.sizes(), contexts.private()
    names = callback_names(ctx, timers.callback)
    groups: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    keys = zip(
        names,
        timers.cancelled.tolist(),
        private.tolist(),
        (sizes > 0).tolist(),
        (timers.left >= _LONG).tolist(),
        strict=True,
    )
    for i, key in enumerate(keys):
        groups[key].append(i)
    out: list[dict[str, Any]] = []
    ranked = sorted(groups.items(), key=lambda g: -len(g[1]))
    for (name, cancelled, own, _, _), members in ranked[:_MAX_ROWS]:
        left = timers.left[members]
        known = left[~np.isnan(left)]
        soonest = round(float(known.min()), 3) if len(known) else None
        out.append(
            {
                "callback": name,
                "count": len(members),
                "soonest": soonest,
                "latest": round(float(known.max()), 3) if len(known) else None,
                "time_left": soonest,
                "cancelled": cancelled,
                "context_private": own,
                "context_vars": int(sizes[members].min()),
            }
        )
    if len(ranked) > _MAX_ROWS:
        ctx.warn(f"timers have {len(ranked):,} different callbacks: the table has the first {_MAX_ROWS}")
    return out
