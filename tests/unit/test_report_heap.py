"""What `diagtool heap` shows of a census, and what it makes of one that somebody has tampered with."""

from __future__ import annotations

import io
from json import loads
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from diagtool.cli import main
from diagtool.report import heap, json
from diagtool.report.terminal import View
from diagtool.report.text import write
from diagtool.snapshot import store
from diagtool.snapshot.model import Snapshot, Target

Say = pytest.CaptureFixture[str]

ROWS: list[dict[str, Any]] = [
    {"type": "app.Node", "count": 500_000, "bytes": 28_000_000, "own": 24_000_000, "owned": 4_000_000},
    {"type": "bytearray", "count": 1024, "bytes": 1 << 30, "own": 0, "owned": 1 << 30},
    {"type": "app.models.Node", "count": 3, "bytes": 144, "own": 144, "owned": 0, "types": 3},
]


def snapshot(rows: list[Any] | None = None) -> Snapshot:
    snap = Snapshot(Target("live", pid=4242, runtime="cpython 3.12.1"), pause_ms=3.1)
    snap.tables["heap_types"] = ROWS if rows is None else rows
    return snap


def shown(snap: Snapshot, limit: int = 30, pattern: str | None = None, width: int = 80) -> list[str]:
    out = io.StringIO()
    write(heap.table(snap, heap.counts(snap, pattern), limit, View(width)), out, color=False)
    return out.getvalue().splitlines()


def test_the_table_has_most_bytes_first() -> None:
    assert shown(snapshot()) == [
        "  count      bytes  type",
        "  1,024     1.1 GB  bytearray",
        "500,000      28 MB  app.Node",
        "      3  144 bytes  app.models.Node  (3 types of this name)",
        "",
        "501,027 objects of 3 types, 1.1 GB · cpython 3.12.1, pid 4242 · stopped for 3.1 ms",
    ]


def test_what_does_not_fit_the_limit_is_summed_up() -> None:
    assert shown(snapshot(), limit=1)[1:3] == [
        "  1,024  1.1 GB  bytearray",
        "500,003   28 MB  in 2 more types (--limit N)",
    ]


@pytest.mark.parametrize(
    ("pattern", "count"), [("Node", 2), ("app.Node", 1), ("app.*", 2), ("bytearra?", 1), ("node", 0)]
)
def test_types_are_chosen_by_name(pattern: str, count: int) -> None:
    assert len(heap.counts(snapshot(), pattern)) == count


def test_no_type_of_that_name() -> None:
    assert shown(snapshot(), pattern="Absent")[0] == "No such object."


def test_rows_that_make_no_sense_are_left_out() -> None:
    good = {"type": "ok", "count": 1, "own": 2, "owned": 3}
    bad: list[Any] = [{}, {"type": 3}]
    for key, values in (("count", (-1, "1", None, 1.5, True, 1 << 70)), ("type", (None, 7, ["x"]))):
        bad += [{**good, key: value} for value in values]
    rows = heap.counts(snapshot([*bad, good]))
    assert [(r.type, r.count, r.bytes) for r in rows] == [("ok", 1, 5)]


def test_names_can_do_nothing_to_a_terminal() -> None:
    lines = shown(snapshot([{"type": "a\x1b[31m\n" + "x" * 500, "count": 1, "own": 1, "owned": 0}]))
    assert "\x1b" not in "".join(lines)
    assert max(map(len, lines[:3])) <= 80


def test_the_document_keeps_its_schema() -> None:
    snap = snapshot()
    document = json.heap(snap, heap.counts(snap))
    schema = json.schema("heap")
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(document, schema, cls=jsonschema.Draft202012Validator)
    assert document["types"][1] == {**ROWS[0], "types": 1}


def test_a_snapshot_keeps_its_census(tmp_path: Path, capsys: Say) -> None:
    store.save(snapshot(), tmp_path / "with.diag")
    assert main(["heap", str(tmp_path / "with.diag"), "--type", "Node"]) == 0
    assert "500,000" in capsys.readouterr().out


def test_a_snapshot_without_a_census_says_how_to_get_one(tmp_path: Path, capsys: Say) -> None:
    store.save(Snapshot(Target("live", pid=1)), tmp_path / "without.diag")
    assert main(["heap", str(tmp_path / "without.diag")]) == 3
    error = capsys.readouterr().err
    assert "were not counted" in error
    assert "--heap" in error


def test_a_snapshot_knows_who_keeps_the_types_with_most_bytes(tmp_path: Path, capsys: Say) -> None:
    snap = snapshot()
    text = "module app → cache (dict, 500,000 items) → app.Node"
    path = {
        "type": "app.Node",
        "looked_at": 60,
        "count": 58,
        "root": "module",
        "text": text,
        "example": "0x10",
    }
    outside = {**path, "count": 2, "root": "outside", "text": "C, or a thread → app.Node"}
    snap.tables["heap_paths"] = [outside, path, {}, {"type": "app.Node"}]
    store.save(snap, tmp_path / "with.diag")
    assert main(["heap", str(tmp_path / "with.diag"), "--why", "Node"]) == 0
    assert capsys.readouterr().out.splitlines()[:4] == [
        f"58  {text}",
        " 2  C, or a thread → app.Node",
        "",
        "who keeps Node: 60 of 500,000 objects looked at",
    ]
    assert main(["heap", str(tmp_path / "with.diag"), "--why", "Node", "--format", "json"]) == 0
    jsonschema.validate(
        loads(capsys.readouterr().out), json.schema("heap"), cls=jsonschema.Draft202012Validator
    )
    assert main(["heap", str(tmp_path / "with.diag"), "--why", "bytearray"]) == 3
    assert "no memory" in capsys.readouterr().err


STEPS = [
    {"address": "0x10", "type": "app.Cache", "name": "cache", "items": None},
    {"address": "0x20", "type": "dict", "name": "_images", "items": 812_004},
]


def kept(ways: list[Any]) -> Snapshot:
    snap = snapshot()
    snap.tables["heap_why"] = [{"wanted": "app.Image", "total": 812_004, "looked_at": 200}]
    snap.tables["heap_ways"] = ways
    return snap


def test_who_keeps_something_is_told_in_words() -> None:
    text = "module app → cache (app.Cache) → _images (dict, 812,004 items) → app.Image"
    way = {"text": text, "root": "module", "count": 200, "example": "0x30", "steps": STEPS}
    snap = kept([way, {"text": 5}, {}])
    out = io.StringIO()
    write(heap.paths(snap, View(100)), out, color=False)
    assert out.getvalue().splitlines() == [
        f"200  {text}",
        "",
        "who keeps app.Image: 200 of 812,004 objects looked at",
        "cpython 3.12.1, pid 4242 · stopped for 3.1 ms",
    ]
    document = json.heap(snap, heap.counts(snap), heap.ways(snap))
    jsonschema.validate(document, json.schema("heap"), cls=jsonschema.Draft202012Validator)
    assert document["ways"] == [way]


def test_a_snapshot_has_no_memory_to_look_who_keeps_something(tmp_path: Path, capsys: Say) -> None:
    store.save(snapshot(), tmp_path / "with.diag")
    assert main(["heap", str(tmp_path / "with.diag"), "--why", "Node"]) == 3
    assert "core" in capsys.readouterr().err
