"""Capture of a core file: of the kernel, of gcore, of systemd-coredump; plain or compressed.

The file is mapped, never read whole: what is read leaves our resident set again (capture/paging.py). What the
dumper left out because files hold it comes from those files, once they are shown to be the right ones.
"""

from __future__ import annotations

import bisect
import dataclasses
import errno
import os
import stat
from collections.abc import Callable
from typing import BinaryIO

from diagtool.capture.arguments import start_arguments, string_at
from diagtool.capture.corefiles import core_files
from diagtool.capture.coremaps import core_mappings, file_ranges, held_and_lost, load_ranges, missing_bytes
from diagtool.capture.decompress import compression_of, decompressed
from diagtool.capture.elf import (
    ELF_MAGIC,
    EM_AARCH64,
    EM_X86_64,
    ET_CORE,
    ET_DYN,
    ET_EXEC,
    PF_W,
    PF_X,
    PT_NOTE,
    ElfFile,
    Note,
    NotElf,
    Records,
    parse_header,
    parse_notes,
    parse_segments,
)
from diagtool.capture.errors import BadCore, NoSuchTarget, NotPermitted, NotSupported
from diagtool.capture.memory import PAGE, AddressSpace
from diagtool.capture.model import Capture, Mapping, ProcessInfo
from diagtool.capture.modulefiles import FilePages, ModuleFiles
from diagtool.capture.modules import Module, modules_from_mappings
from diagtool.capture.notes import AT_ENTRY, AT_EXECFN, AT_PHDR, CoreNotes, FileNote, read_notes
from diagtool.capture.paging import MappedFile, map_regular_file
from diagtool.capture.peek import EXTENTS
from diagtool.capture.procfs import environ_of_interest

__all__ = ["open_core"]

_HEAD = 64  # bytes of an ELF header
_MACHINES = {EM_X86_64: "x86_64", EM_AARCH64: "aarch64"}
_MAX_LOADS = 1 << 20
_MAX_NOTE_SEGMENTS = 64


def open_core(
    path: str,
    *,
    exe: str | None = None,
    sysroot: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Capture:
    """The capture that a core file is.

    ``exe`` names the executable, ``sysroot`` the directory under which the files of the process are, where
    they are not at their own paths. ``progress`` is called with (bytes read, bytes in all) while a compressed
    core is unpacked. Raises NoSuchTarget, NotPermitted, NotSupported or BadCore, and TargetError where there
    is no room to unpack. What is missing or doubtful is in ``warnings``, which grows as files are needed.
    """
    _check_places(exe, sysroot)
    warnings: list[str] = []
    core, taken_at = _mapped(path, progress, warnings)
    memory = AddressSpace()
    closers: list[AddressSpace | ModuleFiles | MappedFile] = [memory, core]
    try:
        header = parse_header(core.map[:_HEAD])
        segments, expected = parse_segments(core.map, header)
        if len(segments) < expected or len(segments) > _MAX_LOADS:
            segments = segments[:_MAX_LOADS]
            warnings.append(
                f"the core should have {expected:,} program headers, {len(segments):,} of them could be read"
            )
        if not len(segments):
            raise BadCore(f"{path} is a core without contents: it has no program headers", _AGAIN)
        ranges = load_ranges(segments, core.size)
        held, said = held_and_lost(ranges, memory.add_buffer(core.array, core))
        memory.add_segments(held)
        warnings.extend(said)
        notes = _notes(core, segments, header.machine, warnings)
        if notes.left_out:
            size = max(notes.left_out >> 20, 1)
            warnings.append(f"a slim core: {size:,} MiB of the heap were left out when it was written")
        if not held and not notes.threads:
            raise BadCore(f"{path} is a core without contents: neither memory nor threads are in it", _AGAIN)
        mapped_files = notes.files or _files_of_exe(exe, notes.auxv)
        mappings = core_mappings(ranges, mapped_files, notes.auxv)
        main_path = _main_path(mappings, notes.auxv)
        find = core_files(main_path, exe, sysroot, taken_at)
        files = ModuleFiles(mappings, memory.peek, find, warnings, _PLACES)
        closers.insert(1, files)
        pages = FilePages(memory, files, file_ranges(mappings, ranges))
        memory.serve_faults(pages.fault, pages.within)
        modules = modules_from_mappings(mappings, memory, files)
        process = _process(notes, memory, main_path, taken_at, _MACHINES[header.machine])
        process.root = sysroot
        process.auxv = notes.auxv_bytes
        return Capture(
            kind="core",
            process=process,
            threads=notes.threads,
            mappings=_with_permissions(mappings, modules),
            modules=modules,
            memory=memory,
            warnings=warnings,
            missing=missing_bytes(ranges) + notes.left_out,
            signals=notes.signals,
            found={EXTENTS: core.extents},
            _closers=list(closers),
        )
    except BaseException:
        for closer in closers:
            closer.close()
        raise


_PLACES = "--sysroot DIR says where the files of the process are, --exe FILE which its executable is"
_AGAIN = "Take the core again; ulimit -c and the free space of the disk say how large it may become."
_WHAT = (
    "A core is what the kernel, gcore or systemd-coredump leave of a process; gzip, xz, lz4, zstd will do. "
    "What else is read (dumps of stacks, profiles, traces) is told by its content: docs/evidence.md."
)


# -- the file -------------------------------------------------------------------------------------------


def _check_places(exe: str | None, sysroot: str | None) -> None:
    if exe is not None and not os.path.isfile(exe):  # noqa: PTH113
        raise NoSuchTarget(f"--exe {exe}: there is no such file", "Name the executable that left the core.")
    if sysroot is not None and not os.path.isdir(sysroot):  # noqa: PTH112
        raise NoSuchTarget(
            f"--sysroot {sysroot}: there is no such directory",
            "Name the directory under which the files of the process are.",
        )


def _mapped(
    path: str, progress: Callable[[int, int], None] | None, warnings: list[str]
) -> tuple[MappedFile, float]:
    """(the core, unpacked if need be, seconds since the epoch of its last change)."""
    try:
        with _opened(path) as source:
            found = os.fstat(source.fileno())
            head = source.read(_HEAD)
            source.seek(0)
            kind = compression_of(head)
            if kind is None:
                _check_head(path, head)
                return MappedFile(source.fileno(), found.st_size, random=True), found.st_mtime
            tell = None if progress is None else lambda done: progress(done, found.st_size)
            target, damage = decompressed(source, kind, lambda start: _check_head(path, start), tell)
            with target:
                if damage is not None:
                    warnings.append(f"the core can't be unpacked to its end: {damage}")
                size = os.fstat(target.fileno()).st_size
                return MappedFile(target.fileno(), size, random=True), found.st_mtime
    except OSError as error:
        raise BadCore(f"{path} can't be read: {error.strerror or error}") from error


def _opened(path: str) -> BinaryIO:
    try:
        found = os.stat(path)  # noqa: PTH116
        if stat.S_ISDIR(found.st_mode):
            raise BadCore(f"{path} is a directory, not a core", "Name the file in it.")
        if not stat.S_ISREG(found.st_mode):
            raise BadCore(f"{path} is not a regular file", "Write the core to a file first.")
        if not found.st_size:
            raise BadCore(f"{path} is empty", _AGAIN)
        return open(path, "rb")  # noqa: PTH123
    except ValueError as error:
        raise NoSuchTarget(f"{path!r} is no name of a file", "Check the name of the core.") from error
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
            raise NoSuchTarget(f"there is no file {path}", "Check the name of the core.") from error
        if error.errno in (errno.EACCES, errno.EPERM):
            raise NotPermitted(
                f"{path} may not be read by this user",
                "A core belongs to the user of its process: run diagtool as that user or as root.",
            ) from error
        raise BadCore(f"{path} can't be opened: {error.strerror}") from error


def _check_head(path: str, head: bytes) -> None:
    if head[:4] != ELF_MAGIC:
        raise BadCore(
            f"{path} is no core, and nothing else that is known: it does not start with an ELF header", _WHAT
        )
    if len(head) < _HEAD:
        raise BadCore(f"{path} is not a core: it ends within the ELF header", _AGAIN)
    if head[4] == 1:
        raise NotSupported(f"{path} is a 32-bit file", "diagtool reads 64-bit processes only.")
    if head[5] == 2:
        raise NotSupported(f"{path} is of a big-endian machine", "diagtool reads x86-64 and aarch64.")
    try:
        header = parse_header(head)
    except NotElf as error:
        raise BadCore(f"{path} is not a core: {error}", _WHAT) from error
    if header.type in (ET_EXEC, ET_DYN):
        raise BadCore(
            f"{path} is an executable or a shared library, not a core",
            "Name the core as the target, and this file with --exe if it left that core.",
        )
    if header.type != ET_CORE:
        raise BadCore(f"{path} is an ELF file, but no core", _WHAT)
    if header.machine not in _MACHINES:
        raise NotSupported(
            f"{path} is of a machine that diagtool does not know (ELF machine {header.machine})",
            "diagtool reads x86-64 and aarch64.",
        )


# -- what is in it --------------------------------------------------------------------------------------


def _notes(core: MappedFile, segments: Records, machine: int, warnings: list[str]) -> CoreNotes:
    found: list[Note] = []
    expected = rest = 0
    for segment in segments[segments["type"] == PT_NOTE][:_MAX_NOTE_SEGMENTS]:
        start, size = int(segment["offset"]), int(segment["filesz"])
        expected += size
        notes, left = parse_notes(core.map, start, start + size)
        found.extend(notes)
        rest += left + max(0, start + size - max(start, core.size))
    if rest >= 12:
        warnings.append(f"{rest:,} of {expected:,} bytes of the core's notes are missing or damaged")
    notes_read = read_notes(core.map, found, machine, warnings)
    if not notes_read.threads:
        warnings.append("the core has no thread notes: threads and registers are unknown")
    if not notes_read.has_file_note:
        warnings.append("the core has no list of mapped files (NT_FILE): libraries are unknown")
    return notes_read


# Without NT_FILE, the executable at least can be placed: the kernel says where its entry point was.
def _files_of_exe(exe: str | None, auxv: dict[int, int]) -> list[FileNote]:
    mapped = map_regular_file(exe) if exe is not None and AT_ENTRY in auxv else None
    if mapped is None or exe is None:
        return []
    try:
        elf = ElfFile(mapped.map)
        bias = auxv[AT_ENTRY] - elf.header.entry
        if bias & PAGE - 1 or bias < 0:
            return []
        out = []
        for s in elf.loads:
            start = bias + int(s["address"]) & -PAGE
            end = bias + int(s["address"]) + int(s["filesz"]) + PAGE - 1 & -PAGE
            if start < end < 1 << 64:
                out.append(FileNote(start, end, int(s["offset"]) & -PAGE, os.path.abspath(exe)))  # noqa: PTH100
        return out
    except NotElf:
        return []
    finally:
        mapped.close()


# The path that was mapped where the process began to run.
def _main_path(mappings: list[Mapping], auxv: dict[int, int]) -> str | None:
    for kind in (AT_ENTRY, AT_PHDR):
        for m in mappings:
            if m.start <= auxv.get(kind, 0) < m.end and m.path.startswith("/"):
                return m.path
    return None


def _process(
    notes: CoreNotes, memory: AddressSpace, main_path: str | None, taken_at: float, machine: str
) -> ProcessInfo:
    pid = notes.pid or (notes.threads[0].tid if notes.threads else 0)
    for thread in notes.threads:
        if thread.tid == pid:
            thread.comm = notes.comm  # that of the main thread; a core has no other
    arguments, environment = start_arguments(memory, notes.auxv, notes.auxv_bytes)
    exe = main_path
    if exe is None and AT_EXECFN in notes.auxv:
        exe = os.fsdecode(string_at(memory, notes.auxv[AT_EXECFN]) or b"") or None
    return ProcessInfo(
        pid=pid,
        ns_pid=pid,
        exe=exe.removesuffix(" (deleted)") if exe else None,
        cmdline=[os.fsdecode(a) for a in arguments] or (notes.arguments or "").split(),
        environ=environ_of_interest(b"\0".join(environment)),
        uid=notes.uid,
        gid=notes.gid,
        captured_at=taken_at,
        machine=machine,
        signal=notes.signal,
    )


# Where the core has no word on the permissions of a mapping, its ELF file has; data is readable at least.
def _with_permissions(mappings: list[Mapping], modules: list[Module]) -> list[Mapping]:
    starts = [module.start for module in modules]
    out = []
    for m in mappings:
        if not m.permissions:
            i = bisect.bisect_right(starts, m.start) - 1
            flags = modules[i].flags_at(m.start) if i >= 0 else 0
            permissions = f"r{'w' if flags & PF_W else '-'}{'x' if flags & PF_X else '-'}p"
            m = dataclasses.replace(m, permissions=permissions)
        out.append(m)
    return out
