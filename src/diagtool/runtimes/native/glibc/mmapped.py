"""Blocks with a mapping of their own: malloc takes them from the kernel, above 128 KiB and more.

Their chunk has the bit IS_MMAPPED (2) and no other, and its mapping is a whole number of pages: ``prev_size``
bytes before the chunk (0; more where memalign moved it) and its size. glibc 2.43 keeps 16 bytes less in
``size`` and a flag for huge pages in ``prev_size``. The kernel joins neighbouring mappings, so headers are
looked for in every page of private memory that nobody else claims, at the places where alignments put them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import PAGE, U64, AddressSpace

__all__ = ["PLACES", "Mapped", "mmapped_chunks"]

#: A chunk lies 16 bytes before an aligned address: where memalign puts it in its first page, or, for pages
#: and more, at the end of one.
PLACES = np.array([0, *(2**k - 16 for k in range(5, 13))], dtype=np.uint64)
_PAGES = 1 << 16  # looked at together
_LEAST = 4096  # bytes


@dataclass(frozen=True, slots=True)
class Mapped:
    """Chunks with a mapping of their own, sorted; parallel arrays.

    ``chunk``: address of the header; ``usable``: bytes behind it for the program; ``start``, ``size``: of the
    mapping.
    """

    chunk: U64
    usable: U64
    start: U64
    size: U64

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """The mappings."""
        return list(zip(self.start.tolist(), (self.start + self.size).tolist(), strict=True))

    def __getitem__(self, rows: NDArray[np.intp] | list[int]) -> Mapped:
        return Mapped(self.chunk[rows], self.usable[rows], self.start[rows], self.size[rows])


def mmapped_chunks(memory: AddressSpace, ranges: Sequence[tuple[int, int]]) -> Mapped:
    """The chunks in ranges that are whole pages."""
    found = [Mapped(*(np.zeros(0, dtype=np.uint64) for _ in range(4)))]
    for low, high in ranges:
        for start in range(low, high, _PAGES * PAGE):
            pages = np.arange(start, min(high, start + _PAGES * PAGE), PAGE, dtype=np.uint64)
            found.append(_in_pages(memory, pages[memory.mapped(pages, PAGE)], low, high))
    columns = ((f.chunk, f.usable, f.start, f.size) for f in found)
    joined = Mapped(*(np.concatenate(column) for column in zip(*columns, strict=True)))
    return _disjoint(joined[np.lexsort((joined.chunk, joined.start))])


def _in_pages(memory: AddressSpace, pages: U64, low: int, high: int) -> Mapped:
    at = (pages[:, None] + PLACES).reshape(-1)
    head, ok = memory.load(at + np.uint64(8))
    some = ok & (head & np.uint64(15) == 2)
    at, size = at[some], head[some] & np.uint64(~7 & (1 << 64) - 1)
    before, ok = memory.load(at)
    offset = before & np.uint64(~1 & (1 << 64) - 1)
    good = ok & (offset <= at - np.uint64(low)) & (size >= 32) & (size <= np.uint64(high))
    good &= (at - offset) % np.uint64(PAGE) == 0
    at, size, offset = at[good], size[good], offset[good]
    short = (offset + size) % np.uint64(PAGE) == PAGE - 16
    whole = offset + size + np.where(short, np.uint64(16), np.uint64(0))
    usable = size - np.where(short, np.uint64(8), np.uint64(16))
    start = at - offset
    good = (whole % np.uint64(PAGE) == 0) & (whole >= _LEAST) & (whole <= np.uint64(high) - start)
    return Mapped(at, usable, start, whole)[np.flatnonzero(good)]


# What lies inside an earlier one is data that looks like a header. Where memalign moved a chunk within its
# mapping, the first header still stands at the beginning: of those that describe the same mapping, the last.
def _disjoint(found: Mapped) -> Mapped:
    keep, i = [], 0
    start, ends = found.start, found.start + found.size
    while i < len(start):
        following = max(i + 1, int(np.searchsorted(start, ends[i])))
        same = (start[i:following] == start[i]) & (ends[i:following] == ends[i])
        keep.append(i + int(np.flatnonzero(same)[-1]))
        i = following
    return found[keep]
