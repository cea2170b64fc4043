"""Cores of real processes: one of the kernel, one of gcore, of the same process, against what /proc said."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

from diagtool.capture.core import open_core
from diagtool.capture.model import Capture
from diagtool.capture.modules import Module
from elfwriter import PAGE, Core
from fixture_programs import interpreters

PROGRAM = """
import ctypes, json, os, select, sys, threading, time
tids, ready = {}, threading.Barrier(4)
left, entered = os.pipe()
def run(name, wait):
    tids[name] = threading.get_native_id()
    ready.wait()
    os.write(entered, b"!")
    wait()
lock = threading.Lock()
lock.acquire()
readable, writable = os.pipe()
for name, wait in (
    ("lock", lock.acquire), ("sleep", lambda: time.sleep(10_000)), ("read", lambda: os.read(readable, 1))
):
    threading.Thread(target=run, args=(name, wait), daemon=True).start()
pattern = bytearray(i * i % 251 for i in range(1 << 20))
ready.wait()
for _ in range(3):  # whoever is still on the way out of the barrier waits in a futex, too
    os.read(left, 1)
tids["main"] = threading.get_native_id()
runtime = ctypes.addressof(ctypes.c_char.in_dll(ctypes.pythonapi, "_PyRuntime"))
data = ctypes.addressof((ctypes.c_char * len(pattern)).from_buffer(pattern))
poll = select.epoll()
print(json.dumps({"pid": os.getpid(), "tids": tids, "runtime": runtime, "data": data}), flush=True)
poll.poll()
"""
BLOCKED = {"lock": 202, "sleep": 230, "read": 0, "main": 232}  # futex, clock_nanosleep, read, epoll_wait


@dataclass
class Dumped:
    """Two cores of one process, and what was known of it while it lived."""

    kernel: Path
    gcore: Path
    truth: dict[str, Any]
    syscalls: dict[int, list[int]]  # tid -> number, arguments, stack pointer, program counter
    maps: list[tuple[int, int, str, str]]
    constants: dict[int, bytes]  # bytes of read-only file mappings
    exe: str

    def paths(self) -> list[Path]:
        return [self.kernel, self.gcore]


@pytest.fixture(scope="module")
def dumped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dumped]:
    with open("/proc/sys/kernel/core_pattern") as f:
        pattern = f.read().strip()
    if pattern.startswith(("|", "/")):
        pytest.skip(f"the kernel sends cores to {pattern}")
    if shutil.which("gcore") is None:
        pytest.skip("gcore is not installed")
    folder = tmp_path_factory.mktemp("cores")
    found = sorted(interpreters(), key=lambda i: (i.root is not None, i.version != "3.12"))
    process = subprocess.Popen(
        [*found[0].argv, "-c", PROGRAM, "an argument", "x" * 200],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONHASHSEED": "7", "APP_SECRET_TOKEN": "hush"},
    )
    try:
        assert process.stdout is not None
        truth = json.loads(process.stdout.readline())
        pid = truth["pid"]
        resource.prlimit(pid, resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        # The main thread first: once it polls, everybody has left the barrier.
        names = sorted(truth["tids"], key=lambda name: name != "main")
        syscalls = {truth["tids"][n]: blocked_in(pid, truth["tids"][n], BLOCKED[n]) for n in names}
        maps, constants = mapped(pid)
        exe = os.readlink(f"/proc/{pid}/exe")
        subprocess.run(["gcore", "-o", "gcore", str(pid)], cwd=folder, capture_output=True, check=True)
        os.kill(pid, signal.SIGABRT)
        assert process.wait(60) == -signal.SIGABRT
        kernel = [f for f in folder.iterdir() if f.name.startswith("core")]
        assert len(kernel) == 1, "ulimit -c was raised, the pattern is relative"
        yield Dumped(kernel[0], folder / f"gcore.{pid}", truth, syscalls, maps, constants, exe)
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder)


def blocked_in(pid: int, tid: int, number: int) -> list[int]:
    """What /proc says of the system call that a thread has gone to sleep in."""
    while True:
        with open(f"/proc/{pid}/task/{tid}/syscall") as f:
            words = f.read().split()
        # Who waits for the interpreter lock is in a futex, too: with a time limit, or for the mutex around it
        wait_bitset = 9
        if words[0] == str(number) and (
            number != BLOCKED["lock"] or (int(words[4], 16) == 0 and int(words[2], 16) & 127 == wait_bitset)
        ):
            return [int(words[0]), *(int(w, 16) for w in words[1:])]


def mapped(pid: int) -> tuple[list[tuple[int, int, str, str]], dict[int, bytes]]:
    maps, constants = [], {}
    with open(f"/proc/{pid}/maps") as lines, open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in lines:
            words = line.split(None, 5)
            start, end = (int(x, 16) for x in words[0].split("-"))
            path = words[5].strip() if len(words) > 5 else ""
            maps.append((start, end, words[1], path))
            if path.startswith("/") and words[1] in ("r--p", "r-xp"):
                for at in {start, (start + end) // 2 & -8, end - 256}:
                    constants[at] = os.pread(memory.fileno(), 256, at)
    return maps, constants


@pytest.fixture(params=["kernel", "gcore"])
def capture(request: pytest.FixtureRequest, dumped: Dumped) -> Iterator[Capture]:
    with open_core(str(getattr(dumped, request.param))) as opened:
        yield opened


def python_of(capture: Capture) -> Module:
    return next(m for m in capture.modules if m.symbol("_PyRuntime") is not None)


def test_threads_and_registers_are_those_that_the_process_had(capture: Capture, dumped: Dumped) -> None:
    tids = dumped.truth["tids"]
    assert {t.tid for t in capture.threads} == set(tids.values())
    by_tid = {t.tid: t for t in capture.threads}
    for name, tid in tids.items():
        thread, (number, *rest) = by_tid[tid], dumped.syscalls[tid]
        assert (thread.syscall, name) == (BLOCKED[name], name)
        assert thread.syscall_args[:3] == tuple(rest[:3]) and number == BLOCKED[name]
        assert (thread.registers["rsp"], thread.registers["rip"]) == (rest[-2], rest[-1])
    assert by_tid[tids["main"]].comm is not None


def test_the_process_is_known(capture: Capture, dumped: Dumped) -> None:
    p = capture.process
    assert p.pid == p.ns_pid == dumped.truth["pid"]
    assert p.exe == dumped.exe
    assert p.cmdline[-4:] == ["-c", PROGRAM[:4096], "an argument", "x" * 200]
    assert p.environ["PYTHONHASHSEED"] == "7" and "hush" not in str(p.environ)
    assert p.uid == os.getuid()
    assert p.captured_at is not None
    assert capture.warnings == []


def test_only_the_kernel_core_has_a_signal(dumped: Dumped) -> None:
    with open_core(str(dumped.kernel)) as kernel, open_core(str(dumped.gcore)) as gcore:
        assert (kernel.process.signal, gcore.process.signal) == (signal.SIGABRT, None)


def test_the_memory_is_what_the_process_had(capture: Capture, dumped: Dumped) -> None:
    want = bytes(i * i % 251 for i in range(1 << 20))
    assert capture.memory.read(dumped.truth["data"], 1 << 20) == want
    at = dumped.truth["data"] + np.arange(0, (1 << 20) - 8, 97, dtype=np.uint64)
    values, ok = capture.memory.load(at)
    assert ok.all()
    assert values.tolist() == [int.from_bytes(want[i : i + 8], "little") for i in range(0, len(want) - 8, 97)]


def test_constants_that_the_core_left_out_are_those_of_the_process(capture: Capture, dumped: Dumped) -> None:
    """At the beginning, in the middle and at the end of every read-only mapping of a file."""
    for at, content in dumped.constants.items():
        assert capture.memory.read(at, len(content)) == content, hex(at)
    blocks, ok = capture.memory.load_block(np.array(sorted(dumped.constants), dtype=np.uint64), 256)
    assert ok.all()
    assert [b.tobytes() for b in blocks] == [dumped.constants[at] for at in sorted(dumped.constants)]
    # Data files (locales) have no build-id: that they are used is said.
    assert all("unchecked" in w and ".so" not in w for w in capture.warnings)


def test_symbols_and_sections_are_where_the_process_had_them(capture: Capture, dumped: Dumped) -> None:
    python = python_of(capture)
    assert python.symbol("_PyRuntime") == dumped.truth["runtime"]
    rodata = python.section(".rodata")
    assert rodata is not None and python.contains(rodata[0])
    assert capture.memory.read(rodata[0], 64)
    libc = next(m for m in capture.modules if m.soname == "libc.so.6")
    for thread in capture.threads:
        assert libc.contains(thread.registers["rip"])
    sleeper = next(t for t in capture.threads if t.tid == dumped.truth["tids"]["sleep"])
    found = libc.symbol_at(sleeper.registers["rip"])
    assert found is not None and "nanosleep" in found[0]
    vdso = next(m for m in capture.modules if m.path == "[vdso]")
    assert vdso.symbol("__vdso_clock_gettime") is not None


def test_mappings_are_those_of_the_process(capture: Capture, dumped: Dumped) -> None:
    got = {(m.start, m.end): m for m in capture.mappings}
    for start, end, permissions, path in dumped.maps:
        if not path.startswith("/"):
            continue
        m = got[start, end]
        assert m.path == path
        if permissions in ("r-xp", "rw-p"):
            assert m.permissions == permissions, path
    assert any(m.path == "[stack]" for m in capture.mappings)


def test_a_foreign_core_says_which_files_it_needs(dumped: Dumped, tmp_path: Path) -> None:
    """Another machine: a sysroot of other files with the same names, then the right ones."""
    with open_core(str(dumped.kernel)) as own:
        python = python_of(own)
        ids = {python.build_id}
        rodata = python.section(".rodata")
        assert rodata is not None
        truth = own.memory.read(rodata[0], 64)
    wrong = tmp_path / "wrong" / python.path.lstrip("/")
    right = tmp_path / "right" / python.path.lstrip("/")
    for place, source in ((wrong, sys.executable), (right, python.path)):
        place.parent.mkdir(parents=True)
        shutil.copy(source, place)
    with open_core(str(dumped.kernel), sysroot=str(tmp_path / "right")) as capture:
        assert capture.memory.read(rodata[0], 64) == truth
        assert not any(str(right) in w for w in capture.warnings)
    with open_core(str(dumped.kernel), sysroot=str(tmp_path / "wrong")) as capture:
        assert capture.memory.read(rodata[0], 64) == truth, "the file at its own path is still the right one"
        if None not in ids:
            assert any(str(wrong) in w and str(python.build_id) in w for w in capture.warnings)


def test_a_compressed_core_reads_alike(dumped: Dumped, tmp_path: Path) -> None:
    path = tmp_path / "core.zst"
    with open(dumped.kernel, "rb") as source, open(path, "wb") as target:
        zstandard.ZstdCompressor(level=1).copy_stream(source, target)
    with open_core(str(path)) as capture:
        assert len(capture.threads) == 4 and capture.warnings == []
        assert python_of(capture).symbol("_PyRuntime") == dumped.truth["runtime"]
        assert capture.memory.read(dumped.truth["data"], 8) == bytes(i * i % 251 for i in range(8))


SCAN = """
import sys
import numpy as np
from diagtool.capture.core import open_core
with open_core(sys.argv[1]) as capture:
    memory = capture.memory
    segment = memory.segments[-1]
    size = segment.end - segment.start
    total = sum(int(words[0]) + len(words) for _, words in memory.blocks())
    at = segment.start + np.random.default_rng(3).integers(0, size - 8, 100_000).astype(np.uint64)
    values, ok = memory.load(at)
    assert ok.all()
    for i in range(20_000):
        memory.u64(segment.start + i * 199_999 % (size - 8))
# Not ru_maxrss: it counts what the process was before its exec, a fork of the test run.
highest = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(total, int(values.sum()), highest.split()[1])
"""


def test_a_core_of_four_gigabytes_is_never_resident(tmp_path: Path) -> None:
    """Scanned from end to end, 100,000 words gathered and 20,000 read one by one, all over it."""
    size = 4 << 30
    head = Core().load(0x10000, b"x" * PAGE).load(0x7F00_0000_0000, b"", filesz=size).build()
    path = tmp_path / "core"
    with open(path, "wb") as f:
        f.write(head)
        f.truncate(len(head) + size)
    data_at = struct.unpack_from("<Q", head, 64 + 2 * 56 + 8)[0]
    with open(path, "r+b") as f:
        f.seek(data_at)
        f.write(b"\x01" + bytes(7))
    with contextlib.ExitStack() as stack:
        stack.callback(os.unlink, path)
        out = subprocess.run(
            [sys.executable, "-c", SCAN, str(path)], capture_output=True, text=True, check=True
        ).stdout.split()
    assert int(out[0]) >= size // 8
    assert int(out[2]) < 400 << 10, "KiB"
