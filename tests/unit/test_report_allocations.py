"""What `diagtool heap --sites` shows, and what it makes of tables that somebody has tampered with."""

from __future__ import annotations

import io
import json as plain_json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from diagtool.cli import main
from diagtool.report import allocations, json
from diagtool.report.terminal import View
from diagtool.report.text import write
from diagtool.snapshot import store
from diagtool.snapshot.model import Snapshot, Target

DECODER = "/usr/lib/python3.12/json/decoder.py"


def row(count: int, size: int, *frames: tuple[str, int], **more: Any) -> dict[str, Any]:
    return {
        "source": "tracemalloc",
        "count": count,
        "bytes": size,
        "frames": [list(f) for f in frames],
        **more,
    }


def snapshot(*rows: dict[str, Any]) -> Snapshot:
    snap = Snapshot(Target("live", pid=4242, runtime="cpython 3.12.1"), pause_ms=3.1)
    snap.tables["heap_types"] = []
    snap.tables["tracemalloc"] = [{"blocks": 1, "bytes": 1, "peak": 5_000_000, "frames": 5, "sites": 1}]
    snap.tables["allocation_sites"] = list(rows) or [
        row(10, 1000, (DECODER, 353), (DECODER, 337), ("/srv/app.py", 88)),
        row(20, 9000, (DECODER, 353), (DECODER, 300), ("/srv/app.py", 88), depth=12),
        row(
            *(300, 120_000, ("/srv/cache.py", 41)),
            types=[
                {"type": "app.Image", "count": 100, "bytes": 100_000},
                {"type": "list", "count": 10, "bytes": 900},
            ],
        ),
        row(5, 70_000, ("/srv/cache.py", 41), domain=389047),
    ]
    return snap


def shown(snap: Snapshot, pattern: str | None = None, limit: int = 20, **view: Any) -> list[str]:
    out = io.StringIO()
    found = allocations.sites(snap, pattern)
    write(allocations.lines(snap, found, limit, View(**view)), out, color=False)
    return out.getvalue().splitlines()


def test_places_are_told_with_what_is_there_and_who_asked_for_it() -> None:
    assert shown(snapshot(), width=100) == [
        "count   bytes  allocated at",
        "  300  120 kB  cache.py:41",
        "                 app.Image 100 kB, list 900 bytes, 19 kB of what objects own, or C",
        "    5   70 kB  cache.py:41  (domain 389047)",
        "   30   10 kB  decoder.py:353  from app.py:88",
        "",
        "tracemalloc: blocks allocated since it was started, 5 frames each; at the peak 5.0 MB",
        "335 blocks, 200 kB · cpython 3.12.1, pid 4242 · stopped for 3.1 ms",
    ]


def test_verbose_tells_every_way_there() -> None:
    text = "\n".join(shown(snapshot(), verbose=True))
    assert text.count("json/decoder.py:353") == 2
    assert f"from {DECODER}:300" in text and "… 9 frames further out" in text


def test_only_objects_of_a_type_count_where_one_is_asked_for() -> None:
    found = allocations.sites(snapshot(), "Image")
    assert [(s.count, s.bytes) for s in found] == [(100, 100_000)]
    assert shown(snapshot(), "Nothing")[0] == "No such allocation."


def test_the_document_fits_its_schema() -> None:
    snap = snapshot()
    document = json.heap(snap, [])
    document.update(allocations.document(snap, allocations.sites(snap)))
    text = plain_json.loads(json.dumps(document))
    jsonschema.validate(text, json.schema("heap"))
    assert [s["bytes"] for s in text["sites"]] == [120_000, 70_000, 9000, 1000]
    assert text["sites"][2]["depth"] == 12
    assert text["tracing"][0]["peak"] == 5_000_000


@pytest.mark.parametrize(
    "bad",
    [
        {"count": "many"},
        {"bytes": -1},
        {"bytes": True},
        {"source": None},
        {"types": "str"},
        {"frames": {}},
        {"bytes": 1 << 70},
    ],
    ids=str,
)
def test_rows_that_make_no_sense_are_left_out(bad: dict[str, Any]) -> None:
    good = row(1, 2, ("a.py", 3))
    assert len(allocations.sites(snapshot(good, {**good, **bad}))) == 1


def test_parts_of_rows_that_make_no_sense_are_left_out() -> None:
    odd = row(1, 2, ("a.py", 3), types=[{"type": 3}, 7, {"type": "x", "count": -1, "bytes": 2}], depth="x")
    odd["frames"] += [["b.py"], 5, [7, 8], ["\x1b[2Jc.py", -3, "f"], [["d"], 1]]
    (site,) = allocations.sites(snapshot(odd))
    assert [(f.file, f.line) for f in site.frames] == [("a.py", 3), ("\x1b[2Jc.py", None)]
    assert not site.types
    assert "\x1b" not in "\n".join(shown(snapshot(odd), verbose=True))


def test_without_sites_it_is_said_what_would_help(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    snap = snapshot()
    del snap.tables["allocation_sites"]
    store.save(snap, tmp_path / "one.diag")
    assert main(["heap", str(tmp_path / "one.diag"), "--sites"]) == 3
    said = capsys.readouterr().err
    assert "nobody recorded where the memory" in said and "-X tracemalloc" in said
    assert main(["heap", str(tmp_path / "one.diag"), "--sites", "--native"]) == 2
