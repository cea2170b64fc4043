"""ELF64, little-endian: headers, notes, build-ids, of a file or of what a process has in memory.

Structures: elf.h (glibc), gABI chapters 4 and 5. Nothing here trusts a count, an offset or a size.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "EM_AARCH64",
    "EM_X86_64",
    "ET_CORE",
    "ElfFile",
    "ElfHeader",
    "NotElf",
    "Note",
    "build_id_in",
    "parse_header",
    "parse_notes",
    "parse_segments",
]

Data = bytes | mmap.mmap  # both have find() and slices of bytes
Records = NDArray[Any]  # a structured array

ELF_MAGIC = b"\x7fELF"
ET_EXEC, ET_DYN, ET_CORE = 2, 3, 4
EM_X86_64, EM_AARCH64 = 62, 183
PT_LOAD, PT_DYNAMIC, PT_NOTE = 1, 2, 4
PF_X, PF_W, PF_R = 1, 2, 4
SHT_SYMTAB, SHT_NOBITS, SHT_DYNSYM = 2, 8, 11
PN_XNUM = 0xFFFF  # the number of program headers is in sh_info of section 0
NT_GNU_BUILD_ID = 3

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_NOTE = struct.Struct("<III")
SEGMENT = np.dtype(
    [
        ("type", "<u4"),
        ("flags", "<u4"),
        ("offset", "<u8"),
        ("address", "<u8"),
        ("physical", "<u8"),
        ("filesz", "<u8"),
        ("memsz", "<u8"),
        ("align", "<u8"),
    ]
)
SECTION = np.dtype(
    [
        ("name", "<u4"),
        ("type", "<u4"),
        ("flags", "<u8"),
        ("address", "<u8"),
        ("offset", "<u8"),
        ("size", "<u8"),
        ("link", "<u4"),
        ("info", "<u4"),
        ("align", "<u8"),
        ("entsize", "<u8"),
    ]
)

_MAX_SEGMENTS = 1024  # of a file that is mapped; cores have more
_MAX_SECTIONS = 1 << 17
_LARGE = 8 << 20  # bytes of a mapped file
_MAX_NOTES = 1 << 20
_MAX_NAME = 256  # bytes of a section's name
_MAX_BUILD_ID = 64  # bytes; SHA-1 has 20


class NotElf(Exception):
    """The bytes are no ELF file of the kind that is read here; says why."""


@dataclass(frozen=True, slots=True)
class ElfHeader:
    """The fields of Elf64_Ehdr that are used."""

    type: int
    machine: int
    entry: int
    phoff: int
    shoff: int
    phentsize: int
    phnum: int
    shentsize: int
    shnum: int
    shstrndx: int


@dataclass(frozen=True, slots=True)
class Note:
    """One note: ``[start, end)`` is where its description lies in the data that was parsed."""

    name: bytes
    type: int
    start: int
    end: int


def parse_header(head: bytes) -> ElfHeader:
    """The header at the start of ``head``; raises NotElf."""
    if head[:4] != ELF_MAGIC:
        raise NotElf("it does not start with an ELF header")
    if len(head) < _HEADER.size:
        raise NotElf("it ends within the ELF header")
    ident, kind, machine, _, entry, phoff, shoff, _, _, phentsize, phnum, shentsize, shnum, shstrndx = (
        _HEADER.unpack_from(head)
    )
    if ident[4] != 2:
        raise NotElf("it is 32-bit")
    if ident[5] != 1:
        raise NotElf("it is big-endian")
    return ElfHeader(kind, machine, entry, phoff, shoff, phentsize, phnum, shentsize, shnum, shstrndx)


def parse_segments(data: Data, header: ElfHeader) -> tuple[Records, int]:
    """(program headers as an array of SEGMENT, how many there should be), for data that starts the file."""
    count = header.phnum
    if count == PN_XNUM and header.shoff:
        first = _records(data, header.shoff, 1, header.shentsize or SECTION.itemsize, SECTION)
        if len(first):
            count = int(first["info"][0])
    return _records(data, header.phoff, count, header.phentsize, SEGMENT), count


# As many of ``count`` records as the data holds, ``stride`` bytes apart.
def _records(data: Data, offset: int, count: int, stride: int, kind: np.dtype[Any]) -> Records:
    if stride < kind.itemsize or offset >= len(data):
        return np.zeros(0, dtype=kind)
    count = min(count, (len(data) - offset + stride - kind.itemsize) // stride)
    if count <= 0:
        return np.zeros(0, dtype=kind)
    records: Records = np.ndarray((count,), dtype=kind, buffer=data, offset=offset, strides=(stride,)).copy()
    return records


def parse_notes(data: Data | memoryview, start: int, end: int) -> tuple[list[Note], int]:
    """(notes in ``[start, end)``, bytes at the end that are none).

    Names and descriptions are padded to four bytes, whatever p_align says: so do the kernel
    (fs/binfmt_elf.c, writenote) and gdb.
    """
    notes: list[Note] = []
    end = min(end, len(data))
    while start + _NOTE.size <= end and len(notes) < _MAX_NOTES:
        name_size, size, kind = _NOTE.unpack_from(data, start)
        at = start + _NOTE.size
        desc = at + (name_size + 3 & ~3)
        if desc + size > end or name_size > _MAX_NAME:
            break
        notes.append(Note(bytes(data[at : at + name_size]).rstrip(b"\0"), kind, desc, desc + size))
        start = desc + (size + 3 & ~3)
    return notes, max(0, end - start)


def build_id_in(segments: Records, read: Callable[[int, int, int], bytes | None]) -> str | None:
    """The GNU build-id from the PT_NOTE segments, as hex digits.

    ``read(address, offset, size)`` gives the bytes at a virtual address (alias file offset) as far as it can.
    """
    for segment in segments[segments["type"] == PT_NOTE][:16]:
        raw = read(int(segment["address"]), int(segment["offset"]), min(int(segment["filesz"]), 4096))
        if not raw:
            continue
        for note in parse_notes(raw, 0, len(raw))[0]:
            size = note.end - note.start
            if note.name == b"GNU" and note.type == NT_GNU_BUILD_ID and 0 < size <= _MAX_BUILD_ID:
                return raw[note.start : note.end].hex()
    return None


class ElfFile:
    """An ELF file as bytes (usually mapped); raises NotElf from the constructor only."""

    def __init__(self, data: Data) -> None:
        self.data = data
        self.header = parse_header(data[: _HEADER.size])
        self.segments = parse_segments(data, self.header)[0][:_MAX_SEGMENTS]

    @cached_property
    def loads(self) -> Records:
        """The PT_LOAD segments."""
        loads: Records = self.segments[self.segments["type"] == PT_LOAD]
        return loads

    @cached_property
    def build_id(self) -> str | None:
        """The GNU build-id as hex digits."""
        return build_id_in(self.segments, lambda _, offset, size: self.data[offset : offset + size])

    @cached_property
    def sections(self) -> Records:
        """All section headers."""
        header = self.header
        count = header.shnum
        if not count and header.shoff:  # 0xff00 sections and more: the number is in sh_size of section 0
            first = _records(self.data, header.shoff, 1, header.shentsize, SECTION)
            count = int(first["size"][0]) if len(first) else 0
        return _records(self.data, header.shoff, min(count, _MAX_SECTIONS), header.shentsize, SECTION)

    def section(self, name: str) -> tuple[int, int] | None:
        """(virtual address, size in bytes) of a section that is loaded, by name."""
        wanted = name.encode() + b"\0"
        sections = self.sections
        if not 0 < self.header.shstrndx < len(sections):
            return None
        names = int(sections[self.header.shstrndx]["offset"])
        for record in sections[sections["address"] != 0]:
            at = names + int(record["name"])
            if self.data[at : at + len(wanted)] == wanted:
                return int(record["address"]), int(record["size"])
        return None

    def read_virtual(self, address: int, size: int) -> bytes | None:
        """The bytes that the file holds for a virtual address, None unless it holds all of them."""
        offset = self.offset_of(address, size)
        return None if offset is None else self.data[offset : offset + size]

    def offset_of(self, address: int, size: int) -> int | None:
        """The file offset of ``size`` bytes at a virtual address."""
        for s in self.loads:
            start, offset = int(s["address"]), int(s["offset"])
            if start <= address and address + size <= start + int(s["filesz"]):
                at = offset + address - start
                return at if at + size <= len(self.data) else None
        return None

    def release(self) -> None:
        """Take a large mapped file out of our resident set; it stays readable (capture/paging.py)."""
        if isinstance(self.data, mmap.mmap) and len(self.data) >= _LARGE:
            self.data.madvise(mmap.MADV_DONTNEED)
