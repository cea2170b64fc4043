"""Blocks with a mapping of their own, found from block to block: few bytes of each are read.

What :mod:`.mmapped` does page by page in memory that is here, this does for gigabytes that are not: a block's
header says where it ends, and the kernel puts the next one's before or behind it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import PAGE, U64
from diagtool.capture.peek import Peek
from diagtool.runtimes.native.glibc.mmapped import PLACES

__all__ = ["SMALLEST", "big_blocks"]

#: Bytes of the smallest block that is looked for: M_MMAP_THRESHOLD at its default.
SMALLEST = 128 << 10

_ROUNDS = 4096  # steps from block to block, all ranges together
_ALIKE = 512  # blocks of one size that are looked for at once
_MOST_PAGES = 1 << 20  # that are looked at where no block begins
_MOST_BATCH = 1024  # of them at once
_FEW = 64  # ranges that are looked at for blocks of one size
_SCANNED = PLACES[[0, 2]]  # malloc's own place, and that of memory aligned to 64 bytes
_SIZE = np.uint64(~7 & (1 << 64) - 1)


def big_blocks(peek: Peek, ranges: Sequence[tuple[int, int]], least: int = SMALLEST) -> U64:
    """The mappings of blocks in ``ranges`` (whole pages): n x (start, end), sorted."""
    wide = [(low, high) for low, high in ranges if high - low >= least]
    if not wide:
        return np.zeros((0, 2), np.uint64)
    at: U64 = np.array([low for low, _ in wide], np.uint64)
    end: U64 = np.array([high for _, high in wide], np.uint64)
    batch = np.ones(len(wide), np.int64)
    found: list[U64] = []
    pages = 0
    for _ in range(_ROUNDS):
        rows = np.flatnonzero(at + np.uint64(least) <= end)
        if not len(rows) or pages > _MOST_PAGES:
            break
        size, offset = _blocks_at(peek, at[rows], end[rows], least, PLACES)
        hit = size > 0
        mine = rows[hit]
        found.append(np.stack([at[mine], at[mine] + size[hit]], axis=1))
        at[mine] += size[hit]
        batch[mine] = 1
        if len(mine) <= _FEW:
            for row, whole, place in zip(
                mine.tolist(), size[hit].tolist(), offset[hit].tolist(), strict=True
            ):
                more = _alike(peek, int(at[row]), int(end[row]), whole, place, least)
                if len(more):
                    found.append(more)
                    at[row] = more[-1, 1]
        rest = rows[~hit]
        if len(rest):
            at[rest] += np.uint64(PAGE)
            pages += int(batch[rest].sum())
            at[rest] = _next(peek, at[rest], end[rest], batch[rest], least)
            batch[rest] = np.minimum(batch[rest] * 8, _MOST_BATCH)
    joined = np.concatenate([np.zeros((0, 2), np.uint64), *found])
    return joined[np.argsort(joined[:, 0])]


# Of each page: the bytes of the mapping of a block whose header is at one of ``places`` (0: none), and where.
def _blocks_at(peek: Peek, pages: U64, ends: U64, least: int, places: U64) -> tuple[U64, U64]:
    at = (pages[:, None] + places).reshape(-1)
    data, ok = peek(at, 16)
    words = np.ascontiguousarray(data).view("<u8").reshape(len(pages), len(places), 2)
    before, head = words[:, :, 0] & np.uint64(~1 & (1 << 64) - 1), words[:, :, 1]
    size = head & _SIZE
    whole = before + size
    whole += np.where(whole % np.uint64(PAGE) == PAGE - 16, np.uint64(16), np.uint64(0))
    room = (ends - pages)[:, None]
    good = ok.reshape(len(pages), len(places)) & (head & np.uint64(15) == 2) & (before == places)
    good &= (size <= room) & (whole <= room) & (whole >= np.uint64(least)) & (whole % np.uint64(PAGE) == 0)
    # Where memalign moved a header, the first one still stands before it: the last one counts.
    last = len(places) - 1 - np.argmax(good[:, ::-1], axis=1)
    row = np.arange(len(pages))
    some = good[row, last]
    return np.where(some, whole[row, last], np.uint64(0)), places[last]


# Blocks of the same size, one behind the other.
def _alike(peek: Peek, at: int, end: int, size: int, place: int, least: int) -> U64:
    number = min(_ALIKE, (end - at) // size)
    starts = np.uint64(at) + np.arange(number, dtype=np.uint64) * np.uint64(size)
    whole, _ = _blocks_at(peek, starts, np.full(number, end, np.uint64), least, np.array([place], np.uint64))
    same = whole == np.uint64(size)
    first = number if same.all() else int(np.argmin(same))
    return np.stack([starts[:first], starts[:first] + np.uint64(size)], axis=1)


# The first of the next pages where a block may begin; behind them where there is none.
def _next(peek: Peek, at: U64, ends: U64, batch: NDArray[np.int64], least: int) -> U64:
    room = np.maximum((np.maximum(ends, at) - at) // np.uint64(PAGE), np.uint64(1)).astype(np.int64)
    number = np.minimum(batch, room)
    row = np.repeat(np.arange(len(at)), number)
    step = np.arange(len(row)) - np.repeat(np.cumsum(number) - number, number)
    pages = at[row] + (step * PAGE).astype(np.uint64)
    size, _ = _blocks_at(peek, pages, ends[row], least, _SCANNED)
    out: U64 = at + (number * PAGE).astype(np.uint64)
    hits = np.flatnonzero(size)
    first, where = np.unique(row[hits], return_index=True)
    out[first] = pages[hits[where]]
    return out
