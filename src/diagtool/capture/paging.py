"""Mapped files that give their pages back.

A mapped file counts into our own resident set page by page as it is touched, and where the file system keeps
large folios one touch maps 2 MiB (measured on ext4, Linux 6.18). MADV_RANDOM does not change that, so a few
thousand reads spread over a big core would make all of it resident. Whoever reads from a :class:`MappedFile`
therefore releases what it is done with: the pages stay in the page cache and come back with a minor fault.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["FILE_RESIDENT_LIMIT", "MappedFile", "file_resident", "map_regular_file"]

#: Beyond this many resident bytes of mapped files, those of cores are released.
FILE_RESIDENT_LIMIT = 128 << 20

_PAGE = mmap.PAGESIZE
_MOST_EXTENTS = 1 << 17


class MappedFile:
    """A file mapped read-only. ``map`` is the mapping, ``array`` the same bytes as a numpy array.

    ``random``: of a core, say. Then ``extents`` has what is no hole of a sparse file, as n x (start, end) in
    bytes; None where it has no holes, or too many.
    """

    def __init__(self, fd: int, size: int, *, random: bool = False) -> None:
        self.size = size
        self.extents = _extents(fd, size) if random else None
        self.map = _map(fd, size)
        self.array: NDArray[np.uint8] = np.frombuffer(self.map, dtype=np.uint8)
        if random:
            self.map.madvise(mmap.MADV_RANDOM)

    def will_need(self, offset: int, size: int) -> None:
        """Start reading a range that is about to be scanned: MADV_RANDOM has switched read-ahead off."""
        self._advise(mmap.MADV_WILLNEED, offset, size)

    def release(self, offset: int = 0, size: int | None = None) -> None:
        """Take a range out of our resident set. Its bytes stay valid."""
        self._advise(mmap.MADV_DONTNEED, offset, self.size if size is None else size)

    def _advise(self, advice: int, offset: int, size: int) -> None:
        start = offset & -_PAGE
        size = min(offset + size, self.size) - start
        if size > 0 and not self.map.closed:
            with suppress(OSError):  # advice only: a file system that has none to give loses nothing
                self.map.madvise(advice, start, size)

    def close(self) -> None:
        """Unmap, unless a view of the bytes is still in use: then it goes with the last view."""
        self.array = np.zeros(0, dtype=np.uint8)
        with suppress(BufferError):
            self.map.close()


def _extents(fd: int, size: int) -> NDArray[np.uint64] | None:
    found: list[tuple[int, int]] = []
    try:
        if os.fstat(fd).st_blocks * 512 >= size:
            return None
        end = 0
        while end < size and len(found) < _MOST_EXTENTS:
            start = os.lseek(fd, end, os.SEEK_DATA)
            end = os.lseek(fd, start, os.SEEK_HOLE)
            found.append((start, end))
    except OSError as error:
        if error.errno != errno.ENXIO:  # nothing but a hole from there on
            return None
    if len(found) == _MOST_EXTENTS:
        return None
    return np.array(found, dtype=np.uint64).reshape(-1, 2)


def _map(fd: int, size: int) -> mmap.mmap:
    if sys.version_info >= (3, 13):
        # A process may have a thousand libraries: without a descriptor each while they are mapped.
        return mmap.mmap(fd, size, access=mmap.ACCESS_READ, trackfd=False)
    return mmap.mmap(fd, size, access=mmap.ACCESS_READ)


def file_resident() -> int:
    """Bytes of mapped files (and shared memory) in our own resident set: proc(5), statm, third field."""
    try:
        return int(Path("/proc/self/statm").read_bytes().split()[2]) * _PAGE
    except (OSError, IndexError, ValueError):
        return 0


def map_regular_file(path: str | Path) -> MappedFile | None:
    """Map a non-empty regular file; None for anything else.

    Paths come out of cores, so they may name a fifo (whose open would block) or a device (whose open may
    do something): those are never opened.
    """
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):
            return None
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return None
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_size <= 0:
            return None
        return MappedFile(fd, found.st_size)
    except (OSError, ValueError, OverflowError):
        return None
    finally:
        os.close(fd)
