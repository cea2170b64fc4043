"""The heaps of a process side by side: which of them grew says what kind of leak it is.

Objects that the collector tracks, blocks of the small object allocator, the native heap, resident memory:
a leak in Python makes the first two grow, one in a C extension only the second or the third.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.heap.census import HeapCensus
from diagtool.runtimes.cpython.heap.types import HAVE_GC
from diagtool.runtimes.cpython.threads.interpreters import Interpreter

_BATCH = 1 << 20  # objects looked at together
_TRACKED = 1  # _PyGC_BITS_TRACKED of ob_gc_bits, Include/internal/pycore_gc.h


def count_heaps(ctx: Context, census: HeapCensus, interpreters: Sequence[Interpreter]) -> dict[str, Any]:
    """``collected``: objects that the collector tracks, frozen ones included. ``blocks``, ``block_bytes``: in
    use, of the small object allocator, in free-threaded builds of mimalloc (None where there is neither).
    ``objects``, ``object_bytes``: all objects and what they take. ``collects``: whether the collector is on,
    None where interpreters differ or it is not known."""
    pools, pages = census.pools, census.pages
    blocks = int((pools if pages is None else pages).used.sum())
    size = pools.block * pools.used if pages is None else pages.block * pages.used
    enabled = {i.collects for i in interpreters}
    return {
        "collected": _collected(ctx, census),
        "blocks": blocks or None,
        "block_bytes": int(size.sum(dtype=np.int64)) if blocks else None,
        "objects": len(census.objects),
        "object_bytes": sum(row.bytes for row in census.rows),
        "collects": enabled.pop() if len(enabled) == 1 else None,
    }


def _collected(ctx: Context, census: HeapCensus) -> int:
    """An object is in one of the collector's lists when its head points on (_gc_next, pycore_gc.h)."""
    kinds = np.flatnonzero(census.types.flags & np.uint64(HAVE_GC))
    head = np.uint64(ctx.runtime.layout.get("sizeof.PyGC_Head", 16))
    total = 0
    for kind in kinds.tolist():
        objects = census.of(kind)
        for at in range(0, len(objects), _BATCH):
            part = objects[at : at + _BATCH]
            if ctx.runtime.free_threaded:
                total += int(
                    np.count_nonzero(ctx.vectors.small(part, "PyObject.ob_gc_bits", "u1") & _TRACKED)
                )
            else:
                total += int(np.count_nonzero(ctx.vectors.words(part - head)))
    return total
