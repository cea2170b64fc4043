"""What measurements share: tables, interpreters, a target that measures its own gaps, runs of commands."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = ROOT / ".venv/bin"
TARGET = ROOT / "bench/target.py"


@dataclass
class Row:
    """One tool's figures: medians by column."""

    tool: str
    figures: dict[str, float | None]
    note: str = ""


@dataclass
class Table:
    """One measurement."""

    title: str
    columns: list[str]
    rows: list[Row] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        """As Markdown, with ratios to the first row."""
        yield f"### {self.title}"
        yield ""
        yield "| tool | " + " | ".join(f"{c} | ratio" for c in self.columns) + " | note |"
        yield "|---|" + "---:|" * (2 * len(self.columns)) + "---|"
        first = self.rows[0].figures
        for row in self.rows:
            cells = []
            for c in self.columns:
                value, base = row.figures.get(c), first.get(c)
                cells.append("–" if value is None else f"{value:,.1f}")
                cells.append("–" if value is None or not base else f"{value / base:.1f}×")
            yield f"| {row.tool} | " + " | ".join(cells) + f" | {row.note} |"
        yield ""


def interpreter(version: str) -> list[str] | None:
    """Command of a Python of this version: from the tests' index, else from PATH."""
    index = ROOT / ".cache/interpreters/index.json"
    if index.exists():
        found = json.loads(index.read_text())["interpreters"]
        for entry in sorted(found, key=lambda e: e["root"] is not None):
            if entry["version"] == version and entry["flavour"] == "release":
                return list(entry["argv"])
    path = shutil.which(f"python{version}")
    return [path] if path else None


@contextmanager
def target(command: list[str], *args: object, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Start bench/target.py and wait until it is ready."""
    program = str(TARGET)
    if command[0].endswith("chroot"):
        shutil.copy(TARGET, Path(command[1], "tmp/target.py"))
        program = "/tmp/target.py"

    def allow_cores() -> None:
        hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
        resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))

    process = subprocess.Popen(
        [*command, program, *map(str, args)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
        cwd=environment.get("PWD"),
        preexec_fn=allow_cores,
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if line.startswith("READY"):
                break
        yield process
    finally:
        process.kill()
        process.wait()


def gap_ms(process: subprocess.Popen[str]) -> float:
    """The largest gap that the target's busy thread saw since the last question."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    for line in process.stdout:
        if line.startswith("GAP_MS"):
            return float(line.split()[1])
    raise RuntimeError("the target died")


def run(command: list[str], cwd: str | None = None) -> tuple[float, float, str, int]:
    """(wall seconds, peak RSS in MiB, standard output, exit status) of a command."""
    with tempfile.TemporaryFile() as out:
        start = time.perf_counter()
        # An installed program has its bytecode; who develops may have told Python not to write any.
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.DEVNULL, cwd=cwd, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        return wall, usage.ru_maxrss / 1024, out.read().decode("utf-8", "replace"), process.returncode
