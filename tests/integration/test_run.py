"""`diagtool run`: the command does not notice, and what it leaks is found. Real processes, handshakes."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from diagtool.api import find_leaks, snapshot

RUN = [sys.executable, "-m", "diagtool", "run"]
PATIENCE = 60.0  # seconds until something is taken for hung: nothing here asserts a time


def run(*arguments: str, input: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*RUN, *arguments], capture_output=True, text=True, timeout=PATIENCE, input=input)


class Running:
    """A command under `diagtool run` that talks over its standard files; ``pid`` is that of the command."""

    def __init__(self, options: Sequence[str], program: str, *arguments: str) -> None:
        command = [*RUN, *options, "--", sys.executable, "-u", "-c", program, *arguments]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, start_new_session=True
        )
        self.pid = int(self.line())

    def line(self) -> str:
        assert self.process.stdout is not None
        assert select.select([self.process.stdout], [], [], PATIENCE)[0], "the program said nothing"
        return self.process.stdout.readline().strip()

    def say(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()

    def end(self) -> tuple[int, str]:
        """Its exit status, and what diagtool said."""
        _, errors = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, errors


@contextmanager
def running(options: Sequence[str], program: str, *arguments: str) -> Iterator[Running]:
    it = Running(options, program, *arguments)
    try:
        yield it
    finally:
        for end in (lambda: os.killpg(it.process.pid, signal.SIGKILL), lambda: os.kill(it.pid, 9)):
            with suppress(OSError):
                end()
        it.process.wait(PATIENCE)
        for stream in (it.process.stdin, it.process.stdout, it.process.stderr):
            assert stream is not None
            with suppress(OSError):
                stream.close()


def wait_for(path: Path, pattern: str, count: int = 1) -> list[Path]:
    """Files, when there are as many."""
    end = time.monotonic() + PATIENCE
    while len(found := sorted(path.glob(pattern))) < count:
        assert time.monotonic() < end, f"no {pattern}"
        time.sleep(0.02)
    return found


HEAD = "import os, sys; print(os.getpid(), flush=True)\n"

#: A server that ends well when it is asked to; with argument "leak" consumers wait on queues nobody fills.
SERVER = (
    HEAD
    + """
import asyncio, signal
async def consume(queue):
    while True:
        await queue.get()
async def main():
    end = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, end.set)
    queues = [asyncio.Queue() for _ in range(30)]
    tasks = [asyncio.ensure_future(consume(q)) for q in queues]
    if sys.argv[1] == "leak":
        del queues
    else:
        asyncio.get_running_loop().queues = queues
    await asyncio.sleep(0)
    print("ready", flush=True)
    await end.wait()
    print("bye", flush=True)
asyncio.run(main())
"""
)


@pytest.mark.parametrize(
    ("command", "status"),
    [
        ("exit 0", 0),
        ("exit 7", 7),
        ("kill -TERM $$", -signal.SIGTERM),
        ("kill -KILL $$", -signal.SIGKILL),
        ("kill -USR1 $$", -signal.SIGUSR1),
    ],
)
def test_the_status_of_a_command_is_passed_on(command: str, status: int) -> None:
    assert run("--", "sh", "-c", command).returncode == status


def test_what_cannot_be_run_has_the_status_that_a_shell_gives(tmp_path: Path) -> None:
    assert run("--", "/no/such/program").returncode == 127
    assert run("--", str(tmp_path)).returncode == 126
    assert run("--snapshot-on", "rain", "--", "true").returncode == 2


def test_a_command_is_started_as_it_would_be_without(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys\n"
        "print(sys.stdin.read(), os.getcwd(), os.getpgid(0), os.getsid(0), sorted(os.environ))\n"
        "print(signal.pthread_sigmask(signal.SIG_BLOCK, []), os.sched_getaffinity(0), os.nice(0))\n"
        "print([signal.getsignal(s) for s in range(1, 65) if s not in (32, 33)])\n"
        "print(sorted(int(n) for n in os.listdir('/proc/self/fd'))[:3], len(os.listdir('/proc/self/fd')))\n"
    )
    plain = [sys.executable, "-c", program]
    shell = "import os, sys; os.setsid(); os.execv(sys.argv[1], sys.argv[1:])"
    outputs = []
    for command in (plain, [*RUN, "--", *plain]):
        done = subprocess.run(
            [sys.executable, "-c", shell, *command],
            input="hello",
            capture_output=True,
            text=True,
            cwd=tmp_path,
            timeout=PATIENCE,
        )
        words = done.stdout.split("\n")
        group, session = words[0].split()[2:4]
        assert group == session  # that of who started it
        outputs.append([words[0].replace(group, "GROUP"), *words[1:]])
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize(("how", "status"), [("leak", 1), ("healthy", 0)])
def test_a_server_is_looked_at_when_it_is_asked_to_end(how: str, status: int, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    with running(["--snapshot-on", "signal", "--format", f"json={report}"], SERVER, how) as server:
        assert server.line() == "ready"
        server.process.send_signal(signal.SIGTERM)
        assert server.line() == "bye"
        ended, errors = server.end()
    assert ended == status, errors
    findings = json.loads(report.read_text())["findings"]
    assert [f["template"] for f in findings] == ["asyncio-queue-get-starved"] * status
    assert all(f["count"] == 30 for f in findings)


def test_a_signal_of_ones_own_asks_for_a_look_and_is_not_passed_on(tmp_path: Path) -> None:
    options = ["--snapshot-on", "signal=USR2", "--keep", str(tmp_path)]
    with running(options, SERVER, "leak") as server:
        assert server.line() == "ready"
        server.process.send_signal(signal.SIGUSR2)
        [file] = wait_for(tmp_path, "*.diag")
        server.process.send_signal(signal.SIGTERM)
        assert server.line() == "bye"
        ended, errors = server.end()
    assert ended == 1, errors
    assert "asyncio-queue-get-starved" in errors
    assert find_leaks(snapshot(file)).findings[0].count == 30


CRASH = HEAD + "import ctypes\ndef innermost():\n    ctypes.string_at(0)\ninnermost()\n"


def test_a_crash_is_seen_with_its_frames_and_leaves_a_core(tmp_path: Path) -> None:
    with running(["--core", "--keep", str(tmp_path)], CRASH) as it:
        ended, errors = it.end()
        core = tmp_path / f"core.{it.pid}"
    assert ended == -signal.SIGSEGV
    assert "ENDED BY SIGSEGV" in errors
    assert "innermost" in errors
    snap = snapshot(core, frames=False)
    assert snap.target.signal == signal.SIGSEGV
    assert any("innermost" in frame.function for stack in snap for frame in stack.frames)


def test_a_handled_fault_is_no_crash() -> None:
    program = HEAD + (
        "import signal, ctypes\n"
        "signal.signal(signal.SIGSEGV, lambda *a: os._exit(3))\n"
        "os.kill(os.getpid(), signal.SIGSEGV)\nsignal.pause()\n"
    )
    with running(["--snapshot-on", "crash"], program) as it:
        ended, errors = it.end()
    assert ended == 3
    assert "SIGSEGV" not in errors


@pytest.mark.parametrize("how", ["leak", "healthy"])
def test_a_process_that_goes_away_without_a_word_is_looked_at_first(how: str) -> None:
    program = SERVER.replace("await end.wait()", "os._exit(0)")
    with running(["--snapshot-on", "exit"], program, how) as it:
        ended, errors = it.end()
    assert ended == (how == "leak"), errors
    assert ("asyncio-queue-get-starved" in errors) == (how == "leak")


def test_a_healthy_program_that_ends_gives_no_finding() -> None:
    program = HEAD + (
        "import threading, queue, subprocess, asyncio, concurrent.futures as f\n"
        "jobs = queue.Queue()\n"
        "[threading.Thread(target=jobs.get, daemon=True).start() for _ in range(20)]\n"
        "f.ThreadPoolExecutor(4).submit(print, 'x')\n"
        "asyncio.run(asyncio.sleep(0))\nsubprocess.run(['true'])\n"
    )
    with running([], program) as it:
        ended, errors = it.end()
    assert ended == 0, errors


def test_killed_diagtool_lets_the_command_run_on_and_die_as_it_would() -> None:
    program = (
        HEAD
        + "import threading\n"
        + (
            "[threading.Thread(target=threading.Event().wait, daemon=True).start() for _ in range(3)]\n"
            "for line in sys.stdin: print(line.strip(), os.getppid(), flush=True)\n"
        )
    )
    with running([], program) as it:
        it.say("one")
        said, parent = it.line().split()
        assert (said, int(parent)) == ("one", it.process.pid)
        tracer = Path(f"/proc/{it.pid}/status").read_text()
        assert f"TracerPid:\t{it.process.pid}" in tracer
        os.kill(it.pid, signal.SIGWINCH)  # most likely on its way when diagtool is killed
        it.process.kill()
        it.process.wait(PATIENCE)
        it.say("two")
        assert it.line().split()[0] == "two"
        assert "TracerPid:\t0" in Path(f"/proc/{it.pid}/status").read_text()
        os.kill(it.pid, signal.SIGTERM)
        assert it.line() == ""  # its end closes the pipe


@pytest.mark.parametrize("thread", ["main", "other"])
def test_an_exec_with_threads_goes_through(thread: str) -> None:
    """An exec waits for the threads that it ends, which stand if they are traced."""
    program = HEAD + (
        "import threading, time\n"
        "[threading.Thread(target=time.sleep, args=(600,), daemon=True).start() for _ in range(3)]\n"
        "def traced(task): return 'TracerPid:\\t0' not in open(f'/proc/self/task/{task}/status').read()\n"
        "while not all(map(traced, os.listdir('/proc/self/task'))): time.sleep(0.01)\n"
        "again = 'print(\"second\", flush=True); exit(4)'\n"
        "def second(): os.execv(sys.executable, [sys.executable, '-c', again])\n"
        "if sys.argv[1] == 'main': second()\n"
        "threading.Thread(target=second).start()\ntime.sleep(600)\n"
    )
    with running([], program, thread) as it:
        assert it.line() == "second"
        assert it.end()[0] == 4


def test_what_outlives_the_command_is_told_and_left_alone() -> None:
    program = HEAD + (
        "import subprocess\n"
        "null = dict.fromkeys(['stdin', 'stdout', 'stderr'], subprocess.DEVNULL)\n"
        "print(subprocess.Popen(['sleep', '600'], **null).pid, flush=True)\n"
    )
    with running(["--grace", "0.1"], program) as it:
        child = int(it.line())
        ended, errors = it.end()
        try:
            assert ended == 1
            assert f"process {child}, sleep 600" in errors
            os.kill(child, 0)
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_command_that_hangs_is_looked_at_and_ended() -> None:
    program = HEAD + (
        "import signal, threading\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "def stuck():\n    threading.Event().wait()\n"
        "threading.Thread(target=stuck).start()\n"
    )
    with running(["--timeout", "1s", "--grace", "0.1"], program) as it:
        ended, errors = it.end()
    assert ended == 124
    assert "exit-blocked-by-threads" in errors
    assert "in stuck" in errors


def test_a_threshold_fires_while_it_runs(tmp_path: Path) -> None:
    program = HEAD + (
        "import threading\n"
        "[threading.Thread(target=threading.Event().wait, daemon=True).start() for _ in range(12)]\n"
        "sys.stdin.readline()\n"
    )
    with running(["--snapshot-on", "threads>10", "--keep", str(tmp_path)], program) as it:
        [file] = wait_for(tmp_path, "*-threshold-*.diag")
        it.say("go")
        ended, _ = it.end()
    assert ended in (0, 1)
    assert len(snapshot(file).threads) == 13


def test_looks_while_it_runs_are_judged_as_a_series(tmp_path: Path) -> None:
    options = ["--snapshot-on", "every=0.2s", "--keep", str(tmp_path)]
    program = SERVER.replace("await end.wait()", "await asyncio.to_thread(sys.stdin.readline)")
    with running(options, program, "leak") as it:
        assert it.line() == "ready"
        wait_for(tmp_path, "*-every-*.diag", 3)
        it.say("go")
        ended, errors = it.end()
    assert ended == 1, errors
    assert "in all snapshots" in errors


def test_a_crash_of_a_child_is_seen_when_it_is_followed() -> None:
    program = "import os, sys, signal\nprint(os.getpid(), flush=True)\npid = os.fork()\n" + (
        "if not pid: os.abort()\nstatus = os.waitpid(pid, 0)[1]\nsys.exit(os.WTERMSIG(status))\n"
    )
    with running(["--follow", "--snapshot-on", "crash"], program) as it:
        ended, errors = it.end()
    assert ended == signal.SIGABRT
    assert "SIGABRT" in errors


def in_terminal(program: str) -> tuple[int, int]:
    """`diagtool run` as a job of a session with a terminal; (its pid, the terminal)."""
    pid, terminal = pty.fork()
    if not pid:
        job = os.fork()
        if not job:
            os.setpgid(0, 0)
            signal.signal(signal.SIGTTOU, signal.SIG_IGN)
            os.tcsetpgrp(0, os.getpid())
            signal.signal(signal.SIGTTOU, signal.SIG_DFL)
            os.execv(sys.executable, [*RUN, "--snapshot-on", "crash", "--", sys.executable, "-uc", program])
        while True:
            _, status = os.waitpid(job, os.WUNTRACED)
            os.write(1, f"[{'stopped' if os.WIFSTOPPED(status) else 'ended'} {status}]".encode())
            if not os.WIFSTOPPED(status):
                os._exit(0)
            os.killpg(job, signal.SIGCONT)
    return pid, terminal


class Screen:
    """What came from a terminal, and how far it was looked at."""

    def __init__(self, terminal: int) -> None:
        self.terminal = terminal
        self.text = ""

    def until(self, text: str) -> str:
        while text not in self.text:
            assert select.select([self.terminal], [], [], PATIENCE)[0], self.text
            self.text += os.read(self.terminal, 4096).decode()
        before, _, self.text = self.text.partition(text)
        return before


def test_keys_of_the_terminal_reach_the_command_once_and_stop_both() -> None:
    program = (
        "import signal, sys, time\n"
        "def interrupted(*_): print('interrupted', flush=True)\n"
        "signal.signal(signal.SIGINT, interrupted)\n"
        "signal.signal(signal.SIGCONT, lambda *_: print('goes on', flush=True))\n"
        "print('ready', flush=True)\n"
        "while sys.stdin.readline().strip() != 'end': pass\n"
        "print('the end', flush=True)\n"
    )
    pid, terminal = in_terminal(program)
    screen = Screen(terminal)
    try:
        screen.until("ready")
        os.write(terminal, b"\x03")
        screen.until("interrupted")
        os.write(terminal, b"\x1a")
        assert "interrupted" not in screen.until("[stopped")
        screen.until("goes on")
        os.write(terminal, b"end\n")
        assert "the end" in screen.until("[ended 0]")
    finally:
        os.close(terminal)
        os.waitpid(pid, 0)
