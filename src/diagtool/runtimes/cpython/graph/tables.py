"""The graph as tables of a Snapshot: the collector, garbage, lost references, and what keeps how much."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64, MemoryFault
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.graph.collector import Collector, generations_of, read_collector
from diagtool.runtimes.cpython.graph.garbage import Garbage, find_garbage, roots_of
from diagtool.runtimes.cpython.graph.lost import LostReferences, find_lost
from diagtool.runtimes.cpython.graph.paths import paths_to_types
from diagtool.runtimes.cpython.graph.questions import Retention, ask_who_keeps
from diagtool.runtimes.cpython.graph.scan import Graph, build_graph
from diagtool.runtimes.cpython.graph.walk import Walker
from diagtool.runtimes.cpython.heap.census import HeapCensus
from diagtool.runtimes.cpython.heap.places import Places
from diagtool.runtimes.cpython.heap.why import ways_to
from diagtool.runtimes.cpython.threads.interpreters import Interpreter

__all__ = ["MOST_OBJECTS", "add_graph"]

#: Objects up to which the graph is made unasked. (Some 200 bytes of our memory for each.)
MOST_OBJECTS = 6_000_000
_MUCH = 1000  # garbage objects from which it is asked how old they are
_FEW = 20  # lost objects from which it is asked what hangs on them
_MOST_WALKS = 10
_TYPES_TOLD = 3
_MAX_TYPES = 200  # rows of a table by type
_LEVELS = 8  # steps from a root to a container
_OLD = 2  # number of the oldest generation


def add_graph(
    ctx: Context, census: HeapCensus, interpreters: Sequence[Interpreter], tasks: U64, asked: bool = False
) -> None:
    """Tables ``gc``, ``garbage``, ``heap_garbage``, ``heap_lost``, ``heap_graph`` and ``heap_paths``; if
    ``asked`` also ``heap_retained``.

    ``heap_graph``, one row: ``objects``, ``references`` (words of objects that refer to one), ``exact``,
    ``why_not``, and ``reached_bytes`` (of all that is kept from outside).

    ``gc``, a row an interpreter: the fields of Collector without ``heads``, ``off`` (it never runs by
    itself), and if asked or where there is much garbage ``generations`` (objects in each) and
    ``frozen_objects``.

    ``garbage``, one row, of all interpreters: ``count`` (objects), ``bytes``, ``cycles``, ``off``,
    ``threshold`` (of the youngest generation, the lowest), ``types`` (in words); where there is much ``old``
    (objects of the oldest generation or frozen, which only a full collection looks at, or none).
    ``heap_garbage``, by type: the fields of GarbageType, ``type`` in place of ``kind``.

    ``heap_paths``, of the types with most bytes the ways that lead to most of a sample: ``type``,
    ``looked_at`` objects, of which ``count``, ``root`` (module, task, outside), ``text``, ``example``.

    ``heap_lost``, by type: ``type``, ``objects`` with references that nothing holds, how many ``references``,
    ``unreferenced`` (objects that nothing refers to) with their ``bytes`` and all that only they keep,
    ``example`` (an address). Only where the capture is of one instant.

    ``heap_retained``, most bytes first: ``what`` (type, module, container), ``name``, ``bytes``, ``objects``
    and ``own``; of containers ``address``, ``items`` and ``held_by``. ``sure`` is false where there was no
    time to ask all who may keep as much.
    """
    collectors = [_collector(ctx, i) for i in interpreters]
    tables = ctx.builder.snapshot.tables
    tables["gc"] = [_row(c) for c in collectors]
    if len(census.objects) > MOST_OBJECTS and not asked:
        ctx.warn(
            f"{len(census.objects):,} objects: what they refer to was not looked at, so garbage and lost "
            "references are not known (`diagtool heap TARGET --retained` does)"
        )
        return
    graph = build_graph(ctx, census)
    names = _Names(ctx, census)
    roots = roots_of(graph)
    garbage = find_garbage(graph, graph.weight, census.types.flags, roots)
    _add_garbage(names, garbage, collectors)
    if garbage.objects:
        census.garbage = np.sort(graph.nodes.addresses(np.flatnonzero(_goes_with(graph, garbage))))
    # Without a GIL the collector has no lists of generations.
    if (asked or garbage.objects >= _MUCH) and not ctx.runtime.free_threaded:
        _add_generations(ctx, census, graph, collectors, garbage)
    if graph.exact:
        _add_lost(ctx, census, graph, names, np.flatnonzero(roots))
    tables["heap_graph"] = [
        {
            "objects": len(census.objects),
            "references": len(graph.target),
            "exact": graph.exact,
            "why_not": graph.why_not or None,
        }
    ]
    _add_paths(ctx, census, graph, Places(ctx, interpreters, tasks), roots)
    if asked:
        kept = ask_who_keeps(ctx, census, graph, interpreters)
        tables["heap_graph"][0]["reached_bytes"] = kept.total
        _add_retained(ctx, census, interpreters, tasks, names, kept)


def _add_paths(
    ctx: Context, census: HeapCensus, graph: Graph, places: Places, roots: NDArray[np.bool_]
) -> None:
    ctx.builder.snapshot.tables["heap_paths"] = [
        {
            "type": path.type,
            "looked_at": path.looked_at,
            "count": path.count,
            "root": path.root,
            "text": path.text,
            "example": hex(path.example),
        }
        for path in paths_to_types(ctx, census, graph, places, roots)
    ]


def _goes_with(graph: Graph, garbage: Garbage) -> NDArray[np.bool_]:
    """Objects that are garbage, and those that only garbage has references to, wherever else they are known.

    (A callback of ctypes is such an object: the machine code that was made for it has its address.)
    """
    held = np.bincount(graph.target[garbage.mask[graph.sources()]], minlength=len(graph.nodes))
    gone: NDArray[np.bool_] = garbage.mask | (graph.references > 0) & (held >= graph.references)
    return gone & graph.nodes.is_object


class _Names:
    def __init__(self, ctx: Context, census: HeapCensus) -> None:
        self.ctx = ctx
        self.tables = ctx.builder.snapshot.tables
        self._address = census.types.address

    def of(self, kind: int) -> str:
        address = int(self._address[kind])
        return self.ctx.objects.qualified_type(address) or f"type at {address:#x}"


def _collector(ctx: Context, interpreter: Interpreter) -> Collector:
    try:
        return read_collector(ctx, interpreter)
    except MemoryFault as fault:
        ctx.warn(f"the collector of interpreter {interpreter.id} could not be read: {fault}")
        return Collector(interpreter.id, interpreter.collects, interpreter.collecting)


def _row(collector: Collector) -> dict[str, Any]:
    return {
        "interpreter": collector.interpreter,
        "enabled": collector.enabled,
        "off": _is_off(collector),
        "collecting": collector.collecting,
        "thresholds": collector.thresholds,
        "counts": collector.counts,
        "collections": collector.collections or None,
        "collected": collector.collected or None,
        "uncollectable": collector.uncollectable,
        "frozen": collector.frozen,
    }


def _is_off(collector: Collector) -> bool | None:
    """gc.disable(), or a threshold of 0 (Modules/gcmodule.c, gc_alloc)."""
    if collector.enabled is not None and collector.thresholds:
        return not collector.enabled or collector.thresholds[0] == 0
    return collector.enabled if collector.enabled is None else not collector.enabled


def _add_garbage(names: _Names, garbage: Garbage, collectors: list[Collector]) -> None:
    told = [(t, names.of(t.kind)) for t in garbage.types[:_MAX_TYPES]]
    off = [_is_off(c) for c in collectors]
    looped = sorted((t for t in told if t[0].in_cycles), key=lambda t: -t[0].in_cycles)
    names.tables["garbage"] = [
        {
            "count": garbage.objects,
            "bytes": garbage.bytes,
            "cycles": garbage.cycles,
            "off": None if None in off or len(set(off)) != 1 else off[0],
            "threshold": min((c.thresholds[0] for c in collectors if c.thresholds), default=None),
            "types": ", ".join(f"{t.in_cycles:,} {name}" for t, name in looped[:_TYPES_TOLD]),
        }
    ]
    names.tables["heap_garbage"] = [
        {"type": name, "count": t.count, "bytes": t.bytes, "in_cycles": t.in_cycles} for t, name in told
    ]


def _add_generations(
    ctx: Context, census: HeapCensus, graph: Graph, collectors: list[Collector], garbage: Garbage
) -> None:
    members = generations_of(ctx, graph.nodes, census.types, collectors)
    tables = ctx.builder.snapshot.tables
    for row, member in zip(tables["gc"], members, strict=True):
        row["generations"] = member.sizes[:-1]
        row["frozen_objects"] = member.sizes[-1] if member.sizes else None
    if members and any(c.heads for c in collectors):
        lists = np.array([i for c in collectors for i, _ in enumerate(c.heads)])
        of = members[0].of
        mine = of[garbage.mask & (of >= 0)]
        tables["garbage"][0]["old"] = int(np.count_nonzero(lists[mine] >= _OLD))


def _add_lost(ctx: Context, census: HeapCensus, graph: Graph, names: _Names, roots: NDArray[np.intp]) -> None:
    found = find_lost(ctx, census, graph, graph.weight)[:_MAX_TYPES]
    if any(lost.unreferenced >= _FEW for lost in found):
        _with_what_they_keep(graph, found, roots)
    names.tables["heap_lost"] = [
        {
            "type": names.of(lost.kind),
            "objects": lost.objects,
            "references": lost.references,
            "unreferenced": lost.unreferenced,
            "bytes": lost.bytes,
            "example": hex(lost.examples[0]) if lost.examples else None,
        }
        for lost in found
    ]


def _with_what_they_keep(graph: Graph, found: Sequence[LostReferences], roots: NDArray[np.intp]) -> None:
    walker = Walker(graph.first, graph.target, roots)
    everything = int(graph.weight[walker.reach()].sum())
    for lost in [f for f in found if f.unreferenced >= _FEW][:_MOST_WALKS]:
        lost.bytes = everything - int(graph.weight[walker.reach(without=lost.nodes)].sum())


def _add_retained(
    ctx: Context,
    census: HeapCensus,
    interpreters: Sequence[Interpreter],
    tasks: U64,
    names: _Names,
    kept: Retention,
) -> None:
    known = {r["address"]: r.get("held_by") for r in names.tables.get("heap_containers", ())}
    address = np.array([c.address for c in kept.containers if c.address not in known], np.uint64)
    order = np.argsort(address)
    size = np.array([c.bytes for c in kept.containers if c.address not in known], np.int64)
    ways = ways_to(ctx, census, interpreters, tasks, address[order], size[order], _LEVELS)
    rows = [
        {"what": what, "name": k.name, "bytes": k.bytes, "objects": k.objects, "own": k.own, "sure": k.sure}
        for what, answers in (("type", kept.types), ("module", kept.modules))
        for k in answers
    ]
    for c in kept.containers:
        way = ways.get(c.address)
        rows.append(
            {
                "what": "container",
                "name": c.name,
                "bytes": c.bytes,
                "objects": c.objects,
                "own": c.own,
                "sure": c.sure,
                "address": hex(c.address),
                "items": c.items,
                "held_by": known.get(c.address) or (way.text if way is not None else None),
            }
        )
    names.tables["heap_retained"] = sorted(rows, key=lambda row: -int(row["bytes"]))
