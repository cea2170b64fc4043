"""The source of a real program speaks for or against a finding, live and from a core; another is not used."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from diagtool.capture import ptrace
from diagtool.cli import main
from fixture_programs import Interpreter, interpreters, launch

pytestmark = pytest.mark.skipif(not ptrace.supported(), reason="live processes on Linux on x86-64 only")

PROGRAM = Path(__file__).parents[1] / "programs/permits.py"
VERSIONS = interpreters()
#: How a function says its lines changed with 3.10 and 3.11; the newest is in a chroot. All were tried.
SOME = [i for i in VERSIONS if i.version in ("3.9", "3.15")] or VERSIONS[-1:]
ONE = [i for i in VERSIONS if i.root is None][-1:]


def judged(*arguments: str, into: Path) -> dict[str, Any]:
    """The JSON report of `diagtool leaks`."""
    assert main(["leaks", *arguments, "--no-native", "--format", "json", "-o", str(into / "r.json")]) in (
        0,
        1,
    )
    report: dict[str, Any] = json.loads((into / "r.json").read_text())
    return report


def verdicts(report: dict[str, Any]) -> dict[str, str]:
    """Class of the waiting coroutine -> verdict."""
    return {
        "careless" if lines(f) else "careful": f["verdict"]
        for f in report["findings"]
        if f["template"] == "asyncio-semaphore-never-released"
    }


def lines(finding: dict[str, Any]) -> set[int]:
    return {s["line"] for s in finding["source"] if s["check"] == "acquire-without-release"}


@pytest.mark.parametrize("interpreter", SOME, ids=str)
def test_the_source_raises_what_it_explains_and_nothing_else(
    interpreter: Interpreter, tmp_path: Path
) -> None:
    with launch(PROGRAM, interpreter=interpreter) as program:
        live = judged(str(program.pid), into=tmp_path)
        core = tmp_path / "core"
        assert main(["core", str(program.pid), "-o", str(core)]) == 0
    assert verdicts(live) == {"careless": "likely", "careful": "suspect"}
    (shown,) = [f["source"][0] for f in live["findings"] if f["verdict"] == "likely"]
    assert (shown["line"], shown["text"]) == (15, "self.limit.release()")
    where = ["--sysroot", str(interpreter.root)] if interpreter.root else []
    dead = judged(str(core), *where, "--source", str(PROGRAM.parent), into=tmp_path)
    assert verdicts(dead) == verdicts(live)


@pytest.mark.parametrize("interpreter", ONE, ids=str)
def test_a_source_that_is_not_what_runs_is_not_used_and_that_is_said(
    interpreter: Interpreter, tmp_path: Path
) -> None:
    there = tmp_path / "service/permits.py"
    there.parent.mkdir()
    shutil.copy(PROGRAM, there)
    edited = tmp_path / "edited/permits.py"
    edited.parent.mkdir()
    edited.write_text(
        PROGRAM.read_text().replace("        await self.get()\n", "        await self.get(1)\n\n")
    )
    with launch(there, interpreter=interpreter) as program:
        pid = str(program.pid)
        assert set(verdicts(judged(pid, into=tmp_path)).values()) == {"likely", "suspect"}
        later = os.stat(f"/proc/{pid}").st_mtime + 1000
        os.utime(there, (later, later))
        report = judged(pid, into=tmp_path)
        assert set(verdicts(report).values()) == {"suspect"}
        assert f"source on disk is newer than the running code: {there}" in report["warnings"]
        # A checkout has the time of the checkout: its lines and names count.
        assert "likely" in verdicts(judged(pid, "--source", str(there.parent), into=tmp_path)).values()
        report = judged(pid, "--source", str(edited.parent), into=tmp_path)
        assert set(verdicts(report).values()) == {"suspect"}
        assert any(w.startswith("source on disk is not what runs") for w in report["warnings"])
