"""`snapshot --allocations` records what a process allocates, with memray, and never harms it.

memray is large and not among the development tools: what needs it is skipped without. By hand:
`pip install memray`, then this file.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import diagtool
from diagtool.capture import ptrace
from diagtool.cli import main
from diagtool.ingest import memray
from diagtool.leaks import find_leaks
from fixture_programs import Running, launch
from native import built

pytestmark = pytest.mark.skipif(not ptrace.supported(), reason="live processes on Linux on x86-64 only")
with_memray = pytest.mark.skipif(
    importlib.util.find_spec("memray") is None or not (ptrace.supported() and os.path.exists("/usr/bin/gdb")),
    reason="memray is not installed here, or gdb is not",
)

PROGRAM = """
import os, signal, time

kept = []

def leak():
    kept.append(bytearray(1000))

def tidy():
    return [bytearray(2000) for i in range(10)]

def told(*_):
    print("GREW", len(kept), flush=True)

signal.signal(signal.SIGUSR2, told)
print("READY", os.getpid(), flush=True)
while True:
    leak(), tidy()
    time.sleep(0.01)
"""


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Running]:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    with launch(path) as running:
        yield running


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "diagtool", "snapshot", *arguments]


def test_without_memray_the_snapshot_goes_on(
    program: Running, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    path = tmp_path / "one.diag"
    assert main(["snapshot", str(program.pid), "--allocations", "1s", "-o", str(path)]) == 0
    assert "no allocations were recorded: memray is not installed" in capsys.readouterr().out.replace(
        "\n", " "
    )
    snap = diagtool.load(path)
    assert any("memray is not installed" in w for w in snap.warnings)
    assert "allocation_sites" not in snap.tables and len(snap.stacks)


def test_without_a_debugger_it_is_said(program: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    monkeypatch.setattr("shutil.which", lambda name: None)
    if sys.version_info < (3, 14):
        with pytest.raises(memray.NoRecord, match="gdb or lldb"):
            memray.record(program.pid, 1)


def test_a_process_that_does_nothing_is_not_attached_to(
    program: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gdb would wait for it to do something, with breakpoints in its code."""
    monkeypatch.setattr(memray, "_time_slices", lambda pid: 7)
    monkeypatch.setattr(memray, "_obstacle", lambda pid: None)
    monkeypatch.setattr(memray, "_memray", lambda *arguments: pytest.fail("attached"))
    with pytest.raises(memray.NoRecord, match="did nothing"):
        memray.record(program.pid, 1)


@pytest.mark.parametrize("text", ["0s", "x", "10", "-3s", "2d"])
def test_times_are_read(text: str) -> None:
    """10 is ten seconds; the target is none, which is said later."""
    status = main(["snapshot", "no such file", f"--allocations={text}"])
    assert status == (3 if text == "10" else 2)


@with_memray
def test_what_is_not_freed_is_kept_by_place(program: Running, tmp_path: Path) -> None:
    path = tmp_path / "one.diag"
    done = subprocess.run(
        command(str(program.pid), "--allocations", "2s", "--heap", "-o", str(path)), timeout=110, check=False
    )
    assert done.returncode == 0
    snap = diagtool.load(path)
    assert not snap.warnings
    sites = snap.tables["allocation_sites"]
    ours = {s["function"]: s for s in sites if s["file"] and s["file"].endswith("/program.py")}
    assert ours["leak"]["source"] == "memray" and ours["leak"]["count"] >= 5
    assert ours["leak"]["bytes"] >= 1000 * (ours["leak"]["count"] // 2)
    assert "tidy" not in ours or ours["tidy"]["count"] <= 30
    assert ours["leak"]["frames"][0][2] == "leak" and ours["leak"]["frames"][1][2] == "<module>"
    program.grow()  # it is alive


@with_memray
def test_an_interrupt_detaches(program: Running, tmp_path: Path) -> None:
    process = subprocess.Popen(
        command(str(program.pid), "--allocations", "600s", "-o", str(tmp_path / "one.diag")),
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    while "memray" not in Path(f"/proc/{program.pid}/maps").read_text():  # it is in
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=110) != 0
    program.grow()
    while len(os.listdir(f"/proc/{program.pid}/task")) > 1:  # memray's timer ends
        time.sleep(0.05)
    assert "TracerPid:\t0" in Path(f"/proc/{program.pid}/status").read_text()


def test_time_slices_tell_that_a_process_does_something(program: Running) -> None:
    before = memray._time_slices(program.pid)
    while memray._time_slices(program.pid) == before:
        time.sleep(0.01)


LOSING = """
import ctypes, os, signal, sys, time

library = ctypes.CDLL(sys.argv[1])
size = ctypes.c_size_t
library.lend.restype = ctypes.c_void_p
library.give_back.argtypes = [ctypes.c_void_p]

def before():
    library.lose(size(1000))

def handle():
    library.lose(size(1000))

def tidy():
    return [library.lend(size(n)) for n in (1000, 1000, 200)]

def store():
    library.keep(size(1000))

def told(*_):
    print("GREW 1", flush=True)

signal.signal(signal.SIGUSR2, told)
for _ in range(300):
    before()
print("READY", os.getpid(), flush=True)
while True:
    blocks = tidy()  # these are freed, and what is lost takes their place
    for block in blocks:
        library.give_back(block)
    (handle if "leak" in sys.argv else store)()
    time.sleep(0.005)
"""


@with_memray
@pytest.mark.parametrize("native", [False, True], ids=["python", "native"])
def test_lost_blocks_are_blamed_on_who_allocated_them(tmp_path: Path, native: bool) -> None:
    """Not on those that were freed and had the same addresses and sizes before."""
    program = tmp_path / "losing.py"
    program.write_text(LOSING)
    path = tmp_path / "one.diag"
    library = built("loses", "-shared", "-fPIC")
    options = ["--native"] if native else []
    with launch(program, arguments=(library, "leak")) as running:
        arguments = command(str(running.pid), "--allocations", "2s", "--heap", *options, "-o", str(path))
        assert subprocess.run(arguments, timeout=300, check=False).returncode == 0
        running.grow()  # it is alive
    snap = diagtool.load(path)
    assert not snap.warnings
    places = {row["function"]: row for row in snap.tables["native_allocated"]}
    handle = places["handle"]
    assert (
        handle["file"] == str(program) and handle["count"] >= 10 and handle["bytes"] == 1008 * handle["count"]
    )
    assert "before" not in places and "store" not in places
    assert places.get("tidy", {"count": 0})["count"] <= 2  # of the moment between
    group = next(g for g in snap.tables["native_unreachable"] if g["example"] == handle["example"])
    assert group["count"] >= 300 + handle["count"]
    if native:
        assert [f[2] for f in handle["native"][:2]] == ["taken", "lose"]
    else:
        assert handle["native"] == []
    (finding,) = [f for f in find_leaks([snap]).findings if f.template == "native-blocks-lost"]
    assert finding.created_by is not None and finding.created_by[0].function == "handle"


@with_memray
def test_blocks_that_are_kept_or_freed_are_not_blamed(tmp_path: Path) -> None:
    program = tmp_path / "losing.py"
    program.write_text(LOSING)
    path = tmp_path / "one.diag"
    with launch(program, arguments=(built("loses", "-shared", "-fPIC"), "healthy")) as running:
        arguments = command(str(running.pid), "--allocations", "2s", "--heap", "-o", str(path))
        assert subprocess.run(arguments, timeout=300, check=False).returncode == 0
    snap = diagtool.load(path)
    assert sum(row["count"] for row in snap.tables["native_allocated"]) <= 3
    assert not any("memray" in text for f in find_leaks([snap]).findings for text in f.evidence)


@with_memray
def test_a_recording_that_gets_too_large_ends_early(
    program: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every allocation is written down for single blocks; a disk is not filled with that."""
    monkeypatch.setattr(memray, "_LARGEST", 4096)
    path = tmp_path / "one.diag"
    assert main(["snapshot", str(program.pid), "--allocations", "600s", "--heap", "-o", str(path)]) == 0
    snap = diagtool.load(path)
    assert any("memray was stopped after" in w for w in snap.warnings)
    assert any(row["function"] == "leak" for row in snap.tables["allocation_sites"])
    program.grow()
    assert not any("diagtool-" in os.readlink(fd) for fd in Path(f"/proc/{program.pid}/fd").iterdir())
