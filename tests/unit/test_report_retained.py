"""What `diagtool heap --retained` and `--garbage` show, and what they make of tables tampered with."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from diagtool.cli import main
from diagtool.report import heap, json, retained
from diagtool.report.terminal import View
from diagtool.report.text import write
from diagtool.snapshot import store
from diagtool.snapshot.model import Snapshot, Target

Say = pytest.CaptureFixture[str]

WAY = "module app → cache (app.Cache) → images (list, 3,000 items)"
TABLES: dict[str, list[dict[str, Any]]] = {
    "heap_types": [{"type": "app.Image", "count": 3000, "bytes": 9, "own": 9, "owned": 0}],
    "heap_graph": [
        {"objects": 9000, "references": 10, "exact": True, "why_not": None, "reached_bytes": 5_000_000}
    ],
    "heap_retained": [
        {
            "what": "type",
            "name": "app.Image",
            "bytes": 900_000,
            "objects": 9000,
            "own": 100_000,
            "sure": True,
        },
        {"what": "module", "name": "app", "bytes": 2_000_000, "objects": 9500, "own": 400, "sure": False},
        {
            "what": "container",
            "name": "list",
            "bytes": 924_000,
            "objects": 9001,
            "own": 24_000,
            "sure": True,
            "address": "0x7f00",
            "items": 3000,
            "held_by": WAY,
        },
    ],
    "gc": [
        {
            "interpreter": 0,
            "enabled": True,
            "off": True,
            "collecting": False,
            "thresholds": [0, 10, 10],
            "counts": [44_003, 0, 0],
            "collections": None,
            "collected": None,
            "uncollectable": 2,
            "frozen": True,
            "generations": [43_001, 0, 15_000],
            "frozen_objects": 375,
        }
    ],
    "garbage": [
        {
            "count": 30_000,
            "bytes": 3_000_000,
            "cycles": 6000,
            "off": True,
            "threshold": 0,
            "types": "6,000 app.Node",
        }
    ],
    "heap_garbage": [{"type": "app.Node", "count": 30_000, "bytes": 3_000_000, "in_cycles": 24_000}],
    "heap_lost": [
        {
            "type": "app.Session",
            "objects": 1200,
            "references": 1250,
            "unreferenced": 1199,
            "bytes": 285_000,
            "example": "0x7f10",
        }
    ],
}


def snapshot(**tables: Any) -> Snapshot:
    snap = Snapshot(Target("live", pid=4242, runtime="cpython 3.12.1"), pause_ms=3.1)
    snap.tables.update({**TABLES, **tables})
    return snap


def shown(snap: Snapshot, garbage: bool = False, width: int = 100) -> list[str]:
    lines = retained.garbage_lines if garbage else retained.retained_lines
    out = io.StringIO()
    write(lines(snap, 10, View(width)), out, color=False)
    return out.getvalue().splitlines()


def test_what_would_be_free_is_told_by_type_module_and_container() -> None:
    assert shown(snapshot()) == [
        " frees  objects     own  type: without all objects of it",
        "900 kB    9,000  100 kB  app.Image",
        "",
        " frees  objects        own  module: without its globals",
        "2.0 MB    9,500  400 bytes  app",
        "others may keep as much: there was no time to ask all of them",
        "",
        " frees  objects    own  container: without it",
        f"924 kB    9,001  24 kB  {WAY}",
        "",
        "5.0 MB are kept in all · cpython 3.12.1, pid 4242 · stopped for 3.1 ms",
    ]


def test_what_nobody_refers_to_is_told_with_the_collector() -> None:
    lines = shown(snapshot(), garbage=True)
    assert lines[0].startswith("interpreter 0: the collector is off (a threshold of 0); thresholds 0, 10, 10")
    assert "2 objects in gc.garbage" in " ".join(lines[:2])
    assert "garbage that only the collector can free: 30,000 objects in 6,000 cycles, 3.0 MB" in lines
    assert " 30,000  3.0 MB     24,000  app.Node" in lines
    assert "references that C code never gave back: 1,199 objects that nothing refers to" in lines
    assert "  1,199  285 kB       1,250  app.Session" in lines


def test_why_lost_references_were_not_looked_for_is_said() -> None:
    snap = snapshot(heap_graph=[{"exact": False, "why_not": "a part of the memory was read after the stop"}])
    del snap.tables["heap_lost"]
    assert "lost references: not looked for: a part of the memory was read after the stop" in shown(
        snap, True
    )


def test_the_document_keeps_its_schema() -> None:
    for snap in (snapshot(), Snapshot(Target("live", pid=1))):
        document = json.heap(snap, heap.counts(snap))
        jsonschema.validate(document, json.schema("heap"), cls=jsonschema.Draft202012Validator)
    document = json.heap(snapshot(), [])
    assert [row["name"] for row in document["retained"]] == ["app", "list", "app.Image"]
    assert document["garbage"]["by_type"] == TABLES["heap_garbage"]
    assert document["lost"] == TABLES["heap_lost"]


@pytest.mark.parametrize("garbage", [False, True])
def test_rows_that_make_no_sense_are_left_out(garbage: bool) -> None:
    bad: list[Any] = [{}, 7, None, {"bytes": -1}, {"what": 3, "name": [], "bytes": 1 << 70}]
    strange = {name: [*bad, {k: [v] for k, v in rows[0].items()}] for name, rows in TABLES.items()}
    lines = shown(snapshot(**strange), garbage)
    assert lines
    assert not any("app." in line for line in lines)


def test_names_can_do_nothing_to_a_terminal() -> None:
    row = {**TABLES["heap_retained"][0], "name": "a\x1b[31m\n" + "x" * 500}
    lost = {**TABLES["heap_lost"][0], "type": "b\x1b[31m\n" + "x" * 500}
    for lines in (
        shown(snapshot(heap_retained=[row]), width=80),
        shown(snapshot(heap_lost=[lost]), True, 80),
    ):
        assert "\x1b" not in "".join(lines)
        assert max(map(len, lines[:-1])) <= 80


def test_a_snapshot_keeps_it_and_one_without_says_so(tmp_path: Path, capsys: Say) -> None:
    store.save(snapshot(), tmp_path / "with.diag")
    assert main(["heap", str(tmp_path / "with.diag"), "--retained"]) == 0
    assert "app.Image" in capsys.readouterr().out
    assert main(["heap", str(tmp_path / "with.diag"), "--garbage", "--format", "json"]) == 0
    assert '"cycles": 6000' in capsys.readouterr().out
    store.save(Snapshot(Target("live", pid=1)), tmp_path / "without.diag")
    for option in ("--retained", "--garbage"):
        assert main(["heap", str(tmp_path / "without.diag"), option]) == 3
        assert "is not known" in capsys.readouterr().err


def test_views_of_their_own_go_with_no_other(tmp_path: Path, capsys: Say) -> None:
    for more in (["--why", "x"], ["--native"], ["--garbage"], ["--type", "x"]):
        assert main(["heap", "1", "--retained", *more]) == 2
        assert capsys.readouterr().err
