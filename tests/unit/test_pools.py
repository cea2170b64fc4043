"""Threads of native libraries against processors: what is too many, and what is as it should be."""

from __future__ import annotations

from typing import Any

import pytest
from made_captures import capture_of

from diagtool.capture.cpus import CpuLimits
from diagtool.inventory import pools
from diagtool.leaks import find_leaks
from diagtool.snapshot.model import Snapshot, Target

OMP, BLAS = "/usr/lib/libgomp.so.1.0.0", "/app/numpy.libs/libopenblas64_p-r0-0cf96a72.3.23.so"


def threads(library: str | None, number: int, **changes: Any) -> list[dict[str, Any]]:
    row = {"python": False, "library": library, "running": True, "cpu": 0, "cpu_seconds": 1.0}
    return [{**row, "cpu": i % 2, **changes} for i in range(number)]


def snapshot(
    *rows: list[dict[str, Any]], cpus: CpuLimits | None = None, at: float = 0.0, kind: str = "live"
) -> Snapshot:
    target = Target(kind, pid=7, start_time=1.0, boot_id="b", captured_at=100.0 + at)
    target.details["environ"] = {"OMP_NUM_THREADS": "64"}
    snap = Snapshot(target, tables={"native_threads": [r for part in rows for r in part]})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pools, "cpu_limits", lambda pid: cpus or CpuLimits(2, 2, None))
        pools.add(capture_of(kind), snap)
    return snap


def verdicts(*snapshots: Snapshot) -> list[tuple[str | None, str, int]]:
    return [(f.template, f.verdict, f.count) for f in find_leaks(list(snapshots)).findings]


FOUND = "thread-pools-oversubscribed"


@pytest.mark.parametrize(
    ("rows", "cpus", "verdict"),
    [
        ([threads(OMP, 8)], 2, "likely"),
        ([threads(OMP, 7)], 1, None),  # few
        ([threads(OMP, 8)], 3, None),  # one pool, not four times as many
        ([threads(OMP, 4), threads(BLAS, 4)], 4, "suspect"),
        ([threads(OMP, 4), threads(BLAS, 4)], 5, None),
        ([threads(OMP, 64, running=False)], 2, None),  # asleep
        ([threads(OMP, 64, running=None)], 2, None),  # who knows
        ([threads(OMP, 64, running=False), threads(BLAS, 2)], 2, None),
        ([threads(OMP, 64, python=True)], 2, None),  # Python's own
        ([threads("/usr/bin/app", 64)], 2, None),  # the program's own
        ([threads("/usr/lib/libc.so.6", 64)], 2, None),  # whose they are is not known
        ([threads(None, 64)], 2, None),
        ([threads("/app/engine.so", 64)], 2, "likely"),
        ([threads(OMP, 64)], 64, None),
    ],
)
def test_threads_that_run_count_and_those_that_sleep_do_not(
    rows: list[list[dict[str, Any]]], cpus: int, verdict: str | None
) -> None:
    found = verdicts(snapshot(*rows, cpus=CpuLimits(64, cpus, None)))
    assert [v for _, v, _ in found] == ([verdict] if verdict else [])


def test_the_sentence_names_pools_processors_and_what_limits_them() -> None:
    snap = snapshot(threads(OMP, 15), threads(BLAS, 9), cpus=CpuLimits(64, 64, 2.0))
    (row,) = snap.tables["oversubscription"]
    assert row["text"] == (
        "24 threads of pools run at once on 2 processors (the quota of its control group): 15 of OpenMP "
        "(libgomp.so.1.0.0), 9 of OpenBLAS (libopenblas64_p-r0-0cf96a72.3.23.so)"
    )
    assert row["limits"] == "OpenMP by OMP_NUM_THREADS (now 64); OpenBLAS by OPENBLAS_NUM_THREADS"
    assert (row["host"], row["allowed"], row["quota"], row["ratio"]) == (64, 64, 2.0, 12.0)


def test_in_a_core_the_processors_are_those_that_the_running_threads_were_on() -> None:
    (row,) = snapshot(threads(OMP, 16), kind="core").tables["oversubscription"]
    assert (row["cpus"], row["known_by"], row["ratio"]) == (2, "where these threads ran last", 8.0)
    spread = [{**t, "cpu": i} for i, t in enumerate(threads(OMP, 16))]
    assert verdicts(snapshot(spread, kind="core")) == []


def test_in_a_core_that_does_not_tell_them_nothing_is_said() -> None:
    snap = snapshot(threads(OMP, 64, cpu=None), kind="core")
    assert snap.tables["oversubscription"][0]["cpus"] is None
    assert verdicts(snap) == []


def test_without_pools_there_is_no_row() -> None:
    snap = snapshot(threads("/app/engine.so", 1))
    assert snap.tables["thread_pools"] == snap.tables["oversubscription"] == []


def test_threads_of_a_library_that_grow_with_each_snapshot_are_a_leak() -> None:
    def asleep(number: int, at: float) -> Snapshot:
        return snapshot(threads("/app/onnx.so", number, running=False), threads(OMP, 8), at=at)

    series = [asleep(n, 10.0 * i) for i, n in enumerate((8, 16, 24))]
    assert ("native-threads-grow", "likely", 24) in verdicts(*series)
    assert ("native-threads-grow", "suspect", 24) in verdicts(series[0], series[2])
    steady = [asleep(24, 10.0 * i) for i in range(3)]
    assert [t for t, _, _ in verdicts(*steady) if t == "native-threads-grow"] == []
    rises_and_stays = [asleep(n, 10.0 * i) for i, n in enumerate((24, 24, 25))]
    assert [t for t, _, _ in verdicts(*rises_and_stays) if t == "native-threads-grow"] == []
