"""The files behind mappings: found, checked against what the process had in memory, mapped once each.

A file that is at the right path may still be another one: upgraded since, or of another machine. So its
build-id is compared with the one in the memory of the process, or, where there is none, its first page with
the one that was mapped. A file that differs is never used, and a warning says so.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np

from diagtool.capture.elf import (
    ELF_MAGIC,
    PF_W,
    PT_LOAD,
    SEGMENT,
    ElfFile,
    ElfHeader,
    NotElf,
    Records,
    build_id_in,
    parse_header,
    parse_segments,
)
from diagtool.capture.memory import PAGE, U64, AddressSpace, Bytes, Segment
from diagtool.capture.model import Mapping
from diagtool.capture.paging import MappedFile
from diagtool.capture.segments import merged

__all__ = ["BackingFile", "Candidate", "FilePages", "FileRange", "MemoryElf", "ModuleFiles", "elf_in_memory"]

Reader = Callable[[int, int], "bytes | None"]

_MAX_HEADERS = 1 << 16  # bytes of program headers of one module
_NAMED = 3  # files that a warning names; the rest is counted


@dataclass(frozen=True, slots=True)
class Candidate:
    """A file that may be the one behind a mapping: an open descriptor (owned by who takes it) and its name.

    ``proof``: use it only if it can be shown to be the same.
    """

    fd: int
    name: str
    proof: bool = False


#: Files that may be behind a mapping, likeliest first. Descriptors are opened as the iterator advances.
Find = Callable[[Mapping], Iterable[Candidate]]


@dataclass(frozen=True, slots=True)
class BackingFile:
    """A file that stands behind a mapping. ``elf`` is None for data; ``proven``: shown to be the same."""

    mapped: MappedFile
    name: str
    elf: ElfFile | None
    proven: bool
    identity: tuple[int, int] = (0, 0)  # its device and inode


@dataclass(frozen=True, slots=True)
class MemoryElf:
    """The headers of an ELF file as they are in the memory of the process."""

    header: ElfHeader
    segments: Records
    bias: int
    build_id: str | None


def elf_in_memory(read: Reader, base: int, offset: int = 0) -> MemoryElf | None:
    """The headers of an ELF file that is mapped at ``base``, from ``offset`` of its file."""
    head = read(base, 64) if offset == 0 else None
    if not head or head[:4] != ELF_MAGIC:
        return None
    try:
        header = parse_header(head)
    except NotElf:
        return None
    size = min(header.phoff + header.phnum * header.phentsize, _MAX_HEADERS)
    raw = read(base, size) if size > 64 else head
    segments = parse_segments(raw, header)[0] if raw else np.zeros(0, dtype=SEGMENT)
    bias = bias_of(segments, base, offset)
    if bias is None:
        return None
    return MemoryElf(header, segments, bias, build_id_in(segments, lambda a, _, n: read(bias + a, n)))


def bias_of(segments: Records, start: int, offset: int) -> int | None:
    """What to add to virtual addresses of an ELF file that is mapped at ``start`` from ``offset`` on."""
    for s in segments[segments["type"] == PT_LOAD]:
        low = int(s["offset"]) & -PAGE
        if low <= offset < int(s["offset"]) + max(int(s["filesz"]), 1):
            return start - ((int(s["address"]) & -PAGE) + offset - low)
    return None


class ModuleFiles:
    """Resolves mappings to the bytes of their files.

    ``read`` must not go through a fault handler that uses this object. What is wrong with a file goes to
    ``warnings``, once; ``way_out`` is what to do about files that are missing.
    """

    def __init__(
        self,
        mappings: Iterable[Mapping],
        read: Reader,
        find: Find,
        warnings: list[str] | None = None,
        way_out: str = "",
    ) -> None:
        #: Memory of the process without the fault handler that uses this object.
        self.read = read
        self._find = find
        self.warnings: list[str] = [] if warnings is None else warnings
        self._way_out = way_out
        self._files: dict[str, BackingFile | None] = {}
        self._missing: list[str] = []
        self._missing_at: int | None = None  # the place of the one warning about missing files
        self._bases: dict[str, int] = {}
        for m in mappings:
            if m.offset == 0 and m.path.startswith("/"):
                self._bases.setdefault(m.path, m.start)

    def backing(self, mapping: Mapping) -> BackingFile | None:
        """The file behind a mapping, None where there is none that can be used."""
        if mapping.path not in self._files:
            self._files[mapping.path] = self._open(mapping) if mapping.path.startswith("/") else None
        return self._files[mapping.path]

    def descriptor(self, mapping: Mapping) -> int | None:
        """An open descriptor (the caller's) of the file behind a mapping, for libraries that want one."""
        backing = self.backing(mapping)
        if backing is None:
            return None
        for candidate in self._find(mapping):
            if _identity(candidate.fd) == backing.identity:
                return candidate.fd
            os.close(candidate.fd)
        return None

    def close(self) -> None:
        """Unmap everything."""
        for file in self._files.values():
            if file is not None:
                file.mapped.close()
        self._files.clear()

    def _open(self, mapping: Mapping) -> BackingFile | None:
        before = len(self.warnings)
        for candidate in self._find(mapping):
            try:
                mapped, identity = _map(candidate.fd), _identity(candidate.fd)
            finally:
                os.close(candidate.fd)
            if mapped is None:
                continue
            file = self._checked(mapping, candidate, mapped)
            if file is not None:
                return replace(file, identity=identity)
            mapped.close()
        if len(self.warnings) == before:  # else it was said why not
            self._miss(mapping.path)
        return None

    def _checked(self, mapping: Mapping, candidate: Candidate, mapped: MappedFile) -> BackingFile | None:
        elf: ElfFile | None = None
        with suppress(NotElf):
            elf = ElfFile(mapped.map)
        there: MemoryElf | None = None
        first = None
        if mapping.path in self._bases:
            base = self._bases[mapping.path]
            there = elf_in_memory(self.read, base)
            first = self.read(base, min(PAGE, mapped.size))
        what = f"{candidate.name} is not the file that the process had mapped as {mapping.path}"
        if there is not None and there.build_id and elf is not None and elf.build_id:
            if there.build_id == elf.build_id:
                return BackingFile(mapped, candidate.name, elf, proven=True)
            self._warn(
                f"{what}: its build-id is {elf.build_id}, that of the process {there.build_id}; "
                "it is not used, and what only it holds is missing"
            )
            return None
        if first is not None:
            if mapped.map[: len(first)] == first:
                return BackingFile(mapped, candidate.name, elf, proven=True)
            self.warnings.append(
                f"{what}: it begins with other bytes (no build-id to compare); it is not used"
            )
            return None
        if candidate.proof:
            return None
        self._warn(
            f"{candidate.name} is taken for the file that the process had mapped, unchecked: "
            "nothing of it is in memory that could be compared"
        )
        return BackingFile(mapped, candidate.name, elf, proven=False)

    # Before the warning about missing files: a wrong one is the likelier cause of whatever fails.
    def _warn(self, text: str) -> None:
        if self._missing_at is None:
            self.warnings.append(text)
        else:
            self.warnings.insert(self._missing_at, text)
            self._missing_at += 1

    # One warning for all files that are missing, brought up to date with each one more.
    def _miss(self, path: str) -> None:
        self._missing.append(path)
        more = len(self._missing) - _NAMED
        names = ", ".join(self._missing[:_NAMED]) + (f" and {more} more" if more > 0 else "")
        text = f"{len(self._missing)} mapped file(s) not found here: {names}; what only they hold is missing"
        if self._way_out:
            text += f" ({self._way_out})"
        if self._missing_at is None or self._missing_at >= len(self.warnings):
            self._missing_at = len(self.warnings)
            self.warnings.append(text)
        else:
            self.warnings[self._missing_at] = text


def _map(fd: int) -> MappedFile | None:
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_size <= 0:
            return None
        return MappedFile(fd, found.st_size)
    except (OSError, ValueError, OverflowError):
        return None


def _identity(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


@dataclass(frozen=True, slots=True)
class FileRange:
    """A mapping whose pages may be had from its file.

    ``pristine``: whatever of it is not in memory was never written to. Else only what no program may write to
    (by the ELF segments) is taken from the file.
    """

    mapping: Mapping
    pristine: bool


class FilePages:
    """A fault handler that adds mapped files to an address space, a whole mapping with its first fault."""

    def __init__(self, memory: AddressSpace, files: ModuleFiles, ranges: Iterable[FileRange]) -> None:
        self._memory = memory
        self._files = files
        self._ranges = sorted(ranges, key=lambda r: r.mapping.start)
        self._starts = np.array([r.mapping.start for r in self._ranges], dtype=np.uint64)
        self._buffers: dict[str, int] = {}
        self._done: set[int] = set()

    @property
    def within(self) -> list[tuple[int, int]]:
        """The address ranges that this handler can know something about."""
        return [(r.mapping.start, r.mapping.end) for r in self._ranges]

    def fault(self, pages: U64) -> tuple[U64, Bytes]:
        """See :data:`~diagtool.capture.faults.FaultHandler`."""
        if len(self._starts):
            for i in np.unique(np.searchsorted(self._starts, pages, side="right") - 1).tolist():
                if i >= 0 and i not in self._done:
                    self._done.add(i)
                    self._add(self._ranges[i])
        return pages[:0], np.zeros((0, PAGE), dtype=np.uint8)

    def _add(self, wanted: FileRange) -> None:
        mapping = wanted.mapping
        file = self._files.backing(mapping)
        if file is None:
            return
        if mapping.path not in self._buffers:
            self._buffers[mapping.path] = self._memory.add_buffer(file.mapped.array, file.mapped)
        number = self._buffers[mapping.path]
        end = min(mapping.offset + mapping.end - mapping.start, file.mapped.size)
        for low, high in _usable(wanted, file, end):
            start = mapping.start + low - mapping.offset
            self._memory.add_segments([Segment(start, start + high - low, number, low, writable=False)])
            if high == file.mapped.size and high % PAGE:
                # The last page of a mapping goes on with zeros after the end of the file: mmap(2).
                rest = self._memory.add_buffer(np.zeros(PAGE - high % PAGE, dtype=np.uint8))
                at = start + high - low
                self._memory.add_segments([Segment(at, at + PAGE - high % PAGE, rest, 0, writable=False)])


# Ranges of the file, up to ``end``, that hold what the mapping held.
def _usable(wanted: FileRange, file: BackingFile, end: int) -> Iterator[tuple[int, int]]:
    mapping = wanted.mapping
    if mapping.offset >= end:
        return
    if file.elf is None:
        # Data that may be written to may have been, through this mapping or another one of the same file.
        if wanted.pristine and not mapping.writable:
            yield mapping.offset, end
    elif wanted.pristine:
        yield mapping.offset, end
    else:
        constant = file.elf.loads[file.elf.loads["flags"] & PF_W == 0]
        for low, high in merged((int(s["offset"]), int(s["offset"]) + int(s["filesz"])) for s in constant):
            if max(low, mapping.offset) < min(high, end):
                yield max(low, mapping.offset), min(high, end)
