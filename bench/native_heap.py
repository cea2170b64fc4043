"""How fast glibc's heap is walked, and judged, of a process with a million and a half blocks."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator

from common import BIN, ROOT, Row, Table

BLOCKS = 1_500_000

#: Run by our own interpreter. Prints blocks, then seconds and CPU seconds of each row.
MEASURE = """
import json, sys, time
from diagtool.capture.live import capture_live
from diagtool.runtimes.native import native_heap

out = []
for judged, clone in ((False, "never"), (False, "always"), (True, "always")):
    with capture_live(int(sys.argv[1]), clone=clone) as capture:
        wall, cpu = time.perf_counter(), time.process_time()
        heap = native_heap(capture, reachability=judged)
        out += [time.perf_counter() - wall, time.process_time() - cpu]
print(json.dumps([len(heap.blocks), *out]))
"""


def native_heap(rounds: int) -> Iterator[Table]:
    """Blocks a second. No peer that can be installed reads a heap of malloc without debug symbols."""
    if shutil.which("gcc") is None:
        print("(no gcc: the walk of glibc's heap is left out)")
        return
    columns = ["seconds", "CPU seconds", "million blocks a second of CPU time"]
    with tempfile.TemporaryDirectory() as folder:
        program = f"{folder}/blocks"
        source = str(ROOT / "tests/programs/blocks.c")
        subprocess.run(["gcc", "-O1", "-pthread", source, "-o", program], check=True)
        process = subprocess.Popen(
            [program, "healthy", str(BLOCKS), "1"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            assert process.stdout is not None and process.stdout.readline().startswith("READY")
            python = str(BIN / "python") if (BIN / "python").exists() else sys.executable
            command = [python, "-c", MEASURE, str(process.pid)]
            runs = [
                json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
                for _ in range(rounds)
            ]
        finally:
            process.kill()
            process.wait()
    blocks, *figures = (statistics.median(column) for column in zip(*runs, strict=True))
    table = Table(f"Heap of glibc with {blocks:,.0f} blocks", columns)
    rows = ("walk, memory copied in the stop", "walk, from an image", "walk, and what is unreachable")
    for name, wall, cpu in zip(rows, figures[::2], figures[1::2], strict=True):
        table.rows.append(Row(name, dict(zip(columns, (wall, cpu, blocks / cpu / 1e6), strict=True))))
    yield table
