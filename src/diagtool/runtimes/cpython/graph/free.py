"""Memory in no use: a word there is nobody's reference, whatever its value.

Free chunks of malloc, free pools, what mimalloc has and nobody uses, stacks below their pointer. Only what is
free for sure: where something is amiss in an arena, or was just being changed, its free memory is left out,
and the words there are as doubtful as those behind the last item of a list.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64
from diagtool.runtimes.cpython.heap.mimalloc import Pages
from diagtool.runtimes.cpython.heap.mimallocobjects import used_blocks
from diagtool.runtimes.native.glibc.heap import GlibcHeap

__all__ = ["Stretches", "free_in_pages", "free_of_malloc", "joined", "unused_by_malloc"]

_HEADER = np.uint64(8)  # bytes between two blocks of malloc, at least


def _none() -> U64:
    return np.zeros(0, np.uint64)


@dataclass(slots=True)
class Stretches:
    """Ranges of memory as two arrays, sorted and disjoint: for millions of them."""

    start: U64 = field(default_factory=_none)
    end: U64 = field(default_factory=_none)

    def hold(self, places: U64) -> NDArray[np.bool_]:
        """Which of the addresses lie in one."""
        if not len(self.start):
            return np.zeros(len(places), np.bool_)
        at = np.maximum(np.searchsorted(self.start, places, side="right"), 1) - 1
        inside: NDArray[np.bool_] = (self.start[at] <= places) & (places < self.end[at])
        return inside


def joined(*parts: Stretches, ranges: Sequence[tuple[int, int]] = ()) -> Stretches:
    """All of them, those that touch made one."""
    more = np.array(ranges, np.uint64).reshape(-1, 2)
    start = np.concatenate([more[:, 0], *(p.start for p in parts)])
    end = np.concatenate([more[:, 1], *(p.end for p in parts)])
    keep = end > start
    order = np.argsort(start[keep], kind="stable")
    low, high = start[keep][order], np.maximum.accumulate(end[keep][order])
    if not len(low):
        return Stretches()
    first = np.flatnonzero(np.concatenate([[True], low[1:] > high[:-1]]))
    last = np.append(first[1:], len(low)) - 1
    return Stretches(low[first], high[last])


def unused_by_malloc(glibc: GlibcHeap) -> Stretches:
    """What lies between used blocks: free ones, and the rest at the end of a heap, which is no block."""
    heaps = np.array(glibc.heaps, np.uint64).reshape(-1, 2)
    used = glibc.blocks.used & (glibc.blocks.arena >= 0)
    low = glibc.blocks.address[used]
    high = low + glibc.blocks.usable[used]
    if not len(heaps):
        return Stretches()
    at = np.maximum(np.searchsorted(heaps[:, 0], low, side="right"), 1) - 1
    inside = (heaps[at, 0] <= low) & (high <= heaps[at, 1])
    # Blocks are disjoint and lie within heaps: the n-th end of something used is followed by the n-th begin.
    start = np.sort(np.concatenate([heaps[:, 0], high[inside]]))
    end = np.sort(np.concatenate([low[inside], heaps[:, 1]]))
    gaps = (start < end) & (end - start > _HEADER)
    return Stretches(start[gaps], end[gaps])


def free_of_malloc(glibc: GlibcHeap) -> Stretches:
    """Free blocks, those of fast bins and thread caches among them, and tops; of sound arenas only."""
    blocks = glibc.blocks
    sound = np.ones(len(glibc.arenas) + 1, np.bool_)
    sound[glibc.unsound] = False
    free = ~blocks.used & (blocks.arena >= 0) & sound[blocks.arena]
    start = blocks.address[free]
    # The first word of a top belongs to the block before it.
    tops = [(low + 8, high) for (low, high), good in zip(glibc.tops, sound.tolist(), strict=False) if good]
    return joined(Stretches(start, start + blocks.usable[free]), ranges=tops)


def free_in_pages(pages: Pages) -> Stretches:
    """What mimalloc has and nobody uses. Nothing where a list of free blocks leads astray."""
    if len(pages.damaged) or not len(pages.segments):
        return Stretches()
    blocks = np.sort(used_blocks(pages, np.arange(len(pages))))
    end = pages.find(blocks)[3]
    order = np.argsort(pages.segments)
    low, high = pages.segments[order], pages.segment_ends[order]
    at = np.maximum(np.searchsorted(low, blocks, side="right"), 1) - 1
    inside = (low[at] <= blocks) & (end <= high[at])
    # As in unused_by_malloc.
    start = np.sort(np.concatenate([low, end[inside]]))
    stop = np.sort(np.concatenate([blocks[inside], high]))
    gaps = start < stop
    return Stretches(start[gaps], stop[gaps])
