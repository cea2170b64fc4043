"""Snapshots and reports made by hand, for the tests of the store, the reports and the command line."""

from __future__ import annotations

from typing import Any

import numpy as np

from diagtool.leaks.model import Cluster, Finding, Report, Trend, WaitingOn
from diagtool.snapshot.model import (
    KIND,
    STATE,
    Frame,
    Snapshot,
    SnapshotBuilder,
    Target,
    Thing,
    ThreadInfo,
)

GET = Frame("Queue.get", "/usr/lib/python3.12/asyncio/queues.py", 158, "asyncio.queues")
LEAF = Frame("leaf", "/srv/app/worker.py", 41, "worker")
FETCH = Frame("main.<locals>.fetch_all", "/srv/app/worker.py", 44, "worker")
RUN = Frame("Thread.run", "/usr/lib/python3.12/threading.py", 1010, "threading")


def container(items: int, **changes: Any) -> dict[str, Any]:
    """A row of the table heap_containers: a dict of images that a module keeps."""
    row = {
        "address": 0x7000,
        "type": "dict",
        "items": items,
        "limit": None,
        "own": items * 100,
        "bytes": items * 2600,
        "item_types": ["app.Image", "str"],
        "oldest": [1, 2, 3, 4],
        "held_by": f"module app → _images (dict, {items:,} items)",
        "root": "module",
        "own_module": True,
        "name": "_images",
        "of": None,
    }
    return {**row, **changes}


def queue() -> Thing:
    """What the tasks of ``starved`` wait on."""
    return Thing(
        0x7F3A00001000,
        "asyncio.queues.Queue",
        "empty, 300 getters",
        {"size": 0, "maxsize": 0, "waiters": 300, "peer": None, "nested": {"a": [1, 2.5, "x"]}},
        references=301,
        from_waiters=300,
        exclusive=False,
        held_by=["__main__.keep"],
    )


def starved(tasks: int = 300, *, names: str = "fetch-{}") -> Snapshot:
    """A service: main and a worker thread, ``tasks`` tasks in Queue.get, one that is done."""
    target = Target(
        "live",
        pid=4242,
        runtime="cpython 3.12.1",
        exe="/usr/bin/python3.12",
        cmdline=["python3.12", "service.py"],
        host="box",
        start_time=1.7e9,
        captured_at=1.7e9 + 60,
        details={"uid": 1000, "environ": {"PYTHONASYNCIODEBUG": "1"}},
    )
    build = SnapshotBuilder(target)
    wait = build.wait("asyncio.Queue.get")
    thing = build.thing(queue())
    trace = build.trace([FETCH, LEAF, GET])
    idle = build.trace([RUN])
    build.add(["main"], kind=KIND["thread"], state=STATE["running"], address=4242, thread=4242, trace=idle)
    build.add(["pool-0"], kind=KIND["thread"], state=STATE["waiting"], address=4243, thread=4243, trace=idle)
    build.add(
        [names.format(i) for i in range(tasks)],
        kind=KIND["task"],
        state=STATE["waiting"],
        address=0x7F0000000000 + 256 * np.arange(tasks, dtype=np.uint64),
        trace=trace,
        wait=wait,
        thing=thing,
        thread=4242,
        loop=0x7F1000000000,
        created_by=build.trace([FETCH]),
        wait_seconds=12.5,
        holder=0,
        stuck=1,
    )
    build.add(["finished"], kind=KIND["task"], state=STATE["done"], address=0x7F2000000000)
    snap = build.finish()
    snap.holders = ["__main__.keep (list, 300 items)"]
    snap.threads = [
        ThreadInfo(
            4242, 0, "MainThread", "python3.12", 0x7F0000000700, holds_gil=True, registers={"rip": 2**63 + 5}
        ),
        ThreadInfo(
            4243, 1, "pool-0", None, None, python=True, daemon=False, cpu_seconds=0.25, wchan="futex_wait"
        ),
    ]
    snap.awaits = np.array([[2, 3], [4, 3]], np.int32) if tasks > 2 else np.zeros((0, 2), np.int32)
    snap.labels = [(2, "request_id", "abc")] if tasks else []
    snap.tables = {"loops": [{"address": 0x7F1000000000, "running": True}], "executors": []}
    snap.pause_ms = 3.125
    snap.warnings = ["one page could not be read"]
    return snap


def finding(**changes: object) -> Finding:
    """The finding that ``starved`` is about."""
    fields: dict[str, object] = {
        "id": "3f2a9c",
        "template": "asyncio-queue-get-starved",
        "verdict": "likely",
        "severity": "high",
        "kind": "task",
        "count": 10_000,
        "title": "Consumers wait on a queue that nobody fills",
        "state": "waiting",
        "wait": "asyncio.Queue.get",
        "waiting_on": WaitingOn("asyncio.Queue", 0x7F3A00001000, "empty, 10,000 getters"),
        "wait_seconds": 200.0,
        "created_by": (FETCH,),
        "frames": (GET, LEAF, FETCH),
        "held_by": ("__main__.background_tasks (set, 10,000 items)",),
        "evidence": ("no task, timer or fd can fill it",),
        "cause": "The producer has ended.",
        "fix": "give every consumer a way to stop: a sentinel, Queue.shutdown() (3.13), or cancel()",
        "runbook": "docs/runbooks/asyncio-queue-get-starved.md",
        "examples": ("fetch-0", "fetch-1"),
    }
    return Finding(**{**fields, **changes})  # type: ignore[arg-type]


def report(findings: int = 1, **changes: object) -> Report:
    """A report with that many findings, one leaking and one idle cluster."""
    found = [finding(id=f"{i:06x}", **changes) for i in range(findings)]
    clusters = [
        Cluster(
            "c1", "task", 10_000, "waiting", "asyncio.Queue.get", finding="000000", frames=(GET, LEAF, FETCH)
        ),
        Cluster("c2", "thread", 4, "waiting", "queue.SimpleQueue.get", "executor-worker", True, (RUN,)),
    ]
    return Report.of(
        starved(0).target, found, clusters, stacks=10_052, warnings=["a page was missing"], pause_ms=3.1
    )


TREND = Trend((100, 200, 300), (0.0, 60.0, float("nan")), 100)
