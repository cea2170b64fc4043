"""Runs of chunks: from the first one of a heap from header to header to its top.

Each chunk says where the next one begins (struct malloc_chunk in malloc.c: the word at +8 is its size, a
multiple of 16, with three flags), so a run can only be followed one by one. Here all possible headers of
256 KiB are taken at once: each 16-byte cell is read as if it were a header, which gives for each cell the one
after it; the run is then doubled, and so is the step (2, 4, 8 … headers on), until it leaves the batch.

Where a header cannot be one, the run is taken up again at the first place from which :data:`SURE` sound
headers follow. A batch is looked at once, or once more for each such place, so the work is bounded by memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64, AddressSpace, Mask

__all__ = ["PREV_INUSE", "SIZE_BITS", "Break", "Chunks", "Region", "stretch", "walk"]

#: Flags in the size of a chunk: the chunk before it is in use, it has a mapping of its own, non-main arena.
PREV_INUSE, IS_MMAPPED, NON_MAIN_ARENA = 1, 2, 4
SIZE_BITS = 7
MINSIZE = 32  # bytes of the smallest chunk
SURE = 16  # sound headers in a row that random words don't make
_CELL = 16  # MALLOC_ALIGNMENT
_FENCE = 16  # bytes of what ends a heap that has been left (sysmalloc in malloc.c)
_BATCH = 256 << 10  # bytes
_LARGEST_SURE = 64 << 10  # bytes of a chunk that counts for SURE
_MAX_BREAKS = 1000  # of one region: what has more is no heap
_MOST_BREAKS = 10_000  # of all regions together
_MAX_TRIES = 64  # places tried in one batch
_NOT_A_HEADER = np.uint64(IS_MMAPPED | 8)
_COUNT = np.arange(_BATCH // _CELL, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Region:
    """Memory that is chunks from ``start`` on. ``top`` is its last chunk, where one is known; else 0.

    ``exact``: a chunk does begin at ``start``. Otherwise the first one is looked for, without a word.
    """

    start: int
    end: int
    arena: int  # number of its arena
    top: int = 0
    exact: bool = True


@dataclass(frozen=True, slots=True)
class Break:
    """A place where a run could not be followed: bytes from there to where it went on, or to the end."""

    address: int
    size: int
    arena: int
    header: int | None  # the word that can't be a size; None where memory is missing


@dataclass(slots=True)
class Chunks:
    """What was found, sorted by address: the chunks (not tops, nor fences) of all regions.

    ``head`` is the size with its flags. ``used`` is what the next chunk says: chunks in fast bins and thread
    caches count as used here.
    """

    address: U64
    head: U64
    used: Mask
    arena: NDArray[np.int32]
    breaks: list[Break] = field(default_factory=list)
    #: Arenas whose top was being split.
    changing: list[int] = field(default_factory=list)

    @property
    def size(self) -> U64:
        """Bytes of each chunk, its header included."""
        size: U64 = self.head & np.uint64(~SIZE_BITS & (1 << 64) - 1)
        return size

    def runs(self) -> list[tuple[int, int]]:
        """The ranges of memory that are chunks without a gap, sorted."""
        if not len(self):
            return []
        ends = self.address + self.size
        cuts = np.flatnonzero(ends[:-1] != self.address[1:])
        lows = self.address[np.concatenate([[0], cuts + 1])].tolist()
        return list(zip(lows, ends[np.concatenate([cuts, [len(ends) - 1]])].tolist(), strict=True))

    def __len__(self) -> int:
        return len(self.address)


def walk(memory: AddressSpace, regions: Sequence[Region]) -> Chunks:
    """The chunks of disjoint regions."""
    regions = sorted(regions, key=lambda r: r.start)
    runs = [_Run(region) for region in regions]
    at = breaks = 0
    for start, words in memory.blocks([(r.start & -16, r.end) for r in regions], step=_BATCH):
        if start % _CELL:
            start, words = start + 8, words[1:]
        while at < len(runs) and runs[at].region.end <= start:
            at += 1
        # One batch may hold the end of one region and the beginning of others.
        number = at
        while number < len(runs) and runs[number].region.start < start + 8 * len(words):
            had = len(runs[number].breaks)
            runs[number].take(start, words)
            breaks += len(runs[number].breaks) - had
            if breaks > _MOST_BREAKS and len(runs[number].breaks) > had:
                runs[number].done = True
            number += 1
    for run in runs:
        run.finish()
    return _joined(memory, runs)


class _Run:
    """The run of one region, as far as it was followed."""

    def __init__(self, region: Region) -> None:
        self.region = region
        self.end = region.top or region.end
        self.next = (region.start + _CELL - 1) & -_CELL
        self.lost: int | None = None if region.exact else self.next  # since where the run is lost
        self.header: int | None = None
        self.quiet = not region.exact  # the next break is only the search for the first chunk
        self.done = False
        self.changing = False
        self.last = 0  # size of the chunk before ``next``
        self.positions: list[U64] = []
        self.heads: list[U64] = []
        self.breaks: list[Break] = []

    def take(self, start: int, words: U64) -> None:
        """Follow the run through the words of a batch."""
        last = min(start + len(words) // 2 * _CELL, self.end)
        if self.done or self.next >= last or last <= start:
            return
        if self.next < start and self.lost is None:
            fenced = self.last & ~SIZE_BITS == _FENCE
            self.lose(self.next, None, quiet=fenced)  # a gap in memory where a header should be
        first = max(start, self.region.start & -_CELL)
        size = words[(first - start) // 8 + 1 : (last - start) // 8 : 2]
        batch = _Batch(first, size, self.end)
        for _ in range(_MAX_TRIES):
            if self.lost is not None:
                found = batch.sound(max(self.next, first))
                if found is None:
                    self.next = last
                    return
                self.resume(found)
            self.follow(batch)
            if self.done or self.lost is None or self.next >= last:
                return
        self.next = last

    def follow(self, batch: _Batch) -> None:
        cells = batch.run((self.next - batch.start) // _CELL)
        heads = batch.size[cells]
        self.positions.append(cells.astype(np.uint64) * np.uint64(_CELL) + np.uint64(batch.start))
        self.heads.append(heads)
        # Of the headers in the run only its last one can be unsound.
        place, head = batch.start + int(cells[-1]) * _CELL, int(heads[-1])
        following = place + (head & ~SIZE_BITS)
        before = (int(heads[-2]) if len(heads) > 1 else self.last) & ~SIZE_BITS
        if batch.good[cells[-1]]:
            self.next, self.last = following, head
            return
        self.heads[-1], self.positions[-1] = heads[:-1], self.positions[-1][:-1]
        if self.region.top and following == self.region.end and head & (IS_MMAPPED | 8) == 0:
            # The top was split a moment ago: its new place is known, its old size still stands here.
            self.positions.append(np.array([place], dtype=np.uint64))
            self.heads.append(np.array([self.end - place | head & SIZE_BITS], dtype=np.uint64))
            self.changing, self.done, self.next = True, True, self.end
            return
        fenced = before == _FENCE
        if fenced and head & ~SIZE_BITS == 0:  # the end of a heap that was left for another one
            self.done = True
            self.next = self.end
            return
        self.lose(place, None if fenced else head, quiet=fenced)
        self.next = place + _CELL

    def lose(self, address: int, header: int | None, quiet: bool = False) -> None:
        self.lost, self.header, self.last = address, header, 0
        self.quiet = quiet

    def resume(self, address: int) -> None:
        assert self.lost is not None
        self.note(address)
        self.lost, self.quiet = None, False
        self.next = address

    # Past a fence the main arena's heap may hold memory of somebody else's sbrk.
    def note(self, end: int) -> None:
        if self.lost is not None and not self.quiet and end > self.lost:
            self.breaks.append(Break(self.lost, end - self.lost, self.region.arena, self.header))
        if len(self.breaks) >= _MAX_BREAKS:
            self.done = True

    def finish(self) -> None:
        """Say what was not followed to its end."""
        if self.lost is None and self.next < self.end:
            self.lose(self.next, None, quiet=self.last & ~SIZE_BITS == _FENCE)
        self.note(self.end)


class _Batch:
    """The 16-byte cells of a stretch of memory, each read as if a chunk began there."""

    def __init__(self, start: int, size: U64, end: int) -> None:
        self.start = start
        self.size = np.ascontiguousarray(size)
        n = len(size)
        cells = _COUNT[:n]
        following = (self.size >> np.uint64(4)).view(np.int64)  # below 1 << 60: never negative
        following += cells
        self.good: Mask = self.size & _NOT_A_HEADER == 0
        self.good &= following > cells
        self.good &= following <= (end - start) // _CELL
        self._following = following
        self._last = (end - start) // _CELL
        # Cell n stands for "outside", and a header that is none leads there, too.
        self._next = np.empty(n + 1, dtype=np.int64)
        self._next[n] = n
        np.minimum(following, n, out=self._next[:n])
        self._next[:n][~self.good] = n

    def run(self, first: int) -> NDArray[np.int64]:
        """The cells that are followed from ``first``, to the last one within the batch."""
        outside = len(self.size)
        jump = self._next
        run = np.array([first], dtype=np.int64)
        while True:
            more = jump.take(run)
            if more[-1] == outside:
                return np.concatenate([run, more[: np.searchsorted(more, outside)]])
            run = np.concatenate([run, more])
            jump = jump.take(jump)

    def sound(self, address: int) -> int | None:
        """The first place from ``address`` on where SURE chunks follow, or fewer that end at the end."""
        n = len(self.size)
        least = np.uint64(MINSIZE)
        sizes = self.size & np.uint64(~SIZE_BITS & (1 << 64) - 1)
        sure = self.good & (sizes >= least) & (sizes <= np.uint64(_LARGEST_SURE))
        # Two cells more: n is "outside", n + 1 "at the very end".
        jump = np.full(n + 2, n, dtype=np.int64)
        jump[:n] = np.where(sure, self._next[:n], n)
        jump[:n][sure & (self._following == self._last)] = n + 1
        jump[n + 1] = n + 1
        for _ in range(SURE.bit_length() - 1):
            jump = jump.take(jump)
        low = max(0, (address - self.start + _CELL - 1) // _CELL)
        follow = (jump[low:n] != n) & (self.size[low:n] & np.uint64(PREV_INUSE) != 0)
        places = np.flatnonzero(follow)
        return self.start + (low + int(places[0])) * _CELL if len(places) else None


def stretch(start: int, size: U64, end: int, first: int = 0) -> tuple[int, U64]:
    """Where chunks of a part of a region that ends at ``end`` are followed from, and their heads.

    ``size`` is the second word of each 16 bytes from ``start``. ``first``: where a chunk is known to begin;
    without it the first sure place. Whether a chunk is in use says the head after its own.
    """
    batch = _Batch(start, size, end)
    place = first or batch.sound(start)
    if place is None:
        return start, size[:0]
    cells = batch.run((place - start) // _CELL)
    return place, batch.size[cells[batch.good[cells]]]


def _joined(memory: AddressSpace, runs: list[_Run]) -> Chunks:
    parts = [run for run in runs if run.positions]
    address: U64 = np.concatenate([np.zeros(0, np.uint64), *(p for run in parts for p in run.positions)])
    head: U64 = np.concatenate([np.zeros(0, np.uint64), *(h for run in parts for h in run.heads)])
    counts = [sum(len(p) for p in run.positions) for run in parts]
    arena = np.repeat(np.array([run.region.arena for run in parts], dtype=np.int32), counts)
    size = head & np.uint64(~SIZE_BITS & (1 << 64) - 1)
    after = address + size
    neighbour = np.zeros(len(address), dtype=np.bool_)
    neighbour[:-1] = after[:-1] == address[1:]
    used = np.ones(len(address), dtype=np.bool_)
    used[:-1][neighbour[:-1]] = head[1:][neighbour[:-1]] & np.uint64(PREV_INUSE) != 0
    alone = np.flatnonzero(~neighbour)
    words, ok = memory.load(after[alone] + np.uint64(8))
    used[alone] = ~ok | (words & np.uint64(PREV_INUSE) != 0)
    real = size >= np.uint64(MINSIZE)
    breaks = [b for run in runs for b in run.breaks]
    changing = sorted({run.region.arena for run in runs if run.changing})
    if real.all():
        return Chunks(address, head, used, arena, breaks, changing)
    return Chunks(address[real], head[real], used[real], arena[real], breaks, changing)
