"""A sorted set of memory segments that never overlap, searched one by one or in thousands."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["Segment", "SegmentMap", "merged", "without"]

_Number = TypeVar("_Number", np.uint64, np.int64)

_SPLICED = 16  # so few new segments are spliced in; more are merged in one go


@dataclass(frozen=True, slots=True)
class Segment:
    """Bytes ``[start, end)`` of the process, at ``offset`` of buffer number ``buffer``."""

    start: int
    end: int
    buffer: int
    offset: int
    writable: bool = True


class SegmentMap:
    """Sorted, disjoint segments, twice: as a list for single look-ups, as arrays for whole vectors."""

    def __init__(self) -> None:
        self.segments: list[Segment] = []
        self.starts: list[int] = []
        self.start_of: NDArray[np.uint64]
        self.end_of: NDArray[np.uint64]
        self.buffer_of: NDArray[np.int64]
        self.offset_of: NDArray[np.uint64]
        self._rebuild()

    def at(self, address: int) -> Segment | None:
        """The segment that holds the byte at ``address``."""
        i = bisect.bisect_right(self.starts, address) - 1
        if i >= 0:
            segment = self.segments[i]
            if address < segment.end:
                return segment
        return None

    def search(self, addresses: NDArray[np.uint64], size: int) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """For each address the number of its segment, and whether ``size`` bytes lie in that one segment."""
        if not self.segments:
            return np.zeros(addresses.shape, np.intp), np.zeros(addresses.shape, np.bool_)
        index = np.searchsorted(self.start_of, addresses, side="right") - 1
        found = index >= 0
        index = np.where(found, index, 0)
        ends = self.end_of[index]
        room = ends - addresses  # wraps where the address lies beyond the segment: the second test says so
        return index, found & (addresses < ends) & (room >= np.uint64(size))

    def add(self, segments: Iterable[Segment]) -> int:
        """Add segments; where one overlaps what is there, what is there wins, and of two new ones that which
        starts first. Returns how many bytes are new."""
        fresh: list[Segment] = []
        for new in _disjoint(sorted(segments, key=lambda s: s.start)):
            self._cut(new, fresh)
        if not fresh:
            return 0
        if len(fresh) <= _SPLICED:
            for segment in fresh:
                self._splice(segment)
        else:
            self.segments = _joined(sorted(self.segments + fresh, key=lambda s: s.start))
            self._rebuild()
        return sum(s.end - s.start for s in fresh)

    # Of ``new``, what no segment holds yet.
    def _cut(self, new: Segment, out: list[Segment]) -> None:
        cursor = new.start
        i = bisect.bisect_right(self.starts, cursor) - 1
        if i < 0 or self.segments[i].end <= cursor:
            i += 1
        while cursor < new.end:
            there = self.segments[i] if i < len(self.segments) else None
            stop = min(new.end, there.start) if there else new.end
            if stop > cursor:
                offset = new.offset + cursor - new.start
                out.append(Segment(cursor, stop, new.buffer, offset, new.writable))
            if there is None:
                return
            cursor = max(cursor, there.end)
            i += 1

    # Pages that come one by one are the usual case of a fault: no pass over all the others for each.
    def _splice(self, new: Segment) -> None:
        low = high = bisect.bisect_right(self.starts, new.start)
        if low > 0 and _contiguous(self.segments[low - 1], new):
            low -= 1
            new = _join(self.segments[low], new)
        if high < len(self.segments) and _contiguous(new, self.segments[high]):
            new = _join(new, self.segments[high])
            high += 1
        self.segments[low:high] = [new]
        self.starts[low:high] = [new.start]
        self.start_of = _spliced(self.start_of, low, high, new.start)
        self.end_of = _spliced(self.end_of, low, high, new.end)
        self.buffer_of = _spliced(self.buffer_of, low, high, new.buffer)
        self.offset_of = _spliced(self.offset_of, low, high, new.offset)

    def _rebuild(self) -> None:
        segments = self.segments
        self.starts = [s.start for s in segments]
        self.start_of = np.array(self.starts, dtype=np.uint64)
        self.end_of = np.array([s.end for s in segments], dtype=np.uint64)
        self.buffer_of = np.array([s.buffer for s in segments], dtype=np.int64)
        self.offset_of = np.array([s.offset for s in segments], dtype=np.uint64)


def merged(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges [low, high) sorted and disjoint; empty ones are left out."""
    out: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if high <= low:
            continue
        if out and low <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], high))
        else:
            out.append((low, high))
    return out


def both(some: Sequence[tuple[int, int]], others: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """What is in both of two lists of sorted, disjoint ranges."""
    out = []
    i = j = 0
    while i < len(some) and j < len(others):
        low, high = max(some[i][0], others[j][0]), min(some[i][1], others[j][1])
        if low < high:
            out.append((low, high))
        if some[i][1] < others[j][1]:
            i += 1
        else:
            j += 1
    return out


def without(ranges: Sequence[tuple[int, int]], holes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """What is left of ``ranges`` without ``holes``; both sorted and disjoint."""
    out: list[tuple[int, int]] = []
    i = 0
    for low, high in ranges:
        at = low
        while i < len(holes) and holes[i][1] <= at:
            i += 1
        j = i
        while j < len(holes) and holes[j][0] < high:
            if holes[j][0] > at:
                out.append((at, holes[j][0]))
            at = max(at, holes[j][1])
            j += 1
        if at < high:
            out.append((at, high))
    return out


def _spliced(array: NDArray[_Number], low: int, high: int, value: int) -> NDArray[_Number]:
    return np.concatenate([array[:low], np.array([value], dtype=array.dtype), array[high:]])


# Of segments sorted by start, cut what an earlier one covers already.
def _disjoint(segments: list[Segment]) -> list[Segment]:
    out: list[Segment] = []
    covered = 0
    for s in segments:
        if s.end <= max(covered, s.start):
            continue
        if s.start < covered:
            s = Segment(covered, s.end, s.buffer, s.offset + covered - s.start, s.writable)
        out.append(s)
        covered = s.end
    return out


# Whether two segments are neighbours both in the process and in their buffer.
def _contiguous(a: Segment, b: Segment) -> bool:
    return (
        a.end == b.start
        and a.buffer == b.buffer
        and a.writable == b.writable
        and a.offset + a.end - a.start == b.offset
    )


def _join(a: Segment, b: Segment) -> Segment:
    return Segment(a.start, b.end, a.buffer, a.offset, a.writable)


def _joined(segments: list[Segment]) -> list[Segment]:
    out: list[Segment] = []
    for s in segments:
        if out and _contiguous(out[-1], s):
            out[-1] = _join(out[-1], s)
        else:
            out.append(s)
    return out
