"""No bytes of a core make diagtool raise anything but its own errors, loop, or eat memory."""

from __future__ import annotations

import os
import struct
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cores import HEAP, LIB, STACK, opened, with_library
from diagtool.capture.errors import TargetError
from diagtool.capture.model import Capture
from elfwriter import (
    AT_ENTRY,
    AT_EXECFN,
    AT_PHDR,
    AT_RANDOM,
    AT_SYSINFO_EHDR,
    PAGE,
    Library,
    R,
    X,
    auxv,
)

VDSO = 0x7FFE_0000_0000
VECTOR = auxv(
    (AT_SYSINFO_EHDR, VDSO),
    (AT_PHDR, LIB + 64),
    (AT_ENTRY, LIB + PAGE + 0x10),
    (AT_RANDOM, STACK + 600),
    (AT_EXECFN, STACK + 700),
)


def everything(path: str) -> bytes:
    """A core with all that is looked at: notes of every kind, a vDSO, arguments on the stack, a file."""
    core = with_library(path, vector=VECTOR)
    stack = (struct.pack("<5Q", 2, STACK + 500, STACK + 504, 0, 0) + VECTOR).ljust(500, b"\0")
    core.loads[1].data = stack + b"app\0-x\0".ljust(200, b"r") + b"app\0".ljust(3396)
    image = Library(build_id=None).build()
    core.load(VDSO, image + bytes(-len(image) % PAGE), R | X)
    return core.build()


def exercise(capture: Capture) -> None:
    memory = capture.memory
    for segment in memory.segments[:50]:
        memory.try_read(segment.start, 64)
        memory.try_read(segment.end - 8, 64)
        memory.try_read(segment.start, segment.end - segment.start)
    edges = [e for m in capture.mappings[:50] for e in (m.start, m.start + 5, m.end - 3, m.end)]
    addresses = np.array([HEAP, LIB + PAGE, LIB + 3 * PAGE, *edges], dtype=np.uint64)
    memory.load(addresses)
    memory.load_block(addresses, 100)
    for _, words in memory.blocks():
        assert len(words)
    for module in capture.modules:
        for name in ("run", "_PyRuntime", "absent"):
            module.symbol(name)
        module.symbol_at(module.start + PAGE)
        module.section(".rodata")
        assert module.build_id is None or isinstance(module.build_id, str)
        assert isinstance(module.soname, str)
    for thread in capture.threads:
        assert thread.registers
    assert all(isinstance(w, str) and len(w) < 20_000 for w in capture.warnings)


INTERESTING = [bytes(1), bytes(8), b"\x01", b"\x7f", b"\xff", b"\xff" * 4, b"\xff" * 8]


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_mutated_cores_raise_nothing_but_target_errors(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        lib = Path(folder) / "lib.so"
        image = bytearray(Library().build())
        core = bytearray(everything(str(lib)))
        notes = 2 * PAGE
        place = st.integers(0, 64 + 56 * 8) | st.integers(64 + 56 * 8, notes) | st.integers(0, len(core) - 1)
        for at in data.draw(st.lists(place, min_size=1, max_size=12)):
            value = data.draw(st.sampled_from(INTERESTING) | st.binary(min_size=1, max_size=8))
            core[at : at + len(value)] = value
        if data.draw(st.booleans()):
            del core[data.draw(st.integers(0, len(core))) :]
        for at in data.draw(st.lists(st.integers(0, 600), max_size=4)):
            image[at] = data.draw(st.integers(0, 255))
        lib.write_bytes(image)
        os.utime(lib, (1, 1))
        try:
            capture = opened(Path(folder), bytes(core))
        except TargetError as error:
            assert str(error) and "\n" not in str(error)
            return
        with capture:
            exercise(capture)


def test_the_core_that_is_mutated_is_a_good_one(tmp_path: Path) -> None:
    lib = tmp_path / "lib.so"
    lib.write_bytes(Library().build())
    capture = opened(tmp_path, everything(str(lib)))
    assert capture.warnings == []
    assert capture.process.cmdline == ["app", "-x"] and capture.process.exe == str(lib)
    assert [m.path for m in capture.modules] == [str(lib), "[vdso]"]
    exercise(capture)


def test_absurd_counts_cost_no_memory(tmp_path: Path) -> None:
    """Half a megabyte of core that claims billions of headers, threads and files."""
    core = with_library("/absent")
    core.notes += struct.pack("<III", 5, 0, 1) + b"CORE\0\0\0\0"
    core.notes += (struct.pack("<III", 5, 400_000, 0x46494C45) + b"CORE\0\0\0\0").ljust(400_020, b"\xff")
    core.xnum, core.phnum = True, 0xFFFFFFFF
    data = core.build()
    tracemalloc.start()
    try:
        exercise(opened(tmp_path, data))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 64 << 20
