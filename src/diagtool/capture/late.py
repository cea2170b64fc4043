"""Pages of a live process that are read after its stop, when somebody asks for them.

Nobody's reading may make memory of the process real: of private memory without a file, what it never wrote to
is zero and is not read. A look at one page in every 64 MiB of the 20 TB that AddressSanitizer reserves would
have the kernel make a gigabyte of page tables.
"""

from __future__ import annotations

import weakref
from bisect import bisect_right
from collections.abc import Iterable, Sequence

import numpy as np

from diagtool.capture.memory import PAGE, U64, Bytes, Mask
from diagtool.capture.model import Capture, Mapping
from diagtool.capture.plan import RED_ZONE, is_anonymous, is_writable_private
from diagtool.capture.residency import Residency
from diagtool.capture.vmread import IOV_MAX, MemoryReader

__all__ = ["LateReader"]

_MOST_EMPTY = 1 << 12  # pages nobody wrote to that are handed out as zeros; more of them are not there


class LateReader:
    """The fault handler of a live capture. Counts the pages that may have changed since the stop.

    Pages come from the image where there is one that has the mapping, else from the target as it is now.
    """

    def __init__(
        self,
        capture: Capture,
        target: MemoryReader,
        image: MemoryReader | None = None,
        theirs: Sequence[Mapping] = (),
    ) -> None:
        self._capture = capture
        self._target = target
        self._image = image or target
        self._mappings = [m for m in capture.mappings if m.permissions.startswith("r") and not _is_device(m)]
        self._starts = [m.start for m in self._mappings]
        self._theirs = theirs
        self._their_starts = [m.start for m in theirs]
        self._residencies: dict[int, Residency] = {}
        self._empty = 0

    def __call__(self, pages: U64) -> tuple[U64, Bytes]:
        frozen: list[tuple[int, Mapping]] = []
        late: list[tuple[int, Mapping]] = []
        for page in pages.tolist():
            mapping = _holding(self._mappings, self._starts, page)
            if mapping is not None:
                there = _holding(self._theirs, self._their_starts, page) is not None
                (frozen if there else late).append((page, mapping))
        got, data = self._pages(self._image, frozen)
        if late:
            more, added = self._pages(self._target, late)
            got, data = np.concatenate([got, more]), np.concatenate([data, added])
        changing = {page for page, mapping in late if mapping.writable}
        changing -= self._unwritten(
            page for page, m in late if is_writable_private(m) and not is_anonymous(m)
        )
        changing |= {page for page, m in frozen if m.writable and m.permissions.endswith("s")}
        self._capture.late_pages += len(changing.intersection(got[self._written(got, data)].tolist()))
        return got, data

    # (those pages that could be read, their bytes)
    def _pages(self, reader: MemoryReader, wanted: Sequence[tuple[int, Mapping]]) -> tuple[U64, Bytes]:
        own = [page for page, m in wanted if is_writable_private(m) and is_anonymous(m)]
        if not own:
            return _read_pages(reader, [page for page, _ in wanted])
        residency = self._residency(reader.pid)
        candidates = np.array(sorted(own), dtype=np.uint64)
        empty = candidates[~residency.written(candidates)]
        skipped = set(empty.tolist())
        got, data = _read_pages(reader, [page for page, _ in wanted if page not in skipped])
        if len(empty) and (len(got) or residency.alive()):
            zeros = empty[: max(_MOST_EMPTY - self._empty, 0)]
            self._empty += len(zeros)
            got = np.concatenate([got, zeros])
            data = np.concatenate([data, np.zeros((len(zeros), PAGE), dtype=np.uint8)])
        return got, data

    # Pages of private file mappings that are still as the file has them: asked after they were read. What a
    # program never touched of its data was not in memory, so it was not copied.
    def _unwritten(self, pages: Iterable[int]) -> set[int]:
        wanted = np.array(sorted(pages), dtype=np.uint64)
        if not len(wanted):
            return set()
        residency = self._residency(self._target.pid)
        return set(wanted[~residency.written(wanted)].tolist()) if residency.alive() else set()

    def _residency(self, pid: int) -> Residency:
        known = self._residencies.get(pid)
        if known is None:
            known = self._residencies[pid] = Residency(pid)
            weakref.finalize(self, known.close)
        return known

    # What was not copied in the stop, and was not left out for want of room, was not there: a page nobody had
    # written to. As long as it is zero nobody has. And what a stack has below its pointer nobody reads.
    def _written(self, pages: U64, data: Bytes) -> Mask:
        written: Mask = np.asarray(data.any(axis=1))
        for low, high in self._dead_stack():
            written &= (pages < np.uint64(low)) | (pages >= np.uint64(high))
        for low, high in self._capture.left_out:
            written |= (pages >= np.uint64(low)) & (pages < np.uint64(high))
        return written

    def _dead_stack(self) -> list[tuple[int, int]]:
        pointers = [t.registers.get("rsp", 0) for t in self._capture.threads]
        dead = []
        for m in self._mappings:
            within = [p for p in pointers if m.start <= p < m.end] if m.path == "[stack]" else []
            if within:
                dead.append((m.start, min(within) - RED_ZONE & -PAGE))
        return dead


def _holding(mappings: Sequence[Mapping], starts: Sequence[int], address: int) -> Mapping | None:
    place = bisect_right(starts, address) - 1
    return mappings[place] if place >= 0 and address < mappings[place].end else None


def _read_pages(reader: MemoryReader, pages: Sequence[int]) -> tuple[U64, Bytes]:
    """(those pages that could be read, their bytes)."""
    wanted_pages = np.array(pages, dtype=np.uint64)
    data = np.zeros((len(wanted_pages), PAGE), dtype=np.uint8)
    vectors = np.stack([wanted_pages, np.full(len(wanted_pages), PAGE, dtype=np.uint64)], axis=1)
    lost: list[tuple[int, int]] = []
    try:
        for at in range(0, len(wanted_pages), IOV_MAX):
            part = np.ascontiguousarray(vectors[at : at + IOV_MAX])
            lost += reader.read(part, int(data.ctypes.data) + at * PAGE)
    except OSError:  # the process has ended
        return wanted_pages[:0], data[:0]
    # It may be another program by now.
    if not len(wanted_pages) or not reader.alive(int(wanted_pages[0])):
        return wanted_pages[:0], data[:0]
    got = ~np.isin(wanted_pages, np.array([low for low, _ in lost], dtype=np.uint64))
    return wanted_pages[got], data[got]


def _is_device(mapping: Mapping) -> bool:
    """Memory of a device: reading it may act on the device."""
    path = mapping.path
    return path.startswith("/dev/") and not path.startswith(("/dev/shm/", "/dev/zero", "/dev/hugepages"))
