"""A core of a live process, written from its copy-on-write image: complete, sparse, streamed.

What is in it is what the kernel puts in by default (core(5), coredump_filter 0x33): private memory that was
written to, and the first page of every mapped ELF file; what files hold is left to them. Pages that were
never touched are holes. Without an image it holds what was copied in the stop.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Protocol

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.corenotes import core_notes
from diagtool.capture.elf import EM_X86_64, ET_CORE, PF_R, PF_W, PF_X, PN_XNUM, PT_LOAD, PT_NOTE
from diagtool.capture.memory import PAGE
from diagtool.capture.model import Capture, Mapping
from diagtool.capture.plan import is_anonymous, joined
from diagtool.capture.residency import Residency
from diagtool.capture.vmread import MemoryReader

__all__ = ["Sink", "Source", "SparseFile", "write_core", "write_segments", "written_to"]

_HEADER, _SEGMENT, _SECTION = 64, 56, 64  # sizes of the ELF structures, in bytes
_WINDOW = 4 << 20  # bytes read and written at once
_HOLE = 1 << 20  # a hole of so many bytes is a segment of its own, without contents
_UNTOUCHED = 1 << 30  # the same of memory that is known to be zero: what is missing is taken for unknown
_ANY = 1 << 62
_PRESENT, _SWAPPED, _OF_FILE = 1 << 63, 1 << 62, 1 << 61  # Documentation/admin-guide/mm/pagemap.rst


class Sink(Protocol):
    """Where a core goes, front to back."""

    def write(self, data: bytes) -> object:
        """Append bytes."""

    def skip(self, size: int) -> None:
        """Append zeros, as a hole where that is possible."""


class SparseFile:
    """A plain file as a sink: zeros are holes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def write(self, data: bytes) -> object:
        """Append bytes."""
        return self._file.write(data)

    def skip(self, size: int) -> None:
        """Append a hole."""
        if size:
            self._file.seek(size, os.SEEK_CUR)
            self._file.truncate()  # a hole at the end of a file is there, too


class Source(Protocol):
    """What belongs into a core, and its bytes."""

    hole: int  # a gap of so many bytes is no part of a segment's contents; smaller ones are zeros

    def present(self, mapping: Mapping) -> list[tuple[int, int]]:
        """Ranges of a mapping that belong into the core."""

    def zeros(self, mapping: Mapping) -> bool:
        """Whether all that is not present was never written to."""

    def read(self, address: int, size: int) -> bytes:
        """Bytes, of whole pages; zeros for what can't be read."""


@dataclass(frozen=True, slots=True)
class _Load:
    start: int
    end: int
    flags: int
    parts: tuple[tuple[int, int], ...]  # what is held, sorted
    contents: int  # where the contents end: with the last part, or behind zeros


def write_core(capture: Capture, sink: Sink, progress: Callable[[int], None] | None = None) -> int:
    """Write the core of a live capture; gives the bytes of memory in it. Raises OSError."""
    source = _Image(capture) if capture.image else _Copy(capture)
    try:
        return write_segments(sink, capture.mappings, core_notes(capture), source, progress)
    finally:
        source.close()


def write_segments(
    sink: Sink,
    mappings: Sequence[Mapping],
    notes: bytes,
    source: Source,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Write a core with what ``source`` has of the mappings; gives the bytes of memory in it."""
    loads = [load for mapping in mappings for load in _loads(mapping, source)]
    return _written(sink, loads, notes, source, progress)


def written_to(pagemap: int, mapping: Mapping) -> bool:
    """Whether a page of a mapped file is not the file's any more, by an open /proc/PID/pagemap."""
    return any(
        bool(((bits & _PRESENT | bits & _SWAPPED) != 0).any())
        and bool((((bits & (_PRESENT | _SWAPPED)) != 0) & (bits & _OF_FILE == 0)).any())
        for _, bits in _page_bits(pagemap, mapping)
    )


def _page_bits(pagemap: int, mapping: Mapping) -> Iterator[tuple[int, NDArray[np.uint64]]]:
    step = 1 << 30
    for start in range(mapping.start, mapping.end, step):
        count = (min(mapping.end, start + step) - start) // PAGE
        yield start, np.frombuffer(os.pread(pagemap, 8 * count, start // PAGE * 8), dtype=np.uint64)


# -- what is in it --------------------------------------------------------------------------------------


class _Copy:
    """Memory that was copied in the stop."""

    hole = _HOLE

    def zeros(self, mapping: Mapping) -> bool:
        """What was not copied is not known."""
        return False

    def __init__(self, capture: Capture) -> None:
        self._memory = capture.memory
        self._held = joined([(s.start, s.end) for s in capture.memory.segments])

    def present(self, mapping: Mapping) -> list[tuple[int, int]]:
        """Ranges of a mapping that are held."""
        found = [(max(low, mapping.start), min(high, mapping.end)) for low, high in self._held]
        return [(low & -PAGE, high + PAGE - 1 & -PAGE) for low, high in found if low < high]

    def read(self, address: int, size: int) -> bytes:
        """Bytes; zeros where there are none."""
        pages = [
            self._memory.try_read(at, PAGE) or bytes(PAGE) for at in range(address, address + size, PAGE)
        ]
        return b"".join(pages)

    def close(self) -> None:
        """Nothing is held."""


class _Image:
    """Memory of the image."""

    hole = _UNTOUCHED

    def zeros(self, mapping: Mapping) -> bool:
        """All that is in memory, or swapped out, is present."""
        return is_anonymous(mapping) and mapping.permissions[0] == "r" and mapping.permissions[3] == "p"

    def __init__(self, capture: Capture) -> None:
        self._reader = MemoryReader(capture.image_pid)
        self._residency = Residency(capture.image_pid)
        self._pagemap = os.open(f"/proc/{capture.image_pid}/pagemap", os.O_RDONLY)

    def present(self, mapping: Mapping) -> list[tuple[int, int]]:
        """Ranges of a mapping that belong into a core."""
        if mapping.permissions[0] != "r" or mapping.permissions[3] == "s":
            return []
        if mapping.path in ("[vvar]", "[vvar_vclock]", "[vsyscall]"):
            return []
        if mapping.path == "[vdso]":
            return [(mapping.start, mapping.end)]
        if is_anonymous(mapping):
            found, _ = self._residency.find([(mapping.start, mapping.end)], _ANY)
            return [(low, high) for low, high in found.tolist()] + self._swapped(mapping)
        if mapping.path.startswith("/dev/"):
            return []
        # A page that is not the file's any more makes all of it part of the core, as in the kernel's: what is
        # missing in a core is taken for what the file has.
        if written_to(self._pagemap, mapping):
            return [(mapping.start, mapping.end)]
        return [(mapping.start, mapping.start + PAGE)] if mapping.offset == 0 else []

    def _swapped(self, mapping: Mapping) -> list[tuple[int, int]]:
        out: list[tuple[int, int]] = []
        if not self._swaps:
            return out
        for start, bits in _page_bits(self._pagemap, mapping):
            pages = np.flatnonzero(bits & _SWAPPED) * PAGE + start
            out += [(page, page + PAGE) for page in pages.tolist()]
        return joined(out)

    @property
    def _swaps(self) -> bool:
        with open("/proc/swaps", "rb") as file:  # noqa: PTH123
            return file.read().count(b"\n") > 1

    def read(self, address: int, size: int) -> bytes:
        """Bytes; zeros for what can't be read."""
        data = np.zeros(size, dtype=np.uint8)
        self._reader.read(np.array([[address, size]], dtype=np.uint64), int(data.ctypes.data))
        return data.tobytes()

    def close(self) -> None:
        """Close what was opened."""
        self._reader.close()
        self._residency.close()
        os.close(self._pagemap)


# The segments of a mapping: cut where there is a large hole.
def _loads(mapping: Mapping, source: Source) -> list[_Load]:
    flags = sum(
        bit for bit, letter in ((PF_R, "r"), (PF_W, "w"), (PF_X, "x")) if letter in mapping.permissions
    )
    groups: list[list[tuple[int, int]]] = []
    for part in joined(source.present(mapping)):
        if groups and part[0] - groups[-1][-1][1] < source.hole:
            groups[-1].append(part)
        else:
            groups.append([part])
    out = []
    cursor = mapping.start
    for number, group in enumerate(groups):
        end = groups[number + 1][0][0] if number + 1 < len(groups) else mapping.end
        if not number and group[0][0] - cursor >= source.hole:
            out.append(_Load(cursor, group[0][0], flags, (), cursor))
            cursor = group[0][0]
        last = group[-1][1]
        whole = source.zeros(mapping) and end - last < source.hole
        out.append(_Load(cursor, end, flags, tuple(group), end if whole else last))
        cursor = end
    if not out:
        whole = source.zeros(mapping) and mapping.end - mapping.start < source.hole
        out.append(_Load(mapping.start, mapping.end, flags, (), mapping.end if whole else mapping.start))
    return out


# -- the file -------------------------------------------------------------------------------------------


def _written(
    sink: Sink,
    loads: list[_Load],
    notes: bytes,
    source: Source,
    progress: Callable[[int], None] | None,
) -> int:
    count = len(loads) + 1
    sections = _SECTION if count >= PN_XNUM else 0
    notes_at = _HEADER + _SEGMENT * count + sections
    contents_at = notes_at + len(notes) + PAGE - 1 & -PAGE
    sink.write(_header(count))
    sink.write(struct.pack("<IIQQQQQQ", PT_NOTE, 0, notes_at, 0, 0, len(notes), 0, 4))
    at = contents_at
    for load in loads:
        size = load.contents - load.start
        fields = (PT_LOAD, load.flags, at, load.start, 0, size, load.end - load.start, PAGE)
        sink.write(struct.pack("<IIQQQQQQ", *fields))
        at += size
    if sections:
        sink.write(struct.pack("<IIQQQQIIQQ", 0, 0, 0, 0, 0, 1, 0, count, 0, 0))
    sink.write(notes)
    sink.skip(contents_at - notes_at - len(notes))
    done = 0
    for load in loads:
        cursor = load.start
        for low, high in load.parts:
            sink.skip(low - cursor)
            for at in range(low, high, _WINDOW):
                size = min(_WINDOW, high - at)
                sink.write(source.read(at, size))
                done += size
                if progress is not None:
                    progress(done)
            cursor = high
        sink.skip(load.contents - cursor)
    return done


def _header(count: int) -> bytes:
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    many = count >= PN_XNUM  # then the number is in sh_info of the one section, as fs/binfmt_elf.c has it
    sections = (_HEADER + _SEGMENT * count, _SECTION, 1) if many else (0, 0, 0)
    return struct.pack(
        "<16sHHIQQQIHHHHHH",
        *(ident, ET_CORE, EM_X86_64, 1, 0, _HEADER, sections[0], 0, _HEADER, _SEGMENT),
        *(min(count, PN_XNUM), sections[1], sections[2], 0),
    )
