"""Blocks with a mapping of their own: malloc takes them from the kernel, above 128 KiB and more.

Their chunk has the bit IS_MMAPPED (2) and no other, and its mapping is a whole number of pages: ``prev_size``
bytes before the chunk (0; more where memalign moved it) and its size. glibc 2.43 keeps 16 bytes less in
``size`` and a flag for huge pages in ``prev_size``. The kernel joins neighbouring mappings, so headers are
looked for in every page of private memory that nobody else claims, at the places where alignments put them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diagtool.capture.memory import PAGE, U64, AddressSpace

__all__ = ["mmapped_chunks"]

# A chunk lies 16 bytes before an aligned address: where memalign puts it in its first page, or, for pages
# and more, at the end of one.
_PLACES = np.array([0, *(2**k - 16 for k in range(5, 13))], dtype=np.uint64)
_PAGES = 1 << 16  # looked at together
_LEAST = 4096  # bytes


def mmapped_chunks(memory: AddressSpace, ranges: Sequence[tuple[int, int]]) -> tuple[U64, U64, U64]:
    """(chunks, bytes of each mapping, where each mapping begins), sorted, in ranges that are whole pages."""
    found: list[tuple[U64, U64, U64]] = []
    for low, high in ranges:
        for start in range(low, high, _PAGES * PAGE):
            pages = np.arange(start, min(high, start + _PAGES * PAGE), PAGE, dtype=np.uint64)
            pages = pages[memory.mapped(pages, PAGE)]
            found.append(_in_pages(memory, pages, low, high))
    if not found:
        return (np.zeros(0, np.uint64),) * 3
    chunk, size, begin = (np.concatenate(column) for column in zip(*found, strict=True))
    order = np.lexsort((chunk, begin))
    return _disjoint(chunk[order], size[order], begin[order])


def _in_pages(memory: AddressSpace, pages: U64, low: int, high: int) -> tuple[U64, U64, U64]:
    at = (pages[:, None] + _PLACES).reshape(-1)
    head, ok = memory.load(at + np.uint64(8))
    some = ok & (head & np.uint64(15) == 2)
    at, size = at[some], head[some] & np.uint64(~7 & (1 << 64) - 1)
    before, ok = memory.load(at)
    offset = before & np.uint64(~1 & (1 << 64) - 1)
    good = ok & (offset <= at - np.uint64(low)) & (size >= 16) & (size <= np.uint64(high))
    good &= (at - offset) % np.uint64(PAGE) == 0
    at, size, offset = at[good], size[good], offset[good]
    whole = offset + size
    whole += np.where(whole % np.uint64(PAGE) == PAGE - 16, np.uint64(16), np.uint64(0))
    begin = at - offset
    good = (whole % np.uint64(PAGE) == 0) & (whole >= _LEAST) & (whole <= np.uint64(high) - begin)
    # In a chunk that was moved there is room for what was asked for behind what was skipped.
    good &= offset < whole
    return at[good], whole[good], begin[good]


# What lies inside an earlier one is data that looks like a header. Where memalign moved a chunk within its
# mapping, the first header still stands at the beginning: of those that describe the same mapping, the last.
def _disjoint(chunk: U64, size: U64, begin: U64) -> tuple[U64, U64, U64]:
    keep, i = [], 0
    ends = begin + size
    while i < len(chunk):
        following = max(i + 1, int(np.searchsorted(begin, ends[i])))
        same = (begin[i:following] == begin[i]) & (size[i:following] == size[i])
        keep.append(i + int(np.flatnonzero(same)[-1]))
        i = following
    return chunk[keep], size[keep], begin[keep]
