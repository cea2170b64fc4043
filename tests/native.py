"""Small C programs (tests/programs) for tests of a live process: built once, started with a handshake."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

PROGRAMS = Path(__file__).parent / "programs"


@functools.cache
def _folder() -> str:
    folder = tempfile.mkdtemp(prefix="diagtool-programs-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    Path(folder).chmod(0o755)
    return folder


@functools.cache
def built(name: str, *options: str) -> str:
    """Path of the program that tests/programs/NAME.c gives. Skips the test where there is no compiler."""
    if shutil.which("gcc") is None:
        pytest.skip("no gcc here")
    out = f"{_folder()}/{name}{''.join(options)}"
    command = ["gcc", "-O1", "-g", "-pthread", *options, str(PROGRAMS / f"{name}.c"), "-o", out]
    subprocess.run(command, check=True)
    return out


@dataclass
class Program:
    """A running program. ``words`` is what followed READY."""

    process: subprocess.Popen[str]
    words: list[str] = field(default_factory=list)

    @property
    def pid(self) -> int:
        """As the program said it itself, else as we started it."""
        return self.process.pid

    def line(self) -> str:
        """Its next line of output."""
        assert self.process.stdout is not None
        text = self.process.stdout.readline()
        if not text:
            raise RuntimeError(f"the program ended with {self.process.wait()}")
        return text.strip()

    def say(self, text: str = "") -> None:
        """Write a line to its input."""
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()

    def state(self) -> str:
        """Its state as ps shows it: R, S, T …"""
        return status(self.pid)["State"][0]


@contextlib.contextmanager
def started(*command: str, before: Callable[[], None] | None = None, **options: object) -> Iterator[Program]:
    """A program that has said READY; killed when the block is left. ``before`` runs in the child."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=before,
        **options,  # type: ignore[call-overload]
    )
    program = Program(process)
    try:
        first, *program.words = program.line().split()
        assert first == "READY", first
        yield program
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                stream.close()


def status(pid: int, tid: int | None = None) -> dict[str, str]:
    """/proc/PID/status of a process or one of its threads."""
    text = Path(f"/proc/{pid}/task/{tid or pid}/status").read_text()
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


def wait_until(true: Callable[[], bool], what: str) -> None:
    """Look until something holds; fails the test when it does not within ten seconds."""
    import time

    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end, f"not within ten seconds: {what}"
        os.sched_yield()


def ended_waits(program: Program) -> dict[str, list[int]]:
    """What the program "waits" counted: kind of wait -> [ended in time, ended early, failed]."""
    program.say()
    out = {}
    while (line := program.line()) != ".":
        kind, *numbers = line.split()
        out[kind] = [int(n) for n in numbers]
    return out


@contextlib.contextmanager
def halted(program: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A diagtool that ``program`` (Python) has brought to a step, where it stands until it gets a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "STARTED\n"
        assert process.stdout.readline() == "HALTED\n"
        yield process
    finally:
        process.kill()
        process.communicate()
