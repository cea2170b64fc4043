"""The program as a shell sees it: exit status, streams, signals, and what it imports to start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

DIAGTOOL = [sys.executable, "-m", "diagtool"]
PLAIN = {k: v for k, v in os.environ.items() if k not in ("DIAGTOOL_DEBUG", "NO_COLOR")}

#: A diagtool that says when it is at work on its target, and then never gets done.
AT_WORK = """
import sys, threading
import diagtool.cli.target
def snapshot(target, **options):
    print("AT WORK", flush=True)
    threading.Event().wait()
diagtool.cli.target.snapshot = snapshot
from diagtool.cli import main
sys.exit(main(["snapshot", "4242", "-o", "a.diag"]))
"""


def diagtool(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        [*DIAGTOOL, *arguments], text=True, timeout=60, env=PLAIN, **{"capture_output": True, **options}
    )


@pytest.mark.parametrize(
    "arguments", [["--version"], ["--help"], ["leaks", "--help"], ["snapshot", "--help"]]
)
def test_starting_imports_nothing_heavy(arguments: list[str]) -> None:
    """--version and --help stay under 150 ms because of what they don't import."""
    program = (
        "import sys; from diagtool.cli import main; status = main(sys.argv[1:]);"
        "print(status, *sorted(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], text=True, capture_output=True, timeout=60
    )
    status, *modules = done.stderr.split()
    assert status == "0"
    heavy = {"numpy", "rich", "sqlite3", "asyncio", "ctypes", "diagtool.snapshot.model", "importlib.metadata"}
    assert not heavy & set(modules)


def test_importing_diagtool_is_cheap() -> None:
    program = (
        "import sys, diagtool;"
        "print(*sorted(m for m in sys.modules if m.startswith('diagtool')), 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], text=True, capture_output=True, timeout=60)
    modules = ["diagtool", "diagtool._version", "diagtool.capture", "diagtool.snapshot"]
    assert done.stdout.split() == [*modules, "False"]


def test_version() -> None:
    from diagtool import __version__

    assert diagtool("--version").stdout == f"diagtool {__version__}\n"


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
)
def test_an_interrupted_snapshot_ends_quietly_and_leaves_nothing(
    number: signal.Signals, status: int, tmp_path: Path
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", AT_WORK],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=PLAIN,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "AT WORK\n"
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == status
    assert errors == ("diagtool: interrupted\n" if number == signal.SIGINT else "")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("arguments", [["--help"], ["templates", "list", "--all"], ["completion", "bash"]])
def test_a_reader_that_has_enough_is_no_error(arguments: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        done = diagtool(*arguments, capture_output=False, stdout=write, stderr=subprocess.PIPE)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("arguments", [["--help"], ["templates", "list"], ["completion", "bash"]])
def test_a_full_disk_is_a_sentence(arguments: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = diagtool(*arguments, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 3
    assert done.stderr.splitlines() == [
        "diagtool: cannot write the output: No space left on device",
        "Make room there, or send it to another place.",
    ]


def test_a_closed_output_is_no_traceback() -> None:
    for command in ("--help", "templates list", "templates show asyncio-queue-get-starved", "doctor"):
        done = subprocess.run(
            f"'{sys.executable}' -m diagtool {command} >&-",
            shell=True,
            text=True,
            stderr=subprocess.PIPE,
            timeout=60,
        )
        assert not any(word in done.stderr for word in ("Traceback", "Exception", "internal error"))


def test_an_output_that_is_not_unicode_is_no_error(tmp_path: Path) -> None:
    """The report has dots and arrows that ASCII lacks."""
    from diagtool.snapshot.model import Snapshot, Target
    from diagtool.snapshot.store import save

    save(Snapshot(Target("core", pid=7, runtime="cpython ü")), tmp_path / "a.diag")
    environment = {**PLAIN, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [*DIAGTOOL, "leaks", str(tmp_path / "a.diag")], capture_output=True, timeout=60, env=environment
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.endswith(rb"0 stacks \xb7 cpython \xfc, core of pid 7" + b"\n")


def test_doctor_says_whether_a_process_can_be_captured() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        done = diagtool("doctor", str(process.pid))
        process.communicate(b"\n")
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[-1].split() == [
        "ok",
        "access",
        "process",
        str(process.pid),
        "can",
        "be",
        "captured",
    ]
    assert f"process {process.pid} " in done.stdout and "CPython 3." in done.stdout
    gone = diagtool("doctor", str(process.pid))
    assert gone.returncode == 3
    assert f"there is no process {process.pid}" in gone.stdout


def test_the_public_functions_are_those_of_the_command_line(tmp_path: Path) -> None:
    """GIVEN a process WHEN the documented functions are used THEN they see it, live and from the file."""
    import diagtool as api
    from diagtool.snapshot.store import save

    with subprocess.Popen(
        [sys.executable, "-c", "print('READY', flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"READY\n"
        with api.capture(process.pid) as capture:
            assert capture.pause_ms is not None and capture.pause_ms > 0
        snap = api.snapshot(process.pid)
        process.communicate(b"\n")
    save(snap, tmp_path / "a.diag")
    again = api.load(tmp_path / "a.diag")
    assert again.target.pid == process.pid and len(again.stacks) == len(snap.stacks) == 1
    assert api.snapshot(str(tmp_path / "a.diag")).target == snap.target
    report = api.find_leaks(again)
    assert report.findings == () and report.summary.stacks == 1
    with pytest.raises(AttributeError):
        api.nonsense  # noqa: B018


def test_numpy_has_no_threads_of_its_own_and_programs_that_we_start_are_not_limited() -> None:
    code = """
import os
import diagtool.cli.target
print(len(os.listdir("/proc/self/task")), os.environ.get("OPENBLAS_NUM_THREADS"))
"""
    for limit, told in ((None, "1 None"), ("1", "1 1")):
        environment = {k: v for k, v in os.environ.items() if k != "OPENBLAS_NUM_THREADS"}
        if limit is not None:
            environment["OPENBLAS_NUM_THREADS"] = limit
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == told
