"""A capture of a running process holds what the process held, at one instant."""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections.abc import Iterator

import numpy as np
import pytest

import native
from diagtool.capture import live, ptrace
from diagtool.capture.live import capture_live
from diagtool.capture.memory import PAGE, MemoryFault

pytestmark = pytest.mark.skipif(not ptrace.supported(), reason="live processes on Linux on x86-64 only")

NANOSLEEP, EPOLL_WAIT, FUTEX, READ = 230, 232, 202, 0

#: Prints READY and the address of 64 MiB of marked memory: page i begins with the word i + 1, every other
#: page is never touched. Then a word at a time on request.
PAGES = """
import ctypes, mmap, os, struct, sys
size = 64 << 20
area = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
area.madvise(mmap.MADV_NOHUGEPAGE)
address = ctypes.addressof(ctypes.c_char.from_buffer(area))
for i in range(0, size // 4096, 2):
    area[i * 4096 : i * 4096 + 8] = struct.pack("<Q", i + 1)
print("READY", address, flush=True)
for line in sys.stdin:
    at, value = map(int, line.split())
    area[at : at + 8] = struct.pack("<Q", value)
    print("done", flush=True)
"""


@pytest.fixture
def pages() -> Iterator[native.Program]:
    with native.started(sys.executable, "-c", PAGES) as program:
        yield program


def test_memory_is_that_of_the_process(pages: native.Program) -> None:
    address = int(pages.words[0])
    with capture_live(pages.pid) as capture:
        places = np.arange(0, (64 << 20) // PAGE, 2, dtype=np.uint64)
        values, ok = capture.memory.load(places * np.uint64(PAGE) + np.uint64(address))
        assert ok.all()
        assert (values == places + np.uint64(1)).all()
        assert capture.late_pages == 0
        assert not capture.warnings


def test_untouched_pages_are_not_copied_and_not_touched(pages: native.Program) -> None:
    address = int(pages.words[0])
    before = int(native.status(pages.pid)["VmRSS"].split()[0])
    with capture_live(pages.pid) as capture:
        mapped = capture.memory.mapped(np.array([address, address + PAGE], dtype=np.uint64))
        assert mapped.tolist() == [True, False]
    assert int(native.status(pages.pid)["VmRSS"].split()[0]) - before < 1024  # KiB; untouched are 32 MiB


def test_the_copy_does_not_change_when_the_process_does(pages: native.Program) -> None:
    address = int(pages.words[0])
    with capture_live(pages.pid) as capture:
        pages.say("0 4711")
        assert pages.line() == "done"
        assert capture.memory.u64(address) == 1


def test_what_did_not_fit_is_said_and_read_later(pages: native.Program) -> None:
    address = int(pages.words[0])
    with capture_live(pages.pid, max_copy=16 << 20) as capture:
        assert sum(s.end - s.start for s in capture.memory.segments if s.writable) <= 17 << 20
        low, high = next(r for r in capture.left_out if r[0] <= address + (60 << 20) < r[1])
        assert high - low >= 32 << 20
        assert any("not copied" in warning for warning in capture.warnings)
        pages.say(f"{60 << 20} 4711")
        assert pages.line() == "done"
        assert capture.memory.u64(address + (60 << 20)) == 4711
        assert capture.late_pages == 1


def test_data_segments_come_before_anonymous_memory_when_room_is_short(pages: native.Program) -> None:
    with capture_live(pages.pid, max_copy=16 << 20) as capture:
        data = [m for m in capture.mappings if m.path.startswith("/") and m.permissions == "rw-p"]
        assert data
        for mapping in data:
            assert not any(a < mapping.end and b > mapping.start for a, b in capture.left_out)


def test_ranges_that_are_asked_for_come_first(pages: native.Program) -> None:
    address = int(pages.words[0])
    wanted = (address + (50 << 20), address + (51 << 20))
    with capture_live(pages.pid, max_copy=16 << 20, extra_pages=lambda mappings: [wanted]) as capture:
        assert capture.memory.u64(wanted[0]) == (50 << 20) // PAGE + 1
        assert capture.late_pages == 0


def test_read_only_memory_is_read_from_the_process_and_is_not_late(pages: native.Program) -> None:
    with capture_live(pages.pid) as capture:
        code = next(m for m in capture.mappings if m.permissions == "r-xp" and m.path.endswith(".so.6"))
        with open(code.path, "rb") as file:
            file.seek(code.offset)
            expected = file.read(1 << 16)
        assert capture.memory.read(code.start, 1 << 16) == expected
        assert capture.late_pages == 0


def test_after_the_end_of_the_process_the_copy_stays_and_the_rest_is_absent(pages: native.Program) -> None:
    address = int(pages.words[0])
    with capture_live(pages.pid, max_copy=16 << 20) as capture:
        pages.process.kill()
        pages.process.wait()
        with pytest.raises(MemoryFault):
            capture.memory.read(address + (60 << 20), 8)
        held = capture.memory.segments[0]
        assert len(capture.memory.read(held.start, 8)) == 8


def test_after_an_exec_the_new_program_is_not_read_for_the_old_one() -> None:
    """The same program, at the same addresses: only the kernel knows that it is not the same any more."""

    def without_randomisation() -> None:
        ctypes.CDLL(None).personality(0x0040000)  # ADDR_NO_RANDOMIZE, sys/personality.h

    source = """
import os, sys
print("READY" if len(sys.argv) < 2 else "AGAIN", flush=True)
input()
os.execv(sys.executable, [sys.executable, "-c", sys.orig_argv[2], "again"])
"""
    with (
        native.started(sys.executable, "-c", source, before=without_randomisation) as program,
        capture_live(program.pid) as capture,
    ):
        code = next(m for m in capture.mappings if m.permissions == "r-xp")
        assert capture.memory.try_read(code.start, 8) is not None
        program.say()
        assert program.line() == "AGAIN"
        with open(f"/proc/{program.pid}/maps") as maps:
            assert f"{code.start:x}-" in maps.read()
        with pytest.raises(MemoryFault):
            capture.memory.read(code.start + PAGE, 8)


def test_all_memory_is_of_one_instant() -> None:
    with native.started(native.built("counters")) as program:
        a, b = map(int, program.words[1:])
        counts = []
        for _ in range(20):
            with capture_live(program.pid) as capture:
                first, second = capture.memory.u64(a), capture.memory.u64(b)
                assert first - second in (0, 1)
                counts.append(first)
        assert sorted(set(counts)) == counts  # and it ran on between the captures


def test_every_thread_has_registers_that_point_into_its_memory() -> None:
    with native.started(native.built("counters")) as program, capture_live(program.pid) as capture:
        assert capture.threads[0].tid == program.pid
        assert len(capture.threads) == 2
        for thread in capture.threads:
            code = [m for m in capture.mappings if m.start <= thread.registers["rip"] < m.end]
            assert "x" in code[0].permissions
            stack = [m for m in capture.mappings if m.start <= thread.registers["rsp"] < m.end]
            assert stack[0].writable
            assert capture.memory.mapped(np.array([thread.registers["rsp"]], dtype=np.uint64)).all()


def test_stacks_are_copied_from_the_stack_pointer_up_to_their_bound() -> None:
    source = """
import threading
def dive(n):
    if n: [0].sort(key=lambda _: dive(n - 1))   # each level takes C stack
    else: print("READY", flush=True); threading.Event().wait()
threading.stack_size(64 << 20)
import sys; sys.setrecursionlimit(100000)
threading.Thread(target=dive, args=(3000,)).start()
"""
    with native.started(sys.executable, "-c", source) as program, capture_live(program.pid) as capture:
        pointer = capture.threads[1].registers["rsp"]
        stack = next(m for m in capture.mappings if m.start <= pointer < m.end)
        held = [s for s in capture.memory.segments if s.start < stack.end and s.end > stack.start]
        assert sum(s.end - s.start for s in held) <= live.plan.STACK_COPY + 2 * PAGE
        assert held[0].start <= pointer - 128
        # What is further up is read later: the stack of a waiting thread does not change.
        assert stack.end - pointer > live.plan.STACK_COPY
        assert capture.memory.try_read(stack.end - 8192, 16) is not None


def test_blocking_calls_are_known_also_after_they_were_restarted() -> None:
    source = """
import select, threading, time, os
r, w = os.pipe()
threading.Thread(target=time.sleep, args=(1000,)).start()
threading.Thread(target=threading.Event().wait, args=(1000,)).start()
threading.Thread(target=select.epoll().poll, args=(1000,)).start()
print("READY", flush=True)
os.read(r, 1)
"""
    with native.started(sys.executable, "-c", source) as program:
        for tid in os.listdir(f"/proc/{program.pid}/task"):
            native.wait_until(
                lambda tid=tid: native.status(program.pid, int(tid))["State"][0] == "S", "all threads wait"
            )
        for _ in range(3):
            with capture_live(program.pid) as capture:
                calls = [t.syscall for t in capture.threads]
                # A lock with a time limit is a futex; the numbers of nanosleep are 35 and 230.
                assert calls[0] == READ
                assert sorted(calls[1:]) == [FUTEX, NANOSLEEP, EPOLL_WAIT]


def test_a_running_thread_is_in_no_call() -> None:
    with native.started(native.built("counters")) as program, capture_live(program.pid) as capture:
        assert capture.threads[1].syscall is None
        assert capture.threads[1].state == "R"
        assert capture.threads[1].cpu_seconds is not None


def test_what_proc_says_is_there() -> None:
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONHASHSEED": "7",
        "PYTHON_API_TOKEN": "geheim",
        "AWS_SECRET": "geheim",
    }
    source = "print('READY', flush=True); input()"
    with (
        native.started(sys.executable, "-c", source, env=environment) as program,
        capture_live(program.pid) as capture,
    ):
        process = capture.process
        assert process.pid == process.ns_pid == program.pid
        assert process.exe == os.readlink(f"/proc/{program.pid}/exe")
        assert process.cmdline == [sys.executable, "-c", source]
        assert process.environ == {"PYTHONHASHSEED": "7"}
        assert (process.uid, process.gid) == (os.geteuid(), os.getegid())
        assert process.namespaces["pid"] == os.readlink("/proc/self/ns/pid")
        assert process.start_time is not None
        assert process.captured_at is not None
        assert 0 <= process.captured_at - process.start_time < 60
        assert capture.pause_ms is not None
        assert capture.pause_ms > 0
        libc = next(m for m in capture.modules if m.path.endswith("libc.so.6"))
        assert libc.symbol("getpid") is not None


def test_sockets_have_their_addresses() -> None:
    source = """
import os, select, socket
a = socket.create_server(("127.0.0.1", 0))
b = socket.create_connection(a.getsockname())
c, _ = a.accept()
d = socket.socket(socket.AF_UNIX); d.bind("\\0diagtool-test-%d" % os.getpid())
e = select.epoll(); e.register(b, select.EPOLLIN)
u = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); u.bind(("::1", 0))
print("READY", *(s.fileno() for s in (a, b, c, d, e, u)), a.getsockname()[1], b.getsockname()[1],
      u.getsockname()[1], flush=True)
input()
"""
    with native.started(sys.executable, "-c", source) as program, capture_live(program.pid) as capture:
        a, b, c, d, e, u, server, client, datagram = map(int, program.words)
        assert capture.fds[a].endswith(f"] 127.0.0.1:{server} LISTEN")
        assert capture.fds[b].endswith(f"] 127.0.0.1:{client} -> 127.0.0.1:{server} ESTABLISHED")
        assert capture.fds[c].endswith(f"] 127.0.0.1:{server} -> 127.0.0.1:{client} ESTABLISHED")
        assert capture.fds[d].endswith(f"] unix @diagtool-test-{program.pid}")
        assert capture.fds[e] == f"anon_inode:[eventpoll] watches {b}"
        assert capture.fds[u].endswith(f"] udp [::1]:{datagram}")
        assert all(text.startswith("socket:[") for text in (capture.fds[a], capture.fds[u]))


@pytest.mark.parametrize("scan", [True, False])
def test_pages_are_found_with_and_without_pagemap_scan(
    pages: native.Program, monkeypatch: pytest.MonkeyPatch, scan: bool
) -> None:
    if not scan:
        monkeypatch.setattr("diagtool.capture.residency._SCAN", 0)  # ENOTTY, as before Linux 6.7
    address = int(pages.words[0])
    with capture_live(pages.pid) as capture:
        places = np.array([0, 1, 2, 16382, 16383], dtype=np.uint64) * np.uint64(PAGE) + np.uint64(address)
        assert capture.memory.mapped(places).tolist() == [True, False, True, True, False]
        held = sum(
            s.end - s.start for s in capture.memory.segments if address <= s.start < address + (64 << 20)
        )
        assert held == 32 << 20


def test_without_process_vm_readv_memory_comes_through_proc(
    pages: native.Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("diagtool.capture.vmread._read_vectors", forbidden)
    address = int(pages.words[0])
    with capture_live(pages.pid, max_copy=32 << 20) as capture:
        assert capture.memory.u64(address + (2 << 20)) == (2 << 20) // PAGE + 1
        assert capture.memory.u64(address + (60 << 20)) == (60 << 20) // PAGE + 1


def test_pages_that_vanish_are_left_out_and_their_neighbours_kept(
    pages: native.Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An address range without memory in the middle of the plan, as after an munmap."""
    find = live.Residency.find
    address = int(pages.words[0])
    # The page before the executable's first mapping: nothing is there.
    with capture_live(pages.pid) as capture:
        first = capture.mappings[0].start

    def with_a_hole(self: live.Residency, spans: list[tuple[int, int]], limit: int) -> object:
        found, rest = find(self, spans, limit)
        hole = np.array([[first - 4 * PAGE, first - PAGE]], dtype=np.uint64)
        at = [place for place, start in enumerate(found[:, 0].tolist()) if start == address]
        if not at:
            return found, rest
        return np.concatenate([found[: at[0] + 5], hole, found[at[0] + 5 :]]), rest

    monkeypatch.setattr(live.Residency, "find", with_a_hole)
    with capture_live(pages.pid) as capture:
        assert any("12 KiB of memory could not be read" in warning for warning in capture.warnings)
        assert not capture.memory.mapped(np.array([first - 2 * PAGE], dtype=np.uint64)).any()
        places = np.arange(0, (64 << 20) // PAGE, 2, dtype=np.uint64)
        values, ok = capture.memory.load(places * np.uint64(PAGE) + np.uint64(address))
        assert ok.all()
        assert (values == places + np.uint64(1)).all()


def test_sixty_four_threads_and_more_than_one_copier() -> None:
    source = """
import threading
keep = [bytearray(b"x" * (1 << 20)) for _ in range(32)]
for i in range(64): threading.Thread(target=threading.Event().wait, daemon=True).start()
print("READY", id(keep[31]), flush=True)
input()
"""
    with native.started(sys.executable, "-c", source) as program, capture_live(program.pid) as capture:
        assert len(capture.threads) == 65
        assert all(t.registers["rip"] for t in capture.threads)
        start = struct.unpack("<Q", capture.memory.read(int(program.words[0]) + 40, 8))[0]  # ob_start
        assert capture.memory.read(start, 1 << 20) == b"x" * (1 << 20)
        assert capture.late_pages == 0


def test_the_socket_of_a_closed_descriptor_is_no_error() -> None:
    source = """
import itertools, os, threading
def churn():
    for _ in itertools.count():
        os.close(os.open("/dev/null", 0))
for _ in range(4): threading.Thread(target=churn, daemon=True).start()
print("READY", flush=True)
input()
"""
    with native.started(sys.executable, "-c", source) as program:
        for _ in range(10):
            with capture_live(program.pid) as capture:
                assert capture.fds[0].startswith("pipe:")
