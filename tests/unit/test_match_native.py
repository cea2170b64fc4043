"""Blocks that C code lost, callbacks and handles that are kept: when they are likely, suspect, or nothing."""

from __future__ import annotations

from typing import Any

import pytest

from diagtool.leaks import find_leaks
from diagtool.snapshot.model import Snapshot, Target


def snapshot(at: float = 0.0, **tables: dict[str, Any]) -> Snapshot:
    target = Target("live", pid=7, start_time=1.0, boot_id="b", captured_at=100.0 + at)
    return Snapshot(target, tables={name: [row] for name, row in tables.items()})


def lost(count: int, size: int = 112, **changes: Any) -> dict[str, Any]:
    row = {"kind": f"blocks of {size} bytes", "count": count, "bytes": count * size, "size": size}
    row |= {
        "library": None,
        "hanging": 0,
        "damaged": False,
        "example": "0x10",
        "text": "they begin with data",
    }
    return {**row, **changes}


def verdicts(*snapshots: Snapshot) -> list[tuple[str | None, str, int]]:
    return [(f.template, f.verdict, f.count) for f in find_leaks(list(snapshots)).findings]


@pytest.mark.parametrize(
    ("row", "verdict"),
    [
        (lost(1000, 200), "likely"),
        (lost(1000, 199), "suspect"),
        (lost(999, 200), "suspect"),
        (lost(100, 500), "suspect"),
        (lost(100, 499), None),
        (lost(99, 500), None),
        (lost(200, library="/srv/libworker.so"), "likely"),
        (lost(199, 300, library="/srv/libworker.so"), "suspect"),
        (lost(100, 40_000), "likely"),
        (lost(100, 39_000), "suspect"),
        (lost(99, 40_000), None),
        (lost(1, 20_000_000), "suspect"),
        (lost(1, 15_000_000), None),
        (lost(1000, 200, damaged=True), "suspect"),
        (lost(999, 10_000, damaged=True), None),
        (lost(1, 20_000_000, damaged=True), None),
    ],
)
def test_lost_blocks_count_by_number_and_size(row: dict[str, Any], verdict: str | None) -> None:
    expected = [("native-blocks-lost", verdict, row["count"])] if verdict else []
    assert verdicts(snapshot(native_lost=row)) == expected


def test_few_lost_blocks_that_grow_are_likely() -> None:
    before, after = snapshot(native_lost=lost(40)), snapshot(60.0, native_lost=lost(60))
    assert verdicts(before, after) == [("native-blocks-lost", "likely", 60)]
    assert verdicts(before, snapshot(60.0, native_lost=lost(60, damaged=True))) == []


def test_what_was_lost_once_and_stays_as_it_is_is_no_more_than_suspect() -> None:
    same = [snapshot(60.0 * i, native_lost=lost(150, 400)) for i in range(3)]
    assert verdicts(*same) == [("native-blocks-lost", "suspect", 150)]


def test_evidence_names_the_number_and_what_they_begin_with() -> None:
    row = lost(2000, text="each begins with a pointer to retire; 2,000 more blocks hang on them")
    (finding,) = find_leaks([snapshot(native_lost=row)]).findings
    assert "2,000 blocks" in finding.evidence[0] and "pointer to retire" in finding.evidence[0]
    assert finding.bytes == 224_000 and finding.examples == ("blocks of 112 bytes",)


def callbacks(count: int) -> dict[str, Any]:
    return {
        "library": "ctypes",
        "function": "app.on_event",
        "count": count,
        "instances": 0,
        "of": None,
        "address": 1,
    }


def handles(count: int) -> dict[str, Any]:
    return {"stands_for": "app.Request", "count": count, "address": 1}


@pytest.mark.parametrize(
    ("table", "row", "template"),
    [("callbacks", callbacks, "callbacks-kept"), ("cffi_handles", handles, "cffi-handles-kept")],
)
def test_what_c_was_given_is_likely_only_where_it_grew_twice(table: str, row: Any, template: str) -> None:
    def series(*counts: int) -> list[tuple[str | None, str, int]]:
        return verdicts(*(snapshot(60.0 * i, **{table: row(n)}) for i, n in enumerate(counts)))

    assert series(1000) == [(template, "suspect", 1000)]
    assert series(999) == []
    assert series(100, 300) == [(template, "suspect", 300)]
    assert series(100, 200, 300) == [(template, "likely", 300)]
    assert series(100, 120, 150) == []
    assert series(300, 300, 300) == []
    assert series(300, 100, 320) == []
