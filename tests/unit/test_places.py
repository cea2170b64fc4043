"""A finding says where what grew was allocated, if somebody recorded that."""

from __future__ import annotations

from typing import Any

import pytest

from diagtool.leaks.places import allocated_at
from diagtool.snapshot.model import Snapshot, Target

LIBRARY = "/usr/lib/python3.12/json/decoder.py"


def row(size: int, kind: str, *frames: list[Any]) -> dict[str, Any]:
    return {"frames": list(frames), "types": [{"type": kind, "count": 1, "bytes": size}]}


def snapshot(*rows: Any) -> Snapshot:
    snap = Snapshot(Target("live"))
    snap.tables["allocation_sites"] = list(rows)
    return snap


def test_the_place_with_most_bytes_is_told() -> None:
    rows = [row(10, "app.A", ["/srv/a.py", 1]), row(30, "app.A", ["/srv/b.py", 2]), row(99, "x", ["c", 3])]
    assert allocated_at(snapshot(*rows), ["app.A"]) == "/srv/b.py:2"
    assert allocated_at(snapshot(*rows, rows[0], rows[0], rows[0]), ["app.A"]) == "/srv/a.py:1"


def test_of_a_library_it_is_the_line_that_called_it() -> None:
    called = row(10, "dict", [LIBRARY, 353], ["/srv/a.py", 7], ["/srv/main.py", 1])
    assert allocated_at(snapshot(called), ["dict"]) == "/srv/a.py:7"
    assert allocated_at(snapshot(row(10, "dict", [LIBRARY, 353])), ["dict"]) == f"{LIBRARY}:353"


@pytest.mark.parametrize(
    "bad",
    [
        None,
        {},
        {"frames": 3, "types": [{"type": "A", "bytes": 5}]},
        {"frames": [["a.py", 1]], "types": "A"},
        {"frames": [["a.py", 1]], "types": [{"type": "A", "bytes": "5"}]},
        {"frames": [[1, 2], ["a.py"], 7], "types": [{"type": "A", "bytes": 5}]},
        {"frames": [["a.py", 1]], "types": [{"type": ["A"], "bytes": 5}]},
    ],
    ids=str,
)
def test_what_makes_no_sense_is_nothing(bad: Any) -> None:
    assert allocated_at(snapshot(bad), ["A"]) is None
    assert allocated_at(Snapshot(Target("live")), ["A"]) is None
