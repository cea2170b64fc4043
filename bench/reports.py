"""What it takes to judge stored snapshots and to report: 10,000 tasks, a million, all of them different."""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from common import BIN, Row, Table, run

MILLION = 1_000_000


def reports(rounds: int) -> Iterator[Table]:
    """``diagtool leaks FILE.diag`` in three formats, start included."""
    with tempfile.TemporaryDirectory() as folder:
        for title, count, ways in (
            ("10,000 tasks on one queue", 10_000, 200),
            ("a million tasks on one queue, by 200 ways", MILLION, 200),
            ("a million tasks on one queue, no two stacks alike", MILLION, MILLION),
        ):
            file = Path(folder, "stored.diag")
            run([sys.executable, __file__, str(file), str(count), str(ways)])
            table = Table(f"Report of a stored snapshot: {title}", ["wall s", "peak RSS MiB", "output MiB"])
            for name in ("terminal", "json", "html"):
                output = Path(folder, f"report.{name}")
                line = [str(BIN / "diagtool"), "leaks", str(file), "--format", name, "-o", str(output)]
                walls, peaks, _, _ = zip(*(run(line) for _ in range(max(rounds // 2, 1))), strict=True)
                figures = (statistics.median(walls), statistics.median(peaks), output.stat().st_size / 2**20)
                table.rows.append(
                    Row(f"leaks --format {name}", dict(zip(table.columns, figures, strict=True)))
                )
            yield table


def write(file: str, count: int, ways: int) -> None:
    """A snapshot of ``count`` tasks that nobody can wake, on one queue, come to by ``ways`` ways."""
    from diagtool.snapshot import store
    from diagtool.snapshot.model import KIND, STATE, Frame, SnapshotBuilder, Target, Thing

    target = Target("live", pid=1, runtime="cpython 3.12.1", captured_at=1.0, details={"exact": True})
    builder = SnapshotBuilder(target)
    # main <- handle <- one of 1,000 <- another of 1,000 <- leaf <- Queue.get: a trie, level by level.
    outer = [Frame("main", "/srv/app/main.py", 1), Frame("handle", "/srv/app/h.py", 2)]
    between = [Frame(f"step{i}", "/srv/app/steps.py", i) for i in range(1000)]
    inner = [
        Frame("leaf", "/srv/app/leaf.py", 7),
        Frame("Queue.get", "/usr/lib/python3.12/asyncio/queues.py", 158),
    ]
    frames = [*outer, *between, *inner]
    each = -(-ways // 1000)
    first = 3 + np.arange(1000)
    second = 1003 + np.arange(ways)
    parents = [np.array([0, 0, 1]), np.full(1000, 2), np.repeat(first, each)[:ways], second, second + ways]
    numbers = [
        *(np.array([-1, 0, 1]), 2 + np.arange(1000), 2 + np.tile(np.arange(each) % 1000, 1000)[:ways]),
        *(np.full(ways, 1002), np.full(ways, 1003)),
    ]
    queue = Thing(0x1000, "asyncio.queues.Queue", "empty", {"size": 0}, count, count, True)
    builder.add(
        [f"Task-{i}" for i in range(count)],
        kind=KIND["task"],
        state=STATE["waiting"],
        address=np.arange(count, dtype=np.uint64) * 64 + (1 << 40),
        trace=(1003 + 2 * ways + np.arange(count) % ways).astype(np.int32),
        wait=builder.wait("asyncio.Queue.get"),
        thing=np.full(count, builder.thing(queue), np.int32),
        stuck=1,
    )
    snapshot = builder.finish()
    snapshot.traces.frames = frames
    snapshot.traces.parent = np.concatenate(parents).astype(np.int32)
    snapshot.traces.frame = np.concatenate(numbers).astype(np.int32)
    store.save(snapshot, file)


if __name__ == "__main__":
    write(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
