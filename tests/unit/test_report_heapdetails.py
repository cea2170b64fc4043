"""What `diagtool heap --show` and `--values` show, and what they make of rows that somebody tampered with."""

from __future__ import annotations

import io
from typing import Any

import jsonschema
import pytest

from diagtool.report import heapdetails, json
from diagtool.report.terminal import View
from diagtool.report.text import write
from diagtool.snapshot.model import Snapshot, Target

CACHE: dict[str, Any] = {
    "function": "app.Store.load",
    "held_in": "class app.Store",
    "held_by": ["class app.Store → app.Store.load (lru_cache, 1,200 entries)"],
    "caches": 1,
    "size": 1200,
    "maxsize": None,
    "hits": 3,
    "misses": 1200,
    "method": True,
    "instances": 900,
    "instances_of": "app.Store",
    "lost": 850,
    "bytes": 2_000_000,
    "address": 0x7F0000001000,
}
VALUES: list[dict[str, Any]] = [
    {"type": "app.User", "address": 0x1000, "value": "app.User(name='\x1b[31mred')"},
    {"type": "app.User", "address": 0x2000, "hidden": "its name looks like a secret"},
]


def snapshot(**tables: Any) -> Snapshot:
    snap = Snapshot(Target("live", pid=4242, runtime="cpython 3.12.1"), pause_ms=3.1)
    snap.tables.update(tables)
    return snap


def shown(snap: Snapshot, view: str | None, pattern: str | None = None, limit: int = 30) -> list[str]:
    out = io.StringIO()
    told = (
        heapdetails.values(snap, View(80))
        if view is None
        else heapdetails.lines(snap, view, pattern, limit, View(80))
    )
    write(told, out, color=False)
    return out.getvalue().splitlines()


def test_a_cache_is_a_line() -> None:
    small = {**CACHE, "function": "app.price", "held_in": "module app", "method": False, "size": 7, "lost": 0}
    small.update(instances_of=None, instances=0, maxsize=128, bytes=512)
    assert shown(snapshot(caches=[CACHE, small]), "caches") == [
        "entries  at most  hits  misses  lost      bytes  cache",
        "  1,200        –     3   1,200   850     2.0 MB  app.Store.load  (class app.Sto…",
        "      7      128     3   1,200     0  512 bytes  app.price  (module app)",
        "",
        "2 cached functions · cpython 3.12.1, pid 4242 · stopped for 3.1 ms",
    ]


def test_rows_are_picked_by_name_and_number() -> None:
    rows = [{**CACHE, "function": f"app.f{i}"} for i in range(40)]
    assert len(shown(snapshot(caches=rows), "caches", "app.f1?")) == 10 + 3
    assert shown(snapshot(caches=rows), "caches", limit=5)[-1].startswith("40 cached functions, 5 shown")
    assert shown(snapshot(caches=rows), "caches", "nothing")[0].startswith("No function is cached")


def test_values_are_a_line_each_and_escaped() -> None:
    assert shown(snapshot(heap_values=VALUES), None)[:3] == [
        "app.User",
        "  0x1000  app.User(name='\\x1b[31mred')",
        "  0x2000  (hidden: its name looks like a secret)",
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"size": -1},
        {"size": 1 << 80},
        {"size": True},
        {"size": "many"},
        {"function": None},
        {"held_by": [1]},
        {"held_by": "x"},
        {"method": 1},
        {"address": None},
        {"maxsize": 1.5},
    ],
    ids=str,
)
def test_rows_that_make_no_sense_are_left_out(change: dict[str, Any]) -> None:
    snap = snapshot(caches=[{**CACHE, **change}, CACHE])
    assert len(heapdetails.document(snap)["caches"]) == 1
    assert "1 cached function ·" in shown(snap, "caches")[-1]


@pytest.mark.parametrize("view", heapdetails.VIEWS)
def test_every_view_of_nothing_says_so(view: str) -> None:
    assert len(shown(snapshot(**{heapdetails.VIEWS[view]: []}), view)) == 3
    assert len(shown(snapshot(**{heapdetails.VIEWS[view]: [{"type": "x"}]}), view)) == 3


def test_json_has_the_tables_that_there_are_and_fits_its_schema() -> None:
    document = json.heap(snapshot(caches=[CACHE], heap_values=VALUES), [])
    jsonschema.validate(document, json.schema("heap"))
    assert document["caches"][0]["address"] == "0x7f0000001000"
    assert document["values"][1] == {
        "type": "app.User",
        "address": "0x2000",
        "value": None,
        "hidden": "its name looks like a secret",
    }
    assert "registries" not in document
