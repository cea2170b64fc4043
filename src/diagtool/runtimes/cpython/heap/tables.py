"""The heap as tables of a Snapshot: plain values, by type."""

from __future__ import annotations

import numpy as np

from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.heap.census import HeapCensus, take_census

_MAX_ROWS = 20_000  # types kept by name; the rest is one row
_REST = "(other types)"


def add_heap(ctx: Context) -> HeapCensus:
    """Count the objects; the snapshot gets the tables ``heap`` (one row, the sums) and ``heap_types``.

    ``heap``: ``objects``, ``bytes``, ``types``, and of the small object allocator ``pools``, ``pool_bytes``,
    ``blocks`` (in use) and ``block_bytes``. ``heap_types``, most bytes first: ``type``, ``count``, ``bytes``
    (``own`` and, outside of the objects, ``owned``), ``types`` where several types have this name.
    """
    census = take_census(ctx)
    tables = ctx.builder.snapshot.tables
    pools = census.pools
    tables["heap"] = [
        {
            "objects": len(census.objects),
            "bytes": sum(row.bytes for row in census.rows),
            "types": len(census.rows),
            "pools": len(pools.address),
            "pool_bytes": len(pools.address) * pools.size,
            "blocks": int(pools.used.sum()),
            "block_bytes": int((pools.used * pools.block).sum(dtype=np.int64)),
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
