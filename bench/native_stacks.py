"""Native stacks merged with Python's: how long the target stands still, and how long it takes."""

from __future__ import annotations

import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common import BIN, Row, Table, gap_ms, interpreter, run, target

#: A program in C with so many threads, all asleep.
CROWD = """
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t work = PTHREAD_COND_INITIALIZER;
static void *wait_for_work(void *argument)
{
    pthread_mutex_lock(&mutex);
    for (;;)
        pthread_cond_wait(&work, &mutex);
    return argument;
}
int main(int count, char **words)
{
    for (int i = 0; i < atoi(words[1]); i++) {
        pthread_t thread;
        pthread_create(&thread, NULL, wait_for_work, NULL);
    }
    sleep(1);
    puts("READY");
    fflush(stdout);
    for (;;)
        pause();
    return count;
}
"""


def native_stacks(rounds: int) -> Iterator[Table]:
    """64 threads of Python against its peers; 160 threads of C."""
    command = interpreter("3.12") or [sys.executable]
    gap, wall, stop = "largest gap seen inside ms", "wall s", "stop as reported ms"
    table = Table("Merged native stacks of 64 threads, CPython 3.12", [gap, wall, stop])
    with tempfile.TemporaryDirectory() as folder, target(command, 10, 60) as process:
        for name, line in _tools(process.pid, folder):
            gaps, walls, told, lines = [], [], [], 0
            for _ in range(rounds):
                gap_ms(process)
                seconds, _, output, _ = run(line)
                gaps.append(gap_ms(process))
                walls.append(seconds)
                lines = _frames(name, output)
                stopped = re.search(r"stopped for ([0-9.]+) ms", output)
                if stopped is not None:
                    told.append(float(stopped[1]))
            row = Row(
                name, {gap: statistics.median(gaps), wall: statistics.median(walls)}, f"{lines:,} frames"
            )
            if told:
                row.figures[stop] = statistics.median(told)
            table.rows.append(row)
    yield table
    with _crowd(160) as pid:
        if pid is None:
            return
        table = Table("Native stacks of 160 threads, a program in C", [stop, wall])
        line = [str(BIN / "diagtool"), "stacks", str(pid), "--native", "--format", "json"]
        results = [run(line) for _ in range(rounds)]
        stops = [json.loads(r[2])["pause_ms"] for r in results]
        complete = sum(bool(t["frames"]) for t in json.loads(results[0][2])["threads"])
        row = Row(
            "diagtool stacks --native", {stop: statistics.median(stops)}, f"{complete} threads with frames"
        )
        row.figures[wall] = statistics.median(r[0] for r in results)
        table.rows.append(row)
    yield table


def _tools(pid: int, folder: str) -> Iterator[tuple[str, list[str]]]:
    own = [str(BIN / "diagtool"), "stacks", str(pid), "--native", "-v"]
    yield "diagtool stacks --native", own
    yield "diagtool stacks --native --unwinder gdb", [*own, "--unwinder", "gdb"]
    script = Path(folder) / "bt"
    script.write_text("set pagination off\nthread apply all bt\n")
    for name, line in (
        ("pystack remote --native-all", [str(BIN / "pystack"), "remote", str(pid), "--native-all"]),
        ("py-spy dump --native", [str(BIN / "py-spy"), "dump", "--native", "--pid", str(pid)]),
        ("gdb thread apply all bt", ["gdb", "-nx", "-batch", "-p", str(pid), "-x", str(script)]),
    ):
        if shutil.which(line[0]):
            yield name, line


def _frames(name: str, output: str) -> int:
    if name.startswith("diagtool"):  # threads that are alike are one stack there
        stacks = re.split(r"^(\d+) threads?  ", output, flags=re.MULTILINE)[1:]
        return sum(
            int(n) * len(re.findall(r"^ {8}\S.*  in ", text, re.MULTILINE))
            for n, text in zip(stacks[::2], stacks[1::2], strict=True)
        )
    if name.startswith("gdb"):
        return len(re.findall(r"^#\d+ ", output, re.MULTILINE))
    return len(re.findall(r"^\s+(?:\(\w+\) )?(?:File |\S+ \()", output, re.MULTILINE))


@contextmanager
def _crowd(threads: int) -> Iterator[int | None]:
    if shutil.which("gcc") is None:
        print("(no gcc: the program with many native threads is left out)")
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder) / "crowd.c", f"{folder}/crowd"
        source.write_text(CROWD)
        subprocess.run(["gcc", "-O1", "-pthread", str(source), "-o", program], check=True)
        process = subprocess.Popen([program, str(threads)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        try:
            process.stdout.readline()
            yield process.pid
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
