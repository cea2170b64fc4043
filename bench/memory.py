"""Whose the memory of a process of 2 GiB is: how long the report takes, and how far its sum is from VmRSS."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from common import BIN, Row, Table, interpreter, run

#: Bytes of large buffers, objects in arenas, blocks of malloc with holes among them; then a thread's arena.
PROGRAM = """
import ctypes, sys, threading

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
buffers = [bytearray(b"b") * (1 << 20) for _ in range(1100)]
texts = [b"x" * 200 + str(i).encode() for i in range(2_500_000)]

def blocks(number, every):
    made = [libc.malloc(1000 + i % 1000) for i in range(number)]
    for address in made:
        ctypes.memset(address, 1, 1000)
    for i, address in enumerate(made):
        if i % every == 0:
            libc.free(address)

blocks(300_000, int(sys.argv[1]))
threading.Thread(target=lambda: blocks(10_000, 2)).start()
print("READY", flush=True)
sys.stdin.read()
"""

#: What psutil's memory_full_info() needs, as somebody's script would have it.
PSUTIL = "import sys, psutil; print(psutil.Process(int(sys.argv[1])).memory_full_info().rss)"


def memory(rounds: int) -> Iterator[Table]:
    """The report by owner, against tools that add up by mapping or not at all."""
    command = interpreter("3.12") or [sys.executable]
    columns = ["wall s", "error of the sum %"]
    for every, name in ((1000, "few holes"), (2, "150,000 holes")):
        with _target([*command, "-c", PROGRAM, str(every)]) as pid:
            table = Table(f"Memory of {_rss(pid) / 2**30:.1f} GiB by owner, {name} in malloc's heap", columns)
            for tool, line, sum_of in _tools(pid):
                results = []
                for _ in range(rounds + 1):
                    wall, _, output, status = run(line)
                    if status:
                        break
                    error = abs(sum_of(output) / _rss(pid) - 1) * 100 if sum_of is not None else None
                    results.append((wall, error))
                if not results:
                    table.rows.append(Row(tool, {}, "failed"))
                    continue
                walls, errors = zip(*results[1:], strict=True)
                worst = None if None in errors else max(errors)
                table.rows.append(
                    Row(tool, dict(zip(columns, (statistics.median(walls), worst), strict=True)))
                )
        yield table


def _tools(pid: int) -> list[tuple[str, list[str], Callable[[str], int] | None]]:
    python = str(BIN / "python") if (BIN / "python").exists() else sys.executable
    tools: list[tuple[str, list[str], Callable[[str], int] | None]] = [
        (
            "diagtool memory",
            [str(BIN / "diagtool"), "memory", str(pid), "--format", "json"],
            lambda text: sum(owner["rss"] for owner in json.loads(text)["owners"]),
        ),
    ]
    if not run([python, "-c", "import psutil"])[3]:
        name = "psutil memory_full_info(), sums only"
        tools.append((name, [python, "-c", PSUTIL, str(pid)], lambda text: int(text)))
    if shutil.which("pmap"):
        # A line a mapping, then the sums; Rss is the seventh column.
        tools.append(("pmap -X, by mapping", ["pmap", "-X", str(pid)], _of_pmap))
    if shutil.which("smem"):
        tools.append(("smem -m, by mapping", ["smem", "-m", "-P", f"^{pid}$"], None))
    return tools


def _of_pmap(text: str) -> int:
    lines = text.splitlines()
    column = lines[1].split().index("Rss")
    # In the last line, of sums, the columns before Size are missing.
    return int(lines[-1].split()[column - lines[1].split().index("Size")]) << 10


def _rss(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith("VmRSS:")).split()[1]) << 10


@contextmanager
def _target(command: list[str]) -> Iterator[int]:
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline().startswith("READY")
        yield process.pid
    finally:
        process.kill()
        process.wait()
