"""Templates over what nobody refers to: each finds its leak, and stays silent for its twins."""

from __future__ import annotations

from typing import Any

import pytest
from made_stacks import World

from diagtool.leaks import find_leaks
from diagtool.leaks.model import Finding
from diagtool.leaks.template import builtin
from diagtool.snapshot.model import Snapshot

Row = dict[str, Any]

LOST: Row = {
    "type": "app.Session",
    "objects": 150,
    "references": 150,
    "unreferenced": 150,
    "bytes": 40_000,
    "example": "0x7f0000001000",
}
GARBAGE: Row = {
    "count": 30_000,
    "bytes": 3_000_000,
    "cycles": 6_000,
    "off": True,
    "threshold": 700,
    "types": "24,000 app.Child, 6,000 app.Node",
}

OURS = {"native-references-lost", "native-references-too-many", "garbage-not-collected"}
TEMPLATES = tuple(t for t in builtin() if t.id in OURS)


def snapshot(table: str, row: Row, minutes: int = 0) -> Snapshot:
    made = World().build()
    made.target.captured_at = 1.7e9 + 60 * minutes
    made.tables[table] = [row]
    return made


def judge(table: str, *rows: Row) -> Finding | None:
    """The finding of several snapshots with one row each, oldest first."""
    series = [snapshot(table, row, i) for i, row in enumerate(rows)]
    findings = find_leaks(series, templates=TEMPLATES).findings
    assert len(findings) < 2
    return findings[0] if findings else None


@pytest.mark.parametrize(
    ("table", "row", "template", "verdict"),
    [
        ("heap_lost", LOST, "native-references-lost", "likely"),
        # As few constants of one kind may be lost once, while modules are loaded.
        ("heap_lost", {**LOST, "type": "str"}, "native-references-lost", "suspect"),
        ("heap_lost", {**LOST, "type": "str", "unreferenced": 5000}, "native-references-lost", "likely"),
        ("garbage", GARBAGE, "garbage-not-collected", "likely"),
        ("garbage", {**GARBAGE, "count": 3000}, "garbage-not-collected", "suspect"),
        ("garbage", {**GARBAGE, "count": 3000, "bytes": 50_000_000}, "garbage-not-collected", "likely"),
        ("garbage", {**GARBAGE, "off": False, "threshold": 10_000_000}, "garbage-not-collected", "likely"),
        (
            "garbage",
            {**GARBAGE, "off": False, "count": 900_000, "old": 800_000},
            "garbage-not-collected",
            "suspect",
        ),
    ],
)
def test_a_leak_is_found(table: str, row: Row, template: str, verdict: str) -> None:
    finding = judge(table, row)
    assert finding is not None
    assert (finding.template, finding.verdict) == (template, verdict)
    assert finding.bytes == row["bytes"]
    assert "{" not in "".join(finding.evidence)


@pytest.mark.parametrize(
    ("table", "row"),
    [
        ("heap_lost", {**LOST, "objects": 40, "references": 40, "unreferenced": 40}),
        # Modules made with Cython leave such strings when they are loaded.
        ("heap_lost", {**LOST, "type": "str", "objects": 800, "references": 800, "unreferenced": 2}),
        ("heap_lost", {**LOST, "objects": 17, "references": 12_000_000, "unreferenced": 0}),
        ("garbage", {**GARBAGE, "count": 1500}),  # somebody collects by hand
        ("garbage", {**GARBAGE, "off": False}),  # it waits for the next collection
        ("garbage", {**GARBAGE, "off": False, "count": 300_000, "old": 100_000}),
        ("garbage", {**GARBAGE, "off": None, "threshold": None}),  # what is not known proves nothing
    ],
)
def test_a_healthy_twin_is_not(table: str, row: Row) -> None:
    assert judge(table, row) is None


def test_what_grows_is_likely_though_it_is_little() -> None:
    few = {**LOST, "type": "bytes", "unreferenced": 20}
    finding = judge("heap_lost", few, {**few, "unreferenced": 30}, {**few, "unreferenced": 40})
    assert finding is not None
    assert finding.verdict == "likely"
    many = {**LOST, "type": "str", "objects": 800, "unreferenced": 3}
    finding = judge("heap_lost", many, {**many, "objects": 1000}, {**many, "objects": 1200})
    assert finding is not None
    assert (finding.template, finding.verdict) == ("native-references-too-many", "suspect")
    little = {**GARBAGE, "count": 1000}
    finding = judge("garbage", little, {**little, "count": 1400}, {**little, "count": 1800})
    assert finding is not None
    assert finding.verdict == "likely"
