"""Mapped ELF files: build-ids, load bias, symbols and sections, read from the file or from memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from diagtool.capture.elf import PF_X, PT_LOAD, SEGMENT, Data, ElfFile, NotElf, Records, build_id_in
from diagtool.capture.memory import PAGE
from diagtool.capture.modulefiles import Candidate, ModuleFiles, bias_of, elf_in_memory
from diagtool.capture.symbols import SymbolTable, dynamic_symbols, static_symbols

if TYPE_CHECKING:
    from diagtool.capture.memory import AddressSpace
    from diagtool.capture.model import Mapping

__all__ = ["Module", "modules_from_mappings"]

_VDSO = "[vdso]"
_MAX_VDSO = 1 << 20  # bytes
_MAX_COPIES = 64  # mappings of one path that are tried as the first of a module


class Module:
    """One ELF file mapped into the process. Its tables are read when they are first asked for.

    ``path`` as the process sees it; ``start``/``end`` the lowest and highest mapped address; ``bias`` what is
    added to a virtual address of the file to get an address of the process (0 for executables that are not
    position-independent).
    """

    def __init__(
        self,
        path: str,
        start: int,
        end: int,
        bias: int,
        build_id: str | None = None,
        *,
        segments: Records | None = None,
        memory: AddressSpace | None = None,
        open_file: Callable[[], ElfFile | None] | None = None,
        descriptor: Callable[[], int | None] | None = None,
    ) -> None:
        self.path = path
        self.start = start
        self.end = end
        self.bias = bias
        self._build_id = build_id
        self._segments = np.zeros(0, dtype=SEGMENT) if segments is None else segments
        self._memory = memory
        self._open_file = open_file
        self._descriptor = descriptor
        self._file: ElfFile | None = None
        self._soname: str | None = None
        self._dynamic: SymbolTable | None = None
        self._static: SymbolTable | None = None
        self._read_tables = False
        self._found: dict[str, int | None] = {}

    def __repr__(self) -> str:
        return f"Module({self.path!r}, {self.start:#x}-{self.end:#x}, bias {self.bias:#x})"

    def contains(self, address: int) -> bool:
        """Whether an address lies between the first and the last byte of the module."""
        return self.start <= address < self.end

    def flags_at(self, address: int) -> int:
        """The PF_* flags of the PT_LOAD segment whose pages hold an address, 0 where none does."""
        for _, low, high, flags in _loads(self._segments):
            if low <= address - self.bias < high:
                return flags
        return 0

    @property
    def build_id(self) -> str | None:
        """The GNU build-id as hex digits, of what was mapped; where that is not known, of the file."""
        if self._build_id is None:
            memory = self._memory
            if memory is not None:
                self._build_id = build_id_in(
                    self._segments, lambda address, _, size: memory.try_read(self.bias + address, size)
                )
            if self._build_id is None and self.file is not None:
                self._build_id = self.file.build_id
        return self._build_id

    @property
    def file(self) -> ElfFile | None:
        """The file, if it could be found and is the one that was mapped."""
        if self._open_file is not None:
            opener, self._open_file = self._open_file, None
            self._file = opener()
        return self._file

    def descriptor(self) -> int | None:
        """An open descriptor, the caller's, of the file that was mapped; None where it is not here."""
        if self._descriptor is not None:
            return self._descriptor()
        if self.file is None:
            return None
        fd = os.memfd_create("module", os.MFD_CLOEXEC)  # of the vDSO, which is no file
        os.write(fd, bytes(self.file.data[:_MAX_VDSO]))
        return fd

    @property
    def soname(self) -> str:
        """DT_SONAME ("libc.so.6"), or the last part of the path."""
        self._tables()
        return self._soname or self.path.rpartition("/")[2]

    def symbol(self, name: str) -> int | None:
        """Address in the process of a symbol (.dynsym, then .symtab), or None."""
        if name not in self._found:
            value = None
            for table in self._tables():
                value = table.value(name)
                if value is not None:
                    break
            self._found[name] = None if value is None else self.bias + value
            self._release()
        return self._found[name]

    def symbol_at(self, address: int) -> tuple[str, int] | None:
        """(name, offset in bytes) of the function at an address, or None."""
        # The full table first: in .dynsym, what is not exported looks like a tail of its neighbour.
        for table in reversed(list(self._tables())):
            found = table.nearest(address - self.bias)
            if found is not None:
                return found
        return None

    def variable_at(self, address: int) -> tuple[str, int, int] | None:
        """(name, address in the process, size in bytes) of the variable at an address, or None."""
        for table in reversed(list(self._tables())):
            found = table.variable(address - self.bias)
            if found is not None:
                return found[0], found[1] + self.bias, found[2]
        return None

    def function_at(self, address: int) -> str | None:
        """The name of the function that begins at an address, or None."""
        names = (table.at(address - self.bias) for table in self._tables())
        found = next((name for name in names if name is not None), None)
        self._release()
        return found

    # The string table of a large library is tens of megabytes that need not stay resident.
    def _release(self) -> None:
        if self._file is not None:
            self._file.release()

    def section(self, name: str) -> tuple[int, int] | None:
        """(address in the process, size in bytes) of a section by name, or None. Needs the file."""
        found = self.file.section(name) if self.file is not None else None
        return None if found is None else (self.bias + found[0], found[1])

    def _tables(self) -> Iterator[SymbolTable]:
        if not self._read_tables:
            self._read_tables = True
            file = self.file
            if file is not None:
                self._dynamic, self._soname = dynamic_symbols(file.segments, _in_file(file))
                self._static = static_symbols(file)
            elif self._memory is not None:
                self._dynamic, self._soname = dynamic_symbols(self._segments, self._in_memory, self.bias)
        for table in (self._dynamic, self._static):
            if table is not None:
                yield table

    def _in_memory(self, address: int, size: int) -> tuple[Data, int] | None:
        data = self._memory.try_read(self.bias + address, size) if self._memory is not None else None
        return None if data is None else (data, 0)


def _in_file(file: ElfFile) -> Callable[[int, int], tuple[Data, int] | None]:
    def locate(address: int, size: int) -> tuple[Data, int] | None:
        offset = file.offset_of(address, size)
        return None if offset is None else (file.data, offset)

    return locate


def modules_from_mappings(
    mappings: Sequence[Mapping],
    memory: AddressSpace,
    opener: ModuleFiles | Callable[[Mapping], int | None],
    warnings: list[str] | None = None,
) -> list[Module]:
    """The ELF files among the mappings, sorted by address.

    ``opener`` gives an open descriptor (owned by us then) of the file behind a mapping, or None. Files are
    opened when they are needed; the headers are looked for in memory first. What is wrong with a file goes to
    ``warnings``. A mapping whose permissions are "" (unknown) may be executable.
    """
    files = opener if isinstance(opener, ModuleFiles) else _files(mappings, memory, opener, warnings)
    by_path: dict[str, list[Mapping]] = {}
    for m in sorted(mappings, key=lambda m: m.start):
        if m.path.startswith("/") or m.path == _VDSO:
            by_path.setdefault(m.path, []).append(m)
    modules: list[Module] = []
    for path, parts in by_path.items():
        if path == _VDSO:
            modules.extend(_vdso(parts, memory))
        elif any("x" in m.permissions or not m.permissions for m in parts):
            modules.extend(_modules_of(parts, memory, files))
    return sorted(modules, key=lambda m: m.start)


def _files(
    mappings: Sequence[Mapping],
    memory: AddressSpace,
    opener: Callable[[Mapping], int | None],
    warnings: list[str] | None,
) -> ModuleFiles:
    def find(mapping: Mapping) -> Iterable[Candidate]:
        fd = opener(mapping)
        return [] if fd is None else [Candidate(fd, mapping.path)]

    return ModuleFiles(mappings, memory.try_read, find, warnings)


# The vDSO is in memory as a whole, section headers and all.
def _vdso(parts: list[Mapping], memory: AddressSpace) -> Iterator[Module]:
    start, end = parts[0].start, parts[-1].end
    elf = elf_in_memory(memory.try_read, start)
    raw = memory.try_read(start, min(end - start, _MAX_VDSO))
    if elf is not None and raw:
        with suppress(NotElf):
            file = ElfFile(raw)
            yield Module(
                _VDSO, start, end, elf.bias, elf.build_id, segments=elf.segments, open_file=lambda: file
            )


# One path may be mapped several times: loaded twice (dlmopen), or read as data by the program itself.
def _modules_of(parts: list[Mapping], memory: AddressSpace, files: ModuleFiles) -> Iterator[Module]:
    rest = parts
    for _ in range(min(len(parts), _MAX_COPIES)):
        if not rest:
            return
        base, rest = rest[0], rest[1:]
        elf = elf_in_memory(files.read, base.start, base.offset)
        if elf is not None:
            segments, bias, build_id = elf.segments, elf.bias, elf.build_id
        else:
            # An unknown file that is mapped once is data: libraries have text and data.
            known = "x" in "".join(m.permissions for m in parts)
            backing = files.backing(base) if known or len(parts) > 1 else None
            if backing is None or backing.elf is None:
                continue
            segments, build_id = backing.elf.segments, None
            found = bias_of(segments, base.start, base.offset)
            if found is None:
                continue
            bias = found
        loads = _loads(segments)
        own = [m for m in (base, *rest) if _fits(m, bias, loads)]
        if base not in own or not _executable(own, bias, loads):
            continue
        taken = {m.start for m in own}
        rest = [m for m in rest if m.start not in taken]
        end = max(m.end for m in own)
        end = max(end, bias + max(high for _, _, high, _ in loads))
        yield Module(
            base.path,
            base.start,
            end,
            bias,
            build_id,
            segments=segments,
            memory=memory,
            open_file=_opener(files, base),
            descriptor=partial(files.descriptor, base),
        )


def _opener(files: ModuleFiles, mapping: Mapping) -> Callable[[], ElfFile | None]:
    def open_file() -> ElfFile | None:
        backing = files.backing(mapping)
        return backing.elf if backing is not None else None

    return open_file


_Load = tuple[int, int, int, int]  # page of the file, page of the address, end of the last page, flags


def _loads(segments: Records) -> list[_Load]:
    out = []
    for s in segments[segments["type"] == PT_LOAD]:
        address = int(s["address"])
        end = address + max(int(s["memsz"]), int(s["filesz"])) + PAGE - 1 & -PAGE
        out.append((int(s["offset"]) & -PAGE, address & -PAGE, end, int(s["flags"])))
    return out


# Whether a mapping is (a part of) one of the PT_LOAD segments, no more than that, and at its place.
def _fits(mapping: Mapping, bias: int, loads: list[_Load]) -> bool:
    return any(
        low <= mapping.start - bias < mapping.end - bias <= high
        and mapping.offset - offset == mapping.start - bias - low
        for offset, low, high, _ in loads
    )


def _executable(mappings: list[Mapping], bias: int, loads: list[_Load]) -> bool:
    return any(
        ("x" in m.permissions or not m.permissions)
        and any(flags & PF_X and low <= m.start - bias < high for _, low, high, flags in loads)
        for m in mappings
    )
