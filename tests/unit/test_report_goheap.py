"""The view of Go's heap: sizes, types, and nothing of what makes no sense."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema

from diagtool.report import goheap
from diagtool.report import json as documents
from diagtool.report.terminal import View
from diagtool.report.text import Line
from diagtool.snapshot.model import Snapshot, SnapshotBuilder, Target

SCHEMA = Path(documents.__file__).with_name("schema") / "heap-1.json"


def snapshot(sizes: int = 3, **changes: Any) -> Snapshot:
    made = SnapshotBuilder(Target("live", pid=7, runtime="go1.27.3")).finish()
    total = {
        "spans": 12,
        "bytes": 98_304,
        "objects": 1_700,
        "used": 61_000,
        "free": 37_304,
        "large": 8192,
        "no_pointers": 16_384,
        "stacks": 32_768,
        "typed": 4096,
        "lost": 0,
    }
    made.tables["go_heap"] = [{**total, **changes}]
    made.tables["go_heap_sizes"] = [
        {
            "size": 16 * i,
            "spans": 2,
            "bytes": 16_384,
            "objects": 500,
            "used": 9000,
            "free": 7384,
            "no_pointers": 0,
        }
        for i in range(sizes)
    ]
    made.tables["go_heap_types"] = [{"type": "[]*main.\x1b[31mOrder", "count": 4, "bytes": 4096}]
    return made


def shown(snap: Snapshot, limit: int = goheap.LIMIT) -> str:
    lines: list[Line] = list(goheap.lines(snap, limit, View(80, False, False, None)))  # type: ignore[arg-type]
    return "\n".join("".join(text for text, _ in line) for line in lines)


def test_sizes_types_and_sums_are_told_and_names_escaped() -> None:
    text = shown(snapshot())
    assert "large" in text
    assert "1,700 objects, 61 kB in use; 37 kB free in 12 spans; 33 kB of stacks" in text
    assert "main." in text
    assert "\x1b" not in text


def test_of_many_sizes_the_rest_is_summed_up() -> None:
    text = shown(snapshot(sizes=40), limit=5)
    assert "35 more sizes (--limit N)" in text
    assert "17,500" in text


def test_the_document_fits_its_schema() -> None:
    made = documents.heap(snapshot(), [])
    jsonschema.validate(json.loads(json.dumps(made)), json.loads(SCHEMA.read_text()))
    assert made["go"]["objects"] == 1700
    assert len(made["go"]["sizes"]) == 3


def test_rows_that_make_no_sense_are_no_heap() -> None:
    assert not goheap.has_go_heap(snapshot(objects=-1))
    assert not goheap.has_go_heap(snapshot(used="many"))
    assert goheap.document(snapshot(spans=None)) is None
