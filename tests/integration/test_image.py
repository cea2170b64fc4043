"""A copy-on-write image harms no target: killed at any step, or refused, the target runs on as it was."""

from __future__ import annotations

import ctypes
import os
import random
import resource
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest

import native
from diagtool.capture import clone, inject, ptrace, reap
from diagtool.capture.errors import NotSupported
from diagtool.capture.live import capture_live

pytestmark = pytest.mark.skipif(not ptrace.supported(), reason="live processes on Linux on x86-64 only")

#: A diagtool that halts before one call of one function, says so, and goes on when it gets a line.
HALTS = """
import importlib, sys
module, name, at, pid = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
from diagtool.capture import live
place = importlib.import_module("diagtool.capture." + module)
owner, _, last = name.rpartition(".")
owner = getattr(place, owner) if owner else place
function, calls = getattr(owner, last), 0
def halt(*arguments, **named):
    global calls
    calls += 1
    if calls == at:
        print("HALTED", flush=True)
        sys.stdin.readline()
    return function(*arguments, **named)
setattr(owner, last, halt)
print("STARTED", flush=True)
live.capture_live(pid, clone="always").close()
print("DONE", flush=True)
"""

STEPS = {
    "stopped": ("inject", "find_place", 1),
    "options": ("steer", "set_options", 1),
    "frame": ("steer", "set_registers", 1),
    "registers": ("steer", "set_mask", 1),
    "mask": ("steer", "to_syscall", 1),
    "at the call": ("steer", "to_syscall", 2),
    "event": ("steer", "event_message", 1),
    "child": ("steer", "set_options", 2),
    "exitkill": ("ptrace", "detach", 1),
    "half let go": ("ptrace", "detach", 2),
    "in the call": ("steer", "to_syscall", 3),
    "behind the call": ("ptrace", "interrupt", 4),
    "interrupted": ("steer", "go_on", 1),
    "back": ("steer", "set_mask", 2),
    "mask back": ("steer", "set_registers", 2),
    "registers back": ("ptrace", "detach", 3),
    "let go": ("steer", "get_registers", 2),
    "files": ("steer", "to_syscall", 5),
    "handlers": ("dispositions", "ask_image", 1),
    "first handler": ("steer", "to_syscall", 6),
    "in a handler's call": ("steer", "to_syscall", 7),
    "behind it": ("steer", "get_registers", 5),
    "alternate stack": ("dispositions", "AlternateStack", 1),
    "image": ("image", "FrozenMemory", 1),
    "closing": ("reap", "in_target", 1),
    "reaping": ("inject", "Injection.make", 2),
}


def halted(step: str, pid: int) -> AbstractContextManager[subprocess.Popen[str]]:
    """A diagtool that has come to a step and stands there."""
    return native.halted(HALTS, *map(str, STEPS[step]), str(pid))


def children(pid: int) -> list[int]:
    """Of all threads of a process."""
    found = []
    for tid in os.listdir(f"/proc/{pid}/task"):
        found += Path(f"/proc/{pid}/task/{tid}/children").read_text().split()
    return [int(child) for child in found]


def untraced(pid: int) -> bool:
    tasks = [native.status(pid, int(tid)) for tid in os.listdir(f"/proc/{pid}/task")]
    return all(task["TracerPid"] == "0" and task["State"][0] in "SRD" for task in tasks)


def lives(program: native.Program) -> bool:
    """Nobody traces it, it works and answers, no sum was wrong, no sleep was cut short, no SIGCHLD came."""
    native.wait_until(lambda: untraced(program.pid), "nobody traces it, and it runs")

    def rounds() -> int:
        program.say()
        done, wrong, early = map(int, program.line().split())
        assert (wrong, early) == (0, 0)
        return done

    before = rounds()
    native.wait_until(lambda: rounds() > before + 3, "it works on")
    return True


@pytest.fixture
def target() -> Iterator[native.Program]:
    with native.started(native.built("images")) as program:
        yield program


@pytest.mark.parametrize("step", STEPS)
def test_killed_at_any_step_the_target_runs_on_and_no_child_does(target: native.Program, step: str) -> None:
    tids = [int(tid) for tid in os.listdir(f"/proc/{target.pid}/task")]

    def masks() -> set[str]:
        return {native.status(target.pid, tid)["SigBlk"].strip("0") for tid in tids}

    native.wait_until(lambda: masks() == {""}, "no thread has only just begun, with all signals blocked")
    with halted(step, target.pid) as diagtool:
        diagtool.kill()
        diagtool.wait()
        assert lives(target)
        left = children(target.pid)
        assert len(left) <= 1
        native.wait_until(
            lambda: all(native.status(child)["State"][0] == "Z" for child in left), "the child is dead"
        )
        assert masks() == {""}
    assert reap.leftovers(target.pid) == left
    capture_live(target.pid, clone="always").close()  # reaps what the killed one left
    assert children(target.pid) == []
    assert lives(target)


def test_killed_at_random_moments_the_target_runs_on(target: native.Program) -> None:
    """DIAGTOOL_KILLS says how often: 40, or 1,000 by hand."""
    source = f"""
from diagtool.capture.live import capture_live
print("READY", flush=True)
while True: capture_live({target.pid}, clone="always").close()
"""
    choose = random.Random(3)
    for _ in range(int(os.environ.get("DIAGTOOL_KILLS", "40"))):
        with native.started(sys.executable, "-c", source) as diagtool:
            time.sleep(choose.random() * 0.15)
            os.kill(diagtool.pid, signal.SIGKILL)
        assert target.process.poll() is None
    assert lives(target)
    capture_live(target.pid, clone="always").close()
    assert children(target.pid) == []


def test_the_image_is_that_instant_and_goes_at_the_end(target: native.Program) -> None:
    for _ in range(3):
        with capture_live(target.pid, clone="always") as capture:
            assert capture.image
            assert all(thread.registers for thread in capture.threads)
            (child,) = children(target.pid)
            assert native.status(child)["State"][0] == "t"
            assert os.listdir(f"/proc/{child}/fd") == []  # no file stays open for its sake
            stack = capture.threads[0].registers["rsp"]
            before = capture.memory.read(stack & -4096, 4096)
            assert lives(target)
            assert capture.memory.read(stack & -4096, 4096) == before
            assert capture.late_pages == 0
        assert children(target.pid) == []
    assert lives(target)


def test_waits_with_a_time_limit_keep_it() -> None:
    """The same promise as for any stop: interrupted calls go on with what is left of their time."""
    with native.started(native.built("waits")) as program:
        for _ in range(20):
            capture_live(program.pid, clone="always").close()
        native.wait_until(
            lambda: all(n[0] >= 5 for n in native.ended_waits(program).values()), "each wait ended five times"
        )
        assert {kind: n[1:] for kind, n in native.ended_waits(program).items() if kind != "epoll"} == {
            kind: [0, 0] for kind in ("nanosleep", "poll", "select", "futex")
        }


def test_no_signal_is_lost_in_a_storm() -> None:
    from test_live_stop import Storm, all_arrived

    with native.started(native.built("signals")) as program:
        with Storm(program.pid) as storm:
            for _ in range(20):
                capture_live(program.pid, clone="auto", image_from=0).close()
                capture_live(program.pid, clone="always").close()
        assert all_arrived(program, storm)


def test_a_stopped_target_stays_stopped(target: native.Program) -> None:
    os.kill(target.pid, signal.SIGSTOP)
    native.wait_until(lambda: target.state() == "T", "it is stopped")
    capture_live(target.pid, clone="always").close()
    native.wait_until(lambda: target.state() == "T", "it is stopped again")
    os.kill(target.pid, signal.SIGCONT)
    assert lives(target)


def test_what_the_kernel_refuses_is_read_in_place(
    target: native.Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As RLIMIT_NPROC, a pids limit or overcommit do: clone itself says no (here: CLONE_VM wants a SIGHAND).
    monkeypatch.setattr(clone, "_CLONE_FILES", 0x800)
    with pytest.raises(NotSupported, match="no copy-on-write image"):
        capture_live(target.pid, clone="always")
    with capture_live(target.pid, clone="auto", image_from=0) as capture:
        assert not capture.image
        assert any("no copy-on-write image" in warning for warning in capture.warnings)
        assert all(thread.registers for thread in capture.threads)
    assert lives(target)
    assert children(target.pid) == []


def filtering(result: int) -> Callable[[], None]:
    """What makes the child have a seccomp filter that answers clone() with ``result``."""

    def before() -> None:
        libc = ctypes.CDLL(None)
        code = [(0x20, 0, 0, 0), (0x15, 0, 1, inject.CLONE), (6, 0, 0, result), (6, 0, 0, 0x7FFF0000)]
        program = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *i) for i in code))
        libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
        known = ctypes.create_string_buffer(struct.pack("<H6xQ", len(code), ctypes.addressof(program)))
        assert libc.prctl(22, 2, known, 0, 0) == 0  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER

    return before


def few_processes() -> None:
    os.setgid(65534)
    os.setuid(65534)
    resource.setrlimit(resource.RLIMIT_NPROC, (3, 3))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize(
    ("before", "why"),
    [
        (filtering(0x00050001), "seccomp forbids"),  # SECCOMP_RET_ERRNO
        (filtering(0x00030000), "seccomp forbids"),  # SECCOMP_RET_TRAP
        (filtering(0x80000000), "seccomp forbids"),  # SECCOMP_RET_KILL_PROCESS
        (few_processes, "no more processes"),
    ],
)
def test_a_process_that_may_not_clone_is_read_in_place(before: Callable[[], None], why: str) -> None:
    with native.started(native.built("images"), before=before) as program:
        with capture_live(program.pid, clone="auto", image_from=0) as capture:
            assert not capture.image
            assert any(why in warning for warning in capture.warnings)
            assert all(thread.registers for thread in capture.threads)
        assert lives(program)
        assert children(program.pid) == []


def test_a_small_process_is_copied_and_a_large_one_is_not() -> None:
    with native.started(native.built("images")) as small, capture_live(small.pid, clone="auto") as capture:
        assert not capture.image
        assert not capture.warnings
    with native.started(native.built("images"), "64") as large:
        with capture_live(large.pid, clone="auto") as capture:
            assert capture.image
            assert sum(words.nbytes for _, words in capture.memory.blocks()) > 64 << 20
            ones = np.uint64(0x0101010101010101)
            assert sum(int((words == ones).sum()) for _, words in capture.memory.blocks()) >= (64 << 20) // 8
        assert lives(large)


def test_a_call_with_a_time_limit_is_a_last_resort() -> None:
    words = dict.fromkeys(inject.REGISTERS_X86_64, 0) | {"cs": 0x33, "rax": (1 << 64) - 516, "orig_rax": 230}
    assert inject._rank(list(words.values()), 0)[0] == inject._TIMED
