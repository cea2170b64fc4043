"""The goroutines that are alive, carried through a trace, and what is counted on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diagtool.ingest.gotrace.model import ENDED, NONE, SYSCALL, WAITING, Steps

__all__ = ["BINS", "IN_SYSCALL", "UNKNOWN", "Alive", "Counts", "Population"]

#: Pieces of time in a timeline.
BINS = 60

#: A moment before the trace.
UNKNOWN = -(1 << 62)

#: Places that have a timeline; what more there are is counted together.
MAX_PLACES = 20_000

#: The number of the reason (see Places) of who is in a system call.
IN_SYSCALL = 1

_COLUMNS = {
    "goid": "u8",
    "born": "i8",
    "made": "i4",
    "begin": "i4",
    "parent": "u8",
    "state": "u1",
    "place": "i4",
    "stack": "i4",
    "since": "i8",
    "order": "i8",
}


@dataclass(slots=True)
class Alive:
    """Goroutines, by number, ascending.

    ``born`` and ``since`` (the state): ticks, UNKNOWN for before the trace. ``made``, ``begin``, ``stack``:
    of its creator, its first function, itself (numbers in Places); ``place``: where it waits (in Counts).
    """

    goid: NDArray[np.uint64]
    born: NDArray[np.int64]
    made: NDArray[np.int32]
    begin: NDArray[np.int32]
    parent: NDArray[np.uint64]
    state: NDArray[np.uint8]
    place: NDArray[np.int32]
    stack: NDArray[np.int32]
    since: NDArray[np.int64]
    order: NDArray[np.int64]

    @classmethod
    def none(cls) -> Alive:
        return cls(**{c: np.zeros(0, t) for c, t in _COLUMNS.items()})

    @classmethod
    def joined(cls, parts: Sequence[Alive]) -> Alive:
        """Those of several, of which no two have the same."""
        both = cls(**{c: np.concatenate([getattr(p, c) for p in parts]) for c in _COLUMNS})
        return both.take(np.argsort(both.goid, kind="stable"))

    def take(self, rows: NDArray[Any]) -> Alive:
        return Alive(**{c: getattr(self, c)[rows] for c in _COLUMNS})

    def __len__(self) -> int:
        return len(self.goid)


@dataclass(slots=True)
class Counts:
    """What was counted by place (reason and stack of a wait) and by maker (stack of the creator).

    ``change``: by place and piece of time, how many more wait there. ``arrived``: waits that began.
    ``left``: that ended. ``standing``: that were there before. ``first``, ``last``: ticks at which one began.
    """

    opens: int
    width: int
    places: list[tuple[int, int]] = field(default_factory=lambda: [(0, 0)])
    _numbers: dict[tuple[int, int], int] = field(default_factory=lambda: {(0, 0): 0})
    change: NDArray[np.int32] = field(default_factory=lambda: np.zeros((64, BINS), np.int32))
    arrived: NDArray[np.int64] = field(default_factory=lambda: np.zeros(64, np.int64))
    left: NDArray[np.int64] = field(default_factory=lambda: np.zeros(64, np.int64))
    standing: NDArray[np.int64] = field(default_factory=lambda: np.zeros(64, np.int64))
    first: NDArray[np.int64] = field(default_factory=lambda: np.full(64, 1 << 62, np.int64))
    last: NDArray[np.int64] = field(default_factory=lambda: np.full(64, UNKNOWN, np.int64))
    created: NDArray[np.int32] = field(default_factory=lambda: np.zeros((64, BINS), np.int32))
    ended: NDArray[np.int32] = field(default_factory=lambda: np.zeros((64, BINS), np.int32))

    def bins(self, at: NDArray[np.int64]) -> NDArray[np.int64]:
        """The piece of time that each moment is in."""
        return np.clip((at - self.opens) // self.width, 0, BINS - 1)

    def place(self, reason: NDArray[np.integer], stack: NDArray[np.integer]) -> NDArray[np.int32]:
        """The number of each place."""
        if not len(reason):
            return np.zeros(0, np.int32)
        width = int(stack.max()) + 1
        key = reason.astype(np.int64) * width + stack
        if (int(reason.max()) + 1) * width < 1 << 24:
            there = np.zeros((int(reason.max()) + 1) * width, np.bool_)
            there[key] = True
            keys = np.flatnonzero(there)
            numbers = np.zeros(len(there), np.int32)
            numbers[keys] = [self._place(divmod(k, width)) for k in keys.tolist()]
            return numbers[key]
        distinct, inverse = np.unique(key, return_inverse=True)
        return np.array([self._place(divmod(k, width)) for k in distinct.tolist()], np.int32)[inverse]

    def _place(self, key: tuple[int, int]) -> int:
        known = self._numbers.get(key)
        if known is None:
            if len(self.places) >= MAX_PLACES:
                return 0
            known = self._numbers[key] = len(self.places)
            self.places.append(key)
        return known

    def reasons(self) -> dict[int, int]:
        """Why goroutines wait, by stack: of who waits since before the trace it is not told."""
        out: dict[int, int] = {}
        for reason, stack in self.places:
            if reason > 0:
                out.setdefault(stack, reason)
        return out

    def _room(self, name: str, size: int) -> NDArray[Any]:
        column: NDArray[Any] = getattr(self, name)
        if size > len(column):
            more = max(size, 2 * len(column)) - len(column)
            filler = {"first": 1 << 62, "last": UNKNOWN}.get(name, 0)
            column = np.concatenate([column, np.full((more, *column.shape[1:]), filler, column.dtype)])
            setattr(self, name, column)
        return column

    def add(self, name: str, rows: NDArray[Any], at: NDArray[np.int64] | None = None, by: int = 1) -> None:
        """Count ``rows`` in the column ``name``, by piece of time where ``at`` is given."""
        if not len(rows):
            return
        column = self._room(name, min(int(rows.max()), MAX_PLACES - 1) + 1)
        rows = np.where(rows < MAX_PLACES, rows, 0)
        if at is None:
            column += by * np.bincount(rows, minlength=len(column)).astype(column.dtype)
            return
        flat = rows.astype(np.int64) * BINS + self.bins(at)
        column += by * np.bincount(flat, minlength=column.size).astype(column.dtype).reshape(column.shape)

    def moments(self, rows: NDArray[Any], at: NDArray[np.int64]) -> None:
        """Note when waits at places began."""
        if len(rows):
            size = int(rows.max()) + 1
            np.minimum.at(self._room("first", size), rows, at)
            np.maximum.at(self._room("last", size), rows, at)


class Population:
    """Follows the steps of a trace, part by part."""

    def __init__(self, opens: int, width: int) -> None:
        self.alive = Alive.none()
        self.counts = Counts(opens, max(width, 1))
        self._stale = False  # whether steps of this part were settled before

    def next_part(self) -> None:
        self._stale = False

    def settle(self, steps: Steps) -> None:
        """Take over what happened. Steps of one part at a time, settled numbers of places."""
        if not len(steps):
            return
        order = _sorted(steps.goid, steps.order)
        s = steps.take(order)
        old = self.alive
        at = np.searchsorted(old.goid, s.goid)
        at = np.minimum(at, max(len(old) - 1, 0))
        here = old.goid[at] == s.goid if len(old) else np.zeros(len(s), np.bool_)
        keep = np.ones(len(s), np.bool_)
        if len(old):
            # Said again, and what was known already; what is older than what was settled before.
            opens = np.append(True, s.goid[1:] != s.goid[:-1])
            keep &= ~(here & opens & (s.known == 1) & (old.state[at] == s.state))
            if self._stale:
                keep &= ~(here & (s.order < old.order[at]))
        if not keep.all():
            s, at, here = s.take(keep), at[keep], here[keep]
        self._stale = True
        if len(s):
            self._apply(s, at, here)

    def _apply(self, s: Steps, at: NDArray[np.intp], here: NDArray[np.bool_]) -> None:
        old, counts, n = self.alive, self.counts, len(s)
        opens = np.append(True, s.goid[1:] != s.goid[:-1])
        closes = np.append(opens[1:], True)
        start = np.flatnonzero(opens)
        of = np.cumsum(opens) - 1  # the goroutine of each step

        # Its own stack: the last that was told.
        last = np.maximum.accumulate(np.where(s.stack > 0, np.arange(n), -1))
        inside = last >= start[of]
        before = old.stack[at] * here if len(old) else np.zeros(n, np.int64)
        stack = np.where(inside, s.stack[last], before)

        waits = (s.state == WAITING) | (s.state == SYSCALL)
        # A place is told where a stack is, with the step or (a system call) with one before it.
        place = np.zeros(n, np.int32)
        told = np.flatnonzero(waits & ((s.stack > 0) | (s.reason > 0) | (s.state == SYSCALL)))
        reason = np.where(s.state == SYSCALL, IN_SYSCALL, np.maximum(s.reason, 0))
        place[told] = counts.place(reason[told], np.where(s.stack[told] > 0, s.stack[told], 0))

        state_before = np.append(np.uint8(NONE), s.state[:-1])
        place_before = np.append(np.int32(0), place[:-1])
        state_before[start] = np.where(here[start], old.state[at[start]], NONE) if len(old) else NONE
        place_before[start] = np.where(here[start], old.place[at[start]], 0) if len(old) else 0
        waited = (state_before == WAITING) | (state_before == SYSCALL)

        begins = np.flatnonzero(waits)
        goes = np.flatnonzero(waited)
        # Who is told to be there already was there from the beginning on, however late it is told.
        already = (s.known[begins] == 1) & (state_before[begins] == NONE)
        counts.add("change", place[begins], np.where(already, counts.opens, s.at[begins]))
        counts.add("change", place_before[goes], s.at[goes], by=-1)
        fresh = begins[s.known[begins] == 0]
        counts.add("arrived", place[fresh])
        counts.moments(place[fresh], s.at[fresh])
        counts.add("standing", place[begins[s.known[begins] == 1]])
        counts.add("left", place_before[goes[~waits[goes]]])

        # What is told of its beginning, by goroutine.
        told = np.flatnonzero(s.birth >= 0)
        births, whose = s.birth[told], of[told]
        created = np.zeros(len(start), np.bool_)
        made, begin, parent, born = (np.zeros(len(start), t) for t in ("i4", "i4", "u8", "i8"))
        created[whose] = s.births.created[births] == 1
        made[whose], begin[whose] = s.births.made[births], s.births.begin[births]
        parent[whose], born[whose] = s.births.parent[births], s.at[told]
        if len(old):
            past = here[start] & ~created
            made = np.where(past, old.made[at[start]], made)
        fresh = told[s.births.created[births] == 1]
        counts.add("created", made[of[fresh]], s.at[fresh])
        done = np.flatnonzero(s.state == ENDED)
        counts.add("ended", made[of[done]], s.at[done])

        # What each is at last.
        end = np.flatnonzero(closes)
        known = here[start]
        where = at[start]

        def carried(new: NDArray[Any], has: NDArray[np.bool_], name: str, otherwise: int) -> NDArray[Any]:
            past = np.where(known, getattr(old, name)[where], otherwise) if len(old) else otherwise
            return np.where(has, new, past).astype(_COLUMNS[name])

        since = np.where(s.known[end] == 1, UNKNOWN, s.at[end])
        now = Alive(
            goid=s.goid[end],
            born=carried(born, created, "born", UNKNOWN),
            made=made,
            begin=carried(begin, begin > 0, "begin", 0),
            parent=carried(parent, created, "parent", 0),
            state=s.state[end],
            place=np.where(waits[end], place[end], 0).astype(np.int32),
            stack=stack[end].astype(np.int32),
            since=since,
            order=s.order[end],
        )
        stays = np.ones(len(old), np.bool_)
        stays[where[known]] = False
        self.alive = Alive.joined([old.take(stays), now.take(now.state != ENDED)])

    def copy(self) -> Alive:
        return replace(self.alive)


def _sorted(goid: NDArray[np.uint64], order: NDArray[np.int64]) -> NDArray[np.intp]:
    """Steps by goroutine, then by order, else as they stand."""
    low = int(order.min())
    bits = int(order.max() - low).bit_length()
    if int(goid.max()).bit_length() + bits <= 64:
        return np.argsort(goid << np.uint64(bits) | (order - low).astype(np.uint64), kind="stable")
    return np.lexsort((order, goid))
