"""Which used blocks can still be reached: conservative marking with numpy.

Any aligned word of a root that points anywhere into a used block keeps it, and so do the words of blocks that
are kept. What a program hides (pointers xored, compressed, kept by the kernel or in other processes) is not
seen; stale words that look like pointers keep blocks nobody needs: rather a leak is missed than invented.

All words of the heap are looked at once, which gives the edges between blocks; then the marking goes over
these, a whole frontier at a time. Long lists make frontiers of one block each: there the field that the last
steps came through is followed by doubling, for all blocks at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64, AddressSpace, Mask
from diagtool.runtimes.native.memorymap import Ranges

__all__ = ["Edges", "Marked", "Targets", "edges_between", "mark", "pointed_to"]

_Index = NDArray[np.int64]

_NARROW = 256  # blocks of a frontier for which a step costs as much as for one
_LEAP_AFTER = 64  # narrow steps before the first leap
_FIELDS = 4  # offsets that a leap follows
_MOST_STEPS = 100_000  # some seconds
_STEP = 4 << 20  # bytes scanned at a time
_FAR = 64 << 20  # bytes between heaps that are told apart
_MOST_FAR = 3
_ADDRESS = np.uint64((1 << 48) - 1)  # bits of a pointer that say where it points to
_CACHED = 1 << 17  # blocks whose addresses stay in the cache of a processor


class Targets:
    """Used blocks, to be found by any address inside: ``[start, end)``, sorted and disjoint."""

    def __init__(self, start: U64, usable: U64) -> None:
        self.start = start
        self.end = start + usable
        # Heaps lie in a few places far apart: most words are in none of them, and that is told quickly.
        self._hulls: list[tuple[int, int]] = []
        if len(start):
            gaps = start[1:] - self.end[:-1]
            cuts = np.flatnonzero(gaps > np.uint64(_FAR))
            cuts = np.sort(cuts[np.argsort(gaps[cuts])[-_MOST_FAR:]])
            lows = start[np.concatenate([[0], cuts + 1])]
            highs = self.end[np.concatenate([cuts, [len(start) - 1]])]
            self._hulls = list(zip(lows.tolist(), highs.tolist(), strict=True))

    def __len__(self) -> int:
        return len(self.start)

    def likely(self, words: U64) -> tuple[_Index, U64]:
        """(places of the words that may point into a block, where they point to).

        Upper bits are ignored: addresses have 47, and what is built for speed keeps counters and types in
        the other ones (boost::lockfree::tagged_ptr and its like).
        """
        addresses = words & _ADDRESS
        some = np.zeros(len(words), dtype=np.bool_)
        for low, high in self._hulls:
            some |= addresses - np.uint64(low) < np.uint64(high - low)  # wraps where the word is lower
        places = np.flatnonzero(some)
        return places, addresses[places]

    def find(self, addresses: U64, ordered: bool = False) -> tuple[_Index, Mask]:
        """For each address (``ordered``: they ascend) the block that holds it, and whether there is one."""
        if not ordered and len(addresses) > 1000 and len(self) > _CACHED:
            # In order they are found several times quicker: neighbours are looked for at the same places.
            order = np.argsort(addresses)
            at = np.empty(len(addresses), dtype=np.intp)
            at[order] = np.searchsorted(self.start, addresses[order], side="right") - 1
        else:
            at = np.searchsorted(self.start, addresses, side="right") - 1
        inside = at >= 0
        at[~inside] = 0
        if len(self.end):
            inside &= addresses < self.end[at]
        return at, inside


def pointed_to(
    memory: AddressSpace,
    targets: Targets,
    roots: Ranges,
    words: Iterable[int],
    constant: Sequence[tuple[int, int]] = (),
    code: Sequence[tuple[int, int]] = (),
) -> Mask:
    """Which blocks the roots point into: ranges of writable memory, words (registers), memory that may not be
    written to, and code, in which addresses stand at any place."""
    marked = np.zeros(len(targets), dtype=np.bool_)
    if not len(targets):
        return marked
    single = np.array([w for w in words if 0 <= w < 1 << 64], dtype=np.uint64)
    _mark_words(targets, single, marked)
    for _, block in memory.blocks(roots, step=_STEP):
        _mark_words(targets, block, marked)
    for low, high in constant:
        for start in range(low, high, _STEP):
            block = memory.load(np.arange(start, min(high, start + _STEP) & -8, 8, dtype=np.uint64))[0]
            _mark_words(targets, block, marked)
    for low, high in code:
        for start in range(low, high, _STEP):
            raw = memory.try_read(start, min(high - start, _STEP + 8)) or b""
            for offset in range(8):
                part = raw[offset : offset + (len(raw) - offset & -8)]
                _mark_words(targets, np.frombuffer(part, dtype="<u8"), marked)
    return marked


def _mark_words(targets: Targets, words: U64, marked: Mask) -> None:
    values = np.sort(targets.likely(words)[1])  # in order they are found much quicker
    at, inside = targets.find(values, ordered=True)
    marked[at[inside]] = True


@dataclass(slots=True)
class Edges:
    """Pointers from one used block into another one, by the address where they stand. Parallel arrays.

    ``offset``: bytes from the start of the source block, cut at 2 GiB.
    """

    source: NDArray[np.int32]
    target: NDArray[np.int32]
    offset: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.source)


def edges_between(memory: AddressSpace, targets: Targets, heaps: Ranges) -> Edges:
    """All pointers between the blocks, which lie in ``heaps``."""
    sources, ends, offsets = [np.zeros(0, np.int32)], [np.zeros(0, np.int32)], [np.zeros(0, np.int32)]
    if not len(targets):
        return Edges(sources[0], ends[0], offsets[0])
    for start, words in memory.blocks(heaps, step=_STEP):
        places, addresses = targets.likely(words)
        at, good = targets.find(addresses)
        places, at = places[good], at[good]
        own = places.astype(np.uint64) * np.uint64(8) + np.uint64(start)
        holder, held = targets.find(own, ordered=True)
        held &= holder != at
        holder = holder[held]
        sources.append(holder.astype(np.int32))
        ends.append(at[held].astype(np.int32))
        distance = np.minimum(own[held] - targets.start[holder], np.uint64((1 << 31) - 1))
        offsets.append(distance.astype(np.int32))
    return Edges(np.concatenate(sources), np.concatenate(ends), np.concatenate(offsets))


@dataclass(slots=True)
class Marked:
    """Which blocks are reached. ``complete`` is false where the marking was given up."""

    reached: Mask
    complete: bool = True
    steps: int = 0


def mark(roots: Mask, edges: Edges) -> Marked:
    """Mark from ``roots`` (a flag for each block) along the edges."""
    return _Marking(roots, edges).run()


@dataclass(slots=True)
class _Recent:
    # Offsets of the pointers that the last narrow steps came through to blocks that lead on, and how often.
    counts: dict[int, int] = field(default_factory=dict)
    steps: int = 0

    def add(self, offsets: NDArray[np.int32]) -> None:
        self.steps += 1
        for offset in offsets[:_FIELDS].tolist():
            self.counts[offset] = self.counts.get(offset, 0) + 1

    def fields(self) -> list[int]:
        return sorted(self.counts, key=lambda offset: -self.counts[offset])[:_FIELDS]


class _Marking:
    def __init__(self, roots: Mask, edges: Edges) -> None:
        self.edges = edges
        self.reached = roots.copy()
        self.first = np.searchsorted(edges.source, np.arange(len(roots) + 1, dtype=np.int32))
        self.patience = _LEAP_AFTER

    def run(self) -> Marked:
        frontier = np.flatnonzero(self.reached)
        recent = _Recent()
        steps = 0
        while len(frontier):
            steps += 1
            if steps > _MOST_STEPS:
                return Marked(self.reached, False, steps)
            narrow = len(frontier) <= _NARROW
            edge = self._out(frontier)
            edge = edge[~self.reached[self.edges.target[edge]]]
            if not narrow:
                recent = _Recent()
            elif len(edge) <= _NARROW:
                target = self.edges.target[edge]
                recent.add(self.edges.offset[edge[self.first[target + 1] > self.first[target]]])
            frontier = self._distinct(self.edges.target[edge])
            self.reached[frontier] = True
            if recent.steps >= self.patience and len(frontier):
                frontier = self._leap(frontier, recent.fields())
                recent = _Recent()
        return Marked(self.reached, True, steps)

    # Numbers of the edges that leave the blocks.
    def _out(self, blocks: _Index) -> _Index:
        low = self.first[blocks]
        counts = self.first[blocks + 1] - low
        before = np.cumsum(counts) - counts
        return np.repeat(low - before, counts) + np.arange(int(counts.sum()))

    # Each block once. (numpy's own unique goes through a hash table, twenty times slower than a flag each.)
    def _distinct(self, blocks: NDArray[np.integer[Any]]) -> _Index:
        if len(blocks) * 16 < len(self.reached):
            ordered = np.sort(blocks)
            fresh = np.ones(len(ordered), dtype=np.bool_)
            fresh[1:] = ordered[1:] != ordered[:-1]
            return ordered[fresh].astype(np.int64)
        flags = np.zeros(len(self.reached), dtype=np.bool_)
        flags[blocks] = True
        return np.flatnonzero(flags)

    # Follow fields from the frontier for as long as they lead to something new; returns all of it. First any
    # of them, for lists whose items are of several kinds; then, where that ended soon, each alone.
    def _leap(self, frontier: _Index, fields: list[int]) -> _Index:
        found = frontier
        for tried in (fields, *([offset] for offset in fields)):
            found = self._distinct(np.concatenate([found, self._along(frontier, tried)]))
            if len(found) > 4 * self.patience:
                self.patience = _LEAP_AFTER
                break
        else:
            # A leap costs as much as hundreds of steps: where it gains little, it is tried less often.
            self.patience *= 4
        self.reached[found] = True
        return found

    def _along(self, found: _Index, fields: list[int]) -> _Index:
        count = len(self.reached)
        jump = np.full(count + 1, count, dtype=np.int64)
        fresh = ~self.reached[self.edges.target]
        for offset in reversed(fields):
            some = fresh & (self.edges.offset == offset)
            jump[self.edges.source[some]] = self.edges.target[some]
        for _ in range(count.bit_length()):
            more = jump[found]
            more = more[more < count]
            if not len(more):
                break
            found = self._distinct(np.concatenate([found, more]))
            jump = jump.take(jump)
        return found
