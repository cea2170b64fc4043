"""What a core says, and cores with something wrong in them, synthesised."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest

from cores import HEAP, HEAP_BYTES, LIB, STACK, WORKER, mentions, opened, small
from diagtool.capture.errors import BadCore
from elfwriter import (
    AT_ENTRY,
    AT_EXECFN,
    AT_RANDOM,
    AT_SYSINFO_EHDR,
    NT_AUXV,
    NT_FILE,
    NT_PRPSINFO,
    NT_PRSTATUS,
    NT_SIGINFO,
    PAGE,
    Core,
    auxv,
    file_note,
    prpsinfo,
    prstatus,
)


def test_a_core_gives_threads_process_and_memory(tmp_path: Path) -> None:
    with opened(tmp_path, small().build()) as capture:
        assert capture.kind == "core"
        p = capture.process
        assert (p.pid, p.ns_pid, p.uid, p.gid, p.signal, p.machine) == (100, 100, 1000, 1001, 6, "x86_64")
        assert p.cmdline == ["/usr/bin/service", "--port", "80"]
        assert p.captured_at == pytest.approx(os.stat(tmp_path / "some file").st_mtime)
        first, second = capture.threads
        assert (first.tid, first.comm, first.syscall, first.cpu_seconds) == (100, "service", None, 1.75)
        assert (second.tid, second.comm, second.cpu_seconds) == (101, None, 0.0)
        assert (second.syscall, second.syscall_args) == (202, (0x10, 0x189, 0, 0, 0, 0))
        assert first.registers["rip"] == 0x1234 and second.registers["rsp"] == STACK + 64
        assert len(first.registers) == 27
        assert capture.memory.read(HEAP, len(HEAP_BYTES)) == HEAP_BYTES
        assert capture.memory.u64(STACK) == 0x0707070707070707
        assert [(m.start, m.end, m.permissions, m.path) for m in capture.mappings] == [
            (HEAP, HEAP + 8 * PAGE, "rw-p", ""),
            (STACK, STACK + PAGE, "rw-p", ""),
        ]
        assert mentions(capture, "NT_FILE") and len(capture.warnings) == 1
    assert capture.memory.try_read(HEAP, 8) is None, "closed"


@pytest.mark.parametrize(
    ("registers", "number"),
    [
        ({"rax": -512, "orig_rax": 0}, 0),  # read, ERESTARTSYS
        ({"rax": -513, "orig_rax": 202}, 202),
        ({"rax": -514, "orig_rax": 230}, 230),  # clock_nanosleep, ERESTARTNOHAND
        ({"rax": -516, "orig_rax": 7}, 7),  # poll, ERESTART_RESTARTBLOCK
        ({"rax": -4, "orig_rax": 232}, 232),  # epoll_wait never restarts: EINTR
        ({"rax": 0, "orig_rax": 234}, None),  # tgkill has just returned: abort()
        ({"rax": -11, "orig_rax": 45}, None),  # EAGAIN: it did not block
        ({"rax": -512, "orig_rax": -1}, None),  # not in a system call at all
        ({"rax": -512, "orig_rax": 1 << 40}, None),
    ],
)
def test_a_blocked_system_call_shows_in_the_registers(
    tmp_path: Path, registers: dict[str, int], number: int | None
) -> None:
    core = Core().note(NT_PRSTATUS, prstatus(7, **registers)).load(HEAP, b"x")
    assert opened(tmp_path, core.build()).threads[0].syscall == number


def test_a_gcore_core_is_read_alike(tmp_path: Path) -> None:
    """Notes at the end, segments at odd offsets, page size 1 in NT_FILE, SIGSTOP in NT_SIGINFO, no times."""
    core = Core(notes_last=True, align=1)
    core.note(NT_PRPSINFO, prpsinfo(100, b"service"))
    core.note(NT_PRSTATUS, prstatus(100, **WORKER))
    core.note(NT_SIGINFO, struct.pack("<3i", 19, 0, 128) + bytes(116))
    core.note(NT_FILE, file_note((LIB, LIB + PAGE, PAGE, b"/lib/x.so"), page=1))
    core.note(-0x1000000 & 0xFFFFFFFF, b"<target/>", b"GDB")
    core.load(HEAP, HEAP_BYTES + b"odd").load(STACK, b"\x07" * PAGE)
    capture = opened(tmp_path, core.build())
    assert capture.process.signal is None, "it was not killed"
    assert capture.threads[0].cpu_seconds is None, "unknown, not nothing"
    assert capture.threads[0].syscall == 202
    assert capture.memory.read(HEAP + 5, 100) == HEAP_BYTES[5:105]
    values, ok = capture.memory.load(np.array([HEAP, HEAP + 8, STACK], dtype=np.uint64))
    assert ok.all() and int(values[1]) == int.from_bytes(HEAP_BYTES[8:16], "little")
    lib = [m for m in capture.mappings if m.path == "/lib/x.so"]
    assert [(m.start, m.offset, m.permissions) for m in lib] == [(LIB, PAGE, "r--p")]


def test_arguments_and_environment_come_from_the_stack(tmp_path: Path) -> None:
    """Whole, where the note has 80 bytes; of the environment only what is of interest and no secret."""
    arguments = [b"/usr/bin/python3", b"-m", b"a b c", b"x" * 500, b""]
    environment = [b"PYTHONPATH=/app", b"AWS_SECRET_ACCESS_KEY=hush", b"TZ=UTC"]
    strings = b"".join(s + b"\0" for s in arguments + environment)
    at_strings = STACK + 2 * PAGE
    pointers, at = [], at_strings
    for s in arguments + environment:
        pointers.append(at)
        at += len(s) + 1
    vector = auxv((33, 0x1000), (AT_RANDOM, at), (AT_EXECFN, at + 16), (17, 100))
    table = struct.pack("<Q", len(arguments))
    table += struct.pack(f"<{len(arguments)}QQ", *pointers[: len(arguments)], 0)
    table += struct.pack(f"<{len(environment)}QQ", *pointers[len(arguments) :], 0)
    stack = bytes(PAGE + 64) + table + vector
    stack = stack.ljust(2 * PAGE, b"\0") + strings + b"random bytes 16.service\0" + bytes(64)
    core = small().note(NT_AUXV, vector)
    core.loads[1].data = stack
    capture = opened(tmp_path, core.build())
    assert capture.process.cmdline == [a.decode() for a in arguments]
    assert capture.process.environ == {"PYTHONPATH": "/app", "TZ": "UTC"}
    assert capture.process.exe == "service"
    assert [m.path for m in capture.mappings] == ["", "[stack]"]


def test_aarch64_has_its_own_registers(tmp_path: Path) -> None:
    core = Core(machine=183).note(NT_PRSTATUS, prstatus(5, values=list(range(34)))).load(HEAP, b"x" * 8)
    capture = opened(tmp_path, core.build())
    registers = capture.threads[0].registers
    assert capture.process.machine == "aarch64"
    assert (registers["x0"], registers["x30"], registers["sp"], registers["pc"]) == (0, 30, 31, 32)
    assert capture.threads[0].syscall is None


def test_the_number_of_program_headers_may_be_in_section_0(tmp_path: Path) -> None:
    core = small(xnum=True)
    assert opened(tmp_path, core.build()).memory.read(HEAP, 100) == HEAP_BYTES[:100]


def test_program_headers_may_be_longer_than_ours(tmp_path: Path) -> None:
    assert opened(tmp_path, small(phentsize=72).build()).memory.read(HEAP, 9) == HEAP_BYTES[:9]


def test_what_a_core_was_not_told_to_hold_is_missing_not_zero(tmp_path: Path) -> None:
    core = (
        small().load(HEAP + 0x100000, b"", memsz=4 * PAGE).load(HEAP + 0x200000, b"y" * PAGE, memsz=4 * PAGE)
    )
    memory = opened(tmp_path, core.build()).memory
    assert memory.try_read(HEAP + 0x100000, 8) is None
    assert memory.read(HEAP + 0x200000, PAGE) == b"y" * PAGE
    assert memory.try_read(HEAP + 0x200000 + PAGE, 1) is None


# -- damaged --------------------------------------------------------------------------------------------


def test_a_truncated_core_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    data = small().build()
    cut = len(data) - PAGE - 3 * PAGE - 10  # the stack, and a good part of the heap
    capture = opened(tmp_path, data[:cut])
    assert len(capture.threads) == 2
    assert mentions(capture, f"{PAGE + 3 * PAGE + 10:,} bytes", "2 of its 2 memory segments")
    assert capture.memory.read(HEAP, 5 * PAGE - 10) == HEAP_BYTES[: 5 * PAGE - 10]
    assert capture.memory.try_read(HEAP, 5 * PAGE) is None
    assert capture.memory.try_read(STACK, 1) is None


def test_a_gcore_core_that_lost_its_notes_still_has_its_memory(tmp_path: Path) -> None:
    core = small(notes_last=True)
    capture = opened(tmp_path, core.build()[: -len(core.notes)])
    assert capture.memory.read(HEAP, 8) == HEAP_BYTES[:8]
    assert (
        capture.threads == []
        and mentions(capture, "no thread notes")
        and mentions(capture, "notes are missing")
    )


def test_a_core_that_ends_in_its_program_headers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadCore, match="without contents"):
        opened(tmp_path, small().build()[: 64 + 20])


@pytest.mark.parametrize("claim", [50_000, 0xFFFE])
def test_more_program_headers_than_the_file_holds(tmp_path: Path, claim: int) -> None:
    capture = opened(tmp_path, small(phnum=claim).build())
    assert mentions(capture, f"should have {claim:,} program headers")
    assert capture.memory.read(HEAP, 8) == HEAP_BYTES[:8]


def test_absurd_numbers_of_program_headers_by_extension(tmp_path: Path) -> None:
    capture = opened(tmp_path, small(xnum=True, phnum=0xFFFFFFFF).build())
    assert mentions(capture, "should have 4,294,967,295 program headers")


def test_overlapping_segments_are_told_and_the_first_counts(tmp_path: Path) -> None:
    core = small().load(HEAP + PAGE, b"z" * 16 * PAGE)
    capture = opened(tmp_path, core.build())
    assert capture.memory.read(HEAP, 8 * PAGE) == HEAP_BYTES
    assert capture.memory.read(HEAP + 8 * PAGE, 9 * PAGE) == b"z" * 9 * PAGE
    assert mentions(capture, "1 memory segment(s)", "overlap")


def test_absurd_segments_do_no_harm(tmp_path: Path) -> None:
    big = (1 << 64) - 1
    core = small()
    core.load(big - PAGE, b"q" * 2 * PAGE, memsz=big)
    core.load(0x1000, b"", filesz=big, memsz=big, offset=big)
    core.load(0x600000, b"a" * PAGE, filesz=1 << 62)
    core.load(0x700000, b"b" * PAGE, memsz=1)
    capture = opened(tmp_path, core.build())
    assert capture.memory.read(HEAP, 8) == HEAP_BYTES[:8]
    assert mentions(capture, "is cut off")
    assert all(m.start < m.end for m in capture.mappings)


@pytest.mark.parametrize(
    ("kind", "desc", "words"),
    [
        (NT_PRSTATUS, b"", ["1 thread(s)", "too short"]),
        (NT_PRSTATUS, bytes(200), ["1 thread(s)", "too short"]),
        (NT_PRSTATUS, prstatus(100), ["come twice"]),
        (NT_FILE, b"", ["NT_FILE"]),
        (NT_FILE, b"\xff" * 16, ["NT_FILE", "damaged"]),
        (NT_FILE, b"\xff" * 5000, ["NT_FILE", "damaged"]),
        (NT_FILE, file_note((LIB, LIB + PAGE, 0, b"/x"), count=1 << 60), ["NT_FILE", "damaged"]),
        (NT_FILE, file_note((LIB, LIB + PAGE, 0, b"/x"), page=0), ["NT_FILE", "damaged"]),
        (NT_FILE, file_note((LIB + PAGE, LIB, 0, b"/x"), (0, (1 << 64) - 1, 0, b"\xff\xfe/")), []),
        (NT_PRPSINFO, b"short", []),
        (NT_AUXV, b"\xff" * 100, []),
        (NT_AUXV, auxv((AT_ENTRY, 1), (AT_RANDOM, STACK + 8), (AT_SYSINFO_EHDR, STACK)), []),
        (NT_SIGINFO, b"", []),
    ],
)
def test_garbage_in_notes_costs_only_that_note(
    tmp_path: Path, kind: int, desc: bytes, words: list[str]
) -> None:
    capture = opened(tmp_path, small().note(kind, desc).build())
    assert [t.tid for t in capture.threads] == [100, 101]
    assert capture.memory.read(HEAP, 8) == HEAP_BYTES[:8]
    assert not words or mentions(capture, *words), capture.warnings


def test_a_note_of_absurd_size_ends_the_notes(tmp_path: Path) -> None:
    core = small()
    core.notes += struct.pack("<III", 5, 0xFFFFFFF0, 1) + b"CORE\0\0\0\0" + bytes(300)
    capture = opened(tmp_path, core.build())
    assert len(capture.threads) == 2 and mentions(capture, "notes are missing or damaged")


def test_a_core_without_notes_has_its_memory(tmp_path: Path) -> None:
    capture = opened(tmp_path, Core().load(HEAP, HEAP_BYTES).build())
    assert capture.threads == [] and mentions(capture, "no thread notes")
    assert capture.process.pid == 0
    assert capture.memory.read(HEAP, 8) == HEAP_BYTES[:8]


def test_a_core_without_anything_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadCore, match="without contents"):
        opened(tmp_path, Core().build())
