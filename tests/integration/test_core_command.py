"""`diagtool core` writes a core that gdb and diagtool read as one of the kernel, or nothing at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import native
from diagtool.api import find_leaks, snapshot
from diagtool.capture import ptrace
from diagtool.capture.core import open_core
from diagtool.capture.live import capture_live

pytestmark = pytest.mark.skipif(not ptrace.supported(), reason="live processes on Linux on x86-64 only")

PYSTACK = shutil.which("pystack", path=os.path.dirname(sys.executable))
SERVICE = str(Path(__file__).parents[2] / "fixtures/python/service.py")


@pytest.fixture
def target() -> Iterator[native.Program]:
    with native.started(sys.executable, SERVICE, "leak", "50") as program:
        yield program


def diagtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "diagtool", *arguments], capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("options", [[], ["--compress", "zstd"]])
def test_a_core_shows_the_same_as_the_process(
    target: native.Program, tmp_path: Path, options: list[str]
) -> None:
    path = tmp_path / "a core"
    done = diagtool("core", str(target.pid), "-o", str(path), *options)
    assert done.returncode == 0, done.stderr
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["a core"]

    def found(name: str) -> list[tuple[str, str, int]]:
        report = find_leaks(snapshot(name))
        return [(f.verdict, f.template or "", f.count) for f in report.findings]

    live = found(str(target.pid))
    assert live
    assert found(str(path)) == live
    assert Path(f"/proc/{target.pid}/task/{target.pid}/children").read_text() == ""


def test_memory_and_registers_are_those_of_the_process(tmp_path: Path) -> None:
    path = tmp_path / "core"
    with native.started(native.built("images"), "32") as program:
        assert diagtool("core", str(program.pid), "-o", str(path), "--clone", "always").returncode == 0
        with open_core(str(path)) as core, capture_live(program.pid) as live:
            assert not core.warnings
            assert [t.tid for t in core.threads] == [t.tid for t in live.threads]
            assert [m.path for m in core.modules] == [m.path for m in live.modules]
            ones = np.uint64(0x0101010101010101)
            assert sum(int((words == ones).sum()) for _, words in core.memory.blocks()) >= (32 << 20) // 8
            pointer = live.threads[0].registers["rsp"]
            assert core.memory.read(pointer, 256) == live.memory.read(pointer, 256)


@pytest.mark.skipif(shutil.which("gdb") is None, reason="no gdb here")
def test_gdb_unwinds_it(tmp_path: Path) -> None:
    path = tmp_path / "core"
    with native.started(native.built("images")) as program:
        assert diagtool("core", str(program.pid), "-o", str(path)).returncode == 0
    command = ["gdb", "-batch", "-nx", "-ex", "thread apply all bt", "-ex", "info registers xmm0"]
    text = subprocess.run(
        [*command, native.built("images"), str(path)], capture_output=True, text=True, timeout=60
    ).stdout
    assert "in main (" in text
    assert "work (unused" in text or "sum ()" in text
    assert "xmm0" in text


def test_drgn_unwinds_it_and_reads_its_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drgn = pytest.importorskip("drgn")
    monkeypatch.delenv("DEBUGINFOD_URLS", raising=False)
    path = tmp_path / "core"
    with native.started(native.built("images")) as target:
        assert diagtool("core", str(target.pid), "-o", str(path)).returncode == 0
        tids = {int(tid) for tid in os.listdir(f"/proc/{target.pid}/task")}
    program = drgn.Program()
    program.set_core_dump(str(path))
    with contextlib.suppress(drgn.MissingDebugInfoError):  # the C library's need not be here
        program.load_default_debug_info()
    stacks = {t.tid: t.stack_trace() for t in program.threads()}
    assert stacks.keys() == tids
    assert program.main_thread().tid == target.pid
    assert "main" in [frame.name for frame in stacks[target.pid]]
    assert any("work" in [frame.name for frame in stack] for stack in stacks.values())
    with open_core(str(path)) as core:
        for thread in core.threads:
            pointer = thread.registers["rsp"]
            assert stacks[thread.tid][0].register("rsp") == pointer
            assert program.read(pointer, 256) == core.memory.read(pointer, 256)


@pytest.mark.skipif(PYSTACK is None, reason="no pystack")
def test_pystack_shows_the_frames_of_python(target: native.Program, tmp_path: Path) -> None:
    assert PYSTACK is not None
    path = tmp_path / "core"
    assert diagtool("core", str(target.pid), "-o", str(path)).returncode == 0
    done = subprocess.run([PYSTACK, "core", str(path)], capture_output=True, text=True, timeout=100)
    assert "service.py" in done.stdout, done.stderr
    assert "asyncio.run(" in done.stdout


def test_what_can_not_be_written_leaves_nothing(target: native.Program, tmp_path: Path) -> None:
    done = diagtool("core", str(target.pid), "-o", str(tmp_path / "none" / "core"))
    assert done.returncode == 3
    assert "cannot be written" in done.stderr
    assert diagtool("core", "no-pid").returncode == 2
    assert diagtool("core", "4194000", "-o", str(tmp_path / "core")).returncode == 3
    assert os.listdir(tmp_path) == []
