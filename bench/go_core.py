"""Goroutines from memory: a core of 100,000, and how long a live process with as many stands still."""

from __future__ import annotations

import os
import re
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common import BIN, ROOT, Row, Table, run

MINOR = "1.27"
COUNT = 100_000


def go_core(rounds: int) -> Iterator[Table]:
    """A program of fixtures/go with 100,000 goroutines more, stripped."""
    goroot = next(
        (p for p in (ROOT / f".cache/go/{MINOR}", Path(f"/usr/lib/go-{MINOR}")) if p.is_dir()), None
    )
    if goroot is None or shutil.which("gcore") is None:
        return
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        program = _built(goroot, folder)
        with _running(program) as pid:
            subprocess.run(["gcore", "-o", f"{folder}/core", str(pid)], capture_output=True, check=True)
            table = Table(
                f"Stop of a live Go process with {COUNT:,} goroutines (milliseconds)", ["as reported"]
            )
            line = [str(BIN / "diagtool"), "stacks", str(pid)]
            told = [re.search(r"stopped for ([0-9.]+) ms", run(line)[2]) for _ in range(rounds)]
            stops = [float(t[1]) for t in told if t is not None]
            if stops:
                table.rows.append(Row("diagtool stacks", {"as reported": statistics.median(stops)}))
                yield table
        table = Table(f"A core with {COUNT:,} goroutines, Go {MINOR}, stripped", ["wall s", "peak RSS MiB"])
        results = [run([str(BIN / "diagtool"), "leaks", f"{folder}/core.{pid}"]) for _ in range(rounds)]
        found = re.search(r"([0-9,]+) stacks", results[0][2])
        figures: dict[str, float | None] = {
            "wall s": statistics.median(r[0] for r in results),
            "peak RSS MiB": statistics.median(r[1] for r in results),
        }
        table.rows.append(Row("diagtool leaks", figures, f"{found[1] if found else 'no'} stacks"))
        yield table


def _built(goroot: Path, folder: str) -> Path:
    out = Path(folder) / "frames"
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("GO")},
        "GOROOT": str(goroot),
        "GOCACHE": str(ROOT / ".cache/go-cache"),
        "GOTOOLCHAIN": "local",
        "GOPROXY": "off",
        "CGO_ENABLED": "0",
    }
    command = [str(goroot / "bin/go"), "build", "-ldflags=-s -w", "-o", str(out), "./frames"]
    subprocess.run(command, cwd=ROOT / "fixtures/go", env=environment, check=True, capture_output=True)
    return out


@contextmanager
def _running(program: Path) -> Iterator[int]:
    process = subprocess.Popen(
        [program, "many", str(COUNT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline().startswith("READY")
        yield process.pid
    finally:
        process.kill()
        process.wait()
