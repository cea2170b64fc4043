"""Execution traces of Go: fifty pairs of goroutines that do nothing but wake each other, for some seconds."""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from common import BIN, ROOT, Row, Table, run

#: A version of each wire.
MINORS = ("1.19", "1.27")
SECONDS = 4


def go_traces(rounds: int) -> Iterator[Table]:
    """A trace of each wire."""
    for minor in MINORS:
        goroot = next(
            (p for p in (ROOT / f".cache/go/{minor}", Path(f"/usr/lib/go-{minor}")) if p.is_dir()), None
        )
        if goroot is None:
            continue
        with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
            trace = _recorded(goroot, minor, Path(folder))
            size = trace.stat().st_size / 1e6
            table = Table(
                f"An execution trace of Go {minor}, {size:,.0f} MB", ["wall s", "MB/s", "peak RSS MiB"]
            )
            # `go tool trace -d=parsed` prints each event, and takes minutes: no peer for this.
            results = [run([str(BIN / "diagtool"), "leaks", str(trace)]) for _ in range(rounds)]
            wall = statistics.median(r[0] for r in results)
            rss = statistics.median(r[1] for r in results)
            figures: dict[str, float | None] = {"wall s": wall, "MB/s": size / wall, "peak RSS MiB": rss}
            table.rows.append(Row("diagtool leaks", figures))
            yield table


def _settings(goroot: Path) -> list[str]:
    return [
        f"GOROOT={goroot}",
        f"GOCACHE={ROOT / '.cache/go-cache'}",
        "GOTOOLCHAIN=local",
        "GOPROXY=off",
        "GOFLAGS=",
        "CGO_ENABLED=0",
    ]


def _recorded(goroot: Path, minor: str, folder: Path) -> Path:
    program, trace = folder / "traced", folder / "it.trace"
    module = folder / "go.mod"
    fixtures = ROOT / "fixtures" / "go"
    module.write_text((fixtures / "go.mod").read_text().replace("go 1.19", f"go {minor}"))
    line = ["env", *_settings(goroot), str(goroot / "bin/go"), "build", f"-modfile={module}"]
    subprocess.run([*line, "-o", str(program), "./traced"], cwd=fixtures, check=True, capture_output=True)
    process = subprocess.Popen(
        [program, "busy", "50"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        assert process.stdout.readline().startswith("READY")
        for command, pause in ((f"trace {trace}", SECONDS), ("endtrace", 0)):
            process.stdin.write(command + "\n")
            process.stdin.flush()
            process.stdout.readline()
            time.sleep(pause)
    finally:
        process.kill()
        process.wait()
    return trace
