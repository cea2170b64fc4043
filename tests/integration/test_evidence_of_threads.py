"""What faulthandler and `asyncio ps` write of a process gives the same as a look at the process."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import diagtool
from diagtool.api import load_series
from diagtool.capture import ptrace
from diagtool.snapshot.model import Snapshot
from fixture_programs import ROOT, Interpreter, interpreters, launch

pytestmark = pytest.mark.skipif(not ptrace.supported(), reason="live processes on Linux on x86-64 only")

PROGRAM = ROOT / "fixtures" / "evidence" / "threads.py"
HERE = [i for i in interpreters() if i.root is None]  # not of a chroot, which has no /proc
WITHIN = 60.0


class Program:
    """fixtures/evidence/threads.py with ten consumers."""

    def __init__(self, interpreter: Interpreter, output: Path) -> None:
        self.output = output
        with output.open("wb") as sink:
            self.proc = subprocess.Popen(
                [*interpreter.argv, "-B", str(PROGRAM), "10"], stdin=subprocess.PIPE, stdout=sink, stderr=sink
            )
        self.wait("READY", 1)

    def wait(self, word: str, times: int) -> None:
        until = time.monotonic() + WITHIN
        while self.output.read_text().count(word) < times:
            assert self.proc.poll() is None and time.monotonic() < until, self.output.read_text()[-2000:]
            time.sleep(0.01)

    def dump(self, nth: int) -> None:
        """Have it write all threads: the main thread, whose outermost frame is <module>, comes last."""
        os.kill(self.proc.pid, signal.SIGUSR1)
        self.wait(" in <module>\n", nth)

    def grow(self) -> None:
        assert self.proc.stdin is not None
        self.proc.stdin.write(b"grow\n")
        self.proc.stdin.flush()
        self.wait("GREW", 1)


@contextmanager
def started(interpreter: Interpreter, folder: Path) -> Iterator[Program]:
    program = Program(interpreter, folder / "output.txt")
    try:
        yield program
    finally:
        program.proc.kill()
        program.proc.wait()


def seen(snapshot: Snapshot) -> Counter[tuple[str, str, tuple[str, ...]]]:
    """(state, wait, functions) of the threads whose wait their frames tell."""
    return Counter(
        (s.state, s.wait or "", tuple(f.function.rpartition(".")[2] for f in s.frames))
        for s in snapshot
        if s.frames and s.frames[0].function not in ("sleep", "hold") and s.frames[-1].function != "<module>"
    )


@pytest.mark.parametrize("interpreter", [HERE[0], HERE[-1]], ids=str)
def test_a_dump_gives_the_same_stacks_and_findings_as_the_process(
    interpreter: Interpreter, tmp_path: Path
) -> None:
    with started(interpreter, tmp_path) as program:
        live = [diagtool.snapshot(program.proc.pid)]
        program.dump(1)
        program.grow()
        live.append(diagtool.snapshot(program.proc.pid))
        program.dump(2)
        written = load_series(program.output)
    assert [seen(s) for s in written] == [seen(s) for s in live]
    assert len(seen(written[0])) >= 7
    (of_dump,) = diagtool.find_leaks(written).findings
    of_process = {f.id: f for f in diagtool.find_leaks(live[-1]).findings}
    assert of_dump.template == "thread-queue-get-starved"
    assert (of_dump.verdict, of_dump.count) == ("suspect", 20)
    assert of_process[of_dump.id].template == of_dump.template
    assert of_process[of_dump.id].count == 20


def tasks(snapshot: Snapshot) -> set[tuple[str, str, str, tuple[str, ...]]]:
    """(name, state, wait, functions) of the tasks but main's, of which asyncio does not say it."""
    return {
        (s.name, s.state, s.wait or "", tuple(f.function for f in s.frames))
        for s in snapshot
        if s.kind == "task" and s.name != "Task-1"
    }


def awaits(snapshot: Snapshot) -> set[tuple[str, str]]:
    names = snapshot.stacks.name
    return {(names[a], names[b]) for a, b in snapshot.awaits.tolist()}


@pytest.mark.parametrize("interpreter", [i for i in interpreters() if i.minor == 14], ids=str)
def test_asyncio_ps_and_pstree_give_the_tasks_that_the_process_has(interpreter: Interpreter) -> None:
    with launch(PROGRAM.with_name("tasks.py"), interpreter=interpreter, arguments=["3"]) as program:
        live = diagtool.snapshot(program.pid)
    for name in ("asyncio-ps.txt", "asyncio-pstree.txt"):
        (written,) = load_series(ROOT / "tests/data/evidence" / interpreter.version / name)
        assert tasks(written) == tasks(live)
        assert awaits(written) == awaits(live)
