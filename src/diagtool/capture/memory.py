"""Address spaces: the memory of one process at one instant, whatever it was read from.

An :class:`AddressSpace` is a sorted set of segments over a few flat byte buffers (a copy made in the stop, a
mapped core file, a mapped ELF file). Single values are read with :meth:`AddressSpace.u64` and friends;
whatever comes in thousands is read with :meth:`AddressSpace.load`, one numpy gather for all of it.

Pages that no segment holds go to the *fault handler* once; what it cannot give either is a
:class:`MemoryFault` for single reads and a false ``ok`` for gathers.
"""

from __future__ import annotations

import bisect
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.faults import PAGE, FaultHandler, Faults
from diagtool.capture.paging import FILE_RESIDENT_LIMIT, file_resident
from diagtool.capture.segments import Segment, SegmentMap, merged
from diagtool.capture.touched import Touched

__all__ = ["PAGE", "U64", "AddressSpace", "Bytes", "FaultHandler", "Mask", "MemoryFault", "Pager", "Segment"]

U64 = NDArray[np.uint64]
Bytes = NDArray[np.uint8]
Mask = NDArray[np.bool_]

_MAX_READ = 64 << 20  # a single read beyond this is a garbage length, not a need
_STRADDLERS = 4096  # values of one gather that cross a segment's end and are then read one by one
_TOP = (1 << 64) - 1
_WINDOW_BITS = 26  # gathers from a paged buffer go through it 64 MiB by 64 MiB
_ASKED = 256  # pages of one read that are asked for together
_READS_PER_LOOK = 64  # single reads between two looks at our resident set: each may map 2 MiB (paging.py)


class MemoryFault(Exception):
    """Raised when an address is not part of what was captured."""

    def __init__(self, address: int, size: int) -> None:
        super().__init__(f"{size} bytes at {address:#x} are not in the capture")
        self.address = address
        self.size = size


class Pager(Protocol):
    """Who holds a buffer that is too large to stay resident: ranges are offsets into the buffer, in bytes."""

    def will_need(self, offset: int, size: int) -> None:
        """The range is about to be read from end to end."""

    def release(self, offset: int = 0, size: int | None = None) -> None:
        """The range need not stay resident. Its bytes stay readable."""


class Source(Protocol):
    """Who fills a buffer where it is about to be read (capture/lazy.py). Offsets into it are in bytes."""

    def need(self, offset: int, size: int) -> bool:
        """Have a range filled; false when that can't be."""

    def gather(self, view: NDArray[Any], at: NDArray[np.int64]) -> tuple[NDArray[Any], Mask | None]:
        """(``view[at]``, which of the values are good; None: all)."""

    def block(self, offset: int, size: int) -> Bytes:
        """A range as an array of its own."""


class AddressSpace:
    """The memory of one process: sorted, non-overlapping segments over flat buffers."""

    def __init__(self, on_fault: FaultHandler | None = None) -> None:
        self._buffers: list[Bytes] = []
        self._views: list[memoryview] = []
        self._pagers: dict[int, Pager] = {}
        self._sources: dict[int, Source] = {}
        self._map = SegmentMap()
        self._bytes = 0
        self._reads = 0
        self._faults = Faults(on_fault)
        self._touched: Touched | None = None
        self._watched = False

    # -- building ---------------------------------------------------------------------------------------

    def add_buffer(self, data: Bytes, pager: Pager | None = None, source: Source | None = None) -> int:
        """Add a flat buffer of bytes; returns its number for :meth:`add_segments`.

        With a ``pager`` the buffer is read in a way that leaves only a bounded part of it resident; with a
        ``source`` it is filled where it is read.
        """
        self._buffers.append(data)
        self._views.append(data.data.cast("B") if data.size else memoryview(b""))
        number = len(self._buffers) - 1
        if pager is not None:
            self._pagers[number] = pager
        if source is not None:
            self._sources[number] = source
        return number

    def add_segments(self, segments: Iterable[Segment]) -> None:
        """Add segments; where one overlaps what is there already, what is there wins.

        What lies beyond the end of the segment's buffer is left out.
        """
        held = []
        for s in segments:
            size = max(0, len(self._views[s.buffer]) - s.offset) if s.offset >= 0 else 0
            end = min(s.end, s.start + size, _TOP)
            if 0 <= s.start < end:
                held.append(Segment(s.start, end, s.buffer, s.offset, s.writable))
        self._bytes += self._map.add(held)

    def serve_faults(self, handler: FaultHandler, within: Sequence[tuple[int, int]] | None = None) -> None:
        """From now on ask ``handler`` for pages that no segment holds, only those of ``within`` if given."""
        self._faults = Faults(handler, within)

    def close(self) -> None:
        """Let go of all buffers. Nothing can be read afterwards."""
        self._map = SegmentMap()
        self._faults = Faults(None)
        self._views.clear()
        self._buffers.clear()
        self._pagers.clear()
        self._sources.clear()

    @property
    def size(self) -> int:
        """Bytes that are held."""
        return self._bytes

    @property
    def segments(self) -> list[Segment]:
        """What is held, sorted by address."""
        return list(self._map.segments)

    @property
    def faulted(self) -> list[int]:
        """Pages that came through the fault handler, in the order they came (for warnings and prediction)."""
        return self._faults.came

    def watch(self) -> None:
        """From now on keep in mind which pages are read, other than by :meth:`blocks`."""
        self._touched, self._watched = Touched(), True

    @contextmanager
    def unwatched(self) -> Iterator[None]:
        """What is read within does not count as read, for those who read nearly everything."""
        before, self._watched = self._watched, False
        try:
            yield
        finally:
            self._watched = before

    def touched(self) -> list[tuple[int, int]]:
        """What was read since :meth:`watch`: page-aligned ranges, sorted and joined."""
        return [] if self._touched is None else self._touched.ranges(self._map.segments)

    # -- single reads -----------------------------------------------------------------------------------

    def read(self, address: int, size: int) -> bytes:
        """``size`` bytes at ``address``; raises MemoryFault when any of them is missing."""
        return self._read(address, size, fault=True)

    def peek(self, address: int, size: int) -> bytes | None:
        """Like :meth:`try_read`, but without asking the fault handler: for those who make one."""
        try:
            return self._read(address, size, fault=False)
        except MemoryFault:
            return None

    def try_read(self, address: int, size: int) -> bytes | None:
        """Like :meth:`read`, but None instead of an exception."""
        try:
            return self._read(address, size, fault=True)
        except MemoryFault:
            return None

    def _read(self, address: int, size: int, fault: bool) -> bytes:
        if size == 0:
            return b""
        if not 0 < address <= _TOP or not 0 < size <= _MAX_READ:
            raise MemoryFault(address, size)
        parts = []
        cursor, end = address, address + size
        while cursor < end:
            seg = self._map.at(cursor)
            if seg is None:
                page = cursor & -PAGE
                ahead = np.array(range(page, min(end, page + _ASKED * PAGE, _TOP), PAGE), dtype=np.uint64)
                if not fault or not self._fault(ahead) or self._map.at(cursor) is None:
                    raise MemoryFault(address, size)
                continue
            n = min(end, seg.end) - cursor
            at = seg.offset + cursor - seg.start
            source = self._sources.get(seg.buffer)
            if source is not None and not source.need(at, n):
                raise MemoryFault(address, size)
            if self._watched and self._touched is not None:
                self._touched.range(seg.buffer, len(self._views[seg.buffer]), at, n)
            parts.append(self._views[seg.buffer][at : at + n])
            cursor += n
        self._count_reads(1 + (size >> 16))
        return bytes(parts[0]) if len(parts) == 1 else b"".join(parts)

    def u64(self, address: int) -> int:
        """The unsigned 64-bit word at ``address``."""
        i = bisect.bisect_right(self._map.starts, address) - 1
        if i >= 0 and not self._sources and not self._watched:
            seg = self._map.segments[i]
            if address + 8 <= seg.end:
                self._reads += 1
                if self._reads > _READS_PER_LOOK:
                    self._count_reads(0)
                at = seg.offset + address - seg.start
                return int.from_bytes(self._views[seg.buffer][at : at + 8], "little")
        return int.from_bytes(self.read(address, 8), "little")

    def i64(self, address: int) -> int:
        """The signed 64-bit word at ``address``."""
        value = self.u64(address)
        return value - (1 << 64) if value >> 63 else value

    def u32(self, address: int) -> int:
        """The unsigned 32-bit word at ``address``."""
        return int.from_bytes(self.read(address, 4), "little")

    def i32(self, address: int) -> int:
        """The signed 32-bit word at ``address``."""
        return int.from_bytes(self.read(address, 4), "little", signed=True)

    def u8(self, address: int) -> int:
        """The byte at ``address``."""
        return self.read(address, 1)[0]

    def unpack(self, fmt: str, address: int) -> tuple[Any, ...]:
        """``struct.unpack`` of the bytes at ``address``."""
        return struct.unpack(fmt, self.read(address, struct.calcsize(fmt)))

    def cstring(self, address: int, limit: int = 512) -> bytes:
        """The NUL-terminated bytes at ``address``, cut at ``limit``."""
        out = b""
        while len(out) < limit:
            n = min(PAGE - address % PAGE, limit - len(out))
            block = self.read(address, n)
            nul = block.find(b"\0")
            if nul >= 0:
                return out + block[:nul]
            out += block
            address += n
        return out

    # -- many at once -----------------------------------------------------------------------------------

    def load(self, addresses: U64, dtype: str = "<u8") -> tuple[NDArray[Any], Mask]:
        """Values of ``dtype`` at each address: (values, ok). Where ok is false the value is 0."""
        kind = np.dtype(dtype)
        addresses = np.ascontiguousarray(addresses, dtype=np.uint64)
        values = np.zeros(addresses.shape, dtype=kind)
        flat = values.reshape(-1)
        ok = self._gather(addresses.reshape(-1), flat.view(np.uint8).reshape(-1, kind.itemsize), flat)
        return values, ok.reshape(addresses.shape)

    def load_block(self, addresses: U64, size: int) -> tuple[Bytes, Mask]:
        """``size`` bytes at each address: (n x size bytes, ok). Where ok is false the bytes are 0."""
        addresses = np.ascontiguousarray(addresses, dtype=np.uint64)
        out = np.zeros((len(addresses), size), dtype=np.uint8)
        if not len(addresses) or not size:
            return out, np.zeros(len(addresses), dtype=np.bool_)
        return out, self._gather(addresses, out, out.view(f"V{size}").reshape(-1))

    def mapped(self, addresses: U64, size: int = 1) -> Mask:
        """Which addresses hold at least ``size`` bytes of one segment, without asking the fault handler."""
        return self._map.search(np.ascontiguousarray(addresses, dtype=np.uint64), size)[1]

    # ``out`` (n x size bytes) and ``values`` (n of any type) are the same memory.
    def _gather(self, addresses: U64, out: Bytes, values: NDArray[Any]) -> Mask:
        size = values.dtype.itemsize
        if not len(addresses):
            return np.zeros(0, dtype=np.bool_)
        segment, ok = self._map.search(addresses, size)
        if not ok.all() and self._faults.handler is not None:
            lost = addresses[~ok]
            lost = lost[(lost >= PAGE) & (lost < np.uint64(1 << 47))]
            pages = np.unique(np.concatenate([lost, lost + np.uint64(size - 1)]) & np.uint64(_TOP - PAGE + 1))
            if len(pages) and self._fault(pages):
                segment, ok = self._map.search(addresses, size)
        self._each_buffer(addresses, segment, ok, values)
        if not ok.all():
            _, starts = self._map.search(addresses, 1)
            for i in np.flatnonzero(starts & ~ok)[:_STRADDLERS]:
                data = self.try_read(int(addresses[i]), size)
                if data is not None:
                    out[i] = np.frombuffer(data, dtype=np.uint8)
                    ok[i] = True
        return ok

    def _each_buffer(self, addresses: U64, segment: NDArray[np.intp], ok: Mask, out: NDArray[Any]) -> None:
        if not ok.any():
            return
        whole = bool(ok.all())
        position = (addresses - self._map.start_of[segment] + self._map.offset_of[segment]).view(np.int64)
        buffers = self._map.buffer_of[segment]
        for number in np.flatnonzero(np.bincount(buffers if whole else buffers[ok])).tolist():
            data = self._buffers[number]
            # An overlapping view with a stride of one byte: values at any alignment, in one gather.
            view: NDArray[Any] = np.ndarray(
                (len(data) - out.dtype.itemsize + 1,), dtype=out.dtype, buffer=data, strides=(1,)
            )
            pick = buffers == number
            if not whole:
                pick &= ok
            everything = bool(pick.all())
            at = position if everything else position[pick]
            pager, source = self._pagers.get(number), self._sources.get(number)
            if self._watched and self._touched is not None:
                self._touched.values(number, len(data), at, out.dtype.itemsize)
            if source is not None:
                values, good = source.gather(view, at)
                if good is not None:
                    ok[np.flatnonzero(pick)[~good]] = False
            else:
                values = view[at] if pager is None else self._gather_paged(view, at, pager)
            if everything:
                out[...] = values
            else:
                out[pick] = values

    # In the order of the positions, window by window, so that what is resident is looked at in between.
    def _gather_paged(self, view: NDArray[Any], at: NDArray[np.int64], pager: Pager) -> NDArray[Any]:
        if len(at) <= _READS_PER_LOOK or int(at.max()) - int(at.min()) < 1 << _WINDOW_BITS:
            self._count_reads(_READS_PER_LOOK)
            return view[at]
        values = np.empty(at.shape, dtype=view.dtype)
        order = np.argsort(at)
        windows = at[order] >> _WINDOW_BITS
        for part in np.split(order, np.flatnonzero(np.diff(windows)) + 1):
            values[part] = view[at[part]]
            if file_resident() > FILE_RESIDENT_LIMIT:
                pager.release()
        return values

    # After every few reads, see whether mapped files took too much of our resident set.
    def _count_reads(self, reads: int) -> None:
        self._reads += reads
        if self._reads > _READS_PER_LOOK:
            self._reads = 0
            if self._pagers and file_resident() > FILE_RESIDENT_LIMIT:
                for pager in self._pagers.values():
                    pager.release()

    # Ask for pages; true when at least one new byte came.
    def _fault(self, pages: U64) -> bool:
        before = self._bytes
        self._faults.ask(pages, self)
        return self._bytes > before

    # -- scanning ---------------------------------------------------------------------------------------

    def blocks(
        self, within: list[tuple[int, int]] | None = None, step: int = 4 << 20
    ) -> Iterator[tuple[int, U64]]:
        """The writable memory as aligned 64-bit words, block by block: (address of the first word, words).

        ``within`` limits it to address ranges. Blocks are views where alignment allows, else copies; a block
        of a paged buffer leaves our resident set when the next one is asked for (it stays readable).
        """
        limits = None if within is None else merged(within)
        for seg in self._map.segments.copy():
            if not seg.writable:
                continue
            pager, source = self._pagers.get(seg.buffer), self._sources.get(seg.buffer)
            for low, high in [(seg.start, seg.end)] if limits is None else _overlapping(limits, seg):
                start, end = max(low, seg.start) + 7 & -8, min(high, seg.end) & -8
                while start < end:
                    n = min(end - start, step)
                    at = seg.offset + start - seg.start
                    if pager is not None:
                        pager.will_need(at, n)
                    raw = self._buffers[seg.buffer][at : at + n] if source is None else source.block(at, n)
                    yield start, (raw if at % 8 == 0 or source is not None else raw.copy()).view("<u8")
                    if pager is not None:
                        pager.release(at, n)
                    start += n


# Those of the sorted, disjoint ranges that have a part in the segment.
def _overlapping(limits: list[tuple[int, int]], seg: Segment) -> Iterator[tuple[int, int]]:
    i = max(0, bisect.bisect_right(limits, (seg.start, _TOP)) - 1)
    while i < len(limits) and limits[i][0] < seg.end:
        yield limits[i]
        i += 1
