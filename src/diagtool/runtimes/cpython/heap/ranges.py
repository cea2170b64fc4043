"""Where objects may lie: sorted, disjoint address ranges."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64
from diagtool.capture.segments import merged, without
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.objects.addresssets import Ranges


def heap_ranges(ctx: Context) -> Ranges:
    """The writable memory of the process that no file backs: its heaps, and stacks of threads.

    With what a live capture left out of the copy (it is read when asked for). Reads nothing.
    """
    written = [(s.start, s.end) for s in ctx.capture.memory.segments if s.writable]
    held = merged([*written, *ctx.capture.left_out])
    files = [
        (m.start, m.end)
        for m in ctx.capture.mappings
        if m.path and not m.path.startswith(("[heap]", "[anon:"))
    ]
    return without(held, merged(files))


def mapped_ranges(ctx: Context, ranges: Ranges) -> Ranges:
    """Those of ``ranges`` that lie in mappings of their own, not in the heap that malloc grows with brk(2).

    Arenas of the small object allocator do (_PyObject_ArenaMmap, Objects/obmalloc.c).
    """
    return without(ranges, [(m.start, m.end) for m in ctx.capture.mappings if m.path == "[heap]"])


def joined_ranges(starts: U64, sizes: NDArray[np.int64]) -> Ranges:
    """Ranges from arrays, sorted, neighbours joined. ``sizes`` in bytes; none may be negative."""
    if not len(starts):
        return []
    order = np.argsort(starts, kind="stable")
    low = starts[order]
    high = np.maximum.accumulate(low + sizes[order].astype(np.uint64))
    first = np.flatnonzero(np.concatenate([[True], low[1:] > high[:-1]]))
    last = np.append(first[1:], len(low)) - 1
    return list(zip(low[first].tolist(), high[last].tolist(), strict=True))
