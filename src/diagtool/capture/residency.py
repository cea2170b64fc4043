"""Which pages of a process are in memory: /proc/PID/pagemap, by PAGEMAP_SCAN or bit by bit.

Reading a page that is not there would bring it in, at the target's cost: an untouched page gets page tables,
a swapped one waits for the disk. So only pages that are there are copied in the stop. The zero page is left
out too where the kernel tells it apart. Facts: Documentation/admin-guide/mm/pagemap.rst,
include/uapi/linux/fs.h.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import PAGE

Ranges = NDArray[np.uint64]  # n x (start, end), page aligned

_SCAN = 0xC0606610  # PAGEMAP_SCAN, Linux 6.7: _IOWR('f', 16, struct pm_scan_arg)
_FILE, _PRESENT, _SWAPPED, _PFNZERO = 1 << 2, 1 << 3, 1 << 4, 1 << 5  # PAGE_IS_…
_REGIONS = 1 << 14  # ranges of one call
_REGION = 24  # sizeof(struct page_region): start, end, categories
_MANY = 64  # ranges of pages that are asked for one by one
_BITS_STEP = 4 << 20  # bytes of pagemap read at once: 2 GiB of addresses
_BITS_LIMIT = 64 << 20  # bytes of pagemap read in all, where there is no PAGEMAP_SCAN to skip holes

_libc = ctypes.PyDLL(None, use_errno=True)
_ioctl = _libc.ioctl
_ioctl.restype = ctypes.c_int
_ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p]


class Residency:
    """The pages of one process that are in memory, asked range by range.

    Readable by whoever may trace the process. Where it is not (no CONFIG_PROC_PAGE_MONITOR), everything
    counts as being in memory.
    """

    def __init__(self, pid: int) -> None:
        try:
            self._fd = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY)
        except OSError:
            self._fd = -1
        self._regions = np.ones((_REGIONS, 3), dtype=np.uint64)  # ones: written, so that its pages are there
        self._regions_at = int(self._regions.ctypes.data)
        self._words = self._regions.reshape(-1).data
        # size, flags, start, end, walk_end, vec, vec_len, max_pages,
        # category_inverted, category_mask, category_anyof_mask, return_mask
        self._argument = (ctypes.c_uint64 * 12)()
        self._argument[0] = 96
        self._argument[8] = _PFNZERO
        self._argument[9] = _PRESENT | _PFNZERO
        self._argument[11] = _PRESENT
        self._argument_at = ctypes.addressof(self._argument)
        self._by_scan = self._scan(0, PAGE, 0, 1) is not None

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def alive(self) -> bool:
        """Whether it is still the memory that this was opened on."""
        try:
            return self._fd >= 0 and len(os.pread(self._fd, 8, 0)) == 8
        except OSError:
            return False

    def written(self, pages: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which of the pages (sorted addresses, of private anonymous memory) hold something.

        Others are zero, whoever reads them: nobody has written to them. Where it is not known they may.
        """
        jumps = np.flatnonzero(np.diff(pages) != PAGE) + 1
        starts = pages[np.concatenate([[0], jumps])].tolist() if len(pages) else []
        ends = (pages[np.concatenate([jumps - 1, [-1]])] + np.uint64(PAGE)).tolist() if len(pages) else []
        if self._by_scan and len(starts) > _MANY:  # one look at all that lies between them
            starts, ends = starts[:1], ends[-1:]
        found, unseen = self.own(list(zip(starts, ends, strict=True)))
        ranges = np.array(sorted(found + unseen), dtype=np.uint64).reshape(-1, 2)
        if not len(ranges):
            return np.zeros(len(pages), dtype=np.bool_)
        at = np.searchsorted(ranges[:, 0], pages, side="right")
        held: NDArray[np.bool_] = (at > 0) & (pages < ranges[np.maximum(at, 1) - 1, 1])
        return held

    def find(self, spans: Sequence[tuple[int, int]], limit: int) -> tuple[Ranges, list[tuple[int, int]]]:
        """What of ``spans`` is in memory, in order, up to ``limit`` bytes; and what was not looked at."""
        if not self._by_scan:
            return self._find_by_bits(spans, limit)
        kept: list[Ranges] = []
        filled = 0
        rest: list[tuple[int, int]] = []
        pages = limit // PAGE
        for start, end in spans:
            while start < end and pages > 0:
                if filled == _REGIONS:
                    kept.append(self._regions[:, :2].copy())
                    filled = 0
                step = self._scan(start, end, filled, pages)
                if step is None or step[1] <= start:  # no memory any more: nothing of it can be read either
                    start = end
                    break
                count, start = step
                pages -= self._pages(filled, count)
                filled += count
            if start < end:
                rest.append((start, end))
        kept.append(self._regions[:filled, :2].copy())
        return np.concatenate(kept), rest

    def own(self, spans: Sequence[tuple[int, int]]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """What of ``spans`` was written to, wherever it is now, sorted; and what was not looked at."""
        found: list[tuple[int, int]] = []
        unseen: list[tuple[int, int]] = []
        if not self._by_scan:
            for start, end in spans:
                words = self._words_of(start, end)
                if words is None:
                    unseen.append((start, end))
                else:
                    mine = (words >> 62 & 1 != 0) | (words >> 61 & 5 == 4)
                    found += [(low, high) for low, high in runs(mine, start).tolist()]
            return found, unseen
        before = self._argument[8], self._argument[9]
        for inverted, wanted in ((0, _SWAPPED), (_FILE | _PFNZERO, _PRESENT | _FILE | _PFNZERO)):
            self._argument[8], self._argument[9] = inverted, wanted
            ranges, rest = self.find(spans, 1 << 62)
            found += [(low, high) for low, high in ranges.tolist()]
            unseen += rest
        self._argument[8], self._argument[9] = before
        return sorted(found), unseen

    # Bits 61 ("a page of a file, or shared"), 62 ("swapped") and 63 ("present") of each page tell it.
    def _words_of(self, start: int, end: int) -> NDArray[np.uint64] | None:
        size = (end - start + PAGE - 1) // PAGE * 8
        if self._fd < 0 or size > _BITS_LIMIT:
            return None
        try:
            bits = os.pread(self._fd, size, start // PAGE * 8)
        except OSError:
            return None
        return np.frombuffer(bits, dtype=np.uint64) if len(bits) == size else None

    def _pages(self, filled: int, count: int) -> int:
        if count > 8:
            got = self._regions[filled : filled + count]
            return int((got[:, 1] - got[:, 0]).sum()) // PAGE
        # Most often there is one range, and there may be thousands of stacks.
        words = self._words
        return sum(words[3 * i + 1] - words[3 * i] for i in range(filled, filled + count)) // PAGE

    def _scan(self, start: int, end: int, filled: int, pages: int) -> tuple[int, int] | None:
        argument = self._argument
        argument[2], argument[3], argument[7] = start, end, pages
        argument[5], argument[6] = self._regions_at + filled * _REGION, _REGIONS - filled
        count = int(_ioctl(self._fd, _SCAN, self._argument_at))
        return None if count < 0 else (count, int(argument[4]))

    def _find_by_bits(
        self, spans: Sequence[tuple[int, int]], limit: int
    ) -> tuple[Ranges, list[tuple[int, int]]]:
        kept: list[Ranges] = [np.zeros((0, 2), dtype=np.uint64)]
        rest: list[tuple[int, int]] = []
        read = 0
        for start, end in spans:
            while start < end and limit > 0 and read < _BITS_LIMIT:
                stop = min(end, start + _BITS_STEP // 8 * PAGE)
                found = self._bits(start, stop)
                read += (stop - start) // PAGE * 8
                sizes = np.cumsum(found[:, 1] - found[:, 0], dtype=np.uint64)
                fit = int(np.searchsorted(sizes, np.uint64(limit), side="right"))
                if fit < len(found):  # cut the range that crosses the limit, and end there
                    before = int(sizes[fit - 1]) if fit else 0
                    stop = int(found[fit, 0]) + ((limit - before) & -PAGE)
                    found = found[: fit + 1].copy()
                    found[fit, 1] = stop
                    limit = 0
                elif len(found):
                    limit -= int(sizes[-1])
                kept.append(found[found[:, 1] > found[:, 0]])
                start = stop
            if start < end:
                rest.append((start, end))
        return np.concatenate(kept), rest

    def _bits(self, start: int, end: int) -> Ranges:
        whole = np.array([[start, end]], dtype=np.uint64)
        if self._fd < 0:
            return whole
        try:
            bits = os.pread(self._fd, (end - start) // PAGE * 8, start // PAGE * 8)
        except OSError:
            return whole
        # Bit 63 is "present"; bit 62, "swapped", is left out on purpose.
        return runs(np.frombuffer(bits[: len(bits) & -8], dtype=np.int64) < 0, start)


def runs(present: NDArray[np.bool_], start: int) -> Ranges:
    """Ranges of the pages that are true in ``present``, the first page being at ``start``."""
    padded = np.zeros(len(present) + 2, dtype=np.int8)
    padded[1:-1] = present
    edges = np.flatnonzero(np.diff(padded))
    addresses: Ranges = edges.astype(np.uint64) * np.uint64(PAGE) + np.uint64(start)
    return addresses.reshape(-1, 2)


def own_pages(
    pid: int, spans: Sequence[tuple[int, int]]
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """What of ``spans`` a process wrote to: its own pages, in memory or swapped out; and what is not known.

    Pages of files that nobody wrote to are not, nor what was never touched.
    """
    residency = Residency(pid)
    try:
        return residency.own(spans)
    finally:
        residency.close()
