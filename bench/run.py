#!/usr/bin/env python3
"""Measure diagtool side by side with pinned peers, in one run: ``make bench``.

Prints one table a measurement: the figure of each tool and its ratio to diagtool's. ``--write FILE``
also writes them as Markdown (docs/benchmarks.md), ``--only NAME`` runs a part, ``--rounds N`` sets how often
each tool is run (the median counts). Peers that are not there are left out and named.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
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
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.DEVNULL, cwd=cwd)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        return wall, usage.ru_maxrss / 1024, out.read().decode("utf-8", "replace"), process.returncode


def tools_for(pid: int, folder: str) -> list[tuple[str, list[str]]]:
    """Peers that read a live process, those that are installed."""
    found = [
        (
            "diagtool snapshot",
            [str(BIN / "diagtool"), "snapshot", str(pid), "-o", f"{folder}/b.diag", "--json"],
        )
    ]
    for name, command in (
        ("py-spy dump", [str(BIN / "py-spy"), "dump", "--pid", str(pid)]),
        ("pystack remote", [str(BIN / "pystack"), "remote", str(pid)]),
        ("gcore", ["gcore", "-o", f"{folder}/b", str(pid)]),
    ):
        if shutil.which(command[0]):
            found.append((name, command))
    return found


def stop(rounds: int) -> Iterator[Table]:
    """How long the target stands still."""
    command = interpreter("3.12") or [sys.executable]
    for tasks, threads in ((100, 2), (10_000, 62)):
        table = Table(
            f"Stop of the target: {threads + 2} and more threads, {tasks:,} tasks (milliseconds)",
            ["largest gap seen inside", "stop as reported"],
        )
        with tempfile.TemporaryDirectory() as folder, target(command, tasks, threads) as process:
            tools = tools_for(process.pid, folder)
            seen: dict[str, list[float]] = {name: [] for name, _ in tools}
            told: list[float] = []
            quiet: list[float] = []
            for i in range(rounds):
                gap_ms(process)
                time.sleep(0.5)
                quiet.append(gap_ms(process))
                for name, line in tools:
                    if name == "gcore" and i >= 2:
                        continue
                    gap_ms(process)
                    output = run(line)[2]
                    seen[name].append(gap_ms(process))
                    if name.startswith("diagtool"):
                        told.append(json.loads(output)["pause_ms"])
                for core in Path(folder).glob("b.*[0-9]"):
                    core.unlink()
        for name, values in seen.items():
            row = Row(name, {"largest gap seen inside": statistics.median(values)})
            if name.startswith("diagtool"):
                row.figures["stop as reported"] = statistics.median(told)
            table.rows.append(row)
        note = "what the busy thread sees when nobody looks"
        table.rows.append(Row("(nothing)", {"largest gap seen inside": statistics.median(quiet)}, note))
        yield table


def own_tool(command: list[str], pid: int) -> list[str]:
    """CPython's own tool for its tasks. In a chroot it needs /proc, and its files where maps say they are."""
    tool = ["-m", "asyncio", "ps", str(pid)]
    if not command[0].endswith("chroot"):
        return [*command, *tool]
    root = command[1]
    Path(f"{root}/{root}").mkdir(parents=True, exist_ok=True)
    mounts = 'mount --rbind /proc "$0/proc" && mount --bind "$0" "$0/$0" && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", mounts, root, *command, *tool]


def many_tasks(rounds: int) -> Iterator[Table]:
    """A complete snapshot of 100,000 tasks."""
    command = interpreter("3.14")
    if command is None:
        print("(CPython 3.14 is not there: its own asyncio tool is left out)")
        return
    table = Table("100,000 tasks in CPython 3.14, complete (seconds)", ["wall"])
    with tempfile.TemporaryDirectory() as folder, target(command, 100_000, 2, NO_BUSY_THREAD="1") as process:
        line = [str(BIN / "diagtool"), "snapshot", str(process.pid), "-o", f"{folder}/t.diag"]
        own = [run(line)[0] for _ in range(rounds)]
        table.rows.append(Row("diagtool snapshot", {"wall": statistics.median(own)}))
        peer = own_tool(command, process.pid)
        results = [run(peer) for _ in range(max(1, rounds // 2))]
        lines = statistics.median(len(r[2].splitlines()) for r in results)
        good = sum(r[3] == 0 for r in results)
        row = Row("python -m asyncio ps", {"wall": statistics.median(r[0] for r in results)})
        # It ends with status 0 in any case; an error stands in the place of the table.
        said = results[0][2].strip().splitlines()[-1:] or [""]
        failed = said[0].startswith("Error")
        row.note = f"failed: {said[0]}" if failed or not good else f"{lines:,.0f} lines"
        table.rows.append(row)
    yield table


def big_core(rounds: int) -> Iterator[Table]:
    """A core of 3.5 GiB with 10,000 tasks and 50 threads."""
    command = interpreter("3.12") or [sys.executable]
    table = Table("Core of 3.5 GiB, 10,000 tasks, 50 threads, in the page cache", ["wall s", "peak RSS MiB"])
    with tempfile.TemporaryDirectory() as folder:
        with target(command, 10_000, 48, 3.5, NO_BUSY_THREAD="1", PWD=folder) as process:
            os.kill(process.pid, signal.SIGABRT)
            process.wait()
        cores = list(Path(folder).glob("core*"))
        if not cores:
            print("(no core was written here: the measurement on cores is left out)")
            return
        core = str(cores[0])
        for name, line in (
            ("diagtool leaks", [str(BIN / "diagtool"), "leaks", core]),
            ("py-spy dump --core", [str(BIN / "py-spy"), "dump", "--core", core]),
            ("pystack core", [str(BIN / "pystack"), "core", core, command[-1]]),
        ):
            if not shutil.which(line[0]):
                continue
            run(line)
            results = [run(line) for _ in range(max(2, rounds // 2))]
            note = "threads only, no tasks" if not name.startswith("diagtool") else ""
            table.rows.append(
                Row(
                    name,
                    {
                        "wall s": statistics.median(r[0] for r in results),
                        "peak RSS MiB": statistics.median(r[1] for r in results),
                    },
                    note
                    if results[0][3] == int(name.startswith("diagtool"))
                    else f"failed (status {results[0][3]})",
                )
            )
    yield table


def start_up(rounds: int) -> Iterator[Table]:
    """What a person waits before anything happens."""
    table = Table("Start-up (milliseconds)", ["wall"])
    for name, line in (
        ("diagtool --version", [str(BIN / "diagtool"), "--version"]),
        ("diagtool --help", [str(BIN / "diagtool"), "--help"]),
        ("pystack --version", [str(BIN / "pystack"), "--version"]),
    ):
        if shutil.which(line[0]):
            walls = [run(line)[0] * 1e3 for _ in range(2 * rounds + 1)]
            table.rows.append(Row(name, {"wall": statistics.median(walls)}))
    yield table


PARTS: dict[str, Callable[[int], Iterator[Table]]] = {
    "stop": stop,
    "tasks": many_tasks,
    "core": big_core,
    "start": start_up,
}


def versions() -> str:
    """The versions of all tools, for the record."""
    freeze = run([str(BIN / "python"), "-m", "pip", "list", "--format", "freeze"])[2].split()
    out = [line for line in freeze if line.partition("==")[0] in ("numpy", "py-spy", "pystack")]
    gdb = run(["gdb", "--version"])[2].split("\n")[0] if shutil.which("gdb") else "no gdb"
    return ", ".join([*filter(None, out), gdb, f"kernel {platform.release()}", f"{os.cpu_count()} cores"])


def main() -> None:
    """Run the parts, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=PARTS, action="append")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", type=Path, help="Markdown file to write")
    args = parser.parse_args()
    lines = [f"Measured on {datetime.date.today().isoformat()} with {versions()}.", ""]
    print(lines[0], flush=True)
    for name in args.only or PARTS:
        for table in PARTS[name](args.rounds):
            text = list(table.lines())
            print("\n".join(text), flush=True)
            lines += text
    if args.write:
        head = (ROOT / "bench/benchmarks.head.md").read_text()
        args.write.write_text(head + "\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
