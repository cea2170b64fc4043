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
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from common import BIN, ROOT, Row, Table, gap_ms, interpreter, run, target
from go_core import go_core
from go_text import go_dumps
from go_traces import go_traces
from heap_stop import heap_stop
from memory import memory
from native_heap import native_heap
from native_stacks import native_stacks
from object_heap import object_heap
from pytest_plugin import pytest_plugin
from reports import reports


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
    "go-core": go_core,
    "go-dumps": go_dumps,
    "go-traces": go_traces,
    "heap-stop": heap_stop,
    "memory": memory,
    "native-heap": native_heap,
    "native-stacks": native_stacks,
    "object-heap": object_heap,
    "pytest-plugin": pytest_plugin,
    "reports": reports,
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
