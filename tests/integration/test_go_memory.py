"""Goroutines read from memory are those that the program itself tells of, in live processes and in cores."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import diagtool
from diagtool.capture.errors import NotSupported
from diagtool.capture.gosignalstack import go_signal_stack
from diagtool.capture.live import capture_live
from diagtool.cli import main
from diagtool.ingest import read_evidence
from diagtool.leaks import find_leaks
from diagtool.runtimes.decode import decode
from diagtool.snapshot.model import Snapshot
from go_dumps import differences, parse_dump
from go_programs import ALL, built, running, started, toolchains

ALL_OF_THEM = os.environ.get("DIAGTOOL_TEST_GO") == "all"
STRIPPED = ("-trimpath", "-ldflags=-s -w -buildid=")
PIE = ("-buildmode=pie", "-ldflags=-s -w")
#: A standard library that is compiled for them alone takes half a minute.
FLAGS = {"stripped": STRIPPED, **({"as built": (), "position independent": PIE} if ALL_OF_THEM else {})}

HOST = """
import ctypes, os, sys, threading, time
library = ctypes.CDLL(sys.argv[1])
library.Leak(7)
threading.Thread(target=library.Block, daemon=True, name="blocked").start()
time.sleep(0.3)
print("READY", os.getpid(), flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("minor", toolchains())
@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
def test_each_goroutine_is_the_one_of_the_dump(minor: str, flags: tuple[str, ...], tmp_path: Path) -> None:
    with started("frames", minor, flags=flags) as program:
        program.say("gc")  # a collection notes of who waits when the one before it ended
        dump = parse_dump(program.debug2(tmp_path / "dump"))
        snapshot = diagtool.snapshot(program.pid)
        again = parse_dump(program.debug2(tmp_path / "again"))
    steady = {goid: g for goid, g in dump.items() if again.get(goid) == g}
    assert len(steady) >= 21  # a resolver or a finalizer may come and go
    assert not differences(snapshot, steady)
    assert snapshot.target.runtime.startswith(f"go{minor}.")
    assert not [w for w in snapshot.warnings if "missing" in w or "not in the capture" in w]
    labels = {(key, value) for _, key, value in snapshot.labels}
    assert labels == {("trace_id", "abc"), ("service", "payments")}
    waits = [s.wait_seconds for s in snapshot if s.kind == "goroutine" and s.wait == "chan receive"]
    known = [s for s in waits if s is not None]
    assert len(known) > len(waits) // 2 and all(0 <= s < 3600 for s in known)


@pytest.mark.parametrize("minor", toolchains() if ALL_OF_THEM else ["1.27"])
def test_a_core_says_what_the_process_said(minor: str, tmp_path: Path) -> None:
    with started("frames", minor, flags=STRIPPED) as program:
        dump = parse_dump(program.debug2(tmp_path / "dump"))
        core = program.gcore(tmp_path)
        again = parse_dump(program.debug2(tmp_path / "again"))
    snapshot = diagtool.snapshot(str(core))
    steady = {goid: g for goid, g in dump.items() if again.get(goid) == g}
    assert not differences(snapshot, steady)
    assert snapshot.tables["go_runtime"][0]["times"] == "estimated"


def test_a_core_of_another_build_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(built("frames", "1.27", STRIPPED), tmp_path / "service")
    with running(tmp_path / "service") as program:
        core = program.gcore(tmp_path)
    (tmp_path / "service").unlink()
    assert main(["stacks", str(core)]) == 3
    said = capsys.readouterr().err
    assert "go1.27" in said and "--exe" in said
    assert main(["stacks", str(core), "--exe", str(built("leaks", "1.27"))]) == 3
    assert "is not the file that the process had mapped" in capsys.readouterr().err
    assert main(["stacks", str(core), "--exe", str(built("frames", "1.27", STRIPPED))]) == 0
    assert "go1.27" in capsys.readouterr().out


@pytest.mark.parametrize("minor", toolchains())
def test_who_runs_is_read_from_the_registers_of_its_thread(minor: str) -> None:
    with started("frames", minor, "busy", flags=STRIPPED) as program:
        for _ in range(100):  # between two turns it may be on no thread
            snapshot = diagtool.snapshot(program.pid)
            found = [s for s in snapshot if s.kind == "goroutine" and s.state == "running"]
            busy = [s for s in found if s.frames and s.frames[0].function == "main.busy"]
            if busy:
                break
    assert busy and busy[0].wait is None
    assert busy[0].thread in {t.tid for t in snapshot.threads}
    thread = next(s for s in snapshot if s.kind == "thread" and s.address == busy[0].thread)
    assert thread.state == "running"
    assert [f.function for f in thread.frames][:1] == ["main.busy"]
    rows = {r["tid"]: r for r in snapshot.tables["go_threads"] if r["running"]}
    assert rows[busy[0].thread]["goroutine"] == busy[0].address


@pytest.mark.parametrize("minor", toolchains())
def test_a_core_of_the_kernel_is_read(minor: str, tmp_path: Path) -> None:
    pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
    if pattern.startswith("|") or "/" in pattern:
        pytest.skip(f"core_pattern is {pattern!r}: the kernel writes no core into the program's folder")
    program = built("frames", minor, STRIPPED)
    done = subprocess.run(
        ["sh", "-c", 'ulimit -c unlimited; exec "$0"', str(program)],
        input="panic\n",
        cwd=tmp_path,
        env={**os.environ, "GOTRACEBACK": "crash"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    cores = list(tmp_path.glob("core*"))
    if done.returncode != -signal.SIGABRT or not cores:
        pytest.skip("the kernel wrote no core")
    snapshot = diagtool.snapshot(str(cores[0]))
    goroutines = {s.address: s for s in snapshot if s.kind == "goroutine"}
    assert [f.function for f in goroutines[1].frames][-2:] == [
        "example.org/diagtool/control.Ready",
        "main.main",
    ]
    waits = {s.wait for s in goroutines.values() if s.frames and s.frames[0].function.startswith("main.")}
    assert waits >= {"chan receive", "chan send", "select", "select (no cases)", "sync.Cond.Wait"}
    assert snapshot.target.signal == signal.SIGABRT


@pytest.mark.parametrize("minor", toolchains() if ALL_OF_THEM else ["1.27"])
def test_stacks_go_on_in_c(minor: str) -> None:
    with started("cgo", minor, cgo=True) as program:
        snapshot = diagtool.snapshot(program.pid)
    stacks = {s.frames[0].function: s for s in snapshot if s.kind == "goroutine" and s.frames}
    blocked = stacks["main._Cfunc_block"]
    assert blocked.wait == "cgo call"
    assert [f.function for f in blocked.frames] == ["main._Cfunc_block", "main.blocks"]
    functions = [f.function for f in blocked.merged]
    assert functions[-4:] == ["runtime.cgocall", "main._Cfunc_block", "main.blocks", "runtime.goexit"]
    assert functions.count("deep") == 4 and "block" in functions
    assert {f.language for f in blocked.merged[:3]} <= {"c", "native"}
    back = stacks["main.goBack"]
    assert back.wait == "chan receive"
    assert [f.function for f in back.frames][-2:] == ["main._Cfunc_callBack", "main.callsBack"]
    thread = next(s for s in snapshot if s.kind == "thread" and s.address == blocked.thread)
    assert [f.function for f in thread.merged][-3:] == functions[-3:]


@pytest.mark.parametrize("minor", toolchains() if ALL_OF_THEM else ["1.27"])
def test_python_with_a_library_of_go_shows_both(minor: str, tmp_path: Path) -> None:
    library = built("shared", minor, ("-buildmode=c-shared", "-ldflags=-s -w -buildid="), cgo=True)
    script = tmp_path / "host"
    script.write_text(f"#!{sys.executable}\n{HOST}")
    script.chmod(0o755)
    with running(script, str(library)) as program:
        pid = program.pid
        snapshot = diagtool.snapshot(pid)
    python, go = snapshot.target.runtime.split(", ")
    assert python.startswith("cpython 3.") and go.startswith(f"go{minor}.")
    goroutines = [s for s in snapshot if s.kind == "goroutine"]
    leaked = [s for s in goroutines if [f.function for f in s.frames] == ["main.leak"]]
    assert len(leaked) == 7 and {s.wait for s in leaked} == {"chan receive"}
    assert {s.created_by[0].function for s in leaked} == {"main.Leak"}
    thread = next(s for s in snapshot if s.kind == "thread" and s.name == "blocked")
    assert "Thread.run" in [f.function for f in thread.frames]
    block = next(s for s in goroutines if s.frames and s.frames[0].function == "main.Block")
    assert block.thread == thread.thread


@pytest.mark.skipif(not ALL_OF_THEM, reason="a standard library is compiled for it: make test-go")
@pytest.mark.parametrize("minor", ["1.19", "1.27"])
def test_goroutines_of_plugins_have_names(minor: str) -> None:
    plugin = built("plugin", minor, ("-buildmode=plugin",), cgo=True)
    with started("plugged", minor, str(plugin), cgo=True) as program:
        snapshot = diagtool.snapshot(program.pid)
    assert len(snapshot.tables["go_runtime"][0]["modules"]) == 2
    leaked = [s for s in snapshot if s.frames and s.frames[0].function.endswith(".leaked")]
    assert len(leaked) == 3
    assert {s.frames[0].module for s in leaked} == {s.created_by[0].module for s in leaked}


def test_an_unknown_version_is_refused_with_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from diagtool.runtimes.golang import layouts

    monkeypatch.setattr(layouts, "known", lambda: (19, 21))
    layouts.load.cache_clear()
    with started("frames", ALL[-1], flags=STRIPPED) as program:
        with pytest.raises(
            NotSupported, match=r"was built with go1\.27.*tables are there for 1\.19 to 1\.21"
        ):
            diagtool.snapshot(program.pid)
        assert main(["stacks", str(program.pid)]) == 3
    layouts.load.cache_clear()
    assert "go1.27" in capsys.readouterr().err


@pytest.mark.parametrize("minor", toolchains() if ALL_OF_THEM else ["1.27"])
def test_a_leak_has_the_same_id_in_memory_as_in_dumps(minor: str, tmp_path: Path) -> None:
    with started("leaks", minor, "all", "20") as program:
        program.debug2(tmp_path / "dump")
        live = diagtool.snapshot(program.pid)
        core = diagtool.snapshot(str(program.gcore(tmp_path)))
        (tmp_path / "traceback").write_text(program.quit())
    said = templates(read_evidence(str(tmp_path / "dump")))
    assert len(said) > 10
    assert templates(read_evidence(str(tmp_path / "traceback"))) == said
    assert said.items() <= templates([live]).items()  # memory may prove more
    assert said.items() <= templates([core]).items()


def templates(snapshots: Sequence[Snapshot]) -> dict[str, str]:
    """The templates of findings by their ids."""
    return {f.id: f.template or "" for f in find_leaks(list(snapshots)).findings}


@pytest.mark.parametrize("minor", toolchains())
def test_an_image_is_made_on_the_stack_that_go_keeps_for_signals(minor: str) -> None:
    with started("frames", minor, "busy", flags=STRIPPED) as program:
        with capture_live(program.pid, clone="always") as capture:
            assert capture.image
            registers = [(t.tid, t.registers["rsp"], t.registers["fs_base"]) for t in capture.threads]
            snapshot = decode(capture)
            assert capture.of_one_instant
        found = {s for r in registers if (s := go_signal_stack(program.pid, *r)) is not None}
        again = diagtool.snapshot(program.pid)
    assert len(found) >= len(registers) - 1  # one may just handle a signal
    assert all(high - low == 32 << 10 for low, high in found)
    for one in (snapshot, again):
        assert "main.deep" in {s.frames[0].function for s in one if s.kind == "goroutine" and s.frames}
