"""The notes of a core that we write: what gdb, drgn, pystack and diagtool itself look for.

Structures: include/uapi/linux/elfcore.h (elf_prstatus, elf_prpsinfo), fs/binfmt_elf.c (fill_files_note) of
Linux, x86-64; the order is the kernel's.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence

from diagtool.capture import procfs
from diagtool.capture.model import REGISTERS_X86_64, Capture, CapturedThread, Mapping
from diagtool.capture.notes import (
    NT_AUXV,
    NT_FILE,
    NT_LEFT_OUT,
    NT_PRPSINFO,
    NT_PRSTATUS,
    NT_SIGINFO,
    NT_SIGNALS,
    OURS,
)
from diagtool.capture.plan import is_anonymous
from diagtool.capture.signals import Signals, pack, pack_siginfo

__all__ = ["core_notes", "left_out_note", "status_note"]

_NT_FPREGSET, _NT_X86_XSTATE = 2, 0x202
_FXSAVE = 512  # bytes of the legacy part of NT_X86_XSTATE, which is NT_FPREGSET
_PAGE = 4096


def core_notes(capture: Capture) -> bytes:
    """All notes, one behind the other; the main thread comes first."""
    threads = [thread for thread in capture.threads if thread.registers]
    out = []
    for number, thread in enumerate(threads):
        signal = 0 if number else capture.process.signal or 0
        out.append(_note(b"CORE", NT_PRSTATUS, _prstatus(thread, capture.signals, signal)))
        if number == 0:
            out.append(_note(b"CORE", NT_PRPSINFO, _prpsinfo(capture)))
            out.append(_note(b"CORE", NT_SIGINFO, pack_siginfo(capture.signals.info).ljust(128, b"\0")))
            out.append(_note(b"CORE", NT_AUXV, capture.process.auxv))
            out.append(_note(b"CORE", NT_FILE, _files(capture.mappings)))
        if thread.vectors:
            out.append(_note(b"CORE", _NT_FPREGSET, thread.vectors[:_FXSAVE]))
            out.append(_note(b"LINUX", _NT_X86_XSTATE, thread.vectors))
    out.append(_note(OURS, NT_SIGNALS, pack(_as_inside(capture))))
    return b"".join(out)


def status_note(thread: CapturedThread, signals: Signals | None = None) -> bytes:
    """NT_PRSTATUS of a thread that has registers."""
    return _note(b"CORE", NT_PRSTATUS, _prstatus(thread, signals or Signals()))


def left_out_note(size: int) -> bytes:
    """Our own note of a slim core: how many bytes of the process's memory it does not hold."""
    return _note(OURS, NT_LEFT_OUT, struct.pack("<Q", size))


def _note(name: bytes, kind: int, data: bytes) -> bytes:
    name += b"\0"
    head = struct.pack("<III", len(name), len(data), kind)
    return head + name + bytes(-len(name) % 4) + data + bytes(-len(data) % 4)


# Threads by the numbers that the other notes have.
def _as_inside(capture: Capture) -> Signals:
    numbers = {thread.tid: thread.ns_tid or thread.tid for thread in capture.threads}
    known = capture.signals
    stacks = {numbers.get(tid, tid): stack for tid, stack in known.stacks.items()}
    return Signals(known.masks, known.actions, stacks)


def _prstatus(thread: CapturedThread, signals: Signals, signal: int = 0) -> bytes:
    pending = signals.masks.thread_pending.get(thread.tid, 0)
    blocked = signals.masks.blocked.get(thread.tid, 0)
    seconds, fraction = divmod(thread.cpu_seconds or 0.0, 1.0)
    times = (int(seconds), int(fraction * 1e6), 0, 0, 0, 0, 0, 0)
    head = struct.pack(
        "<3ih2xQQ4i", signal, 0, 0, signal, pending, blocked, thread.ns_tid or thread.tid, 0, 0, 0
    )
    words = [thread.registers[name] for name in REGISTERS_X86_64]
    return head + struct.pack("<8q", *times) + struct.pack("<27Q", *words) + struct.pack("<i4x", 1)


def _prpsinfo(capture: Capture) -> bytes:
    process = capture.process
    # Of a core the pid may be another process's by now.
    text = procfs.try_read(f"/proc/{process.pid}/stat") if capture.kind == "live" else None
    stat = procfs.parse_stat(text or b"")
    comm = capture.threads[0].comm if capture.threads else None
    arguments = os.fsencode(" ".join(process.cmdline))[:79]
    return struct.pack(
        "<4b4xQ2I4i16s80s",
        *(0, ord("R"), 0, 0, stat.flags if stat else 0),
        *(process.uid or 0, process.gid or 0, process.ns_pid or process.pid),
        *(stat.parent if stat else 0, 0, 0),
        *((comm or "").encode("utf-8", "surrogateescape")[:15], arguments),
    )


# count, page size, count times (start, end, offset in pages), count names.
def _files(mappings: Sequence[Mapping]) -> bytes:
    files = [m for m in mappings if not is_anonymous(m)]
    out = [struct.pack("<2Q", len(files), _PAGE)]
    out += [struct.pack("<3Q", m.start, m.end, m.offset // _PAGE) for m in files]
    out += [os.fsencode(m.path) + b"\0" for m in files]
    return b"".join(out)
