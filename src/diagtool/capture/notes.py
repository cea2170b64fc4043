"""The notes of a core: threads with registers, the process, the auxiliary vector, the mapped files.

Structures: include/uapi/linux/elf.h, include/linux/elfcore.h (elf_prstatus, elf_prpsinfo), fs/binfmt_elf.c
(fill_files_note) of Linux, 64-bit. The kernel writes them, gcore and other dumpers imitate it, and anything
may stand there in a damaged file.
"""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass, field

from diagtool.capture.elf import EM_AARCH64, EM_X86_64, Data, Note
from diagtool.capture.model import REGISTERS_X86_64, CapturedThread
from diagtool.capture.procfs import parse_auxv
from diagtool.capture.signals import Signals, parse_siginfo, unpack
from diagtool.capture.syscalls import blocked_syscall

__all__ = [
    "AT_ENTRY",
    "AT_EXECFN",
    "AT_PHDR",
    "AT_RANDOM",
    "AT_SYSINFO_EHDR",
    "CoreNotes",
    "FileNote",
    "read_notes",
]

NT_PRSTATUS, NT_PRPSINFO, NT_AUXV = 1, 3, 6
NT_SIGINFO, NT_FILE = 0x53494749, 0x46494C45
#: Ours. 1: bytes that a slim core left out (slimcore.py), one 64-bit word; 2: signals.pack()
OURS, NT_LEFT_OUT, NT_SIGNALS = b"DIAGTOOL", 1, 2
AT_PHDR, AT_ENTRY, AT_RANDOM, AT_EXECFN, AT_SYSINFO_EHDR = 3, 9, 25, 31, 33  # include/uapi/linux/auxvec.h

#: Order of user_pt_regs (arch/arm64/include/uapi/asm/ptrace.h).
REGISTERS_AARCH64 = [*(f"x{i}" for i in range(31)), "sp", "pc", "pstate"]
_REGISTERS = {EM_X86_64: REGISTERS_X86_64, EM_AARCH64: REGISTERS_AARCH64}

_PRSTATUS_REGISTERS = 112  # offset of pr_reg
_PRPSINFO = struct.Struct("<4b4xQ2I4i16s80s")
# Signals that dump core (signal(7)) but SIGTRAP: gcore's own stop shows as SIGSTOP or SIGTRAP.
_DUMPS = {3, 4, 6, 7, 8, 11, 24, 25, 31}
_NO_HANDLERS = "no core holds them, unless `diagtool core` wrote it from an image"
_MAX_FILES = 1 << 20
_MAX_PAGE = 1 << 21


@dataclass(frozen=True, slots=True)
class FileNote:
    """One mapped file of NT_FILE: addresses, file offset in bytes, path."""

    start: int
    end: int
    offset: int
    path: str


@dataclass(slots=True)
class CoreNotes:
    """What the notes say; unknown is None or empty."""

    threads: list[CapturedThread] = field(default_factory=list)
    pid: int | None = None
    uid: int | None = None
    gid: int | None = None
    comm: str | None = None
    arguments: str | None = None  # the command line, cut at 80 bytes, blanks between the arguments
    signal: int | None = None
    auxv_bytes: bytes = b""
    auxv: dict[int, int] = field(default_factory=dict)
    files: list[FileNote] = field(default_factory=list)
    has_file_note: bool = False
    left_out: int = 0  # bytes of memory that the writer of a slim core left out
    signals: Signals = field(default_factory=lambda: Signals(why_not=_NO_HANDLERS))


def read_notes(data: Data, notes: list[Note], machine: int, warnings: list[str]) -> CoreNotes:
    """Make sense of the notes of a core; what makes none goes to ``warnings``."""
    out = CoreNotes()
    seen: set[int] = set()
    doubles = cut = 0
    siginfo: int | None = None
    blocked: dict[int, tuple[int, int]] = {}
    ours = False
    for note in notes:
        if note.name == OURS and note.type == NT_LEFT_OUT:
            word = data[note.start : min(note.end, note.start + 8)]
            out.left_out = min(int.from_bytes(word, "little"), 1 << 62)
        if note.name == OURS and note.type == NT_SIGNALS:
            unpack(bytes(data[note.start : min(note.end, note.start + _limit(note.type))]), out.signals)
            ours = True
        if note.name != b"CORE":
            continue
        raw = data[note.start : min(note.end, note.start + _limit(note.type))]
        if note.type == NT_PRSTATUS:
            thread, signal = _thread(raw, machine)
            if thread is None:
                cut += 1
            elif thread.tid in seen:
                doubles += 1
            else:
                # The first is the thread that died, its signal that of the process (elf_core_dump).
                if not out.threads:
                    out.signal = signal or None
                seen.add(thread.tid)
                out.threads.append(thread)
                # struct elf_prstatus: pr_sigpend, pr_sighold
                blocked[thread.tid] = struct.unpack_from("<2Q", raw, 16)
        elif note.type == NT_PRPSINFO and out.pid is None and len(raw) >= _PRPSINFO.size:
            _process(raw, out)
        elif note.type == NT_SIGINFO and siginfo is None and len(raw) >= 4:
            siginfo = int.from_bytes(raw[:4], "little", signed=True)
            out.signals.info = parse_siginfo(bytes(raw))
        elif note.type == NT_AUXV and not out.auxv:
            out.auxv_bytes, out.auxv = raw, parse_auxv(raw)
        elif note.type == NT_FILE and not out.has_file_note:
            out.has_file_note = True
            out.files = _files(raw, warnings)
    if out.signal is None and siginfo in _DUMPS:
        out.signal = siginfo
    if cut:
        warnings.append(f"{cut} thread(s) of the core are left out: their notes are too short")
    if doubles:
        warnings.append(f"{doubles} thread note(s) of the core are left out: their thread ids come twice")
    # gcore writes zeros where it knows nothing.
    if ours or any(thread.cpu_seconds for thread in out.threads):
        out.signals.masks.thread_pending = {tid: words[0] for tid, words in blocked.items()}
        out.signals.masks.blocked = {tid: words[1] for tid, words in blocked.items()}
    if out.signals.actions is not None:
        out.signals.why_not = ""
    if not any(thread.cpu_seconds for thread in out.threads):
        for thread in out.threads:  # gcore writes zeros: that is "unknown", not "did nothing"
            thread.cpu_seconds = None
    return out


# Bytes of a note that are looked at.
def _limit(kind: int) -> int:
    return 64 << 20 if kind == NT_FILE else 1 << 16


def _thread(raw: bytes, machine: int) -> tuple[CapturedThread | None, int]:
    names = _REGISTERS[machine]
    if len(raw) < _PRSTATUS_REGISTERS + 8 * len(names):
        return None, 0
    signal = struct.unpack_from("<h", raw, 12)[0]
    tid = struct.unpack_from("<i", raw, 32)[0]
    user_s, user_us, system_s, system_us = struct.unpack_from("<4q", raw, 48)
    values = struct.unpack_from(f"<{len(names)}Q", raw, _PRSTATUS_REGISTERS)
    registers = dict(zip(names, values, strict=True))
    seconds = user_s + system_s + (user_us + system_us) / 1e6
    thread = CapturedThread(
        tid=tid,
        ns_tid=tid,  # task_pid_vnr: as the process itself sees it
        registers=registers,
        cpu_seconds=seconds if 0 <= seconds < 1e10 else None,
    )
    blocked = blocked_syscall(registers) if machine == EM_X86_64 else None
    if blocked is not None:
        thread.syscall, thread.syscall_args = blocked
    return thread, signal if 0 < signal < 65 else 0


def _process(raw: bytes, out: CoreNotes) -> None:
    fields = _PRPSINFO.unpack_from(raw)
    uid, gid, pid = fields[5], fields[6], fields[7]
    out.pid = pid if pid > 0 else None
    out.uid, out.gid = uid, gid
    out.comm = _text(fields[11]) or None
    out.arguments = _text(fields[12]).rstrip(" ") or None


def _text(raw: bytes) -> str:
    return os.fsdecode(raw.split(b"\0", 1)[0])


# count, page size, then count times (start, end, offset in pages), then count names, each ended by NUL. The
# page size is 4096 from the kernel and 1 from gdb.
def _files(raw: bytes, warnings: list[str]) -> list[FileNote]:
    if len(raw) < 16:
        warnings.append("the core's list of mapped files (NT_FILE) is empty or cut off")
        return []
    count, page = struct.unpack_from("<2Q", raw)
    fit = min(count, (len(raw) - 16) // 24, _MAX_FILES)
    if not 0 < page <= _MAX_PAGE or fit < count:
        warnings.append(
            "the core's list of mapped files (NT_FILE) is damaged and read as far as it makes sense"
        )
    if not 0 < page <= _MAX_PAGE:
        page = mmap.PAGESIZE
    names = raw[16 + 24 * fit :].split(b"\0", fit)[:fit]
    out = []
    for i, name in enumerate(names):
        start, end, offset = struct.unpack_from("<3Q", raw, 16 + 24 * i)
        if start < end and name and offset * page < 1 << 63:
            out.append(FileNote(start, end, offset * page, os.fsdecode(name)))
    return out
