"""One command, each kind of evidence of one leaking Go service, and always the same finding."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from diagtool.cli import cli
from go_programs import GoProgram, started, toolchains

LEAK = ("go-send-nobody-receives", "main.findPrice")
#: The newest version alone by default: it takes long.
ALL_TOO = os.environ.get("DIAGTOOL_TEST_GO") == "all"


def leaks(*arguments: object) -> dict[str, Any]:
    """The finding that ``diagtool leaks`` has, which is the only one."""
    done = CliRunner().invoke(cli, ["leaks", "--format", "json", *map(str, arguments)])
    assert done.exit_code in (0, 1), done.stderr
    findings = json.loads(done.stdout)["findings"]
    assert [(f["template"], f["frames"][-1]["function"]) for f in findings] == [LEAK], (arguments, findings)
    finding: dict[str, Any] = findings[0]
    return finding


@pytest.mark.parametrize("minor", toolchains() if ALL_TOO else toolchains()[-1:])
def test_each_kind_of_evidence_of_one_service_gives_the_same_finding(minor: str, tmp_path: Path) -> None:
    found: dict[str, dict[str, Any]] = {}
    with started("service", minor, "lookup", "60") as program:
        program.say(f"trace {tmp_path / 'it.trace'}")
        program.grow(60)
        program.say("endtrace")
        evidence(program, tmp_path)
        for name in ("it.trace", "debug2.txt", "debug1.txt", "goroutine.pb.gz"):
            found[name] = leaks(tmp_path / name)
        found["url"] = leaks("--url", f"http://127.0.0.1:{program.words[0]}/debug/pprof")
        found["live"] = leaks(program.pid)
        found["core"] = leaks(program.gcore(tmp_path))
        (tmp_path / "quit.txt").write_text(program.quit())
        found["SIGQUIT"] = leaks(tmp_path / "quit.txt")
    assert {name: f["id"] for name, f in found.items()} == dict.fromkeys(found, found["live"]["id"])
    # A trace of an old version knows only what happened while it was taken.
    assert {name for name, f in found.items() if f["count"] != 120} <= {"it.trace"}


def evidence(program: GoProgram, folder: Path) -> None:
    program.debug2(folder / "debug2.txt")
    program.text("goroutine", folder / "debug1.txt")
    program.profile("goroutine", folder / "goroutine.pb.gz")
