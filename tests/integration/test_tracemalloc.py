"""Allocation sites are those that tracemalloc itself tells inside the process, live and from its core."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import diagtool
from diagtool.capture import ptrace
from diagtool.snapshot.model import Snapshot
from fixture_programs import Interpreter, Running, interpreters, launch, some

pytestmark = pytest.mark.skipif(not ptrace.supported(), reason="live processes on Linux on x86-64 only")

PROGRAM = """
import gc, json, os, signal, sys, tracemalloc

class Node:
    __slots__ = ("i",)
    def __init__(self, i):
        self.i = i

def nodes(n):
    return [Node(i + 1000) for i in range(n)]

def texts(n):
    made = []
    for i in range(n):
        made.append("text %d " % i * 3)
    return made

def pages(n):
    return [bytearray(5000) for i in range(n)]

kept = []

def grow(*_):
    tracemalloc.start(FRAMES)
    kept.extend([nodes(3000), texts(2000), pages(50)])
    gc.collect()
    told = {}
    for t in tracemalloc.take_snapshot().traces:
        if t.traceback[-1].filename == __file__:
            key = " ".join("%d" % f.lineno for f in reversed(t.traceback))
            count, size = told.get(key, (0, 0))
            told[key] = count + 1, size + t.size
    print("SAID", json.dumps(told), flush=True)
    del told, t
    print("GREW 1", flush=True)

signal.signal(signal.SIGUSR2, grow)
print("READY", os.getpid(), flush=True)
while True:
    signal.pause()
"""


def started(interpreter: Interpreter, folder: Path, frames: int) -> tuple[Any, Path]:
    path = folder / "program.py"
    path.write_text(PROGRAM.replace("FRAMES", str(frames)))
    return launch(path, interpreter=interpreter), path


def told(program: Running) -> dict[str, tuple[int, int]]:
    """What the process says: lines of the frames, innermost first -> (blocks, bytes)."""
    program.grow()
    line = [line for line in program.lines() if line.startswith("SAID")][-1]
    return {key: tuple(value) for key, value in json.loads(line.partition(" ")[2]).items()}


def compare(snapshot: Snapshot, said: dict[str, tuple[int, int]], frames: int) -> None:
    assert not [w for w in snapshot.warnings if "tracemalloc" in w]
    summary = snapshot.tables["tracemalloc"][0]
    assert summary["frames"] == frames
    sites = snapshot.tables["allocation_sites"]
    assert summary["blocks"] == sum(s["count"] for s in sites)
    assert summary["bytes"] == sum(s["bytes"] for s in sites)
    ours = {
        " ".join(str(line) for _, line in s["frames"]): s
        for s in sites
        if s["file"] and s["file"].endswith("/program.py")
    }
    # Lines of the making of objects: nothing of these changes any more.
    lasting = {key: value for key, value in said.items() if int(key.split()[0]) in (10, 15, 19)}
    assert {key.split()[0] for key in lasting} == {"10", "15", "19"}
    assert {key: (ours[key]["count"], ours[key]["bytes"]) for key in lasting} == lasting
    by_type = {t["type"]: t for s in ours.values() for t in s["types"]}
    assert by_type["__main__.Node"]["count"] == 3000
    assert by_type["str"]["count"] >= 2000
    assert by_type["bytearray"]["count"] == 50


@pytest.mark.parametrize(
    "interpreter", [*some(interpreters(), 9, 12, 13, 15), *interpreters("free-threaded")[:1]], ids=str
)
def test_sites_are_those_that_the_process_tells(interpreter: Interpreter, tmp_path: Path) -> None:
    launched, _ = started(interpreter, tmp_path, 25)
    with launched as program:
        before = diagtool.snapshot(program.pid, heap=True)
        assert "allocation_sites" not in before.tables
        assert not [w for w in before.warnings if "tracemalloc" in w]
        said = told(program)
        compare(diagtool.snapshot(program.pid, heap=True), said, 25)


@pytest.mark.parametrize("interpreter", interpreters()[::3], ids=str)
def test_sites_of_a_core_are_the_same(interpreter: Interpreter, tmp_path: Path) -> None:
    launched, _ = started(interpreter, tmp_path, 1)
    with launched as program:
        said = told(program)
        core = program.gcore(tmp_path)
        compare(diagtool.snapshot(core, heap=True, sysroot=interpreter.root), said, 1)
