"""Who started each thread of a real process, and pools with more running threads than processors."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest

import diagtool
from diagtool.capture.modules import Module
from diagtool.cli import main
from diagtool.leaks import find_leaks
from diagtool.report import json as documents
from diagtool.runtimes.native.starts import thread_starts
from diagtool.snapshot.model import Snapshot
from fixture_programs import FIXTURES, Interpreter, interpreters, launch
from native import PROGRAMS, Program, built, started

pytestmark = pytest.mark.timeout(300)

HERE = [i for i in interpreters() if i.root is None]
SOME = HERE[:1] + HERE[-1:]
ONE = HERE[-1:]
E10, E11 = FIXTURES["e10"], FIXTURES["e11"]


def gcore(program: Program, folder: Path) -> Path:
    if shutil.which("gcore") is None:
        pytest.skip("gcore is not installed")
    subprocess.run(["gcore", "-o", str(folder / "c"), str(program.pid)], capture_output=True, check=True)
    return folder / f"c.{program.pid}"


def starts(target: int | Path) -> Counter[tuple[str | None, str]]:
    with diagtool.capture(target) as capture:
        return Counter((s.code.symbol if s.code is not None else None, s.via) for s in thread_starts(capture))


def test_threads_begin_where_they_were_started_live_and_in_a_core(tmp_path: Path) -> None:
    with started(built("starts"), "3") as program:
        for target in (program.pid, gcore(program, tmp_path)):
            assert starts(target) == {("main", ""): 1, ("reader", ""): 3, ("writer", ""): 3}


def test_where_libc_does_not_say_it_the_start_is_found_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Callable[[Module, str], int | None] = Module.symbol
    monkeypatch.setattr(
        Module, "symbol", lambda self, name: None if name.startswith("_thread_db") else real(self, name)
    )
    with started(built("starts"), "3") as program:
        assert starts(program.pid) == {("main", ""): 1, ("reader", ""): 3, ("writer", ""): 3}


def test_a_std_thread_belongs_to_who_made_it(tmp_path: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("no g++ here")
    exe = str(tmp_path / "stdthreads")
    source = str(PROGRAMS / "stdthreads.cpp")
    subprocess.run(["g++", "-O1", "-g", "-pthread", source, "-o", exe], check=True)
    with started(exe) as program:
        for target in (program.pid, gcore(program, tmp_path)):
            found = starts(target)
            (made,) = (name for name, via in found if name is not None and "State_impl" in name)
            assert "main" in made  # the lambda has no address: its type says where it is
            wanted = ("_ZL4worki", "_ZN4Pool4loopEv", made)
            assert found == {("main", ""): 1, **{(name, "std::thread"): 1 for name in wanted}}
            with diagtool.capture(target) as capture:
                libraries = {s.code.module.path for s in thread_starts(capture) if s.code and s.code.module}
            assert libraries == {exe}


def test_a_thread_that_is_gone_or_garbage_is_unknown(tmp_path: Path) -> None:
    with started(built("starts"), "2") as program, diagtool.capture(program.pid) as capture:
        others = [t for t in capture.threads if t.tid != program.pid]
        for thread, pointer in zip(others, (0, 1, 1 << 63, capture.mappings[0].start), strict=True):
            thread.registers["fs_base"] = pointer
        found = thread_starts(capture)
    assert [s.code is not None for s in found] == [s.tid == program.pid for s in found]


@pytest.mark.parametrize("interpreter", ONE, ids=str)
def test_a_thread_of_glib_belongs_to_the_function_that_it_was_given(
    interpreter: Interpreter, tmp_path: Path
) -> None:
    path = tmp_path / "glib.py"
    path.write_text(
        "import ctypes, os, signal\n"
        "try:\n"
        "    glib = ctypes.CDLL('libglib-2.0.so.0')\n"
        "except OSError:\n"
        "    print('SKIP no GLib here', flush=True)\n"
        "    os._exit(0)\n"
        "pause = ctypes.cast(ctypes.CDLL(None).pause, ctypes.c_void_p)\n"
        "glib.g_thread_new(b'worker', pause, None)\n"
        "print('READY', os.getpid(), flush=True)\n"
        "while True:\n"
        "    signal.pause()\n"
    )
    with launch(path, interpreter=interpreter) as program, diagtool.capture(program.pid) as capture:
        (start,) = (s for s in thread_starts(capture) if s.tid != program.pid)
    assert start.via == "GThread" and start.code is not None and start.code.module is not None
    assert (start.code.symbol, Path(start.code.module.path).name) == ("pause", "libc.so.6")


# --- pools -------------------------------------------------------------------------------------------------


def look(target: int | Path) -> Snapshot:
    return diagtool.snapshot(target, frames=False, inventory=("pools",))


def names(*snapshots: Snapshot) -> list[tuple[str | None, str, str, int]]:
    return [(f.template, f.verdict, f.kind, f.count) for f in find_leaks(list(snapshots)).findings]


@pytest.mark.parametrize("interpreter", SOME, ids=str)
def test_a_pool_that_runs_on_too_few_processors_is_found_and_explained(
    interpreter: Interpreter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with launch(E10, "leak", interpreter, env={"OMP_NUM_THREADS": "64"}) as program:
        for target in (program.pid, program.gcore(tmp_path)):
            snapshot = look(target)
            # The thread that calls OpenMP is Python's.
            assert names(snapshot) == [("thread-pools-oversubscribed", "likely", "thread", E10.count - 1)]
            report = find_leaks([snapshot])
            jsonschema.validate(
                json.loads(documents.dumps(documents.leaks(report))), documents.schema("leaks")
            )
            ((why,),) = (f.evidence for f in report.findings)
            assert "OpenMP (libgomp" in why and "OMP_NUM_THREADS (now 64)" in why
            (row,) = snapshot.tables["oversubscription"]
            assert 1 <= row["cpus"] <= min(2, len(os.sched_getaffinity(0)))
        assert main(["leaks", str(program.pid)]) == 1
        assert "threadpoolctl" in capsys.readouterr().out


@pytest.mark.parametrize("mode", ["leak", "healthy"])
def test_a_core_of_the_kernel_tells_who_ran_and_where(mode: str, tmp_path: Path) -> None:
    with launch(E10, mode, ONE[0]) as program:
        found = names(look(program.kernel_core(tmp_path)))
    leak = ("thread-pools-oversubscribed", "likely", "thread", E10.count - 1)
    assert found == ([leak] if mode == "leak" else [])


def test_pools_of_several_libraries_are_told_together(tmp_path: Path) -> None:
    with launch(E10, "leak2", ONE[0]) as program:
        for target in (program.pid, program.gcore(tmp_path)):
            snapshot = look(target)
            assert names(snapshot) == [("thread-pools-oversubscribed", "likely", "thread", E10.count - 1)]
            found = {Path(p["library"]).name.partition(".")[0]: p for p in snapshot.tables["thread_pools"]}
            assert (found["libgomp"]["threads"], found["libburn"]["threads"]) == (8, 9)
            assert snapshot.tables["oversubscription"][0]["pools"] == 2


@pytest.mark.parametrize("mode", E10.healthy_modes)
def test_pools_that_sleep_or_fit_are_no_finding(mode: str, tmp_path: Path) -> None:
    with launch(E10, mode, ONE[0]) as program:
        for target in (program.pid, program.gcore(tmp_path)):
            snapshot = look(target)
            assert names(snapshot) == []
            running = sum(p["running"] for p in snapshot.tables["thread_pools"])
            assert running == (1 if mode == "healthy2" else 0)


def test_threads_that_a_library_has_more_of_with_each_snapshot_are_a_leak() -> None:
    with launch(E11, "leak", ONE[0]) as program:
        series = [look(program.pid)]
        for _ in range(2):
            program.grow()
            series.append(look(program.pid))
    assert names(*series) == [("native-threads-grow", "likely", "thread", 6 * E11.count)]
    assert names(series[0]) == []


@pytest.mark.parametrize("mode", E11.healthy_modes)
def test_threads_that_stay_or_end_are_none(mode: str) -> None:
    with launch(E11, mode, ONE[0]) as program:
        series = [look(program.pid)]
        for _ in range(2):
            program.grow()
            series.append(look(program.pid))
    assert names(*series) == []
