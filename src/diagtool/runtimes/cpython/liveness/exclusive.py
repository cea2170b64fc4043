"""Which things only their own waiters can reach: reference counts, subtracted as the collector does it.

A stack that waits for a thing can be woken only by somebody who can reach the thing. Every strong reference
counts in the reference count of its target, so: count the references that come from frames of stuck
stacks and from objects that are themselves only reachable from there. Where these are all references that
there are, nothing else holds the thing, and nobody can ever wake its waiters.

It is the greatest fixpoint: start with all waiting stacks as stuck and all objects as private; what has a
reference more than can be explained is reachable from outside, its own references then explain nothing, a
stack whose thing is reachable from outside is not stuck; repeat until nothing changes.

A reference from a place that is not understood is never explained, so every doubt ends in "not exclusive".
A weak reference to the thing or to an object that leads to it, a timer that leads to the task, a time limit
count as reachable too.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.objects.addresssets import contains, distinct
from diagtool.runtimes.cpython.objects.referents import Edges, Referents, joined

MAX_ROUNDS = 8  # of expanding objects
MAX_OBJECTS = 1 << 19
_MAX_UNEXPLAINED = 16  # references missing for an object that is still worth expanding

#: What stacks are made of; their references are counted as the stack's own.
_PARTS = (
    "coroutine",
    "generator",
    "async_generator",
    "_asyncio.Task",
    "_asyncio.FutureIter",
    "_asyncio.Future",
)

_0 = np.uint64(0)


class Relevance:
    """Which references may matter: to things, and to what may lead to one.

    Strings and numbers lead nowhere; the parts that stacks are made of are counted with the stacks; a million
    futures that nobody of interest waits on are left out, too.
    """

    def __init__(self, ctx: Context, things: U64) -> None:
        self.ctx = ctx
        self.referents = Referents(ctx)
        self._good: dict[int, bool] = dict.fromkeys(distinct(ctx.vectors.types(things)).tolist(), True)

    def of_edges(self, edges: Edges) -> Edges:
        """Those of the edges whose target may matter."""
        owner, target = edges
        types = self.ctx.vectors.types(target)
        keep = np.zeros(len(target), np.bool_)
        for t in distinct(types).tolist():
            if self._matters(t):
                keep |= types == t
        return owner[keep], target[keep]

    def _matters(self, type_address: int) -> bool:
        good = self._good.get(type_address)
        if good is None:
            name = self.ctx.objects.type_name(type_address) if type_address else ""
            good = bool(name) and name not in _PARTS and self.referents.known(type_address)
            self._good[type_address] = good
        return good


@dataclass(slots=True)
class KnownObjects:
    """Objects of which more is known than their type says: Thread objects.

    ``spare`` references of each (``addresses`` is sorted) come from the interpreter itself and count for
    nothing; ``sources`` (addresses) and ``targets`` are all references that it holds.
    """

    addresses: U64
    spare: NDArray[np.int64]
    sources: U64
    targets: U64


def no_objects() -> KnownObjects:
    """None."""
    nothing = np.zeros(0, np.uint64)
    return KnownObjects(nothing, np.zeros(0, np.int64), nothing, nothing)


@dataclass(slots=True)
class StuckCandidates:
    """Stacks that could be stuck: ``things[i]`` is what stack ``i`` waits on, ``edges`` the references that
    it holds (frames, and the task or thread object itself). ``parts`` are the objects that stacks are made
    of, tasks and coroutines: their references are in ``edges`` already."""

    things: U64
    edges: Edges
    timed: NDArray[np.bool_]  # a time limit or timer leads to the stack: not stuck
    owners: U64  # address of the task that each stack is, 0 for threads
    parts: U64  # sorted
    known: KnownObjects = field(default_factory=no_objects)


@dataclass(slots=True)
class Exclusive:
    """``stuck`` of each stack; of each distinct thing the references it has, and those that are explained."""

    stuck: NDArray[np.bool_]
    things: U64  # distinct, sorted
    references: NDArray[np.int64]
    explained: NDArray[np.int64]
    exclusive: NDArray[np.bool_]


def find_exclusive(ctx: Context, candidates: StuckCandidates) -> Exclusive:
    """Run the fixpoint."""
    things = distinct(candidates.things[candidates.things != 0])
    nothing = np.zeros(len(candidates.things), np.bool_)
    if not len(things):
        none = np.zeros(len(things), np.int64)
        return Exclusive(nothing, things, none, none, np.zeros(len(things), np.bool_))
    graph = _Graph(ctx, candidates, things)
    graph.grow()
    stuck = graph.fixpoint()
    at = graph.index(things)
    private = graph.private[at] & (graph.counts[at] > 0)
    dead = np.unique(candidates.things[stuck & (graph.awaited >= 0)])
    private |= contains(dead, things)
    return Exclusive(stuck, things, graph.counts[at], graph.explained()[at], private)


class _Graph:
    """Objects near the stuck stacks, with their counts and the references among them."""

    def __init__(self, ctx: Context, candidates: StuckCandidates, things: U64) -> None:
        self.ctx = ctx
        self.candidates = candidates
        self.referents = Referents(ctx)
        self.things = things
        self.relevance = Relevance(ctx, things)
        self.holding, self.held = self.relevance.of_edges(candidates.edges)
        known = candidates.known
        place, self.targets = self.relevance.of_edges((np.arange(len(known.targets)), known.targets))
        self.sources = known.sources[place]  # addresses of objects
        self.objects = distinct(np.concatenate([things, self.held, known.addresses, self.targets]))
        self.counts = ctx.vectors.references(self.objects)
        self.expanded = contains(candidates.parts, self.objects) | contains(known.addresses, self.objects)
        at = self.index(known.addresses)
        self.counts[at] = np.where(self.counts[at] > 0, self.counts[at] - known.spare, self.counts[at])
        self.stuck: NDArray[np.bool_] = (candidates.things != 0) & ~candidates.timed
        # Who waits for a task is stuck when that task is, whoever else holds the task.
        order = np.argsort(candidates.owners, kind="stable")
        at = np.minimum(np.searchsorted(candidates.owners[order], candidates.things), len(order) - 1)
        self.awaited = np.where(
            (candidates.things != 0) & (candidates.owners[order][at] == candidates.things), order[at], -1
        )
        self._reindex()

    def _reindex(self) -> None:
        self.private = self.counts > 0
        self._held_at = self.index(self.held)
        self._sources_at, self._targets_at = self.index(self.sources), self.index(self.targets)

    def index(self, addresses: U64) -> NDArray[np.intp]:
        """Index of each address, which must be one of ``objects``."""
        return np.searchsorted(self.objects, addresses)

    def grow(self) -> None:
        """Expand objects that may explain a reference, level by level, within the caps."""
        at = self.index(self.things)
        for _ in range(MAX_ROUNDS):
            missing = self.counts - self.explained()
            # Open are things with unexplained references, and objects that explain others but not themselves.
            open_questions = np.concatenate([missing[at], missing[self._sources_at]]) > 0
            pick = ~self.expanded & (self.counts > 0) & (missing <= _MAX_UNEXPLAINED)
            rows = np.flatnonzero(pick)
            if not open_questions.any() or not len(rows) or len(self.objects) > MAX_OBJECTS:
                return
            self.expanded[rows] = True
            source, target = self.referents.of(self.objects[rows])
            source, target = self.relevance.of_edges((source, target))
            if not len(target):
                continue
            self.sources = np.concatenate([self.sources, self.objects[rows][source]])
            self.targets = np.concatenate([self.targets, target])
            fresh = distinct(target)
            self._add(fresh[~contains(self.objects, fresh)])
            at = self.index(self.things)

    def _add(self, fresh: U64) -> None:
        objects = np.concatenate([self.objects, fresh])
        counts = np.concatenate([self.counts, self.ctx.vectors.references(fresh)])
        expanded = np.concatenate([self.expanded, contains(self.candidates.parts, fresh)])
        order = np.argsort(objects, kind="stable")
        self.objects, self.counts, self.expanded = objects[order], counts[order], expanded[order]
        self._reindex()

    def explained(self) -> NDArray[np.int64]:
        """References to each object from stuck stacks and private objects."""
        n = len(self.objects)
        out: NDArray[np.intp] = np.bincount(self._held_at[self.stuck[self.holding]], minlength=n)
        if len(self.sources):
            good: NDArray[np.bool_] = self.private[self._sources_at]
            out = out + np.bincount(self._targets_at[good], minlength=n)
        return out.astype(np.int64)

    def fixpoint(self) -> NDArray[np.bool_]:
        """Shrink ``private`` and ``stuck`` until nothing changes; returns ``stuck``."""
        self.private &= ~self._weakly_reachable()
        where = self.index(np.where(self.candidates.things != 0, self.candidates.things, self.objects[0]))
        while True:
            private = self.private & (self.explained() == self.counts)
            stuck = self.stuck & np.where(self.awaited >= 0, self.stuck[self.awaited], private[where])
            same = bool((private == self.private).all() and (stuck == self.stuck).all())
            self.private, self.stuck = private, stuck
            if same:
                return self.stuck

    def _weakly_reachable(self) -> NDArray[np.bool_]:
        """Objects that have weak references (tp_weaklistoffset, or the managed one from 3.12 on).

        Not tasks and threads: asyncio and threading list all of theirs weakly, which lets one cancel them and
        look at them, but not get at what they wait on.
        """
        lay, v = self.ctx.runtime.layout, self.ctx.vectors
        out = np.zeros(len(self.objects), np.bool_)
        listed = contains(self.candidates.parts, self.objects)
        listed |= contains(self.candidates.known.addresses, self.objects)
        rows = np.flatnonzero(self.private & (~listed | contains(self.things, self.objects)))
        types = v.types(self.objects[rows])
        for t in np.unique(types[types != 0]).tolist():
            mine = rows[types == t]
            offset = self._weak_offset(t, lay.get("const.MANAGED_WEAKREF_OFFSET", -32))
            if offset:
                out[mine] = v.words(self.objects[mine], offset) != 0
        return out

    def _weak_offset(self, type_address: int, managed: int) -> int:
        data = self.ctx.objects.memory.try_read(
            type_address + self.ctx.runtime.layout["PyTypeObject.tp_weaklistoffset"], 8
        )
        offset = int.from_bytes(data or b"", "little", signed=True)
        if self.ctx.runtime.version >= (3, 12) and self.ctx.objects.type_flags(type_address) & 1 << 3:
            return managed  # Py_TPFLAGS_MANAGED_WEAKREF
        return offset if 0 < offset < 1 << 20 else 0


def timed_targets(ctx: Context, loops: U64, tasks: U64) -> NDArray[np.bool_]:
    """Which tasks a scheduled timer leads to (time limits, ``call_later``): those are not stuck.

    Followed for a few references from each timer's callback and arguments; a loop written in C (uvloop) keeps
    its timers where they cannot be seen, so there all are said to be timed unless their future is.
    """
    out = np.zeros(len(tasks), np.bool_)
    heaps = ctx.vectors.attribute(loops, "_scheduled")
    lists = heaps[ctx.vectors.kinds(heaps) == "list"]
    referents = Referents(ctx)
    frontier = referents.of(lists)[1] if len(lists) else lists
    seen = distinct(frontier)
    for _ in range(5):
        if not len(frontier) or len(seen) > MAX_OBJECTS:
            break
        target = distinct(joined([referents.of(frontier)])[1])
        target = target[~contains(seen, target)]
        hit = contains(tasks, target)
        out |= contains(target[hit], tasks)
        # neither through loops (they lead to everything) nor through the tasks themselves
        frontier = target[~hit & ~np.isin(target, loops)]
        seen = distinct(np.concatenate([seen, target]))
    return out
