"""Goroutine dumps as text: 29,600 goroutines of 22 stacks, and a million of them.

The dumps are made here, with the shape of one that a service left: different arguments in every frame, and
children of different parents (``in goroutine N``). What panicparse and gostackparse took for a dump of that
size was measured once, elsewhere, and is quoted: there is no building them without a network.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from common import BIN, Row, Table, run

MILLION = 1_000_000
#: Goroutines of the dump that the other tools were measured with, and their figures: (seconds, clusters).
SMALL = 29_600
QUOTED = {"panicparse 2, quoted": (3.2, 28_206), "gostackparse, parsing alone, quoted": (0.18, None)}
STACKS = 22
_GOROOT = "/usr/local/go/src"
_REASONS = ("sync.Mutex.Lock", "chan receive", "select")


def go_dumps(rounds: int) -> Iterator[Table]:
    """Parsing and clustering alone, and ``diagtool leaks FILE`` with its start."""
    with tempfile.TemporaryDirectory() as folder:
        for count in (SMALL, MILLION):
            file = Path(folder, "dump.txt")
            write(file, count)
            size = file.stat().st_size / 1e6
            title = f"A dump of {count:,} goroutines, {size:,.1f} MB, {STACKS} different stacks"
            table = Table(title, ["seconds", "CPU seconds", "peak RSS MiB"])
            times = max(1, rounds // 2) if count == MILLION else rounds
            parts = [
                json.loads(run([str(BIN / "python"), __file__, str(file)])[2].splitlines()[-1])
                for _ in range(times)
            ]
            alone = {name: statistics.median(p[name] for p in parts) for name in ("seconds", "CPU seconds")}
            table.rows.append(Row("parse and cluster", {**alone}, f"{parts[0]['clusters']:,} clusters"))
            whole = [run([str(BIN / "diagtool"), "leaks", str(file)]) for _ in range(times)]
            figures: dict[str, float | None] = {
                "seconds": statistics.median(r[0] for r in whole),
                "peak RSS MiB": statistics.median(r[1] for r in whole),
            }
            table.rows.append(Row("diagtool leaks, with its start", figures, "parsed, clustered, judged"))
            if count == SMALL:
                for name, (seconds, clusters) in QUOTED.items():
                    note = "" if clusters is None else f"{clusters:,} clusters"
                    table.rows.append(Row(name, {"seconds": seconds}, note))
            yield table


def write(file: Path, count: int) -> None:
    """A dump of ``count`` goroutines."""
    random_ = random.Random(1)
    stacks = [_stack(number) for number in range(STACKS)]
    with file.open("w") as out:
        for goid in range(1, count + 1):
            reason, body, made = stacks[goid % STACKS]
            minutes = random_.randrange(50)
            waits = f", {minutes} minutes" if minutes else ""
            p, q = (0xC000000000 + random_.randrange(1 << 30) * 8 for _ in range(2))
            frames = body.format(p=p, q=q, r=random_.randrange(1 << 20))
            out.write(f"goroutine {goid} [{reason}{waits}]:\n{frames}")
            out.write(made.format(parent=random_.randrange(1, count)))


def _stack(number: int) -> tuple[str, str, str]:
    package = f"example.org/service/internal/pkg{number}"
    frames = []
    if number % 3 == 0:
        frames += [
            f"sync.runtime_SemacquireMutex(0x{{p:x}}?, 0x0?, 0x19?)\n\t{_GOROOT}/runtime/sema.go:95 +0x25",
            f"sync.(*Mutex).lockSlow(0x{{p:x}})\n\t{_GOROOT}/sync/mutex.go:149 +0x15a",
        ]
    frames += [
        f"{package}.(*Worker[...]).step{depth}(0x{{p:x}}, {{{{0x{{q:x}}, 0x3}}}}, 0x{{r:x}}?)\n"
        f"\t/srv/service/internal/pkg{number}/worker_{depth}.go:{40 + depth * 7 + number} +0x{100 + number:x}"
        for depth in range(2 + number % 3)
    ]
    place = f"/srv/service/internal/pkg{number}/start.go:{12 + number} +0x6a"
    made = f"created by {package}.Start in goroutine {{parent}}\n\t{place}\n\n"
    return _REASONS[number % 3], "".join(f"{frame}\n" for frame in frames), made


def measure(path: str) -> None:
    """Print what reading ``path`` and clustering it takes, modules loaded already."""
    import time

    from diagtool.ingest import goroutines
    from diagtool.ingest.goroutines import dumps, parser  # noqa: F401 - before the clock starts
    from diagtool.leaks.cluster import Clusters

    wall, cpu = time.perf_counter(), time.process_time()
    clusters = len(Clusters(goroutines.read(path)[-1]))
    found = {"seconds": time.perf_counter() - wall, "CPU seconds": time.process_time() - cpu}
    print(json.dumps({**found, "clusters": clusters}))


if __name__ == "__main__":
    measure(sys.argv[1])
