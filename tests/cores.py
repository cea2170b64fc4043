"""Cores that several tests begin with, and what they look for in them."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np

from diagtool.capture.core import open_core
from diagtool.capture.model import Capture
from elfwriter import (
    AT_ENTRY,
    NT_AUXV,
    NT_FILE,
    NT_PRPSINFO,
    NT_PRSTATUS,
    NT_SIGINFO,
    PAGE,
    STB_GLOBAL,
    STT_FUNC,
    STT_OBJECT,
    Core,
    Library,
    R,
    W,
    X,
    auxv,
    file_note,
    prpsinfo,
    prstatus,
)

HEAP, STACK, LIB = 0x5555_0000_0000, 0x7FFF_0000_0000, 0x7F00_0000_0000
HEAP_BYTES = np.random.default_rng(1).integers(0, 256, 8 * PAGE, dtype=np.uint8).tobytes()
WORKER = {
    "rax": -512,
    "orig_rax": 202,
    "rdi": 0x10,
    "rsi": 0x189,
    "rip": LIB + PAGE + 0x110,
    "rsp": STACK + 64,
}


def small(**changes: object) -> Core:
    """A process with two threads, a heap and a stack, killed by SIGABRT."""
    core = Core(**changes)  # type: ignore[arg-type]
    core.note(NT_PRSTATUS, prstatus(100, signal=6, utime=(1, 500_000), stime=(0, 250_000), rip=0x1234, rax=0))
    core.note(NT_PRPSINFO, prpsinfo(100, b"service", b"/usr/bin/service --port 80 ", uid=1000, gid=1001))
    core.note(NT_SIGINFO, struct.pack("<3i", 6, 0, 0) + bytes(116))
    core.note(2, bytes(512))  # NT_FPREGSET
    core.note(NT_PRSTATUS, prstatus(101, signal=6, **WORKER))
    core.load(HEAP, HEAP_BYTES).load(STACK, b"\x07" * PAGE)
    return core


def opened(tmp_path: Path, data: bytes, **places: str) -> Capture:
    path = tmp_path / "some file"
    path.write_bytes(data)
    return open_core(str(path), **places)


def mentions(capture: Capture, *words: str) -> bool:
    return any(all(w in warning for w in words) for warning in capture.warnings)


LIBRARY = Library(
    dynamic=[
        ("run", STT_FUNC, STB_GLOBAL, PAGE + 0x100, 0x80),
        ("_PyRuntime", STT_OBJECT, STB_GLOBAL, 3 * PAGE, 64),
    ]
)


def with_library(
    path: str | bytes,
    library: Library = LIBRARY,
    held: int = PAGE,
    anonymous: bool = True,
    vector: bytes = auxv((AT_ENTRY, LIB + PAGE + 0x10)),
) -> Core:
    """As the kernel writes it: of read-only mappings the ELF header page, of written ones everything."""
    image = library.build()
    core = Core() if not anonymous else small()
    if not anonymous:
        core.note(NT_PRSTATUS, prstatus(100))
    path = os.fsencode(path)
    core.note(NT_FILE, file_note(*library.mapped(LIB, path)))
    core.note(NT_AUXV, vector)
    core.load(LIB, image[:held], R, memsz=PAGE)
    core.load(LIB + PAGE, b"", R | X, memsz=PAGE)
    core.load(LIB + 2 * PAGE, b"", R, memsz=PAGE)
    if anonymous:
        core.load(LIB + 3 * PAGE, b"modified data".ljust(PAGE, b"\0"), R | W)
    else:
        core.load(LIB + 3 * PAGE, b"", R | W, memsz=PAGE)
    return core
