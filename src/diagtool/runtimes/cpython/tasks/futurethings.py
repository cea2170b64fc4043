"""Futures, gathers and tasks as things that are waited on: state, callbacks, children, name."""

from __future__ import annotations

from typing import Any

import numpy as np

from diagtool.capture.memory import U64
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.objects.referents import Referents
from diagtool.runtimes.cpython.tasks.callbacks import callback_names
from diagtool.runtimes.cpython.tasks.futures import (
    CANCELLED,
    FINISHED,
    PENDING,
    all_callbacks,
    callback_counts,
    future_states,
)

__all__ = ("read_futures", "read_gathers", "read_tasks_as_things")

State = dict[str, Any]

_WORDS = {PENDING: "pending", CANCELLED: "cancelled", FINISHED: "finished"}
_NAMED = 4  # callbacks of one future whose names are given

_0 = np.uint64(0)


def read_futures(ctx: Context, things: U64) -> tuple[list[State], list[str]]:
    """``future`` (pending, cancelled, finished), ``callbacks`` (names of the first), ``callback_count``."""
    words = [_WORDS.get(s, "unreadable") for s in future_states(ctx, things).tolist()]
    counts = callback_counts(ctx, things).tolist()
    owner, callbacks = all_callbacks(ctx, things)
    first = np.arange(len(owner)) - np.searchsorted(owner, owner) < _NAMED
    owner, callbacks = owner[first], callbacks[first]
    names: list[list[str]] = [[] for _ in words]
    for i, name in zip(owner.tolist(), callback_names(ctx, callbacks), strict=True):
        names[i].append(name)
    states: list[State] = []
    details = []
    for word, count, called in zip(words, counts, names, strict=True):
        states.append({"future": word, "callbacks": called, "callback_count": count})
        others = [name for name in called if name != "Task.wakeup"]
        more = f", {count:,} callbacks" if count > 1 else ""
        details.append(f"{word}{more}" + (f", calls {others[0]}" if others else ""))
    return states, details


def read_gathers(ctx: Context, things: U64) -> tuple[list[State], list[str]]:
    """``future``, ``children`` and how many of these are ``pending``."""
    words = [_WORDS.get(s, "unreadable") for s in future_states(ctx, things).tolist()]
    owner, children = Referents(ctx).of(ctx.vectors.attribute(things, "_children"))
    pending = np.bincount(owner[future_states(ctx, children) == PENDING], minlength=len(things))
    total = np.bincount(owner, minlength=len(things))
    states: list[State] = []
    details = []
    for word, children_of, left in zip(words, total.tolist(), pending.tolist(), strict=True):
        states.append({"future": word, "children": children_of, "pending": left})
        details.append(f"{left:,} of {children_of:,} children pending")
    return states, details


def read_tasks_as_things(ctx: Context, things: U64) -> tuple[list[State], list[str]]:
    """``future`` and ``task`` (its name)."""
    words = [_WORDS.get(s, "unreadable") for s in future_states(ctx, things).tolist()]
    names = task_names(ctx, things)
    states = [{"future": word, "task": name} for word, name in zip(words, names, strict=True)]
    return states, [f"{name}, {word}" if name else word for word, name in zip(words, names, strict=True)]


def task_names(ctx: Context, tasks: U64) -> list[str]:
    """Names of tasks as ``Task.get_name()`` gives them."""
    v = ctx.vectors
    in_c = v.inherit(tasks, "_asyncio.Task")
    names = v.attribute(np.where(in_c, _0, tasks), "_name") if len(tasks) else tasks
    if in_c.any():
        names = np.where(in_c, v.field(np.where(in_c, tasks, _0), "TaskObj.task_name"), names)
    return names_from(ctx, names)


def names_from(ctx: Context, names: U64) -> list[str]:
    """The texts of names; from 3.12 on C keeps an int N for "Task-N" until somebody asks."""
    numbered = ctx.vectors.are(names, "int")
    texts = ctx.vectors.texts(np.where(numbered, _0, names))
    rows = np.flatnonzero(numbered)
    for i, number in zip(rows.tolist(), ctx.vectors.integers(names[rows]).tolist(), strict=True):
        texts[i] = f"Task-{number}"
    return texts
