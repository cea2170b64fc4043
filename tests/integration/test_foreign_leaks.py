"""Leaks of C code in Python programs: as many as there are, live and in cores, and none in healthy ones."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import diagtool
from diagtool.cli import main
from diagtool.leaks.model import Finding
from diagtool.leaks.template import builtin
from fixture_programs import FIXTURES, FixtureSkipped, Interpreter, Running, interpreters, launch
from native import PROGRAMS, built, started

pytestmark = pytest.mark.timeout(300)

LOST = 1000
AT_ONCE = 3
CATALOGUE = {t.id: t.catalogue for t in builtin()}
ALL = interpreters()
#: Oldest and newest with headers here: a C extension is built for each.
BUILT = [i for i in ALL if i.headers is not None or i.root is None][:: max(1, len(ALL) - 3)]
SOME = [i for i in ALL if i.minor in (9, 14)]
ONE = [i for i in ALL if i.minor == 12] or ALL[-1:]

PROGRAM = """
import gc, os, signal, sys
sys.path.insert(0, sys.argv[1])
import lossy
lossy.keep(300)
exec(sys.argv[2])
gc.collect()
print("READY", os.getpid(), flush=True)
while True:
    signal.pause()
"""


def extension(interpreter: Interpreter, folder: Path) -> Path:
    """A folder with the extension lossy, built for an interpreter."""
    ask = "import sysconfig; print(sysconfig.get_path('include'))"
    found = subprocess.run([*interpreter.argv, "-c", ask], capture_output=True, text=True, check=True)
    headers = interpreter.headers or Path(found.stdout.strip())
    if not (headers / "Python.h").exists():
        pytest.skip(f"no headers of {interpreter}")
    command = ["gcc", "-shared", "-fPIC", "-O1", "-g", f"-I{headers}", str(PROGRAMS / "lossy.c")]
    try:
        subprocess.run([*command, "-o", str(folder / "lossy.so")], check=True)
    except FileNotFoundError:
        pytest.skip("no gcc here")
    return folder


@contextmanager
def lossy(interpreter: Interpreter, folder: Path, what: str) -> Iterator[Running]:
    path = folder / "program.py"
    path.write_text(PROGRAM)
    with launch(
        path, interpreter=interpreter, arguments=[str(extension(interpreter, folder)), what]
    ) as program:
        yield program


def native_of(target: object, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["heap", str(target), "--native", "--format", "json"]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)["native"]
    return document


def test_a_thousand_lost_blocks_are_a_thousand_live_and_in_a_core(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if shutil.which("gcore") is None:
        pytest.skip("gcore is not installed")
    with started(built("blocks"), "leak", "3000", "3") as program:
        subprocess.run(
            ["gcore", "-o", str(tmp_path / "c"), str(program.pid)], capture_output=True, check=True
        )
        for target in (program.pid, tmp_path / f"c.{program.pid}"):
            native = native_of(target, capsys)
            assert native["reachability"] == "judged"
            (group,) = native["unreachable"]
            assert (group["count"], group["size"], group["symbol"]) == (LOST, 1008, "retire")
            (finding,) = diagtool.find_leaks(diagtool.snapshot(target, heap=True)).findings
            assert (finding.template, finding.verdict) == ("native-blocks-lost", "likely")
            assert (finding.count, finding.bytes) == (LOST, LOST * 1008)


# Beside all that Python has, a leftover word may look like a pointer to one of them.
def nearly(count: int) -> range:
    return range(count * 98 // 100, count + 1)


@pytest.mark.parametrize("interpreter", BUILT, ids=str)
def test_what_an_extension_loses_is_told_once_with_what_hangs_on_it(
    interpreter: Interpreter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with lossy(interpreter, tmp_path, f"lossy.lose({LOST})") as program:
        core = program.gcore(tmp_path)
        for target in (program.pid, core):
            native = native_of(target, capsys)
            by_size = {g["size"]: g for g in native["unreachable"]}
            assert set(by_size) == {1008, 48, 320}
            lost = by_size[1008]
            assert lost["count"] in nearly(LOST) and lost["hanging"] in nearly(2 * LOST)
            assert (lost["hangs"], lost["symbol"]) == (0, "session_end")
            assert Path(lost["library"]).name == "lossy.so"
            (finding,) = diagtool.find_leaks(diagtool.snapshot(target, heap=True)).findings
            assert (finding.template, finding.verdict) == ("native-blocks-lost", "likely")
            assert finding.count in nearly(LOST)


@pytest.mark.parametrize("interpreter", ONE, ids=str)
def test_what_an_error_path_forgets_is_found_and_what_is_freed_is_not(
    interpreter: Interpreter, tmp_path: Path
) -> None:
    code = "lossy.keep(2000); lossy.give_back()\ntry:\n    lossy.fail(1200)\nexcept ValueError:\n    pass"
    with lossy(interpreter, tmp_path, code) as program:
        (finding,) = diagtool.find_leaks(diagtool.snapshot(program.pid, heap=True)).findings
    assert (finding.template, finding.verdict) == ("native-blocks-lost", "likely")
    assert finding.count in nearly(1200)


@pytest.mark.parametrize("interpreter", ONE, ids=str)
def test_a_loss_that_grows_needs_fewer_blocks(interpreter: Interpreter, tmp_path: Path) -> None:
    again = "lambda *_: (lossy.lose(60), print('GREW', os.getpid(), flush=True))"
    code = f"lossy.lose(60); signal.signal(signal.SIGUSR2, {again})"
    with lossy(interpreter, tmp_path, code) as program:
        before = diagtool.snapshot(program.pid, heap=True)
        assert diagtool.find_leaks(before).findings == ()
        program.grow()
        (finding,) = diagtool.find_leaks([before, diagtool.snapshot(program.pid, heap=True)]).findings
    assert finding.verdict == "likely" and finding.count > 60


def told(findings: tuple[Finding, ...]) -> str:
    return ", ".join(f"{f.verdict} {f.template} {f.count}" for f in findings) or "nothing"


def complaint(name: str, mode: str, interpreter: Interpreter) -> str | None:
    fixture = FIXTURES[name]
    try:
        with launch(fixture, mode, interpreter) as program:
            found = diagtool.find_leaks(diagtool.snapshot(program.pid, heap=True)).findings
    except FixtureSkipped:
        return None
    wanted = (fixture.template or "").split(",")
    if mode in fixture.healthy_modes:
        return f"{mode}: {told(found)}" if found else None
    good = [f for f in found if CATALOGUE.get(f.template or "") in wanted]
    # What passed a call of C as argument may be lying about on its stack still.
    right = len(found) == 1 and good and good[0].count in nearly(fixture.count)
    return None if right else f"{mode}: {told(found)}"


@pytest.mark.parametrize(
    ("name", "interpreter"),
    [("e03", i) for i in ONE] + [("e04", i) for i in SOME] + [("e05", i) for i in ONE],
    ids=str,
)
def test_what_c_code_loses_or_keeps_is_found_and_healthy_twins_are_not(
    name: str, interpreter: Interpreter
) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        modes = [*FIXTURES[name].leak_modes, *FIXTURES[name].healthy_modes]
        found = list(pool.map(lambda mode: complaint(name, mode, interpreter), modes))
    assert [f for f in found if f] == []


def test_a_program_without_python_has_a_heap_and_no_objects(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with subprocess.Popen(["sleep", "1000"], stdout=subprocess.PIPE) as process:
        try:
            stored = tmp_path / "sleep.diag"
            assert main(["snapshot", str(process.pid), "--heap", "-o", str(stored)]) == 0
            assert "1 thread" in capsys.readouterr().out
            native = native_of(stored, capsys)
            assert native["allocator"] == "glibc malloc" and native["unreachable_blocks"] == 0
            assert main(["heap", str(process.pid)]) == 3
        finally:
            process.kill()
