"""A few bytes at very many places, of a process whose memory was not copied: without whole pages.

What a capture has in memory comes from there. The rest of a live process is read where it is, 16 bytes or so
at a time, but only of pages that are in memory: to read others would make them real. It is of a moment after
the stop, so whoever asks must be able to tell what makes no sense.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

import numpy as np

from diagtool.capture.memory import PAGE, U64, Bytes, Mask
from diagtool.capture.model import Capture
from diagtool.capture.plan import is_writable_private, without
from diagtool.capture.residency import Ranges, Residency, runs
from diagtool.capture.segments import Segment, merged
from diagtool.capture.vmread import IOV_MAX, MemoryReader

__all__ = ["EXTENTS", "Peek", "overlap", "pages_with_content", "present_pages"]

#: Which parts of the file of a core are no holes (``MappedFile.extents``), among what a capture has found.
EXTENTS = "extents of the core"

_PRESENT = "present pages"  # the name of what is found, among a capture's
_MOST = 1 << 46  # bytes
_MOST_LOOKED_AT = 1 << 30  # bytes of a core whose pages are looked at


class Peek:
    """``peek(addresses, size)``: (n x size bytes, which of them could be read). Close it."""

    def __init__(self, capture: Capture) -> None:
        self._memory = capture.memory
        self._reader: MemoryReader | None = None
        self._present: Ranges = np.zeros((0, 2), np.uint64)
        self._starts: list[int] = []
        self._ends: list[int] = []
        if capture.kind == "live" and not capture.image:
            try:
                self._reader = MemoryReader(capture.process.pid)
                self._present = present_pages(capture)
                self._starts, self._ends = self._present[:, 0].tolist(), self._present[:, 1].tolist()
                if len(self._present):
                    self._reader.probe(int(self._present[0, 0]))
            except OSError:  # it has ended: what was copied is here
                self.close()

    def close(self) -> None:
        """Close what is open. What the capture holds can still be read."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def __call__(self, addresses: U64, size: int) -> tuple[Bytes, Mask]:
        held = self._memory.mapped(addresses, size)
        data = np.zeros((len(addresses), size), np.uint8)
        ok: Mask = np.zeros(len(addresses), np.bool_)
        if held.any():
            data[held], ok[held] = self._memory.load_block(addresses[held], size)
        if self._reader is not None and not held.all():
            rows = np.flatnonzero(~held)
            rows = rows[self._there(addresses[rows], size)]
            data[rows], ok[rows] = self._read(addresses[rows], size)
        return data, ok

    def one(self, address: int, size: int) -> bytes | None:
        """Up to 256 bytes at one place; None where they can't be read."""
        raw = self._memory.peek(address, size)
        if raw is None and self._reader is not None:
            place = bisect_right(self._starts, address) - 1
            if place >= 0 and address + size <= self._ends[place]:
                raw = self._reader.few(address, size)
        return raw

    def words(self, addresses: U64) -> tuple[U64, Mask]:
        """The 64-bit words at the addresses."""
        data, ok = self(addresses, 8)
        return np.ascontiguousarray(data).view("<u8")[:, 0].copy(), ok

    # Which addresses are in memory, with as many bytes behind them.
    def _there(self, addresses: U64, size: int) -> Mask:
        if not len(self._present):
            return np.zeros(len(addresses), np.bool_)
        at = np.maximum(np.searchsorted(self._present[:, 0], addresses, side="right"), 1) - 1
        low, high = self._present[at, 0], self._present[at, 1]
        good: Mask = (addresses >= low) & (addresses < high) & (np.uint64(size) <= high - addresses)
        return good

    def _read(self, addresses: U64, size: int) -> tuple[Bytes, Mask]:
        assert self._reader is not None
        data = np.zeros((len(addresses), size), np.uint8)
        ok: Mask = np.ones(len(addresses), np.bool_)
        sizes = np.full(len(addresses), size, np.uint64)
        vectors = np.ascontiguousarray(np.stack([addresses, sizes], axis=1))
        at = int(data.ctypes.data)
        for first in range(0, len(addresses), IOV_MAX):
            part = vectors[first : first + IOV_MAX]
            try:
                lost = self._reader.read(part, at + first * size)
            except OSError:
                ok[first:] = False
                break
            for low, high in lost:
                rows = slice(first, first + IOV_MAX)
                ok[rows] &= (addresses[rows] + np.uint64(size) <= low) | (addresses[rows] >= high)
        # It may be another program by now.
        if len(addresses) and not self._reader.alive(int(addresses[0])):
            ok[:] = False
        return data, ok


def present_pages(capture: Capture) -> Ranges:
    """What of the private writable memory of a live process is in memory now: n x (start, end), sorted."""
    found = capture.found.get(_PRESENT)
    if not isinstance(found, np.ndarray):
        spans = merged((m.start, m.end) for m in capture.mappings if is_writable_private(m))
        residency = Residency(capture.process.pid)
        try:
            found = residency.find(spans, _MOST)[0]
        finally:
            residency.close()
        found = capture.found[_PRESENT] = found[np.argsort(found[:, 0], kind="stable")]
    return found


def pages_with_content(capture: Capture) -> Ranges:
    """What a core holds of memory and is not empty: n x (start, end), sorted.

    A core has pages that were never touched: as holes of its file, or as zeros (gcore writes them). Beyond a
    gigabyte of a file without holes they are not looked at: what is held counts.
    """
    known = capture.found.get(_PRESENT)
    if isinstance(known, np.ndarray):
        return known
    extents = capture.found.get(EXTENTS)
    core = [s for s in capture.memory.segments if not s.buffer]  # 0: the core itself
    if isinstance(extents, np.ndarray):
        pairs = _in_extents(core, extents)
    else:
        pairs = _looked_at(capture, core)
    pages: Ranges = np.array(merged(pairs), np.uint64).reshape(-1, 2)
    capture.found[_PRESENT] = pages
    return pages


def _in_extents(core: list[Segment], extents: Ranges) -> Iterator[tuple[int, int]]:
    starts, ends = extents[:, 0].tolist(), extents[:, 1].tolist()
    for s in core:
        low, high = s.offset, s.offset + s.end - s.start
        i = max(bisect_right(starts, low) - 1, 0)
        while i < len(starts) and starts[i] < high:
            first, last = max(low, starts[i]), min(high, ends[i])
            if first < last:
                yield s.start + first - low, s.start + last - low
            i += 1


def _looked_at(capture: Capture, core: list[Segment]) -> Iterator[tuple[int, int]]:
    room = _MOST_LOOKED_AT
    looked: list[tuple[int, int]] = []
    for start, end in sorted(merged((s.start, s.end) for s in core), key=lambda r: r[1] - r[0]):
        if end - start <= room:
            looked.append((start, end))
            room -= end - start
        else:
            yield start, end
    for start, words in capture.memory.blocks(merged(looked)):
        whole = len(words) // (PAGE // 8)
        some = words[: whole * (PAGE // 8)].reshape(whole, PAGE // 8).any(axis=1)
        yield from ((low, high) for low, high in runs(np.asarray(some), start).tolist())
    yield from _less(merged(looked), merged((s.start, s.end) for s in core if s.writable))


# Of sorted, disjoint ranges what is in none of ``taken``.
def _less(ranges: list[tuple[int, int]], taken: list[tuple[int, int]]) -> list[tuple[int, int]]:
    left = without(np.array(ranges, np.uint64).reshape(-1, 2), np.array(taken, np.uint64).reshape(-1, 2))
    return [(a, b) for a, b in left.tolist()]


def overlap(present: Ranges, starts: U64, ends: U64) -> U64:
    """Bytes of each range [start, end) that lie in ``present`` (sorted, disjoint)."""
    if not len(present):
        return np.zeros(len(starts), np.uint64)
    return _below(present, ends) - _below(present, starts)


# Bytes of ``present`` below each address.
def _below(present: Ranges, addresses: U64) -> U64:
    sizes = present[:, 1] - present[:, 0]
    before = np.concatenate([np.zeros(1, np.uint64), np.cumsum(sizes, dtype=np.uint64)])
    at = np.searchsorted(present[:, 0], addresses, side="right")
    last = np.maximum(at, 1) - 1
    inside = np.minimum(np.maximum(addresses, present[last, 0]), present[last, 1]) - present[last, 0]
    total: U64 = np.where(at == 0, np.uint64(0), before[last] + inside)
    return total
