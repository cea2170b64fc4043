"""Futures and tasks as futures, C and pure Python: their state, and the callbacks that wait for them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.objects.addresssets import grouped
from diagtool.runtimes.cpython.objects.referents import Edges, ragged

PENDING, CANCELLED, FINISHED = 0, 1, 2  # fut_state (Modules/_asynciomodule.c)
UNREADABLE = -1

_STATES = {"PENDING": PENDING, "CANCELLED": CANCELLED, "FINISHED": FINISHED}
_C_TYPES = ("_asyncio.Future", "_asyncio.Task")

_0 = np.uint64(0)


def future_states(ctx: Context, futures: U64) -> NDArray[np.int64]:
    """PENDING, CANCELLED, FINISHED or UNREADABLE for each future or task."""
    out = np.full(len(futures), UNREADABLE, np.int64)
    in_c = c_futures(ctx, futures)
    if in_c.any():
        out[in_c] = ctx.vectors.small(futures[in_c], "FutureObj.fut_state", "<u4")
    rest = np.flatnonzero(~in_c)
    if len(rest):
        out[rest] = python_states(ctx, futures[rest])
    return out


def python_states(ctx: Context, futures: U64) -> NDArray[np.int64]:
    """The state of futures written in Python; ``_PENDING`` is the class's own, instances get theirs later."""
    states = ctx.vectors.attribute(futures, "_state")
    distinct, inverse = grouped(states)
    codes = [_STATES.get(ctx.objects.text(int(a)) or "", UNREADABLE) if a else PENDING for a in distinct]
    out = np.array(codes, np.int64)[inverse] if len(futures) else np.zeros(0, np.int64)
    like_futures = ctx.vectors.attribute(futures, "_loop") != 0
    return np.where(like_futures, out, UNREADABLE)


def c_futures(ctx: Context, futures: U64) -> NDArray[np.bool_]:
    """Which are laid out as a FutureObj (the C Future and Task and their subclasses)."""
    return ctx.vectors.inherit(futures, *_C_TYPES)


def first_callbacks(ctx: Context, futures: U64) -> U64:
    """Address of the first callback of each future, 0 where it has none."""
    v = ctx.vectors
    first, listed = _callback_fields(ctx, futures)
    lists = (first == 0) & (v.are(listed, "list"))
    if lists.any():
        items = v.field(listed[lists], "PyListObject.ob_item")
        full = v.sizes(listed[lists]) > 0
        first[lists] = _of_pairs(ctx, v.words(np.where(full, items, _0)))
    return first


def all_callbacks(ctx: Context, futures: U64) -> Edges:
    """All callbacks of each future, in order: (index of the future, callback)."""
    v = ctx.vectors
    first, listed = _callback_fields(ctx, futures)
    own = np.flatnonzero(first)
    lists = v.only(listed, "list")
    sizes = np.where(lists != 0, v.field(lists, "PyVarObject.ob_size"), _0).astype(np.int64)
    owner, places = ragged(v.field(lists, "PyListObject.ob_item"), sizes)
    callbacks = _of_pairs(ctx, v.words(places))
    owners = np.concatenate([own, owner])
    order = np.argsort(owners, kind="stable")
    owners, callbacks = owners[order], np.concatenate([first[own], callbacks])[order]
    there = callbacks != 0
    return owners[there], callbacks[there]


def may_have_callbacks(ctx: Context, futures: U64) -> NDArray[np.bool_]:
    """Which futures may have more than one callback, told quickly: C's keep a list only then."""
    listed: NDArray[np.bool_] = ctx.vectors.field(futures, "FutureObj.fut_callbacks") != 0
    return listed | ~c_futures(ctx, futures)


def callback_counts(ctx: Context, futures: U64) -> NDArray[np.int64]:
    """How many callbacks each future has."""
    first, listed = _callback_fields(ctx, futures)
    counts: NDArray[np.int64] = np.maximum(ctx.vectors.sizes(listed), 0) + (first != 0)
    return counts


def _callback_fields(ctx: Context, futures: U64) -> tuple[U64, U64]:
    # (the first callback, which C keeps apart; the list of the others, of (callback, context) tuples)
    v = ctx.vectors
    in_c = c_futures(ctx, futures)
    of_c = np.where(in_c, futures, _0)
    first = v.field(of_c, "FutureObj.fut_callback0")
    listed = v.field(of_c, "FutureObj.fut_callbacks")
    if not in_c.all():
        listed = np.where(in_c, listed, v.attribute(np.where(in_c, _0, futures), "_callbacks"))
    return np.where(v.are(first, "NoneType"), _0, first), listed


def _of_pairs(ctx: Context, pairs: U64) -> U64:
    pairs = ctx.vectors.only(pairs, "tuple")
    return ctx.vectors.words(pairs, ctx.runtime.layout["PyTupleObject.ob_item"])
