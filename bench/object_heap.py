"""How fast the objects of a process are counted, who keeps one of them is found, and what each keeps."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from common import BIN, Row, Table, interpreter

#: As many objects as are asked for, a third of them in a dict of records; one is of a class of its own.
PROGRAM = """
import gc, os, signal, sys, time
gc.disable()
class Image:
    __slots__ = ("name", "size", "tags")
    def __init__(self, i):
        self.name, self.size, self.tags = "image %d" % i, float(i), (i + 1000,)
class Record:
    def __init__(self, i):
        self.number, self.items = i + 1000, [i + 1000]
class Wanted:
    pass
N = int(sys.argv[1]) // 13
images = {i: Image(i) for i in range(N)}
records = [Record(i) for i in range(N)]
chain = None
for i in range(N):
    chain = [chain, i + 1000]
images[N // 2].size = Wanted()
if len(sys.argv) > 2:  # what the process itself takes to count what the collector tracks
    start, sizes = time.perf_counter(), {}
    for thing in gc.get_objects():
        kind = type(thing)
        sizes[kind] = sizes.get(kind, 0) + sys.getsizeof(thing)
    print("TOOK", len(gc.get_objects()), time.perf_counter() - start, flush=True)
print("READY", os.getpid(), flush=True)
signal.pause()
"""

#: Run by our own interpreter, in a process for each. Prints seconds, CPU seconds, peak MiB, objects found.
MEASURE = """
import json, resource, sys, time
from diagtool.capture.live import capture_live
from diagtool.runtimes.cpython.decode import decode

heap, why, graph = {"census": (True, None, False), "why": (False, "Wanted", False),
                    "garbage": (True, None, None), "retained": (True, None, True)}[sys.argv[2]]
with capture_live(int(sys.argv[1]), clone="auto") as capture:
    wall, cpu = time.perf_counter(), time.process_time()
    if sys.argv[2] == "census":
        import diagtool.runtimes.cpython.decode
        from diagtool.runtimes.cpython.context import Context
        from diagtool.runtimes.cpython.frames.codes import Codes
        from diagtool.runtimes.cpython.heap.tables import add_heap
        from diagtool.runtimes.cpython.objects.reader import Objects
        from diagtool.runtimes.cpython.objects.vectors import Vectors
        from diagtool.runtimes.cpython.runtime import find_runtime
        from diagtool.snapshot.model import SnapshotBuilder, Target
        runtime = find_runtime(capture)
        objects = Objects(capture.memory, runtime.layout, runtime.version, runtime.free_threaded)
        builder = SnapshotBuilder(Target("live"))
        add_heap(Context(capture, runtime, objects, Vectors(objects), Codes(objects), builder))
        tables = builder.snapshot.tables
    else:
        tables = decode(capture, heap=heap, why=why, graph=graph).tables
    took = time.perf_counter() - wall, time.process_time() - cpu
found = tables["heap"][0]["objects"]
if why is not None:
    assert "images" in tables["heap_ways"][0]["text"], tables["heap_ways"]
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps([*took, peak, found]))
"""

COLUMNS = ["seconds", "CPU seconds", "peak RSS MiB", "million objects a second of CPU time"]


def object_heap(rounds: int) -> Iterator[Table]:
    """Five and ten million objects of CPython 3.12."""
    command = interpreter("3.12")
    if command is None or command[0].endswith("chroot"):
        print("(no Python 3.12 here: the heap of objects is left out)")
        return
    for count, parts in (
        (5_000_000, ("census", "why", "garbage", "retained")),
        (10_000_000, ("census", "why")),
    ):
        yield _measured(command, count, parts, rounds)


def _measured(command: list[str], count: int, parts: tuple[str, ...], rounds: int) -> Table:
    python = str(BIN / "python") if (BIN / "python").exists() else sys.executable
    table = Table(f"A heap of {count // 1_000_000} million objects, from an image", COLUMNS)
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "program.py")
        program.write_text(PROGRAM)
        process = subprocess.Popen(
            [*command, str(program), str(count), "count"], stdout=subprocess.PIPE, text=True
        )
        try:
            assert process.stdout is not None
            said = process.stdout.readline().split()
            assert process.stdout.readline().startswith("READY")
            for part in parts:
                runs = [
                    json.loads(
                        subprocess.run(
                            [python, "-c", MEASURE, str(process.pid), part],
                            capture_output=True,
                            text=True,
                            check=True,
                        ).stdout
                    )
                    for _ in range(rounds)
                ]
                wall, cpu, peak, found = (statistics.median(column) for column in zip(*runs, strict=True))
                figures = dict(zip(COLUMNS, (wall, cpu, peak, found / cpu / 1e6), strict=True))
                table.rows.append(Row(NAMES[part], figures, f"{found:,.0f} objects"))
        finally:
            process.kill()
            process.wait()
    note = f"{int(said[1]):,} objects that the collector tracks, in the process itself, which waits for it"
    seconds = float(said[2])
    table.rows.append(
        Row(
            "gc.get_objects(), sys.getsizeof()",
            {"seconds": seconds, COLUMNS[3]: int(said[1]) / seconds / 1e6},
            note,
        )
    )
    return table


NAMES = {
    "census": "census by type",
    "why": "snapshot, census, and who keeps one object",
    "garbage": "snapshot --heap: all of it, garbage and lost references",
    "retained": "the same, with what types, modules and containers keep",
}
