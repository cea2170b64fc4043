"""Memory of another process as one flat buffer whose pages come when they are read.

For memory that does not change: a frozen image of tens of GiB. The buffer is address space only; what was
read stays in it up to a limit, and then all of it is given back and comes again when it is needed.
"""

from __future__ import annotations

import mmap
import sys
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.faults import PAGE
from diagtool.capture.vmread import MemoryReader

__all__ = ["LazyBuffer"]

_SHIFT = 12  # PAGE is 1 << 12
_AHEAD = 16  # pages that a single read brings along, aligned
_SCRATCH = 3  # arrays kept for blocks
_MAP_NORESERVE = 0x4000  # include/uapi/asm-generic/mman.h
_SPARSE = 64  # fewer values than a page in so many: sort their pages, instead of marking them


class LazyBuffer:
    """Ranges of a process, one behind the other. ``array`` is the buffer: valid where it was asked for.

    ``ranges`` are n x (start, end), page aligned; ``offsets`` says where in the buffer each begins. ``limit``
    bounds the bytes that stay in our memory. Raises OSError when there is not so much address space.
    """

    def __init__(
        self,
        reader: MemoryReader,
        ranges: NDArray[np.uint64],
        offsets: NDArray[np.uint64],
        limit: int,
    ) -> None:
        self.size = int((ranges[:, 1] - ranges[:, 0]).sum())
        self._reader = reader
        self._starts = ranges[:, 0].astype(np.int64)
        self._offsets = offsets.astype(np.int64)
        self._limit = max(limit, _AHEAD * PAGE) >> _SHIFT
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        self._area = mmap.mmap(-1, max(self.size, PAGE), flags=flags)
        with suppress(OSError):
            self._area.madvise(mmap.MADV_NOHUGEPAGE)  # one page read must not cost 2 MiB
        self.array: NDArray[np.uint8] = np.frombuffer(self._area, dtype=np.uint8)[: self.size]
        self._base = int(self.array.ctypes.data) if self.size else 0
        self._there = np.zeros(self.size >> _SHIFT, dtype=np.bool_)
        self._lost = np.zeros(self.size >> _SHIFT, dtype=np.bool_)
        self._filled = 0
        self._scratch: list[NDArray[np.uint8]] = []
        #: Pages that could not be read: the process is gone, or its memory was taken away.
        self.failed = 0

    def need(self, offset: int, size: int) -> bool:
        """Have a range of the buffer read; false when a part of it can't be."""
        first, end = offset >> _SHIFT, (offset + size - 1 >> _SHIFT) + 1
        if not self._there[first:end].all():
            low, high = first & -_AHEAD, min(end + _AHEAD - 1 & -_AHEAD, len(self._there))
            self._fetch(low + np.flatnonzero(~self._there[low:high]))
            if not self._there[first:end].all():  # more than the limit at once
                self._fetch(first + np.flatnonzero(~self._there[first:end]))
        return not (self.failed and self._lost[first:end].any())

    def gather(
        self, view: NDArray[Any], at: NDArray[np.int64]
    ) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        """``view[at]``, where ``view`` lies over ``array`` at a stride of one byte; and which are good."""
        size = view.dtype.itemsize
        missing = self._missing(at, size)
        if len(missing) > self._limit and len(at) > 1:
            order = np.argsort(at)
            values = np.empty(at.shape, dtype=view.dtype)
            good = np.ones(at.shape, dtype=np.bool_)
            for part in np.array_split(order, -(-2 * len(missing) // self._limit)):
                values[part], fine = self.gather(view, at[part])
                if fine is not None:
                    good[part] = fine
            return values, good
        if len(missing) and self._filled + len(missing) > self._limit:
            self.release()
            missing = self._missing(at, size)
        self._fetch(missing)
        good_pages = None
        if self.failed:
            good_pages = ~(self._lost[at >> _SHIFT] | self._lost[at + (size - 1) >> _SHIFT])
        return view[at], good_pages

    def block(self, offset: int, size: int) -> NDArray[np.uint8]:
        """A range as an array of its own, read past the buffer: for scans. What can't be read is zero."""
        cursor, vectors = offset, []
        for end in self._ends(offset, size):
            vectors.append((self._address(cursor), end - cursor))
            cursor = end
        out = self._scratch_of(size)
        if not self._copied(vectors, out):
            out[:] = 0
            self._copied(vectors, out)
        return out

    # The array of an earlier block that nobody has a view of any more: new memory costs a fault for each
    # page, which is six times as much as the copy itself. A loop has a view of the last one.
    def _scratch_of(self, size: int) -> NDArray[np.uint8]:
        for number in range(len(self._scratch)):
            if len(self._scratch[number]) >= size and sys.getrefcount(self._scratch[number]) <= 2:
                return self._scratch[number][:size]
        fresh = np.empty(size, dtype=np.uint8)
        self._scratch = [fresh, *self._scratch[: _SCRATCH - 1]]
        return fresh[:size]

    def _copied(self, vectors: list[tuple[int, int]], out: NDArray[np.uint8]) -> bool:
        done, whole = int(out.ctypes.data), True
        for first in range(0, len(vectors), 1024):
            part = np.array(vectors[first : first + 1024], dtype=np.uint64)
            try:
                whole = not self._reader.read(part, done) and whole
            except OSError:
                whole = False
            done += int(part[:, 1].sum())
        return whole

    def release(self) -> None:
        """Give all pages back. They come again when they are needed."""
        with suppress(OSError, ValueError):
            self._area.madvise(mmap.MADV_DONTNEED)
        self._there[:] = False
        self._filled = 0

    def close(self) -> None:
        """Give the buffer back, once no view of it is in use."""
        self.array = np.zeros(0, dtype=np.uint8)
        with suppress(BufferError):
            self._area.close()

    # The pages under values of ``size`` bytes that are not there, sorted.
    def _missing(self, at: NDArray[np.int64], size: int) -> NDArray[np.int64]:
        first, last = at >> _SHIFT, at + (size - 1) >> _SHIFT
        if len(at) * _SPARSE < len(self._there):
            pages = np.unique(np.concatenate([first, last]))
            sparse: NDArray[np.int64] = pages[~self._there[pages]]
            return sparse
        marked = np.zeros(len(self._there), dtype=np.bool_)
        marked[first] = True
        marked[last] = True
        marked &= ~self._there
        return np.flatnonzero(marked)

    def _fetch(self, pages: NDArray[np.int64]) -> None:
        if not len(pages):
            return
        if self._filled + len(pages) > self._limit:
            self.release()
        # Runs of pages that are neighbours in the buffer and in the process.
        places = pages << _SHIFT
        owner = np.searchsorted(self._offsets, places, side="right") - 1
        cut = np.flatnonzero((np.diff(pages) != 1) | (np.diff(owner) != 0)) + 1
        first = np.concatenate([[0], cut])
        count = np.diff(np.concatenate([first, [len(pages)]]))
        lengths = (count << _SHIFT).astype(np.uint64)
        remote = np.stack([self._addresses(places[first], owner[first]).astype(np.uint64), lengths], axis=1)
        local = np.stack([(places[first] + self._base).astype(np.uint64), lengths], axis=1)
        for low, high in self._reader.scatter(remote, local):
            place = low - self._base >> _SHIFT
            end = high - self._base + PAGE - 1 >> _SHIFT
            self._lost[place:end] = True
            self.failed += end - place
        self._there[pages] = True
        self._filled += len(pages)

    def _addresses(self, places: NDArray[np.int64], owner: NDArray[np.intp]) -> NDArray[np.int64]:
        return self._starts[owner] + places - self._offsets[owner]

    def _address(self, place: int) -> int:
        owner = int(np.searchsorted(self._offsets, place, side="right")) - 1
        return int(self._starts[owner]) + place - int(self._offsets[owner])

    # Where the ranges within a part of the buffer end.
    def _ends(self, offset: int, size: int) -> list[int]:
        low = int(np.searchsorted(self._offsets, offset, side="right"))
        high = int(np.searchsorted(self._offsets, offset + size, side="left"))
        return [*self._offsets[low:high].tolist(), offset + size]
