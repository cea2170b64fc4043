"""Who started each thread of a real process, and pools with more running threads than processors."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

import diagtool
from diagtool.capture.modules import Module
from diagtool.leaks import find_leaks
from diagtool.runtimes.native.starts import thread_starts
from fixture_programs import Interpreter, Running, interpreters, launch
from native import PROGRAMS, Program, built, started

pytestmark = pytest.mark.timeout(300)

HERE = [i for i in interpreters() if i.root is None]
SOME = HERE[:1] + HERE[-1:]

PROGRAM = """
import ctypes, os, signal, sys, threading, time
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
os.nice(19)
library, what, threads = ctypes.CDLL(sys.argv[1]), sys.argv[2], int(sys.argv[3])
if what == "burn":
    threading.Thread(target=library.burn, args=(threads,), daemon=True).start()
else:
    library.rest(threads)
def state(tid):
    with open("/proc/self/task/%s/stat" % tid) as file:
        return file.read().rpartition(")")[2].split()[0]
while library.count() < threads:
    time.sleep(0.01)
while what == "rest" and any(state(t) != "S" for t in os.listdir("/proc/self/task") if int(t) != os.getpid()):
    time.sleep(0.01)
print("READY", os.getpid(), flush=True)
while True:
    signal.pause()
"""


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


def pools(interpreter: Interpreter, what: str, threads: int) -> Callable[[], object]:
    library = built("pools", "-shared", "-fPIC", "-fopenmp")
    folder = Path(library).parent
    path = folder / "pools.py"
    path.write_text(PROGRAM)
    return lambda: launch(
        path,
        interpreter=interpreter,
        arguments=[library, what, str(threads)],
        env={"OMP_NUM_THREADS": "64", "OMP_WAIT_POLICY": "passive"},
    )


@pytest.mark.parametrize("interpreter", SOME, ids=str)
def test_a_pool_that_runs_on_too_few_processors_is_found_and_explained(
    interpreter: Interpreter, tmp_path: Path
) -> None:
    with pools(interpreter, "burn", 17)() as program:  # type: ignore[attr-defined]
        assert isinstance(program, Running)
        for target in (program.pid, program.gcore(tmp_path)):
            snapshot = diagtool.snapshot(target)
            (finding,) = find_leaks([snapshot]).findings
            assert (finding.template, finding.verdict) == ("thread-pools-oversubscribed", "likely")
            assert (finding.kind, finding.count) == ("thread", 16)  # the one that calls OpenMP is Python's
            (why,) = finding.evidence
            assert "OpenMP (libgomp" in why and "OMP_NUM_THREADS (now 64)" in why
            (row,) = snapshot.tables["oversubscription"]
            assert 1 <= row["cpus"] <= min(2, len(os.sched_getaffinity(0)))


@pytest.mark.parametrize(("what", "threads"), [("rest", 24), ("burn", 3)])
def test_pools_that_sleep_or_fit_are_no_finding(what: str, threads: int, tmp_path: Path) -> None:
    with pools(SOME[-1], what, threads)() as program:  # type: ignore[attr-defined]
        for target in (program.pid, program.gcore(tmp_path)):
            snapshot = diagtool.snapshot(target)
            (pool,) = snapshot.tables["thread_pools"]
            assert (pool["pool"], pool["threads"]) == ("OpenMP", threads - 1)
            assert pool["running"] == (threads - 1 if what == "burn" else 0)
            assert find_leaks([snapshot]).findings == ()
