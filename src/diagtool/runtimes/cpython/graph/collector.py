"""The cycle collector of each interpreter: whether it is on, how its generations stand, what is frozen.

Generations are lists through the heads of objects (PyGC_Head, pycore_gc.h). 3.9 to 3.13 have three of them;
3.14 has a young one and two old ones in the same places; gc.freeze() moves all to one more.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64, MemoryFault
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.graph.nodes import Nodes
from diagtool.runtimes.cpython.graph.walk import components
from diagtool.runtimes.cpython.heap.types import HAVE_GC, TypeTable
from diagtool.runtimes.cpython.objects.addresssets import contains, distinct
from diagtool.runtimes.cpython.threads.interpreters import Interpreter

__all__ = ["Collector", "Membership", "generations_of", "read_collector"]

_GENERATIONS = 3
_FLAGS = np.uint64(~3 & (1 << 64) - 1)  # PREV_MASK_COLLECTING, _PyGC_PREV_MASK; 3.14 has one in next, too
_MOST_STRANGE = 5_000  # objects in a row that the census does not have


@dataclass(slots=True)
class Collector:
    """``thresholds`` and ``counts`` of the generations, the youngest first; ``collections`` and ``collected``
    objects of each since the start, where the version keeps them so. ``frozen``: whether gc.freeze() set
    objects aside. ``heads``: addresses of the lists, the permanent generation's last; 0 for what makes no
    sense. None is what could not be read."""

    interpreter: int
    enabled: bool | None
    collecting: bool
    thresholds: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    collections: list[int] = field(default_factory=list)
    collected: list[int] = field(default_factory=list)
    uncollectable: int | None = None  # len(gc.garbage)
    frozen: bool | None = None
    heads: list[int] = field(default_factory=list)


def read_collector(ctx: Context, interpreter: Interpreter) -> Collector:
    """What an interpreter's collector says of itself."""
    found = Collector(interpreter.id, interpreter.collects, interpreter.collecting)
    lay, m = ctx.runtime.layout, ctx.objects.memory
    base = interpreter.address
    try:
        garbage = m.u64(base + lay["PyInterpreterState.gc.garbage"])
        found.uncollectable = ctx.objects.size(garbage) if ctx.objects.kind(garbage) == "list" else None
    except (MemoryFault, KeyError):
        found.uncollectable = None
    first = _first_generation(ctx, base)
    if not first:
        return found
    size = lay["sizeof.gc_generation"]
    starts = [first + i * size for i in range(_GENERATIONS)]
    for start in starts:
        found.thresholds.append(m.i32(start + lay["gc_generation.threshold"]))
        found.counts.append(m.i32(start + lay["gc_generation.count"]))
    permanent = first + _behind(ctx, "permanent_generation")
    found.heads = [h if _is_list(ctx, h) else 0 for h in (*starts, permanent)]
    if "PyInterpreterState.gc.freeze_active" in lay and ctx.runtime.free_threaded:
        found.frozen = m.i32(base + lay["PyInterpreterState.gc.freeze_active"]) == 1
    elif found.heads[-1]:
        found.frozen = m.u64(permanent) & ~3 != permanent
    if "PyInterpreterState.gc.generation_stats" in lay:
        _read_statistics(ctx, first + _behind(ctx, "generation_stats"), found)
    return found


def _behind(ctx: Context, name: str) -> int:
    """Bytes from the first generation to a field of struct _gc_runtime_state."""
    return ctx.runtime.layout[f"PyInterpreterState.gc.{name}"] - _generations(ctx)


def _generations(ctx: Context) -> int:
    lay = ctx.runtime.layout
    name = "generations" if "PyInterpreterState.gc.generations" in lay else "young"  # 3.14.0 to 3.14.4
    return lay[f"PyInterpreterState.gc.{name}"]


def _first_generation(ctx: Context, base: int) -> int:
    """Address of the youngest generation; where the interpreter says it, there. 0: not found."""
    lay, m = ctx.runtime.layout, ctx.objects.memory
    try:
        known = base + _generations(ctx)
        if ctx.runtime.free_threaded:  # it has thresholds and counts, and no lists
            return known
        # Debian's 3.13 has them four bytes earlier; the first is pointed to, in most versions.
        for place in ("PyInterpreterState.gc.generation0",):
            told = m.u64(base + lay[place]) if place in lay else 0
            if abs(told - known) <= 64 and _is_list(ctx, told):
                return told
        return next((a for a in (known, known - 4, known + 4) if _is_list(ctx, a)), 0)
    except (MemoryFault, KeyError):
        return 0


def _is_list(ctx: Context, head: int) -> bool:
    """Whether the first of a list points back to its head."""
    m = ctx.objects.memory
    try:
        return m.u64((m.u64(head) & ~3) + 8) & ~7 == head & ~7
    except MemoryFault:
        return False


def _read_statistics(ctx: Context, start: int, found: Collector) -> None:
    """struct gc_generation_stats: collections, collected, uncollectable, three times. Not in 3.15."""
    m = ctx.objects.memory
    if ctx.runtime.version >= (3, 15):
        return
    for i in range(_GENERATIONS):
        collections, collected = m.i64(start + 24 * i), m.i64(start + 24 * i + 8)
        if not 0 <= collections < 1 << 40 or not 0 <= collected < 1 << 60:
            found.collections, found.collected = [], []
            return
        found.collections.append(collections)
        found.collected.append(collected)


@dataclass(slots=True)
class Membership:
    """``sizes``: objects in each of the lists of ``Collector.heads``. ``of``: by node the number of its list
    among all collectors' lists, -1 for none."""

    sizes: list[int]
    of: NDArray[np.int32]


def generations_of(
    ctx: Context, nodes: Nodes, types: TypeTable, collectors: list[Collector]
) -> list[Membership]:
    """Which objects are in which generation, one Membership a collector.

    All lists are followed at once: neighbours in a list are connected, and so each list is one component.
    """
    head = np.uint64(ctx.runtime.layout["sizeof.PyGC_Head"])
    collected = types.flags & np.uint64(HAVE_GC) != 0
    rows = np.flatnonzero((nodes.kind >= 0) & collected[np.maximum(nodes.kind, 0)] if len(types) else [])
    heads = np.array([h for c in collectors for h in c.heads], np.uint64)
    # What is in a list is an object, or a head; or an object that the census does not have.
    known = nodes.addresses(rows) - head
    following = ctx.vectors.words(known) & _FLAGS
    members = np.sort(np.concatenate([known, heads[heads != 0]]))
    strange = _strange(ctx, members, np.concatenate([following, ctx.vectors.words(heads) & _FLAGS]))
    places = np.concatenate([known, heads, strange])
    following = np.concatenate([following, ctx.vectors.words(np.concatenate([heads, strange])) & _FLAGS])
    order = np.argsort(places, kind="stable")
    at = np.minimum(np.searchsorted(places[order], following), len(order) - 1)
    good = (places[order][at] == following) & (places != 0)
    labels = components(np.flatnonzero(good), order[at[good]], len(places), strong=False)
    list_of = np.full(int(labels.max(initial=0)) + 1, -1, np.int32)
    numbers = np.arange(len(heads), dtype=np.int32)
    list_of[labels[len(rows) : len(rows) + len(heads)][heads != 0]] = numbers[heads != 0]
    of = np.full(len(nodes), -1, np.int32)
    member = list_of[labels]
    of[rows] = member[: len(rows)]
    member[len(rows) : len(rows) + len(heads)] = -1
    sizes = np.bincount(member[member >= 0], minlength=len(heads)).tolist()
    out, first = [], 0
    for collector in collectors:
        out.append(Membership(sizes[first : first + len(collector.heads)], of))
        first += len(collector.heads)
    return out


def _strange(ctx: Context, members: U64, following: U64) -> U64:
    """What the lists lead to that is not among their known members (sorted), and what that leads to."""
    found = np.zeros(0, np.uint64)
    for _ in range(_MOST_STRANGE):
        following = distinct(following[following != 0])
        following = following[~contains(members, following) & ~contains(found, following)]
        if not len(following):
            break
        found = distinct(np.concatenate([found, following]))
        following = ctx.vectors.words(following) & _FLAGS
    return found
