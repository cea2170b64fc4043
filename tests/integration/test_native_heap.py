"""The heap of real processes and of their cores, against what their own malloc says of it."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from diagtool.capture.core import open_core
from diagtool.capture.live import capture_live
from diagtool.capture.model import Capture
from diagtool.runtimes.native import NativeHeap, native_heap
from diagtool.runtimes.native.malloc import add_malloc
from diagtool.runtimes.native.model import FREE
from integration.interpreters import INDEX, Interpreter, interpreters
from native import built, started

WAYS = ["live", "kernel", "gcore"]
ROOTS = sorted(INDEX.parent.glob("debian-*/lib64/ld-linux-x86-64.so.2"))
LOST, LOST_SIZE = 1000, 1008  # tests/programs/blocks.c


@dataclass
class Told:
    """A program's word on its own heap, and the captures of the same moment."""

    info: dict[str, int]
    usable: dict[int, int]  # address of a block in use -> malloc_usable_size
    paths: dict[str, Path]
    pid: int
    figures: dict[str, dict[str, Any]]  # what is read of malloc without walking the heap


def malloc_figures(capture: Capture) -> dict[str, Any]:
    """The row of the table ``malloc``, with names of mallinfo2() for its columns."""
    tables: dict[str, list[dict[str, Any]]] = {}
    add_malloc(capture, tables)
    (row,) = tables["malloc"]
    assert [row["how"]] == list({a["how"] for a in tables["malloc_arenas"]}) == ["exact"]
    names = {"arena": "system", "uordblks": "used", "fordblks": "free", "fsmblks": "fast"}
    names |= {"hblks": "mapped_blocks", "hblkhd": "mapped_bytes"}
    return {theirs: row[ours] for theirs, ours in names.items()}


def told(path: Path) -> tuple[dict[str, int], dict[int, int]]:
    first, *rest = path.read_text().splitlines()
    info = {name: int(value) for name, value in (pair.split("=") for pair in first.split())}
    return info, {int(address, 16): int(size) for address, size in (line.split() for line in rest)}


def cores(pid: int, folder: Path) -> dict[str, Path]:
    """A core of gcore, then one of the kernel, which ends the process."""
    pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
    if pattern.startswith(("|", "/")):
        pytest.skip(f"the kernel sends cores to {pattern}")
    if shutil.which("gcore") is None:
        pytest.skip("gcore is not installed")
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    resource.prlimit(pid, resource.RLIMIT_CORE, unlimited)
    subprocess.run(["gcore", "-o", str(folder / "gcore"), str(pid)], capture_output=True, check=True)
    os.kill(pid, signal.SIGABRT)
    return {"gcore": folder / f"gcore.{pid}"}


@pytest.fixture(scope="module", params=["leak", "healthy"])
def program(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Told, dict[str, NativeHeap]]]:
    folder = tmp_path_factory.mktemp("heap")
    heaps = {}
    with started(built("blocks"), request.param, "3000", "3", cwd=folder) as running:
        running.say(str(folder / "told"))
        assert running.line() == "TOLD"
        with capture_live(running.pid) as capture:
            figures = {"live": malloc_figures(capture)}
            heaps["live"] = native_heap(capture)
        paths = cores(running.pid, folder)
        running.process.wait(60)
        paths["kernel"] = next(f for f in folder.iterdir() if f.name.startswith("core"))
        info, usable = told(folder / "told")
        for way, path in paths.items():
            with open_core(str(path)) as capture:
                figures[way] = malloc_figures(capture)
                heaps[way] = native_heap(capture)
        yield request.param, Told(info, usable, paths, running.pid, figures), heaps
    shutil.rmtree(folder)


@pytest.mark.parametrize("way", WAYS)
def test_totals_are_those_of_mallinfo(program: tuple[str, Told, dict[str, NativeHeap]], way: str) -> None:
    _, told, heaps = program
    heap, info = heaps[way], told.info
    assert heap.allocator == "glibc malloc"
    assert heap.warnings == []
    assert sum(a.system for a in heap.arenas) == info["arena"]
    assert (heap.mmapped_blocks, heap.mmapped_bytes) == (info["hblks"], info["hblkhd"])
    cached = sum(a.cached for a in heap.arenas)
    assert heap.free_bytes - cached == info["fordblks"]  # for malloc, what caches hold is in use
    assert sum(a.used for a in heap.arenas) + cached + _headers(heap) == info["uordblks"]
    assert sum(a.fast for a in heap.arenas) == info["fsmblks"]
    assert int((heap.blocks.state == FREE).sum()) + len(heap.arenas) == info["ordblks"]
    assert len(heap.arenas) == 4 and heap.thread_caches == 4


@pytest.mark.parametrize("way", WAYS)
def test_totals_without_a_walk_are_those_of_mallinfo(
    program: tuple[str, Told, dict[str, NativeHeap]], way: str
) -> None:
    _, told, _ = program
    assert told.figures[way] == {name: told.info[name] for name in told.figures[way]}


# What arenas themselves take of their heaps counts as used for malloc.
def _headers(heap: NativeHeap) -> int:
    return sum(a.system - a.used - a.free - a.top for a in heap.arenas)


@pytest.mark.parametrize("way", WAYS)
def test_every_block_in_use_is_found_with_its_size(
    program: tuple[str, Told, dict[str, NativeHeap]], way: str
) -> None:
    _, told, heaps = program
    blocks = heaps[way].blocks
    used = dict(zip(blocks.address[blocks.used].tolist(), blocks.usable[blocks.used].tolist(), strict=True))
    assert {address: used.get(address) for address in told.usable} == told.usable
    # Beyond these only what the program's own libraries took: buffers, thread caches, dtvs.
    assert len(used) - len(told.usable) < 20


@pytest.mark.parametrize("way", WAYS)
def test_what_is_lost_is_found_and_nothing_else(
    program: tuple[str, Told, dict[str, NativeHeap]], way: str
) -> None:
    what, _, heaps = program
    heap = heaps[way]
    assert heap.reachability == "judged"
    if what == "healthy":
        assert heap.unreachable == []
        return
    (group,) = heap.unreachable
    assert (group.count, group.size, group.heads) == (LOST, LOST_SIZE, LOST)
    assert group.symbol == "retire" and group.library is not None and group.library.endswith("blocks")


def test_a_heap_that_was_written_over_is_read_around_the_damage(tmp_path: Path) -> None:
    with started(built("blocks"), "smash", "3000", "3") as running:
        running.say(str(tmp_path / "told"))
        assert running.line() == "TOLD"
        with capture_live(running.pid) as capture:
            heap = native_heap(capture)
    info, usable = told(tmp_path / "told")
    victim = list(usable)[1000]
    low = victim + usable[victim]
    blocks = heap.blocks
    used = set(blocks.address[blocks.used].tolist())
    lost = [address for address in usable if address not in used]
    assert lost and all(low <= address <= low + 1016 for address in lost)
    assert any("is broken at" in warning and f"{low - 8 & -16:#x}" in warning for warning in heap.warnings)
    assert 500 <= sum(a.unread for a in heap.arenas) <= 3000
    assert sum(a.system for a in heap.arenas) == info["arena"]
    assert heap.unreachable == []


def test_lost_objects_go_by_the_name_of_their_class() -> None:
    program = built("sessions", "-xc++", "-Wl,--no-as-needed", "-lstdc++")
    with started(program) as running, capture_live(running.pid) as capture:
        (group,) = native_heap(capture).unreachable
    assert (group.count, group.size, group.type) == (500, 112, "app::Session")
    assert group.library == program


@pytest.mark.parametrize("loader", ROOTS, ids=lambda path: path.parts[-3])
@pytest.mark.parametrize("what", ["leak", "healthy"])
def test_the_c_libraries_of_other_systems(loader: Path, what: str, tmp_path: Path) -> None:
    libraries = loader.parents[1] / "usr/lib/x86_64-linux-gnu"
    command = [str(loader), "--library-path", str(libraries), built("blocks"), what, "3000", "3"]
    with started(*command) as running:
        running.say(str(tmp_path / "told"))
        assert running.line() == "TOLD"
        with capture_live(running.pid) as capture:
            figures = malloc_figures(capture)
            heap = native_heap(capture)
    info, usable = told(tmp_path / "told")
    assert figures == {name: info[name] for name in figures}
    blocks = heap.blocks
    used = dict(zip(blocks.address[blocks.used].tolist(), blocks.usable[blocks.used].tolist(), strict=True))
    assert {address: used.get(address) for address in usable} == usable
    assert sum(a.system for a in heap.arenas) == info["arena"]
    assert (heap.mmapped_blocks, heap.mmapped_bytes) == (info["hblks"], info["hblkhd"])
    assert heap.free_bytes - sum(a.cached for a in heap.arenas) == info["fordblks"]
    assert heap.warnings == []
    assert [(g.count, g.size) for g in heap.unreachable] == ([(LOST, LOST_SIZE)] if what == "leak" else [])


IDLE = "import sys; print('READY'); sys.stdout.flush(); sys.stdin.read()"
BUSY = """
import asyncio, ctypes, decimal, hashlib, json, re, socket, sqlite3, ssl, subprocess, sys, threading
subprocess.run(["true"])
workers = [threading.Thread(target=lambda: re.compile("a+b")) for _ in range(8)]
[w.start() for w in workers]
[w.join() for w in workers]
context = ssl.create_default_context()
sqlite3.connect(":memory:").execute("select 1").fetchall()
socket.getaddrinfo("localhost", 80)
async def nap(): await asyncio.sleep(0.01)
asyncio.run(nap())
print("READY"); sys.stdout.flush(); sys.stdin.read()
"""


@pytest.mark.parametrize("text", [IDLE, BUSY], ids=["idle", "busy"])
@pytest.mark.parametrize("interpreter", interpreters(), ids=str)
def test_a_healthy_interpreter_has_lost_nothing(interpreter: Interpreter, text: str) -> None:
    try:
        with started(*interpreter.argv, "-I", "-c", text) as running, capture_live(running.pid) as capture:
            heap = native_heap(capture)
    except RuntimeError:
        pytest.skip("this interpreter lacks a module")
    assert heap.reachability == "judged"
    assert heap.unreachable == []
    assert heap.warnings == []
    assert heap.thread_caches == len(capture.threads)
