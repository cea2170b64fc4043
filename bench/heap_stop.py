"""How long a process of 2 GiB stands still while its heap, or all its memory, is taken."""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from common import BIN, Row, Table, gap_ms, interpreter, run, target

GIB = 2

#: The least that an image can cost: what the kernel takes for a fork of as much memory.
FORK = f"""
import os, time
blobs = [bytearray(b"Z") * (1 << 20) for _ in range({GIB * 1024})]
for _ in range(5):
    start = time.perf_counter()
    child = os.fork()
    if not child:
        os._exit(0)
    print((time.perf_counter() - start) * 1e3, flush=True)
    os.waitpid(child, 0)
"""


def heap_stop(rounds: int) -> Iterator[Table]:
    """The largest gap that a busy thread in the target sees, in milliseconds, and per GiB."""
    command = interpreter("3.12") or [sys.executable]
    columns = ["largest gap seen inside", "the same per GiB", "stop as reported"]
    table = Table(f"Stop of a process of {GIB} GiB for its heap or a core (milliseconds)", columns)
    with tempfile.TemporaryDirectory() as folder, target(command, 100, 2, GIB) as process:
        pid = str(process.pid)
        tools = [
            (
                "diagtool snapshot --heap",
                [str(BIN / "diagtool"), "snapshot", pid, "--heap", "-o", f"{folder}/b.diag", "--json"],
            ),
            ("diagtool core", [str(BIN / "diagtool"), "core", pid, "-o", f"{folder}/own"]),
        ]
        if shutil.which("gcore"):
            tools.append(("gcore", ["gcore", "-o", f"{folder}/b", pid]))
        for name, line in tools:
            gaps, told = [], []
            for _ in range(rounds if name != "gcore" else 1):
                gap_ms(process)
                output = run(line)[2]
                gaps.append(gap_ms(process))
                if line[-1] == "--json":
                    told.append(float(json.loads(output)["pause_ms"]))
                for file in Path(folder).iterdir():
                    file.unlink()
            gap = statistics.median(gaps)
            row = Row(name, {columns[0]: gap, columns[1]: gap / GIB})
            if told:
                row.figures[columns[2]] = statistics.median(told)
            table.rows.append(row)
    gap = statistics.median(float(word) for word in run([*command, "-c", FORK])[2].split())
    table.rows.append(Row("os.fork()", {columns[0]: gap, columns[1]: gap / GIB}, "by a process itself"))
    yield table
