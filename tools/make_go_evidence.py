"""What Go programs of every version write, for the tests of its readers: ``tests/data/go/MINOR/NAME``.

    python tools/make_go_evidence.py [--only NAME ...] [MINOR ...]

A piece of evidence is a function below, under the name of its file: it has a program started, and writes to
``path``. Pieces stay small: some KB each, with gz where that is what the runtime writes.
"""

from __future__ import annotations

import argparse
import gzip
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from go_programs import ALL, GoProgram, built, goroot, running, started  # noqa: E402

FOLDER = ROOT / "tests" / "data" / "go"

#: Paths of files as the programs have them say nothing of this machine.
FLAGS = ("-trimpath",)

#: file name -> what writes it, given the minor version and where to. NotThere where a version has none.
KINDS: dict[str, Callable[[str, Path], None]] = {}


class NotThere(Exception):
    """This version has no such thing."""


def evidence(name: str) -> Callable[[Callable[[str, Path], None]], Callable[[str, Path], None]]:
    """Register a piece of evidence under the name of its file."""

    def register(function: Callable[[str, Path], None]) -> Callable[[str, Path], None]:
        KINDS[name] = function
        return function

    return register


@contextmanager
def program(minor: str, fixture: str, *arguments: str, **options: object) -> Iterator[GoProgram]:
    """A fixture, built without paths of this machine."""
    with started(fixture, minor, *arguments, flags=FLAGS, **options) as it:  # type: ignore[arg-type]
        yield it


# --- every kind of leak, three goroutines each --------------------------------------------------------------


@evidence("debug2.txt")
def _debug2(minor: str, path: Path) -> None:
    with program(minor, "leaks", "all", "3") as p:
        p.debug2(path)


@evidence("debug2-series.txt")
def _series(minor: str, path: Path) -> None:
    """Two dumps in one file, the second with more."""
    with program(minor, "leaks", "all", "3") as p:
        before = p.debug2(path)
        p.grow(2)
        path.write_text(before + "\n\n" + p.debug2(path))


@evidence("debug1.txt")
def _debug1(minor: str, path: Path) -> None:
    with program(minor, "leaks", "all", "3") as p:
        p.text("goroutine", path)


@evidence("sigquit.txt")
def _sigquit(minor: str, path: Path) -> None:
    with program(minor, "leaks", "all", "3") as p:
        path.write_text(p.quit())


@evidence("panic.txt")
def _panic(minor: str, path: Path) -> None:
    with program(minor, "leaks", "send", "3") as p:
        assert p.process.stdin is not None
        p.process.stdin.write("panic\n")
        p.process.stdin.flush()
        p.process.wait()
        path.write_text(p.said())


@evidence("goroutine.pb.gz")
def _goroutine(minor: str, path: Path) -> None:
    with program(minor, "leaks", "all", "3") as p:
        p.profile("goroutine", path)


@evidence("heap.pb.gz")
def _heap(minor: str, path: Path) -> None:
    with program(minor, "leaks", "all", "200", env={"GODEBUG": ""}) as p:
        p.profile("heap", path)


def _leak_profile(minor: str) -> dict[str, object]:
    """The options of a build that has the runtime's own profile of leaks."""
    if tuple(map(int, minor.split("."))) < (1, 26):
        raise NotThere
    return {"experiment": "goroutineleakprofile"} if minor == "1.26" else {}


@evidence("goroutineleak.pb.gz")
def _goroutineleak(minor: str, path: Path) -> None:
    with program(minor, "leaks", "all", "3", **_leak_profile(minor)) as p:
        p.profile("goroutineleak", path)


@evidence("debug2-leaked.txt")
def _leaked(minor: str, path: Path) -> None:
    """With the runtime's own marks, which stay once the profile was taken."""
    with program(minor, "leaks", "all", "3", **_leak_profile(minor)) as p:
        p.profile("goroutineleak", path)
        p.debug2(path)


# --- what dumps write in ways of their own ------------------------------------------------------------------


def _odd_program(minor: str, **options: object) -> AbstractContextManager[GoProgram]:
    if minor in ("1.23", "1.25"):  # which write as their neighbours do
        raise NotThere
    return program(minor, "dumps", **options)


@evidence("odd-debug2.txt")
def _odd(minor: str, path: Path) -> None:
    with _odd_program(minor, env={"GODEBUG": "tracebacklabels=1"}) as p:
        p.debug2(path)


@evidence("odd-debug1.txt")
def _odd_debug1(minor: str, path: Path) -> None:
    with _odd_program(minor) as p:
        p.text("goroutine", path)


@evidence("odd-sigquit.txt.gz")
def _odd_sigquit(minor: str, path: Path) -> None:
    with _odd_program(minor) as p:
        path.write_bytes(gzip.compress(p.quit().encode(), mtime=0))


@evidence("odd-crash.txt.gz")
def _odd_crash(minor: str, path: Path) -> None:
    """Several threads, each with a traceback of its own."""
    with _odd_program(minor, env={"GOTRACEBACK": "crash"}) as p:
        path.write_bytes(gzip.compress(p.quit().encode(), mtime=0))


@evidence("odd-ancestors.txt")
def _odd_ancestors(minor: str, path: Path) -> None:
    with _odd_program(minor, env={"GODEBUG": "tracebackancestors=5"}) as p:
        p.debug2(path)


@evidence("cgo-sigquit.txt")
def _cgo(minor: str, path: Path) -> None:
    if minor not in ("1.19", "1.27"):
        raise NotThere
    with program(minor, "cgodump", cgo=True, env={"GOTRACEBACK": "system"}) as p:
        path.write_text(p.quit())


@evidence("race.txt")
def _race(minor: str, path: Path) -> None:
    if minor not in ("1.21", "1.27"):
        raise NotThere
    done = subprocess.run(
        [built("race", minor, (*FLAGS, "-race"), cgo=True)], capture_output=True, text=True, check=False
    )
    path.write_text(done.stderr)


# --- the service -------------------------------------------------------------------------------------------


def _service(name: str, mode: str) -> None:
    @evidence(name)
    def write(minor: str, path: Path) -> None:
        with program(minor, "service", mode, "6") as p:
            p.debug2(path)


for _mode in ("lookup", "body", "transport", "sql", "healthy"):
    _service(f"service-{_mode}.txt", _mode)


# --- what net/http/pprof serves ---------------------------------------------------------------------------

#: File name -> what is asked for. All from one run, "grow" in between.
PROFILES = {
    "profiles-index.html": "",
    "profiles-cmdline": "cmdline",
    "profiles-goroutine.pb.gz": "goroutine",
    "profiles-debug2.txt.gz": "goroutine?debug=2",
    "profiles-heap.pb.gz": "heap",
    "profiles-block.pb.gz": "block",
    "profiles-mutex.pb.gz": "mutex",
    "profiles-threadcreate.pb.gz": "threadcreate",
    "profiles-cpu.pb.gz": "profile?seconds=1",
    "profiles-goroutineleak.pb.gz": "goroutineleak",
    "profiles-leak-debug2.txt.gz": "goroutineleak?debug=2",
    "profiles-goroutine-later.pb.gz": "goroutine",
    "profiles-heap-later.pb.gz": "heap",
    "profiles-heap-last.pb.gz": "heap",
}

_asked: dict[str, dict[str, bytes]] = {}


def _ask(minor: str) -> dict[str, bytes]:
    experiment = "goroutineleakprofile" if minor == "1.26" else ""
    binary = built("profiles", minor, FLAGS, experiment=experiment)
    out: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory(prefix="go-") as folder:
        place = shutil.copy(binary, Path(folder) / "profiles")  # its path is in profiles
        with running(place, "leak") as p:
            for name, asked in PROFILES.items():
                if name in ("profiles-goroutine-later.pb.gz", "profiles-heap-last.pb.gz"):
                    p.say("grow")
                try:
                    with urlopen(f"http://{p.words[0]}/debug/pprof/{asked}", timeout=60) as answer:
                        data = answer.read()
                except HTTPError:
                    continue
                if name.endswith(".txt.gz"):
                    data = gzip.compress(data, mtime=0)
                if name == "profiles-cmdline":
                    data = data.replace(str(place).encode(), b"/srv/profiles")
                out[name] = data
    return out


def _profile(name: str) -> None:
    @evidence(name)
    def write(minor: str, path: Path) -> None:
        if minor not in _asked:
            _asked[minor] = _ask(minor)
        if name not in _asked[minor]:
            raise NotThere
        path.write_bytes(_asked[minor][name])


for _name in PROFILES:
    _profile(_name)


@evidence("profiles-healthy.pb.gz")
def _healthy(minor: str, path: Path) -> None:
    index = "http://{}/debug/pprof/goroutine"
    with program(minor, "profiles", "healthy") as p, urlopen(index.format(p.words[0]), timeout=60) as answer:
        path.write_bytes(answer.read())


# --- execution traces --------------------------------------------------------------------------------------


def _traced(minor: str, path: Path, mode: str, dump: Path | None = None) -> None:
    """A service at work, traced for a little more than a second, which makes a series of it."""
    plain = path.with_suffix(".trace")
    with program(minor, "traced", mode, "1") as p:
        p.say(f"trace {plain}")
        time.sleep(1.3)
        if dump is not None:
            p.debug2(dump)
        p.say("endtrace")
    path.write_bytes(gzip.compress(plain.read_bytes(), 9, mtime=0))
    plain.unlink()


@evidence("trace-leak.gz")
def _trace_leak(minor: str, path: Path) -> None:
    """With a dump of its goroutines just before it ends beside it."""
    if minor in ("1.23", "1.25"):
        raise NotThere  # 1.24 writes what 1.23 does, 1.26 has all that 1.25 has
    folder = FOLDER / minor
    _traced(minor, path, "leak", folder / "trace-leak.txt")


@evidence("trace-healthy.gz")
def _trace_healthy(minor: str, path: Path) -> None:
    if minor in ("1.23", "1.25"):
        raise NotThere
    _traced(minor, path, "healthy")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("minors", nargs="*", metavar="MINOR", help="versions (default: all that are here)")
    parser.add_argument("--only", action="append", choices=sorted(KINDS), help="only this file")
    options = parser.parse_args()
    for minor in options.minors or [m for m in ALL if goroot(m)]:
        folder = FOLDER / minor
        folder.mkdir(parents=True, exist_ok=True)
        for name, write in KINDS.items():
            if options.only and name not in options.only:
                continue
            with tempfile.TemporaryDirectory() as temporary:
                made = Path(temporary) / name
                try:
                    write(minor, made)
                except NotThere:
                    continue
                _without_addresses(made)
                shutil.copyfile(made, folder / name)
        print(f"{minor}: {sum(p.stat().st_size for p in folder.iterdir()) // 1024} KiB")
    return 0


def _without_addresses(path: Path) -> None:
    """Check that nothing of this machine is in it."""
    if path.suffix == ".txt" and (found := re.search(rf"{re.escape(str(ROOT))}[^\s:]*", path.read_text())):
        raise SystemExit(f"{path.name} names {found[0]}")


if __name__ == "__main__":
    raise SystemExit(main())
