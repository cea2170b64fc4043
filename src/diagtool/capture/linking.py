"""How an ELF file is linked: what it needs, what it calls itself and its versions, how it is protected.

Facts: gABI chapter 5 (dynamic section), Linux Standard Base "Symbol Versioning" (Elfxx_Verdef), elf.h of
glibc (PT_GNU_STACK, PT_GNU_RELRO, DT_FLAGS_1), and for the note of packages systemd.io/ELF_PACKAGE_METADATA.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from diagtool.capture.elf import PF_X, PT_DYNAMIC, PT_LOAD, PT_NOTE, Records, parse_notes
from diagtool.capture.memory import AddressSpace
from diagtool.capture.modulefiles import elf_in_memory
from diagtool.capture.modules import Module

__all__ = ["Linking", "linking_of"]

_DT_NEEDED, _DT_STRTAB, _DT_STRSZ, _DT_SONAME, _DT_TEXTREL = 1, 5, 10, 14, 22
_DT_BIND_NOW, _DT_FLAGS, _DT_FLAGS_1 = 24, 30, 0x6FFFFFFB
_DT_VERDEF, _DT_VERDEFNUM = 0x6FFFFFFC, 0x6FFFFFFD
_DF_TEXTREL, _DF_BIND_NOW, _DF_1_NOW = 4, 8, 1
_PT_GNU_STACK, _PT_GNU_RELRO = 0x6474E551, 0x6474E552
_NT_PACKAGE = 0xCAFE1A7E
_VER_FLG_BASE = 1  # the file's own name, no version

_MAX_NEEDED = 4096
_MAX_VERSIONS = 4096
_MAX_NAME = 512
_MAX_DYNAMIC = 1 << 16  # bytes
_MAX_NOTE = 1 << 16

#: Bytes at a virtual address of the file, None where they can't be had.
_Read = Callable[[int, int], "bytes | None"]


@dataclass(frozen=True, slots=True)
class Linking:
    """What the headers and the dynamic section say.

    ``soname`` is None where there is none; ``needed`` are the sonames that it asks for, ``versions`` the
    symbol versions that it defines. ``relro``: "full", "partial" or "none". ``executable_stack``: it asks for
    one; None where it does not say. ``package`` is (name, version) as its distribution noted it.
    """

    soname: str | None = None
    needed: tuple[str, ...] = ()
    versions: tuple[str, ...] = ()
    relro: str | None = None
    executable_stack: bool | None = None
    relocates_text: bool = False
    package: tuple[str, str] | None = None


def linking_of(module: Module, memory: AddressSpace) -> Linking | None:
    """How a module is linked, from its file, else from memory; None where neither can be read."""
    file = module.file
    if file is not None:
        return _linking(file.segments, file.read_virtual, 0)
    elf = elf_in_memory(memory.try_read, module.start)
    if elf is None:
        return None
    bias = elf.bias
    return _linking(elf.segments, lambda address, size: memory.try_read(bias + address, size), bias)


def _linking(segments: Records, read: _Read, bias: int) -> Linking:
    types = segments["type"]
    tags, needed_at = _dynamic(segments, read)
    stack = segments[types == _PT_GNU_STACK]
    loads = segments[types == PT_LOAD]
    top = max((int(s["address"]) + int(s["memsz"]) for s in loads), default=0)

    # The dynamic linker adds the bias to some of the pointers, in place.
    def virtual(address: int) -> int:
        return address - bias if bias and address >= max(top, bias) else address

    strings_at, strings_size = virtual(tags.get(_DT_STRTAB, 0)), tags.get(_DT_STRSZ, 0)

    def text(offset: int) -> str:
        if not 0 <= offset < strings_size:
            return ""
        raw = read(strings_at + offset, min(_MAX_NAME, strings_size - offset)) or b""
        return raw.split(b"\0", 1)[0].decode("utf-8", "replace")

    flags, flags_1 = tags.get(_DT_FLAGS, 0), tags.get(_DT_FLAGS_1, 0)
    now = _DT_BIND_NOW in tags or bool(flags & _DF_BIND_NOW) or bool(flags_1 & _DF_1_NOW)
    protected = bool((types == _PT_GNU_RELRO).any())
    return Linking(
        soname=(text(tags[_DT_SONAME]) or None) if _DT_SONAME in tags else None,
        needed=tuple(n for n in map(text, needed_at) if n),
        versions=tuple(_versions(tags, read, virtual, text)),
        relro=("full" if now else "partial") if protected else "none",
        executable_stack=bool(int(stack["flags"][0]) & PF_X) if len(stack) else None,
        relocates_text=_DT_TEXTREL in tags or bool(flags & _DF_TEXTREL),
        package=_package(segments, read),
    )


def _dynamic(segments: Records, read: _Read) -> tuple[dict[int, int], list[int]]:
    """(tag -> value, the values of DT_NEEDED, of which there are many)."""
    for segment in segments[segments["type"] == PT_DYNAMIC][:1]:
        size = min(int(segment["memsz"]), int(segment["filesz"]), _MAX_DYNAMIC) & -16
        raw = read(int(segment["address"]), size) if size else None
        if raw:
            pairs = np.frombuffer(raw, dtype="<u8").reshape(-1, 2)
            end = np.flatnonzero(pairs[:, 0] == 0)
            pairs = pairs[: end[0] if len(end) else None]
            needed = pairs[pairs[:, 0] == _DT_NEEDED][:_MAX_NEEDED, 1].tolist()
            return dict(pairs.tolist()), needed
    return {}, []


# Elf64_Verdef: version, flags, index, count of names (all 16 bits), hash, offset of the first name, offset of
# the next definition; Elf64_Verdaux: name, offset of the next one.
def _versions(
    tags: dict[int, int], read: _Read, virtual: Callable[[int], int], text: Callable[[int], str]
) -> Iterator[str]:
    at = virtual(tags.get(_DT_VERDEF, 0))
    for _ in range(min(tags.get(_DT_VERDEFNUM, 0), _MAX_VERSIONS)):
        raw = read(at, 20) if at else None
        if not raw or len(raw) < 20:
            return
        _, flags, _, _, _, name, onward = struct.unpack("<HHHHIII", raw)
        first = read(at + name, 8)
        if first and len(first) == 8 and not flags & _VER_FLG_BASE:
            yield text(struct.unpack("<II", first)[0])
        if not onward:
            return
        at += onward


def _package(segments: Records, read: _Read) -> tuple[str, str] | None:
    for segment in segments[segments["type"] == PT_NOTE][:16]:
        size = min(int(segment["filesz"]), _MAX_NOTE)
        raw = read(int(segment["address"]), size) if size else None
        for note in parse_notes(raw, 0, len(raw))[0] if raw else ():
            if note.name == b"FDO" and note.type == _NT_PACKAGE and raw:
                try:
                    said = json.loads(raw[note.start : note.end].rstrip(b"\0"))
                except (ValueError, RecursionError):
                    continue
                if isinstance(said, dict) and isinstance(said.get("version"), str):
                    return str(said.get("name", ""))[:_MAX_NAME], said["version"][:_MAX_NAME]
    return None
