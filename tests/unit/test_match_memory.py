"""Memory that nobody uses, and owners of memory that grow: when they are likely, suspect, or nothing."""

from __future__ import annotations

from typing import Any

import pytest

from diagtool.leaks import find_leaks
from diagtool.snapshot.model import Snapshot, Target

MIB = 1 << 20


def snapshot(at: float = 0.0, **tables: list[dict[str, Any]]) -> Snapshot:
    target = Target("live", pid=7, start_time=1.0, boot_id="b", captured_at=100.0 + at)
    return Snapshot(target, tables=dict(tables))


def verdicts(*snapshots: Snapshot) -> list[tuple[str | None, str]]:
    return [(f.template, f.verdict) for f in find_leaks(list(snapshots)).findings]


def malloc(idle: int | None, share: float | None, pattern: str | None = "holes", how: str = "exact") -> Any:
    return {"idle": idle, "idle_share": share, "pattern": pattern, "how": how, "text": "…", "bytes": idle}


@pytest.mark.parametrize(
    ("row", "template", "verdict"),
    [
        (malloc(64 * MIB, 0.6), "malloc-fragmented", "likely"),
        (malloc(64 * MIB, 0.6, how="estimated"), "malloc-fragmented", "likely"),
        (malloc(64 * MIB - 1, 0.9), None, None),
        (malloc(64 * MIB, 0.59), None, None),
        (malloc(256 * MIB, 0.4), "malloc-fragmented", "suspect"),
        (malloc(256 * MIB, 0.39), None, None),
        (malloc(64 * MIB, 0.5, "arenas"), "malloc-many-arenas", "likely"),
        (malloc(64 * MIB, 0.49, "arenas"), None, None),
        (malloc(63 * MIB, 0.9, "arenas"), None, None),
        (malloc(None, None, None, "unknown"), None, None),
    ],
)
def test_free_memory_of_malloc_counts_by_size_and_share(
    row: dict[str, Any], template: str | None, verdict: str | None
) -> None:
    assert verdicts(snapshot(malloc=[row])) == ([(template, verdict)] if template else [])


@pytest.mark.parametrize(
    ("idle", "share", "verdict"),
    [
        (64 * MIB, 0.6, "likely"),
        (64 * MIB, 0.59, None),
        (63 * MIB, 0.9, None),
        (256 * MIB, 0.4, "suspect"),
        (None, None, None),
    ],
)
def test_free_memory_of_python_counts_by_size_and_share(
    idle: int | None, share: float | None, verdict: str | None
) -> None:
    row = {"allocator": "pymalloc", "idle": idle, "idle_share": share, "text": "…"}
    expected = [("python-arenas-fragmented", verdict)] if verdict else []
    assert verdicts(snapshot(python_arenas=[row])) == expected


def test_free_memory_must_be_there_in_all_snapshots_of_a_series() -> None:
    full, empty = malloc(128 * MIB, 0.8), malloc(0, 0.0)
    assert verdicts(snapshot(0, malloc=[full]), snapshot(9, malloc=[full])) == [
        ("malloc-fragmented", "likely")
    ]
    assert verdicts(snapshot(0, malloc=[empty]), snapshot(9, malloc=[full])) == []
    assert verdicts(snapshot(0, malloc=[full]), snapshot(9, malloc=[empty])) == []


def owners(*sizes: int, name: str) -> list[Snapshot]:
    """A series in which an owner has so many MiB, and another one stays."""
    return [
        snapshot(
            60.0 * number,
            memory_owners=[{"owner": name, "rss": size * MIB}, {"owner": "glibc heap", "rss": 100 * MIB}],
        )
        for number, size in enumerate(sizes)
    ]


@pytest.mark.parametrize(
    ("name", "template"),
    [
        ("unknown anonymous memory", "mapped-memory-grows"),
        ("code made at run time", "mapped-memory-grows"),
        ("thread stacks", "thread-stacks-grow"),
        ("shared memory", "shared-memory-grows"),
        ("memfd", "shared-memory-grows"),
        ("deleted files", "shared-memory-grows"),
    ],
)
def test_an_owner_that_grows_steadily_is_likely_and_one_pair_proves_little(name: str, template: str) -> None:
    assert verdicts(*owners(50, 70, 90, name=name)) == [(template, "likely")]
    assert verdicts(*owners(50, 70, name=name)) == [(template, "suspect")]


@pytest.mark.parametrize(
    "sizes",
    [(50, 50, 50), (50, 52, 54), (90, 70, 50), (50, 90, 60), (10, 300, 310), (1000, 1030, 1060), (50,)],
)
def test_an_owner_that_settles_falls_or_hardly_grows_is_healthy(sizes: tuple[int, ...]) -> None:
    for name in ("unknown anonymous memory", "thread stacks", "shared memory", "memfd"):
        assert [v for v in verdicts(*owners(*sizes, name=name)) if v[1] == "likely"] == []
    assert verdicts(*owners(50, 60, 62, name="memfd")) == []


def test_heaps_that_grow_are_not_told_here() -> None:
    series = [
        snapshot(60.0 * n, memory_owners=[{"owner": name, "rss": 100 * MIB * n}])
        for n in range(3)
        for name in ["glibc heap"]
    ]
    assert verdicts(*series) == []


def test_senseless_rows_of_a_file_say_nothing() -> None:
    rows: list[Any] = [
        None,
        3,
        {"owner": 7},
        {"owner": "memfd", "rss": "much"},
        {"owner": "memfd", "rss": -1},
    ]
    assert verdicts(*(snapshot(60.0 * n, memory_owners=rows) for n in range(3))) == []
