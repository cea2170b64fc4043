"""Which tasks hold asyncio locks and semaphores: those inside of an ``async with`` of one.

The locks themselves know no owner. But a frame inside of ``async with`` keeps the block's ``__aexit__`` on
its evaluation stack: as a bound method, from 3.14 on as function and object in two slots. Who took a lock
with ``acquire()`` alone is not found.
"""

from __future__ import annotations

import heapq
import re
from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64
from diagtool.runtimes.cpython.context import STACKREF_TAGS, Context
from diagtool.runtimes.cpython.objects.addresssets import contains, distinct
from diagtool.runtimes.cpython.objects.referents import Edges, joined, no_edges, ragged
from diagtool.runtimes.cpython.tasks.chains import Chains
from diagtool.snapshot.model import Thing

__all__ = ("add_owners",)

_OWNED = (".locks.Lock", ".locks.Semaphore", ".locks.BoundedSemaphore", ".locks.Condition")
_MAX_SLOTS = 1 << 23
_NAMED = 10  # owners of one thing that are named

_DIGITS = re.compile(r"([0-9]+)")

_0 = np.uint64(0)
_TAGS = np.uint64(~STACKREF_TAGS & (1 << 64) - 1)


def add_owners(
    ctx: Context,
    things: list[Thing],
    chains: Chains,
    tasks: U64,
    names: list[str],
    waits_on: U64,
    pending: NDArray[np.bool_],
) -> None:
    """Set ``owners`` (how many), and of locks ``owner`` (a task's address), ``owner_name``, ``owner_alive``.

    ``chains`` are those of ``tasks``, ``waits_on`` what each of them waits on; ``pending``: is not done.
    """
    locks = {t.address: t for t in things if t.type.startswith("asyncio") and t.type.endswith(_OWNED)}
    if not locks:
        return
    wanted = distinct(np.array(list(locks), np.uint64))
    inner = ctx.vectors.attribute(wanted, "_lock")  # of a Condition: whoever is in its block has the lock
    pairs = [(own, lock) for own, lock in zip(wanted.tolist(), inner.tolist(), strict=True) if lock]
    partner = dict(pairs) | {lock: own for own, lock in pairs}
    everything = distinct(np.concatenate([wanted, inner[inner != 0]]))
    found: dict[int, dict[int, None]] = defaultdict(dict)
    row, held = _inside(ctx, chains, everything)
    for i, address in zip(row.tolist(), held.tolist(), strict=True):
        both = {address, partner.get(address, address)}
        # Who waits for it inside of the block has not got it yet, or gave it back for the time of the wait.
        if pending[i] and int(waits_on[i]) not in both:
            for lock in both & locks.keys():
                found[lock][i] = None
    for address, rows in found.items():
        _name(locks[address], list(rows), tasks, names)


def _name(thing: Thing, rows: list[int], tasks: U64, names: list[str]) -> None:
    first = rows[0]
    thing.state["owners"] = len(rows)
    if not thing.type.endswith("Semaphore"):  # of a semaphore another owner may give a permit back
        thing.state.update(owner=int(tasks[first]), owner_name=names[first], owner_alive=True)
    # Tasks come in the order of a hash table or of a list, newest first: nothing to show a person.
    called = heapq.nsmallest(_NAMED, (names[i] or hex(int(tasks[i])) for i in rows), key=_natural)
    shown = ", ".join(called)
    more = ", …" if len(rows) > _NAMED else ""
    thing.detail += f", held by task {shown}{more}" if len(rows) == 1 else f", held by tasks {shown}{more}"


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key under which "permit-2" comes before "permit-10"."""
    return [(len(part), part) if part.isdecimal() else (0, part) for part in _DIGITS.split(name)]


def _inside(ctx: Context, chains: Chains, locks: U64) -> Edges:
    """(row of the chain, lock) for every ``async with`` block of one of ``locks`` that is open."""
    parts: list[Edges] = [no_edges()]
    total = 0
    for level in chains.levels:
        c = level.columns
        owner, places = ragged(np.where(c.frame != 0, c.locals, _0), c.depth)
        total += len(places)
        if total > _MAX_SLOTS:
            ctx.warn("there are too many frames to see which tasks hold locks")
            break
        values = ctx.vectors.words(places) & _TAGS
        at, held = _exits(ctx, values, locks)
        parts.append((level.rows[owner[at]], held))
    return joined(parts)


def _exits(ctx: Context, values: U64, locks: U64) -> Edges:
    """(index of the slot, lock) of slots that hold the ``__aexit__`` of a lock."""
    v = ctx.vectors
    if ctx.runtime.version >= (3, 14):
        at = np.flatnonzero(contains(locks, values))
        at = at[at > 0]
        functions = v.only(values[at - 1], "function")
        held = values[at]
    else:
        at = np.flatnonzero(v.are(values, "method"))
        functions = v.field(values[at], "PyMethodObject.im_func")
        held = v.field(values[at], "PyMethodObject.im_self")
    names = v.field(functions, "PyFunctionObject.func_name")
    kinds, inverse = np.unique(names, return_inverse=True)
    leaving = np.array([ctx.objects.text(int(n)) == "__aexit__" for n in kinds], np.bool_)[inverse]
    good = leaving & contains(locks, held) if len(at) else np.zeros(0, np.bool_)
    return at[good], held[good]
