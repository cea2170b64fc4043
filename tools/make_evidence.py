#!/usr/bin/env python3
"""Make tests/data/evidence/: what other tools say of small programs whose waits are known.

    python tools/make_evidence.py [MINOR …]

Of every interpreter that the tests know: faulthandler's dumps (of a signal, and of SIGSEGV), a program's own
sys._current_frames(), py-spy, pystack, gdb, and from 3.14 `python -m asyncio ps` and `pstree`. Tools that
are missing here or do not know a version leave their files as they are, and are named. Machine paths are
replaced; everything else is what the tool wrote.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from fixture_programs import Interpreter, interpreters  # noqa: E402

PROGRAMS = ROOT / "fixtures" / "evidence"
OUT = ROOT / "tests" / "data" / "evidence"
BIN = ROOT / ".venv" / "bin"
SECONDS = 60
GDB = ["gdb", "-batch", "-nx", "-iex", "set auto-load safe-path /"]
#: Large ones, or the same on all versions: of these only. 3.11 is Debian's, which has no symbols.
ONLY = {
    "py-spy-locals.txt": ("3.12",),
    "pystack-native.txt": ("3.11", "3.13"),
    "py-spy.json": ("3.9", "3.12", "3.14"),
    "gdb.txt": ("3.11", "3.13"),
    "gdb-py.txt": ("3.12", "3.13"),
}


class Program:
    """A program of fixtures/evidence, started and READY."""

    def __init__(self, interpreter: Interpreter, name: str, folder: str, argument: str) -> None:
        self.interpreter = interpreter
        self.home = Path(folder)
        inside = folder if interpreter.root is None else "/" + str(self.home.relative_to(interpreter.root))
        shutil.copy(PROGRAMS / name, folder)
        exe = list(interpreter.argv)
        if interpreter.root is not None:  # it has no /proc: ours, for this one program
            mount = f'mount --bind /proc {interpreter.root}/proc && exec "$@"'
            exe = ["unshare", "-m", "sh", "-c", mount, "sh", *exe]
        environment = {"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUTF8": "1"}
        self.output = Path(folder, "output")
        with self.output.open("wb") as sink:
            self.proc = subprocess.Popen(
                [*exe, f"{inside}/{name}", argument],
                stdin=subprocess.PIPE,
                stdout=sink,
                stderr=sink,
                env=environment,
            )
        self.pid = self.proc.pid
        self.inside = inside
        self.wait("READY")
        self.start = self.output.stat().st_size

    def wait(self, word: str) -> None:
        """Until a line of the output begins with ``word``."""
        until = time.monotonic() + SECONDS
        while f"\n{word}" not in "\n" + self.output.read_text(errors="replace"):
            if self.proc.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"no {word}:\n{self.output.read_text(errors='replace')[-2000:]}")
            time.sleep(0.02)

    def said(self) -> str:
        """What it wrote since it was READY, once nothing more comes."""
        size = -1
        while size != self.output.stat().st_size:
            size = self.output.stat().st_size
            time.sleep(0.3)
        return self.output.read_bytes()[self.start :].decode(errors="replace")

    def tell(self, command: str) -> None:
        """A line for its standard input."""
        assert self.proc.stdin is not None
        self.proc.stdin.write(command.encode() + b"\n")
        self.proc.stdin.flush()

    def plain(self, text: str) -> str:
        """``text`` without the paths of this machine."""
        prefix = Path(self.interpreter.argv[0]).parents[1]
        root = str(self.interpreter.root or "")
        for there, here in ((self.inside, "/srv/app"), (str(prefix), "/usr/local"), (root, "")):
            if len(there) > 4:
                text = text.replace(there, here)
        return text


@contextmanager
def program(interpreter: Interpreter, name: str, argument: str = "3") -> Iterator[Program]:
    """Start a program; it is killed at the end."""
    base = interpreter.root / "tmp" if interpreter.root else None
    with tempfile.TemporaryDirectory(prefix="ev-", dir=base) as folder:
        started = Program(interpreter, name, folder, argument)
        try:
            yield started
        finally:
            started.proc.kill()
            started.proc.wait()


def run(command: Sequence[str]) -> str | None:
    """What a tool prints; None where it fails, which is said."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, errors="replace")
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"  {command[0]}: {error}")
        return None
    if done.returncode or not done.stdout.strip():
        why = (done.stderr.strip() or "nothing").splitlines()[-1]
        print(f"  {Path(command[0]).name} {' '.join(command[1:3])}: {done.returncode}: {why[:150]}")
        return None
    return done.stdout


def write(interpreter: Interpreter, name: str, text: str | None) -> None:
    """Keep ``text`` as evidence."""
    if text is None:
        return
    path = OUT / interpreter.version / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def of_threads(interpreter: Interpreter) -> None:
    """What can be said of threads.py."""
    with program(interpreter, "threads.py") as p:
        pid = str(p.pid)
        for name, command in {
            "py-spy.txt": [str(BIN / "py-spy"), "dump", "--pid", pid],
            "py-spy.json": [str(BIN / "py-spy"), "dump", "--json", "--pid", pid],
            "py-spy-locals.txt": [str(BIN / "py-spy"), "dump", "--locals", "--pid", pid],
            "py-spy-native.txt": [str(BIN / "py-spy"), "dump", "--native", "--pid", pid],
            "pystack.txt": [str(BIN / "pystack"), "remote", "--no-color", pid],
            "pystack-native.txt": [str(BIN / "pystack"), "remote", "--native", "--no-color", pid],
            "gdb.txt": [*GDB, "-p", pid, "-ex", "thread apply all bt"],
            "gdb-py.txt": [*GDB, "-p", pid, "-ex", "thread apply all py-bt"],
        }.items():
            if name in ONLY and interpreter.version not in ONLY[name]:
                continue
            text = run(command)
            if name == "gdb-py.txt" and text is not None and "Undefined command" in text:
                text = None
            write(interpreter, name, text and p.plain(text))
        os.kill(p.pid, signal.SIGUSR1)
        time.sleep(0.5)
        write(interpreter, "faulthandler.txt", p.plain(p.said()))
        p.start = p.output.stat().st_size
        p.tell("grow")
        p.wait("GREW")
        os.kill(p.pid, signal.SIGUSR1)
        time.sleep(0.5)
        write(interpreter, "faulthandler-grown.txt", p.plain(p.said()).replace("GREW\n", ""))
    with program(interpreter, "threads.py", "2") as p:
        p.tell("dump")
        p.wait("DUMPED")
        write(interpreter, "current-frames.txt", p.plain(p.said()).replace("DUMPED\n", ""))
        p.start = p.output.stat().st_size
        p.tell("fatal")
        p.proc.wait()
        write(interpreter, "faulthandler-fatal.txt", p.plain(p.said()))


def of_tasks(interpreter: Interpreter) -> None:
    """What can be said of tasks.py."""
    if interpreter.minor < 14:
        return
    with program(interpreter, "tasks.py") as p:
        for command in ("ps", "pstree"):
            argv = [*interpreter.argv, "-B", "-m", "asyncio", command, str(p.pid)]
            if interpreter.root is not None:
                argv = ["nsenter", "-m", "-t", str(p.pid), *argv]
            text = run(argv)
            write(interpreter, f"asyncio-{command}.txt", text and p.plain(text))


def main() -> None:
    """Of the versions named, or of all."""
    for interpreter in interpreters():
        if sys.argv[1:] and str(interpreter.minor) not in sys.argv[1:]:
            continue
        print(interpreter)
        if "tasks" not in sys.argv:
            of_threads(interpreter)
        of_tasks(interpreter)


if __name__ == "__main__":
    main()
