"""What a snapshot keeps of the heap so that a later one can say what grew: heaps, largest containers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from diagtool.capture.memory import U64, MemoryFault
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.heap.census import HeapCensus
from diagtool.runtimes.cpython.heap.containers import Containers, kinds_of, large_containers
from diagtool.runtimes.cpython.heap.heaps import count_heaps
from diagtool.runtimes.cpython.heap.places import Places
from diagtool.runtimes.cpython.heap.steps import Step
from diagtool.runtimes.cpython.heap.why import Way, ways_to
from diagtool.runtimes.cpython.threads.interpreters import Interpreter

_MOST_BYTES, _MOST_ITEMS = 40, 20  # containers kept: those with most bytes, those with most items
_LEAST_BYTES, _LEAST_ITEMS = 64 << 10, 256  # one of them at least
_MOST_TYPES = 4  # types of items told of one container
#: Attributes in which caches keep how much they take.
_BOUNDS = [
    prefix + name
    for name in ("maxsize", "max_size", "maxlen", "max_len", "max_items", "max_entries", "limit", "capacity")
    for prefix in ("", "_")
]
_LRU_CACHE = "functools._lru_cache_wrapper"
_LEVELS = 6  # steps from a root to a container


def add_bases(ctx: Context, census: HeapCensus, interpreters: Sequence[Interpreter], tasks: U64) -> None:
    """The rest of the row in ``heaps`` (``count_heaps``), and the table ``heap_containers``.

    ``heap_containers``, most bytes first: ``address``, ``type``, ``items``, ``limit`` (maxlen of a deque,
    or what its owner has as ``maxsize``, ``capacity`` …), ``own`` (bytes of container and table), ``bytes``
    (with what only items keep, estimated from a sample),
    ``item_types`` (of the sample, most first), ``oldest`` (addresses of the first items or keys, none for
    sets), ``held_by`` (the way from a root), ``root`` (module, local, task, native, none), ``own_module``
    (whether that is a module of the program), ``name`` (of the global, local or attribute that it is) and
    ``of`` (type of the object that has this attribute).
    """
    tables = ctx.builder.snapshot.tables
    tables.setdefault("heaps", [{}])[0].update(count_heaps(ctx, census, interpreters))
    places = Places(ctx, interpreters, tasks)
    found = large_containers(ctx, census, places.roots)
    most = np.union1d(
        np.argsort(-found.bytes, kind="stable")[:_MOST_BYTES], np.arange(len(found))[:_MOST_ITEMS]
    )
    most = most[(found.bytes[most] >= _LEAST_BYTES) | (found.items[most] >= _LEAST_ITEMS)]
    rows = most[np.argsort(found.address[most])]
    ways = ways_to(ctx, census, interpreters, tasks, found.address[rows], found.bytes[rows], _LEVELS)
    rows = rows[np.argsort(-found.bytes[rows], kind="stable")]
    tables["heap_containers"] = [
        _row(ctx, census, found, row, ways.get(int(found.address[row]))) for row in rows.tolist()
    ]


def _row(ctx: Context, census: HeapCensus, found: Containers, row: int, way: Way | None) -> dict[str, Any]:
    last, owner = _end(way.steps) if way is not None else (None, None)
    limit = int(found.limit[row])
    if limit < 0 and owner is not None:
        limit = _bound(ctx, owner)
    return {
        "address": int(found.address[row]),
        "type": ctx.objects.qualified_type(int(census.types.address[found.kind[row]])),
        "items": int(found.items[row]),
        "limit": limit if limit >= 0 else None,
        "own": int(found.own[row]),
        "bytes": int(found.bytes[row]),
        "item_types": _types(ctx, census, found.sample[row]),
        "oldest": [a for a in found.oldest[row].tolist() if a],
        "held_by": way.text if way is not None else None,
        "root": way.root if way is not None else "none",
        "own_module": way is not None and way.rank == Places.OWN,
        "name": last.name if last is not None else None,
        "of": owner.type if owner is not None else None,
    }


def _end(steps: Sequence[Step]) -> tuple[Step | None, Step | None]:
    """The last step, and the object whose attribute it is."""
    told = [step for step in steps if not step.folded]
    return (told[-1] if told else None), (told[-2] if len(told) > 1 else None)


def _bound(ctx: Context, owner: Step) -> int:
    """What an instance says is the most that it takes (``self.maxsize``), -1 for nothing."""
    maxsize = ctx.runtime.layout.get("lru_cache_object.maxsize")
    if owner.type == _LRU_CACHE and maxsize is not None:
        with suppress(MemoryFault):
            return max(ctx.objects.memory.i64(owner.address + maxsize), -1)
    for name in _BOUNDS:
        with suppress(MemoryFault):
            value = ctx.objects.attribute(owner.address, name)
            number = ctx.objects.integer(value) if value else None
            if number is not None and 0 < number < 1 << 40:
                return number
    return -1


def _types(ctx: Context, census: HeapCensus, sample: U64) -> list[str]:
    kinds = kinds_of(ctx, census, sample[sample != 0])
    names = [ctx.objects.qualified_type(int(census.types.address[k])) for k in kinds[kinds >= 0].tolist()]
    distinct, counts = np.unique(np.array(names, np.str_), return_counts=True)
    return [str(n) for n in distinct[np.argsort(-counts, kind="stable")][:_MOST_TYPES]]
