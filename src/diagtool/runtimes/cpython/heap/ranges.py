"""Where objects may lie: sorted, disjoint address ranges, and what is left of them without others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64
from diagtool.capture.segments import merged
from diagtool.runtimes.cpython.context import Context

Ranges = list[tuple[int, int]]


def heap_ranges(ctx: Context) -> Ranges:
    """The writable memory of the process that no file backs: its heaps, and stacks of threads.

    With what a live capture left out of the copy (it is read when asked for), without the insides of big
    blocks of malloc.
    """
    held = merged([*ctx.vectors.object_memory(), *ctx.capture.left_out])
    files = [
        (m.start, m.end)
        for m in ctx.capture.mappings
        if m.path and not m.path.startswith(("[heap]", "[anon:"))
    ]
    return without(held, merged(files))


def without(ranges: Sequence[tuple[int, int]], holes: Sequence[tuple[int, int]]) -> Ranges:
    """What is left of sorted ``ranges`` without sorted ``holes``."""
    out: Ranges = []
    i = 0
    for low, high in ranges:
        cursor = low
        while i < len(holes) and holes[i][1] <= cursor:
            i += 1
        j = i
        while j < len(holes) and holes[j][0] < high:
            if holes[j][0] > cursor:
                out.append((cursor, holes[j][0]))
            cursor = max(cursor, holes[j][1])
            j += 1
        if cursor < high:
            out.append((cursor, high))
    return out


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
