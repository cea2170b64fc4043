"""The Go programs of fixtures/go: with which toolchains they are built, and how to start one.

    @pytest.mark.parametrize("minor", toolchains())
    def test_it(minor, tmp_path):
        with started("leaks", minor, "send", "20") as program:
            program.pid
            text = program.debug2(tmp_path / "a.txt")
            program.say("grow 5")
            program.gcore(tmp_path)
            program.quit()                    # SIGQUIT: its traceback; the end

A test whose toolchain is missing is skipped. Every program leads its own session, is killed with its process
group, and dies with the thread that started it.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

__all__ = ["ALL", "CI", "GoProgram", "built", "goroot", "started", "toolchains"]

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = ROOT / "fixtures" / "go"
CACHE = ROOT / ".cache"

ALL = ("1.19", "1.21", "1.22", "1.23", "1.24", "1.25", "1.26", "1.27")

#: Debian's own, whose standard library comes compiled, and the newest; the others with DIAGTOOL_TEST_GO=all.
CI = ("1.19", "1.27")

PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


def toolchains(all: bool = False) -> list[str]:
    """Minor versions to test with, oldest first: those that CI has, or all."""
    return list(ALL if all or os.environ.get("DIAGTOOL_TEST_GO") == "all" else CI)


def goroot(minor: str) -> Path | None:
    """GOROOT of a Go version on this machine, None where there is none."""
    for root in (CACHE / "go" / minor, Path(f"/usr/lib/go-{minor}")):
        if (root / "bin/go").is_file():
            return root
    return None


def environment(minor: str, cgo: bool = False, experiment: str = "") -> dict[str, str]:
    """Of the go command: nothing is fetched, nothing of the user's settings or caches is used."""
    root = goroot(minor)
    assert root is not None
    return {
        "PATH": f"{root / 'bin'}:{os.environ['PATH']}",
        "HOME": str(CACHE),
        "TMPDIR": tempfile.gettempdir(),
        "GOROOT": str(root),
        "GOPATH": str(CACHE / "go-path"),
        "GOCACHE": str(CACHE / "go-cache"),
        "GOENV": "off",
        "GOTOOLCHAIN": "local",
        "GOPROXY": "off",
        "GOFLAGS": "",
        "GO111MODULE": "on",
        "CGO_ENABLED": "1" if cgo else "0",
        "GOEXPERIMENT": experiment,
    }


def built(
    fixture: str, minor: str, flags: Sequence[str] = (), cgo: bool = False, experiment: str = ""
) -> Path:
    """The program that fixtures/go/FIXTURE gives, built once: by its sources, the version and all these.

    ``experiment``: GOEXPERIMENT. A flag may be ``-buildmode=c-shared``; then it is a library.
    """
    root = goroot(minor)
    if root is None:
        pytest.skip(f"no Go {minor} here (make test fetches 1.27, make test-go all)")
    if cgo and shutil.which("gcc") is None:
        pytest.skip("no gcc here")
    out = CACHE / "go-build" / f"{fixture}-{minor}-{_digest(fixture, minor, tuple(flags), cgo, experiment)}"
    if out.exists():
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    with (out.parent / f"{minor}.lock").open("w") as lock:
        # One build of a version at a time: what they share is compiled once.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if out.exists():
            return out
        # The version in go.mod is what the program was written for: from it hang the defaults of GODEBUG.
        module = out.parent / f"{minor}.mod"
        module.write_text((PROGRAMS / "go.mod").read_text().replace("go 1.19", f"go {minor}"))
        with tempfile.TemporaryDirectory(dir=out.parent) as folder:
            made = Path(folder) / "program"
            done = subprocess.run(
                ["go", "build", f"-modfile={module}", *flags, "-o", str(made), f"./{fixture}"],
                cwd=PROGRAMS,
                env=environment(minor, cgo, experiment),
                executable=str(root / "bin/go"),
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, f"go build {fixture} with {minor}:\n{done.stderr}"
            made.replace(out)
    return out


@functools.cache
def _digest(fixture: str, minor: str, flags: tuple[str, ...], cgo: bool, experiment: str) -> str:
    how = (minor, flags, cgo, experiment, str(PROGRAMS), str(goroot(minor)))
    digest = hashlib.sha256(repr(how).encode())
    for folder in ("control", fixture):
        for source in sorted((PROGRAMS / folder).iterdir()):
            if source.is_file():
                digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()[:12]


@dataclass
class GoProgram:
    """A running fixture. ``words`` is what followed READY."""

    process: subprocess.Popen[str]
    words: list[str] = field(default_factory=list)
    errors: Path | None = None

    @property
    def pid(self) -> int:
        return self.process.pid

    def line(self) -> str:
        """Its next line of output."""
        assert self.process.stdout is not None
        text = self.process.stdout.readline()
        if not text:
            status = self.process.wait()
            raise RuntimeError(f"the program ended with {status}: {self.said()[-2000:]}")
        return text.strip()

    def said(self) -> str:
        """What it wrote to standard error so far."""
        return self.errors.read_text(errors="replace") if self.errors else ""

    def say(self, line: str) -> None:
        """Have it follow a line (fixtures/go/control), to its end."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = self.line()
        assert answer == "OK", f"{line}: {answer}"

    def debug2(self, path: Path) -> str:
        """The stacks of all goroutines as text, in ``path`` too."""
        self.say(f"debug2 {path}")
        return path.read_text()

    def profile(self, name: str, path: Path) -> Path:
        """A profile as protobuf."""
        self.say(f"profile {name} {path}")
        return path

    def text(self, name: str, path: Path) -> str:
        """A profile as text (debug=1)."""
        self.say(f"text {name} {path}")
        return path.read_text()

    def grow(self, count: int) -> None:
        """Have it leak ``count`` more."""
        self.say(f"grow {count}")

    def quit(self) -> str:
        """SIGQUIT; the traceback that it ends with."""
        os.kill(self.pid, signal.SIGQUIT)
        self.process.wait()
        return self.said()

    def gcore(self, folder: Path) -> Path:
        """A core by gdb; the program runs on."""
        if shutil.which("gcore") is None:
            pytest.skip("no gcore here")
        done = subprocess.run(
            ["gcore", "-o", str(folder / "core"), str(self.pid)], capture_output=True, text=True
        )
        core = folder / f"core.{self.pid}"
        assert core.exists(), done.stderr
        return core


def _child() -> None:
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


@contextlib.contextmanager
def started(
    fixture: str,
    minor: str,
    *arguments: str,
    flags: Sequence[str] = (),
    cgo: bool = False,
    experiment: str = "",
    env: dict[str, str] | None = None,
) -> Iterator[GoProgram]:
    """fixtures/go/FIXTURE with ``arguments``, when it has said READY."""
    with running(built(fixture, minor, flags, cgo, experiment), *arguments, env=env) as program:
        yield program


@contextlib.contextmanager
def running(path: Path, *arguments: str, env: dict[str, str] | None = None) -> Iterator[GoProgram]:
    """Any program that says READY; killed with its process group when the block is left."""
    with tempfile.TemporaryDirectory(prefix="diagtool-go-") as folder:
        errors = Path(folder) / "stderr"
        variables = {k: v for k, v in os.environ.items() if not k.startswith("GO")}
        variables |= {"GOTRACEBACK": "all", **(env or {})}
        with errors.open("w") as stream:
            process = subprocess.Popen(
                [str(path), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
                env=variables,
                start_new_session=True,
                preexec_fn=_child,
            )
        program = GoProgram(process, errors=errors)
        try:
            word, *program.words = program.line().split()
            assert word == "READY", f"{path.name} said {word} {' '.join(program.words)}"
            yield program
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for stream_ in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    assert stream_ is not None
                    stream_.close()
