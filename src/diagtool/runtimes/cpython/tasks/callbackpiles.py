"""Futures on which callbacks pile up, and how many tasks still wait for what those callbacks do."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.objects.addresssets import contains, distinct
from diagtool.runtimes.cpython.objects.referents import Referents
from diagtool.runtimes.cpython.tasks.callbacks import callback_names
from diagtool.runtimes.cpython.tasks.futures import PENDING, all_callbacks, callback_counts, future_states

__all__ = ("future_rows",)

_LEAST = 20  # callbacks of a future that make it a row
_MAX_ROWS = 200
_MAX_CALLBACKS = 1 << 20  # that are looked at
_STEPS = 4  # from a callback to what it is about: partial, function, closure, cell

_THROUGH = ("function", "tuple", "cell", "method", "functools.partial")


def future_rows(ctx: Context, futures: U64, waiters: U64, tasks: U64) -> list[dict[str, Any]]:
    """Pending futures with 20 callbacks or more, those with the most first:

    {"address": 0x7f…, "type": "_asyncio.Future", "callbacks": 4000, "waiters": 0,
     "callback": "shield.<locals>._inner_done_callback", "shields": 4000}

    ``shields`` of the callbacks are called ``callback``, the most frequent name but for wake-ups of tasks.
    ``waiters``: callbacks that wake a task, or are about a future that a task waits for. ``waiters`` are the
    futures that tasks wait for, ``tasks`` the tasks that wait.
    """
    counts = callback_counts(ctx, futures)
    many = np.flatnonzero(counts >= _LEAST)
    many = many[future_states(ctx, futures[many]) == PENDING]
    many = many[np.argsort(-counts[many], kind="stable")]
    if len(many) > _MAX_ROWS:
        ctx.warn(
            f"{len(many):,} futures have {_LEAST} callbacks or more: the table has the first {_MAX_ROWS}"
        )
        many = many[:_MAX_ROWS]
    if not len(many):
        return []
    owner, callbacks = all_callbacks(ctx, futures[many])
    owner, callbacks = owner[:_MAX_CALLBACKS], callbacks[:_MAX_CALLBACKS]
    awaited = _about(ctx, callbacks, distinct(np.concatenate([waiters, tasks])))
    names = np.array(callback_names(ctx, callbacks), np.str_)
    rows = []
    for i, at in enumerate(many.tolist()):
        mine = owner == i
        kinds, uses = np.unique(names[mine & (names != "Task.wakeup")], return_counts=True)
        most = int(uses.argmax()) if len(uses) else -1
        rows.append(
            {
                "address": int(futures[at]),
                "type": ctx.objects.qualified_kind(int(futures[at])),
                "callbacks": int(counts[at]),
                "waiters": int(awaited[mine].sum()),
                "callback": str(kinds[most]) if most >= 0 else "",
                "shields": int(uses[most]) if most >= 0 else 0,
            }
        )
    return rows


def _about(ctx: Context, callbacks: U64, wanted: U64) -> NDArray[np.bool_]:
    """Which callbacks lead to one of ``wanted`` (sorted) within a few references."""
    referents = Referents(ctx)
    out = np.zeros(len(callbacks), np.bool_)
    rows, frontier = np.arange(len(callbacks)), callbacks
    for _ in range(_STEPS):
        source, target = referents.of(frontier)
        rows = rows[source]
        hit = contains(wanted, target)
        out[rows[hit]] = True
        go_on = ctx.vectors.are(target, *_THROUGH)
        go_on &= ~out[rows]
        rows, frontier = rows[go_on], target[go_on]
        if not len(frontier) or len(frontier) > 4 * _MAX_CALLBACKS:
            break
    return out
