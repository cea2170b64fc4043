"""`diagtool snapshot --core` writes, from the same stop, a core small enough to mail that shows the same."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import native
from diagtool.api import find_leaks, load, snapshot
from diagtool.capture import ptrace
from diagtool.capture.core import open_core
from fixture_programs import Running, interpreters, launch

pytestmark = pytest.mark.skipif(not ptrace.supported(), reason="live processes on Linux on x86-64 only")

PYSTACK = Path(sys.executable).parent / "pystack"
SERVICE = str(Path(__file__).parents[2] / "fixtures/python/service.py")

#: Tasks that nothing can wake, a thread in a deep recursion, and a heap that is not wanted.
PROGRAM = """
import asyncio, os, sys, threading

class Node:
    def __init__(self, i):
        self.name = "node %d" % i

async def leaf(q):
    return await q.get()

async def alone():
    await leaf(asyncio.Queue())

def deep(n):
    if n:
        return deep(n - 1)
    there.set()
    threading.Event().wait()

nodes = [Node(i) for i in range(200_000)]
blobs = [bytes([i % 250 + 1]) * 2000 for i in range(20_000)]
there = threading.Event()
threading.Thread(target=deep, args=(100,), daemon=True).start()
there.wait()
tasks = set()

async def main():
    for _ in range(300):
        tasks.add(asyncio.create_task(alone()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    print("READY", os.getpid(), flush=True)
    await asyncio.sleep(3600)

asyncio.run(main())
"""


def diagtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "diagtool", *arguments], capture_output=True, text=True, timeout=100
    )


def slim_core(program: Running, folder: Path) -> Path:
    core = folder / "core"
    done = diagtool("snapshot", str(program.pid), "--core", str(core), "-o", str(folder / "one.diag"))
    assert done.returncode == 0, done.stderr
    assert core.stat().st_blocks * 512 < 25 << 20
    return core


def findings(path: Path, root: Path | None = None) -> list[tuple[str, str, int, list[str]]]:
    snap = load(path) if path.suffix == ".diag" else snapshot(path, sysroot=root)
    return [(f.verdict, f.template or "", f.count, f.held_by) for f in find_leaks(snap).findings]


def test_the_core_of_a_small_process_shows_the_same(tmp_path: Path) -> None:
    core, diag = tmp_path / "a core", tmp_path / "one.diag"
    with native.started(sys.executable, SERVICE, "leak", "50") as program:
        done = diagtool("snapshot", str(program.pid), "--core", str(core), "-o", str(diag), "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["core"] == str(core)
        assert core.stat().st_mode & 0o777 == 0o600
        assert sorted(os.listdir(tmp_path)) == ["a core", "one.diag"]
        packed = tmp_path / "packed.zst"
        assert diagtool("snapshot", str(program.pid), "--core", str(packed), "-o", str(diag)).returncode == 0
        assert packed.read_bytes()[:4] == b"\x28\xb5\x2f\xfd"
        assert packed.stat().st_size < core.stat().st_size // 2
    assert findings(core) == findings(diag) == findings(packed)
    with open_core(str(core)) as opened:
        assert not opened.missing


@pytest.fixture(params=interpreters()[3::3], ids=str, scope="module")
def large(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Running, Path]:
    path = tmp_path_factory.mktemp("large") / "program.py"
    path.write_text(PROGRAM)
    program = request.getfixturevalue("stack_of_programs").enter_context(
        launch(path, interpreter=request.param)
    )
    return program, request.param.root


@pytest.fixture(scope="module")
def stack_of_programs() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_of_a_large_process_the_heap_is_left_out(large: tuple[Running, Path | None], tmp_path: Path) -> None:
    program, root = large
    core, diag = tmp_path / "core", tmp_path / "one.diag"
    done = diagtool("snapshot", str(program.pid), "--core", str(core), "-o", str(diag), "--heap")
    assert done.returncode == 0, done.stderr
    assert core.stat().st_blocks * 512 < 25 << 20
    # What is not there is no evidence of anything: nothing is proven any more, nothing else differs.
    whole = findings(diag)
    assert [(v, t, n) for v, t, n, _ in whole] == [("proven", "asyncio-queue-get-starved", 300)]
    assert findings(core, root) == [("likely", *rest) for _, *rest in whole]
    with open_core(str(core), sysroot=str(root) if root else None) as opened:
        assert opened.missing > 40 << 20
        assert any("slim core" in warning for warning in opened.warnings)


@pytest.mark.skipif(shutil.which("gdb") is None, reason="no gdb here")
def test_gdb_unwinds_every_thread_to_its_start(large: tuple[Running, Path | None], tmp_path: Path) -> None:
    program, root = large
    core = slim_core(program, tmp_path)
    commands = [f"set sysroot {root.resolve()}"] if root else []
    commands += [f"core-file {core}", "thread apply all bt -2", "info sharedlibrary"]
    exe = os.path.realpath(f"/proc/{program.pid}/exe")
    text = subprocess.run(
        ["gdb", "-batch", "-nx", *(a for c in commands for a in ("-ex", c)), exe],
        capture_output=True,
        text=True,
        timeout=100,
    ).stdout
    assert len(re.findall(r"^Thread \d+ ", text, re.MULTILINE)) == 2, text
    assert re.search(r"in (main|_start|__libc_start_main\w*) \(", text), text
    if root is None:  # the newest C library has its symbols elsewhere
        assert re.search(r"clone3? \(|start_thread", text), text
    assert "libc.so.6" in text and "lib-dynload" in text


@pytest.mark.skipif(
    shutil.which("pystack", path=os.path.dirname(sys.executable)) is None, reason="no pystack"
)
def test_pystack_shows_the_frames(large: tuple[Running, Path | None], tmp_path: Path) -> None:
    program, root = large
    if root is not None:
        pytest.skip("pystack reads no core of another root")
    core = slim_core(program, tmp_path)
    text = subprocess.run([PYSTACK, "core", str(core)], capture_output=True, text=True, timeout=100).stdout
    assert text.count("in deep") == 101
    assert "asyncio.run(main())" in text


def test_what_can_not_be_written_is_said_before_the_stop(tmp_path: Path) -> None:
    diag = str(tmp_path / "one.diag")
    with native.started(sys.executable, SERVICE, "healthy", "5") as program:
        pid = str(program.pid)
        done = diagtool("snapshot", pid, "--core", str(tmp_path / "none" / "core"), "-o", diag)
        assert done.returncode == 3 and "cannot be written" in done.stderr
        assert "--core FILE" in done.stderr
        assert diagtool("snapshot", pid, "--core", diag, "-o", diag).returncode == 2
        assert diagtool("snapshot", pid, "--core", str(tmp_path), "-o", diag).returncode == 3
        assert os.listdir(tmp_path) == []
        kept = tmp_path / "kept"
        assert diagtool("snapshot", pid, "--core", str(kept), "-o", diag).returncode == 0
        assert diagtool("snapshot", str(kept), "--core", str(tmp_path / "again")).returncode == 2
