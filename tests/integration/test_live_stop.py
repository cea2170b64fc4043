"""The target of a capture is never harmed: whatever happens to diagtool, and whatever the target does."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress

import pytest

import native
from diagtool.capture import copier, hold, live, ptrace, stop
from diagtool.capture.errors import NoSuchTarget, NotPermitted, TargetError
from diagtool.capture.hold import Hold
from diagtool.capture.live import capture_live

pytestmark = pytest.mark.skipif(not ptrace.supported(), reason="live processes on Linux on x86-64 only")

#: A diagtool that halts at one step of the stop, says so, and goes on when it gets a line.
HALTS = """
import sys
from diagtool.capture import live, plan, ptrace, stop
step, pid = sys.argv[1], int(sys.argv[2])
calls = 0
def halting(function, at):
    def halt(*arguments, **named):
        global calls
        calls += 1
        if calls == at:
            print("HALTED", flush=True)
            sys.stdin.readline()
        return function(*arguments, **named)
    return halt
if step == "seized":
    ptrace.interrupt = halting(ptrace.interrupt, 1)
elif step == "half interrupted":
    ptrace.interrupt = halting(ptrace.interrupt, 2)
elif step == "interrupted":
    ptrace.Looker.look = halting(ptrace.Looker.look, 1)
elif step == "held":
    stop.Copier.copy = halting(stop.Copier.copy, 1)
elif step == "half let go":
    ptrace.detach = halting(ptrace.detach, 2)
elif step == "error":
    def fails(*arguments): raise MemoryError("on purpose")
    plan.chunked, chunked = halting(lambda *a: fails() if calls > 1 else chunked(*a), 2), plan.chunked
print("STARTED", flush=True)
live.capture_live(pid)
print("DONE", flush=True)
"""
STEPS = ["seized", "half interrupted", "interrupted", "held", "half let go"]


def halted(step: str, pid: int) -> AbstractContextManager[subprocess.Popen[str]]:
    """A diagtool that has come to a step of the stop and stands there."""
    return native.halted(HALTS, step, str(pid))


def of_all_threads(pid: int, name: str) -> set[str]:
    """What the status files of all threads have under a name."""
    found = set()
    for tid in os.listdir(f"/proc/{pid}/task"):
        with suppress(FileNotFoundError, ProcessLookupError):  # it ended
            found.add(native.status(pid, int(tid))[name])
    return found


def tracer(pid: int) -> set[str]:
    return of_all_threads(pid, "TracerPid")


def states(pid: int) -> set[str]:
    return {state[0] for state in of_all_threads(pid, "State")}


def lives(program: native.Program) -> bool:
    """Nobody traces it, no thread stands, and it answers."""
    native.wait_until(lambda: tracer(program.pid) == {"0"}, "nobody traces it")
    native.wait_until(lambda: states(program.pid) <= {"S", "R", "D"}, "all threads run")
    program.say()
    return program.line() != ""


def stands(program: native.Program) -> bool:
    """Nobody traces it, every thread is stopped as SIGSTOP left it, and SIGCONT makes it go on."""
    native.wait_until(lambda: tracer(program.pid) == {"0"}, "nobody traces it")
    native.wait_until(lambda: states(program.pid) == {"T"}, "all threads are stopped")
    os.kill(program.pid, signal.SIGCONT)
    return lives(program)


@pytest.fixture
def target() -> Iterator[native.Program]:
    with native.started(native.built("signals")) as program:
        yield program


@pytest.fixture
def stopped(target: native.Program) -> native.Program:
    os.kill(target.pid, signal.SIGSTOP)
    native.wait_until(lambda: states(target.pid) == {"T"}, "the target is stopped")
    return target


# -- whatever happens to diagtool -----------------------------------------------------------------------


@pytest.mark.parametrize("step", STEPS)
def test_killed_in_the_stop_the_target_runs_on(target: native.Program, step: str) -> None:
    with halted(step, target.pid) as diagtool:
        diagtool.kill()
        diagtool.wait()
        assert lives(target)


@pytest.mark.parametrize("step", STEPS)
def test_killed_in_the_stop_a_stopped_target_stays_stopped(stopped: native.Program, step: str) -> None:
    with halted(step, stopped.pid) as diagtool:
        diagtool.kill()
        diagtool.wait()
        assert stands(stopped)


@pytest.mark.parametrize("step", STEPS)
def test_ctrl_c_acts_after_the_stop(target: native.Program, step: str) -> None:
    with halted(step, target.pid) as diagtool:
        for _ in range(3):
            diagtool.send_signal(signal.SIGINT)
            with pytest.raises(subprocess.TimeoutExpired):
                diagtool.wait(0.05)
        output, errors = diagtool.communicate("\n", timeout=30)
        assert "DONE" not in output
        assert "KeyboardInterrupt" in errors
        assert diagtool.returncode == -signal.SIGINT
        assert lives(target)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_ended_by_a_signal_in_the_stop_the_target_runs_on(target: native.Program, signum: int) -> None:
    with halted("held", target.pid) as diagtool:
        diagtool.send_signal(signum)
        assert diagtool.wait(30) == -signum
        assert lives(target)


def test_ctrl_c_leaves_a_stopped_target_stopped(stopped: native.Program) -> None:
    with halted("held", stopped.pid) as diagtool:
        diagtool.send_signal(signal.SIGINT)
        diagtool.communicate("\n", timeout=30)
        assert stands(stopped)


def test_an_error_of_diagtool_in_the_stop_lets_the_target_go(target: native.Program) -> None:
    with halted("error", target.pid) as diagtool:
        _, errors = diagtool.communicate("\n", timeout=30)
        assert "MemoryError: on purpose" in errors
        assert lives(target)


def test_where_no_thread_can_be_started_it_says_so(
    target: native.Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuses)
    monkeypatch.setattr(copier, "_ALONE", 0)
    capture_live(target.pid).close()  # without those that help to copy
    monkeypatch.setattr(stop._thread, "start_new_thread", refuses)
    with pytest.raises(TargetError, match="no thread can be started"):
        capture_live(target.pid)
    monkeypatch.undo()
    assert lives(target)


def test_killed_at_forty_moments_the_target_runs_on(target: native.Program) -> None:
    source = f"from diagtool.capture.live import capture_live\nwhile True: capture_live({target.pid}).close()"
    choose = random.Random(1)
    for _ in range(40):
        diagtool = subprocess.Popen([sys.executable, "-c", source])
        time.sleep(0.1 + choose.random() * 0.2)
        assert diagtool.poll() is None
        diagtool.kill()
        diagtool.wait()
    assert lives(target)


def test_the_capture_itself_leaves_a_running_target_running(target: native.Program) -> None:
    for _ in range(10):
        capture_live(target.pid).close()
        assert tracer(target.pid) == {"0"}
    assert lives(target)


def test_the_capture_itself_leaves_a_stopped_target_stopped(stopped: native.Program) -> None:
    for _ in range(5):
        native.wait_until(lambda: states(stopped.pid) == {"T"}, "it is stopped")
        with capture_live(stopped.pid) as capture:
            assert all(t.registers for t in capture.threads)
            assert {t.state for t in capture.threads} == {"T"}
    assert stands(stopped)


def test_garbage_collection_is_as_before(target: native.Program) -> None:
    import gc

    for collecting in (True, False):
        (gc.enable if collecting else gc.disable)()
        try:
            capture_live(target.pid).close()
            assert gc.isenabled() == collecting
        finally:
            gc.enable()


# -- whatever the target does ---------------------------------------------------------------------------


class Storm:
    """Queued signals (which the kernel never merges) to a process, as fast as it takes them, counted."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.sent = self.total = 0
        self._end = False
        self._queue = ctypes.CDLL(None).sigqueue
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        value = 0
        while not self._end:
            value += 1
            if self._queue(self.pid, signal.SIGRTMIN, ctypes.c_void_p(value % 1000)) == 0:
                self.sent += 1
                self.total += value % 1000
            time.sleep(0.0002)

    def __enter__(self) -> Storm:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end = True
        self._thread.join()


def all_arrived(program: native.Program, storm: Storm) -> bool:
    expected = f"{storm.sent} {storm.total}"

    def answer() -> str:
        program.say()
        return program.line()

    native.wait_until(lambda: answer().split()[0] == str(storm.sent), f"{expected} arrived")
    return answer() == expected


def test_no_signal_is_lost_in_a_storm(target: native.Program) -> None:
    with Storm(target.pid) as storm:
        for _ in range(40):
            capture_live(target.pid).close()
    assert storm.sent > 100
    assert all_arrived(target, storm)


def test_no_signal_is_lost_when_diagtool_is_killed_in_a_storm(target: native.Program) -> None:
    with Storm(target.pid) as storm:
        for _ in range(3):
            for step in STEPS:
                with halted(step, target.pid) as diagtool:
                    diagtool.kill()
                    diagtool.wait()
    assert storm.sent > 100
    assert all_arrived(target, storm)


def test_a_signal_that_was_seen_but_not_given_back_is_not_lost(target: native.Program) -> None:
    """The worst moment of all: a thread has stopped with a signal, we looked at it, and are killed."""
    source = f"""
import os, sys
from diagtool.capture import ptrace
assert ptrace.seize({target.pid}) == 0
print("SEIZED", flush=True)
looker = ptrace.Looker()
while (event := looker.look({target.pid})) is None: pass
print(event.signal, flush=True)
sys.stdin.read()
"""
    tracing = subprocess.Popen(
        [sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert tracing.stdout is not None
    assert tracing.stdout.readline() == "SEIZED\n"
    libc = ctypes.CDLL(None)
    # To this very thread: tgkill through pthread is not possible from here, sigqueue to it is.
    info = (ctypes.c_int * 32)(signal.SIGRTMIN, 0, -1, 0, os.getpid(), os.geteuid(), 77)
    rt_tgsigqueueinfo = 297
    assert libc.syscall(rt_tgsigqueueinfo, target.pid, target.pid, int(signal.SIGRTMIN), info) == 0
    assert int(tracing.stdout.readline()) == signal.SIGRTMIN
    tracing.kill()
    tracing.communicate()
    target.say()
    native.wait_until(lambda: tracer(target.pid) == {"0"}, "nobody traces it")
    answers = [target.line()]
    target.say()
    answers.append(target.line())
    assert answers[-1] == "1 77"


def test_reaping_the_dead_does_not_swallow_the_stop_of_the_living(target: native.Program) -> None:
    """wait(2) for ended threads takes the stop of a traced one as well: then nobody sees it stop any more."""
    found = []

    def trace() -> None:
        looker = ptrace.Looker()
        assert ptrace.seize(target.pid) == ptrace.interrupt(target.pid) == 0
        native.wait_until(lambda: looker.look(target.pid) is not None, "it stopped")
        ptrace.reap(target.pid)
        found.append(looker.look(target.pid))
        ptrace.detach(target.pid)

    thread = threading.Thread(target=trace)
    thread.start()
    thread.join()
    assert found == [ptrace.Event(gone=False, signal=0)]
    assert lives(target)


def test_a_stop_signal_that_arrives_in_the_stop_stops_the_target(target: native.Program) -> None:
    with halted("held", target.pid) as diagtool:
        os.kill(target.pid, signal.SIGSTOP)
        diagtool.communicate("\n", timeout=30)
        assert diagtool.returncode == 0
        assert stands(target)


def test_a_continue_signal_that_arrives_in_the_stop_continues_the_target(stopped: native.Program) -> None:
    with halted("held", stopped.pid) as diagtool:
        os.kill(stopped.pid, signal.SIGCONT)
        diagtool.communicate("\n", timeout=30)
        assert diagtool.returncode == 0
        assert lives(stopped)


def test_a_target_that_is_killed_in_the_stop_is_gone(target: native.Program) -> None:
    with halted("half interrupted", target.pid) as diagtool:
        target.process.kill()
        _, errors = diagtool.communicate("\n", timeout=30)
        assert "NoSuchTarget" in errors
    assert target.process.wait() == -signal.SIGKILL


def test_waits_with_a_time_limit_keep_it() -> None:
    """Interrupted calls are restarted with what is left; epoll_wait alone says EINTR, as signal(7) has it."""
    with native.started(native.built("waits")) as program:
        for _ in range(60):
            capture_live(program.pid).close()
        native.wait_until(
            lambda: all(n[0] >= 5 for n in native.ended_waits(program).values()), "each wait ended five times"
        )
        found = native.ended_waits(program)
        assert {kind: n[1:] for kind, n in found.items() if kind != "epoll"} == {
            kind: [0, 0] for kind in ("nanosleep", "poll", "select", "futex")
        }
        assert found["epoll"][1] == 0
        # The documented exception. Should a kernel mend it one day, stop.py says too much.
        assert found["epoll"][2] > 0


def test_threads_that_come_and_go_do_no_harm() -> None:
    with native.started(native.built("churn")) as program:
        for _ in range(40):
            with capture_live(program.pid) as capture:
                assert len(capture.threads) >= 5
                assert all(t.registers for t in capture.threads)
                assert not capture.warnings
        assert native.status(program.pid)["TracerPid"] == "0"
        assert program.process.poll() is None


def test_a_program_that_replaces_itself_is_no_trap() -> None:
    """exec waits for dead threads to be reaped, SEIZE waits for exec: without help both wait for ever."""
    with native.started(native.built("churn"), "exec") as program:
        outcomes = {"captured": 0, "gone": 0}
        for _ in range(150):
            try:
                capture_live(program.pid).close()
                outcomes["captured"] += 1
            except TargetError:
                outcomes["gone"] += 1
        assert outcomes["captured"] > 0
        before = native.status(program.pid)["voluntary_ctxt_switches"], time.monotonic()
        native.wait_until(
            lambda: (native.status(program.pid)["voluntary_ctxt_switches"], 0) != before, "it still runs"
        )
        assert program.process.poll() is None


def test_in_the_stop_no_thread_runs_not_even_a_new_one() -> None:
    with native.started(native.built("churn"), "crowd") as program:
        for _ in range(5):
            with halted("held", program.pid) as diagtool:
                assert "0" not in tracer(program.pid)
                assert {"t"} <= states(program.pid) <= {"t", "Z"}  # Z: ended just before
                diagtool.communicate("\n", timeout=30)


def test_an_exec_in_the_midst_of_seizing_ends_and_so_does_the_capture(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """exec waits for dead threads to be reaped by us, and our next SEIZE waits for exec."""
    with native.started(native.built("execs")) as program:
        third = int(program.words[0])
        seize, reap = ptrace.seize, Hold.reap_dead
        waits: list[int] = []

        def seize_after_exec(tid: int) -> int:
            if tid == third:
                program.say()
                native.wait_until(lambda: states(program.pid) <= {"Z", "D"}, "the exec waits for its threads")
                waits.append(tid)
            return seize(tid)

        def reap_when_it_waits(held: Hold) -> None:
            if waits:  # not before: the exec would be over
                reap(held)

        monkeypatch.setattr(ptrace, "seize", seize_after_exec)
        monkeypatch.setattr(Hold, "reap_dead", reap_when_it_waits)
        monkeypatch.setattr(stop, "_LAST_RESORT", 5.0)
        with suppress(NoSuchTarget):
            capture_live(program.pid).close()
        assert program.line() == "AGAIN"
        assert tracer(program.pid) == {"0"}


def test_a_thread_in_vfork_is_left_out_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    # It is not waited for as long as for one that may still stop.
    monkeypatch.setattr(hold, "PATIENCE", 60.0)
    with native.started(native.built("vfork")) as program:
        native.wait_until(lambda: program.state() == "D", "the main thread is in vfork")
        for _ in range(2):
            with capture_live(program.pid) as capture:
                assert [bool(t.registers) for t in capture.threads] == [False, True, True]
                assert capture.threads[0].state == "D"
                assert any("1 threads did not stop" in warning for warning in capture.warnings)
            assert tracer(program.pid) == {"0"}
        program.say("x")
        assert program.line() == "BACK"
        with capture_live(program.pid) as capture:
            assert all(t.registers for t in capture.threads)


@pytest.mark.parametrize("asleep", [2, 100])
def test_who_sleeps_in_the_kernel_is_asked_again(
    monkeypatch: pytest.MonkeyPatch, target: native.Program, asleep: int
) -> None:
    tries = []
    really = live.stop_and_copy

    def stop_and_copy(prepared: stop.Preparation) -> stop.Stopped:
        tries.append(prepared)
        if len(tries) <= asleep:
            raise hold.Asleep("it sleeps in the kernel")
        return really(prepared)

    monkeypatch.setattr(live, "stop_and_copy", stop_and_copy)
    monkeypatch.setattr(live, "_NAPS", (0.0, 0.0, 0.0))
    if asleep < 4:
        with capture_live(target.pid) as capture:
            assert all(t.registers for t in capture.threads)
    else:
        with pytest.raises(NotPermitted, match="sleeps in the kernel"):
            capture_live(target.pid)
    assert len(tries) == min(asleep + 1, 4)
    assert lives(target)


def test_the_end_of_a_process_at_any_moment_is_an_error_of_one_sentence() -> None:
    """The process ends while it is being captured, again and again."""
    source = "print('READY', flush=True); input()"
    choose = random.Random(2)
    for _ in range(15):
        with native.started(sys.executable, "-c", source) as program:
            # Not Popen.kill: it waits for the child first, and would take the stop for its end.
            killer = threading.Timer(choose.random() * 0.02, os.kill, (program.pid, signal.SIGKILL))
            killer.start()
            try:
                while True:
                    capture_live(program.pid).close()
            except NoSuchTarget as error:
                assert str(program.pid) in str(error)
            finally:
                killer.join()
