"""The heap as tables of a Snapshot: plain values, by type."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diagtool.capture.memory import U64
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.heap.census import HeapCensus, take_census
from diagtool.runtimes.cpython.heap.mimalloc import Pages
from diagtool.runtimes.cpython.heap.pools import Pools
from diagtool.runtimes.cpython.heap.why import ask_why
from diagtool.runtimes.cpython.threads.interpreters import Interpreter

_MAX_ROWS = 20_000  # types kept by name; the rest is one row
_REST = "(other types)"


def _block_bytes(blocks: Pools | Pages) -> int:
    return int((blocks.used * blocks.block).sum(dtype=np.int64))


def add_heap(ctx: Context) -> HeapCensus:
    """Count the objects; the snapshot gets the tables ``heap`` (one row, the sums) and ``heap_types``.

    ``heap``: ``objects``, ``bytes``, ``types``, and of the small object allocator (of mimalloc's pages in a
    free-threaded build, which have larger blocks, too) ``pools``, ``pool_bytes``,
    ``blocks`` (in use) and ``block_bytes``. ``heap_types``, most bytes first: ``type``, ``count``, ``bytes``
    (``own`` and, outside of the objects, ``owned``), ``types`` where several types have this name.
    """
    census = take_census(ctx)
    tables = ctx.builder.snapshot.tables
    pools, pages = census.pools, census.pages
    tables["heap"] = [
        {
            "objects": len(census.objects),
            "bytes": sum(row.bytes for row in census.rows),
            "types": len(census.rows),
            "pools": len(pools.address if pages is None else pages),
            "pool_bytes": len(pools.address) * pools.size if pages is None else int(pages.size.sum()),
            "blocks": int((pools if pages is None else pages).used.sum()),
            "block_bytes": _block_bytes(pools if pages is None else pages),
        }
    ]
    rows = [(r.name, r.count, r.own, r.owned, r.types) for r in census.rows[:_MAX_ROWS]]
    rest = census.rows[_MAX_ROWS:]
    if rest:
        sums = (sum(r.count for r in rest), sum(r.own for r in rest), sum(r.owned for r in rest))
        rows.append((_REST, *sums, sum(r.types for r in rest)))
    tables["heap_types"] = [
        {
            "type": name,
            "count": count,
            "bytes": own + owned,
            "own": own,
            "owned": owned,
            **({"types": types} if types > 1 else {}),
        }
        for name, count, own, owned, types in rows
    ]
    return census


def add_why(
    ctx: Context, census: HeapCensus, interpreters: Sequence[Interpreter], tasks: U64, wanted: str
) -> None:
    """Who keeps the object or the type that is ``wanted``: tables ``heap_why`` (one row) and ``heap_ways``.

    ``heap_why``: ``wanted``, ``total`` objects, of which ``looked_at``. ``heap_ways``, a row a way: ``text``,
    ``root`` (module, local, task, native, none), ``count`` of those looked at, ``example`` (an address), and
    ``steps``: ``address``, ``type``, ``name`` and ``items`` where they have them.
    """
    answer = ask_why(ctx, census, interpreters, tasks, wanted)
    tables = ctx.builder.snapshot.tables
    tables["heap_why"] = [{"wanted": answer.wanted, "total": answer.total, "looked_at": answer.looked_at}]
    tables["heap_ways"] = [
        {
            "text": way.text,
            "root": way.root,
            "count": way.count,
            "example": hex(way.example),
            "steps": [
                {"address": hex(s.address), "type": s.type, "name": s.name, "items": s.items}
                for s in way.steps
            ],
        }
        for way in answer.ways
    ]
