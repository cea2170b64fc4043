"""Big blocks of malloc that hold one buffer each: what need not be copied in a stop nor scanned for objects.

glibc gives every block above its threshold (128 KiB and up) an mmap of its own, with a header in its first
16 bytes: the size of what lies before it in its page (0, or less than a page after memalign), and its own
size, a multiple of the page size, with the bit IS_MMAPPED (2) set (struct malloc_chunk in malloc.c). Images,
arrays and bytes objects live there; objects that the collector tracks are far too small for it.
The kernel joins neighbours into one mapping, so the headers are followed from block to block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from diagtool.capture.memory import PAGE, U64, Mask

#: Given addresses, the 64-bit words there: (values, ok).
ReadWords = Callable[[U64], tuple[U64, Mask]]

SMALLEST = 128 << 10  # bytes of an mmapped block: M_MMAP_THRESHOLD at its default
_BATCH = 1024  # pages looked at together, at most, where no block begins
_IS_MMAPPED = 2


def without_blobs(
    ranges: Sequence[tuple[int, int]], read: ReadWords, least: int = 8 << 20
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """(what is left of ``ranges``, the blobs), both sorted. Ranges below ``least`` bytes are left whole.

    Of each blob its first page stays in what is left: the object that begins there may be of interest.
    """
    kept: list[tuple[int, int]] = []
    blobs: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if end - start < least:
            kept.append((start, end))
            continue
        cursor = begin = start & -PAGE
        while cursor < end:
            jump, size = _next_blob(cursor, end, read)
            cursor = jump
            if not size:
                break
            blobs.append((cursor + PAGE, cursor + size))
            kept.append((max(begin, start), cursor + PAGE))
            cursor += size
            begin = cursor
        if begin < end:
            kept.append((max(begin, start), end))
    return kept, blobs


def _next_blob(cursor: int, end: int, read: ReadWords) -> tuple[int, int]:
    """(address, size) of the first blob at or after ``cursor``; size 0 when there is none before ``end``."""
    batch = 1
    while cursor < end:
        pages = np.arange(cursor, min(end, cursor + batch * PAGE), PAGE, dtype=np.uint64)
        own, ok = read(pages + np.uint64(8))
        size = own & np.uint64(~7 & (1 << 64) - 1)
        good = ok & (own & np.uint64(7) == _IS_MMAPPED)
        good &= (size >= SMALLEST) & (size % PAGE == 0) & (size <= np.uint64(end) - pages)
        for i in np.flatnonzero(good).tolist():
            before, readable = read(pages[i : i + 1])
            if readable[0] and before[0] < PAGE:
                return int(pages[i]), int(size[i])
        cursor += len(pages) * PAGE
        batch = min(8 * batch, _BATCH)
    return end, 0
