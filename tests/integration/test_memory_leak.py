"""A service that leaks in three ways at once, as docs/finding-a-memory-leak.md looks for them.

DIAGTOOL_TEST_MIB says how large it is: 128 MiB, or 2,048 by hand.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from diagtool.capture import ptrace
from fixture_programs import FixtureSkipped, Running, interpreters, launch

pytestmark = [
    pytest.mark.skipif(not ptrace.supported(), reason="live processes on Linux on x86-64 only"),
    pytest.mark.timeout(600),
]

SERVICE = Path(__file__).parents[2] / "fixtures/python/thumbnails.py"
MIB = int(os.environ.get("DIAGTOOL_TEST_MIB", "128"))

CACHE, PERMITS, BLOCKS = "container-grows", "asyncio-semaphore-never-released", "native-blocks-lost"


@contextmanager
def service(mode: str) -> Iterator[Running]:
    """The service, on an interpreter whose headers are here."""
    skipped: list[str] = []
    for interpreter in sorted(interpreters(), key=lambda i: (i.root is not None, i.version != "3.12")):
        if interpreter.root is not None:
            continue
        try:
            with launch(SERVICE, interpreter=interpreter, arguments=[mode, str(MIB)]) as program:
                yield program
                return
        except FixtureSkipped as error:
            skipped.append(f"{interpreter.version}: {error}")
    pytest.skip("; ".join(skipped) or "no interpreter outside of a chroot")


def diagtool(*arguments: str, status: Sequence[int] = (0,)) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "diagtool", *arguments], capture_output=True, text=True, timeout=300
    )
    assert done.returncode in status, done.stderr
    return done.stdout


def leaks(*targets: str, status: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Findings by template, of which none may be there twice."""
    findings = json.loads(diagtool("leaks", *targets, "--format", "json", status=status))["findings"]
    assert len({f["template"] for f in findings}) == len(findings)
    return {f["template"]: f for f in findings}


def series(program: Running, folder: Path) -> list[str]:
    """Three snapshots, with work in between and none while they are taken."""
    files = []
    for number in range(3):
        files.append(str(folder / f"{number}.diag"))
        diagtool("snapshot", str(program.pid), "--heap", "-o", files[-1])
        if number < 2:
            os.kill(program.pid, signal.SIGUSR2)
            program.wait_line("GREW ", nth=number + 1, within=300)
    return files


def complete(finding: dict[str, Any]) -> bool:
    """Whether it says why, and what to do."""
    return bool(finding["evidence"] and finding["fix"] and finding["runbook"] and finding["cause"])


def test_all_three_leaks_are_named_with_holder_and_fix(tmp_path: Path) -> None:
    with service("leak") as program:
        found = leaks(*series(program, tmp_path), status=[1])
        core = tmp_path / "core"
        diagtool("core", str(program.pid), "-o", str(core))
    assert found[CACHE]["verdict"] == "likely"
    assert re.fullmatch(r"module __main__ → _images \(dict, [\d,]+ items\)", found[CACHE]["held_by"][0])
    assert found[BLOCKS]["verdict"] == "likely"
    assert "_resize" in found[BLOCKS]["evidence"][0]
    assert found[PERMITS]["count"] == 40
    assert found[PERMITS]["held_by"]
    assert all(complete(found[name]) for name in (CACHE, BLOCKS, PERMITS))

    # The core says the same of one instant, in which nothing is seen to grow.
    dead = leaks(str(core), status=[1])
    assert {CACHE, BLOCKS, PERMITS} <= dead.keys()
    assert dead[BLOCKS]["verdict"] == "likely"
    assert dead[BLOCKS]["count"] == found[BLOCKS]["count"]
    assert dead[CACHE]["held_by"] == found[CACHE]["held_by"]
    assert all(complete(dead[name]) for name in (CACHE, BLOCKS, PERMITS))


def test_the_same_service_without_leaks_has_none(tmp_path: Path) -> None:
    with service("healthy") as program:
        found = leaks(*series(program, tmp_path), status=[0])
        assert not {name: f["verdict"] for name, f in found.items()}
