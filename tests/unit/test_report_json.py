"""The JSON documents are what their schemas say, whatever is in them."""

from __future__ import annotations

import json as std
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from made_snapshots import TREND, Frame, report, starved

from diagtool.leaks.baseline import apply
from diagtool.leaks.baseline_toml import read_text
from diagtool.leaks.model import Report, WaitingOn
from diagtool.report import json
from diagtool.report.tree import await_tree
from diagtool.snapshot.model import Snapshot, Target


def checked(document: dict[str, Any], name: str) -> dict[str, Any]:
    """``document`` as a program that reads the output sees it, after the schema has seen it."""
    text = json.dumps(document)
    assert text.isascii()
    read: dict[str, Any] = std.loads(text, parse_constant=lambda c: pytest.fail(f"{c} is no JSON"))
    schema = json.schema(name)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(read, schema, cls=jsonschema.Draft202012Validator)
    return read


def test_leaks_keep_the_contract() -> None:
    document = checked(json.leaks(report(trend=TREND)), "leaks")
    assert document["schema"] == "diagtool.leaks/1"
    assert document["summary"] == {
        "stacks": 10_052,
        "clusters": 2,
        "findings": 1,
        "by_verdict": {"proven": 0, "likely": 1, "suspect": 0},
        "ignored": 0,
    }
    assert (document["ignored"], document["baseline"]) == ([], None)
    finding = document["findings"][0]
    assert finding["waiting_on"] == {
        "type": "asyncio.Queue",
        "address": "0x7f3a00001000",
        "detail": "empty, 10,000 getters",
    }
    assert finding["frames"][0] == {
        "function": "Queue.get",
        "module": "asyncio.queues",
        "file": "/usr/lib/python3.12/asyncio/queues.py",
        "line": 158,
        "language": "python",
        "library": None,
    }
    assert finding["trend"]["seconds"] == [0.0, 60.0, None]


def test_every_field_that_may_be_absent_may() -> None:
    empty = report(
        template=None,
        wait=None,
        waiting_on=None,
        wait_seconds=float("nan"),
        created_by=None,
        frames=(),
        held_by=(),
        runbook=None,
        examples=(),
    )
    checked(json.leaks(empty), "leaks")
    checked(json.leaks(Report(Target("core"))), "leaks")
    several = checked(json.leaks(report(waiting_on=WaitingOn("asyncio.Event", 0))), "leaks")
    assert several["findings"][0]["waiting_on"]["address"] is None


def test_what_is_ignored_is_there_with_its_reason() -> None:
    text = '[[ignore]]\nid = "000000"\nreason = "\\u001b known"\nexpires = 2099-01-31\n'
    text += '[[ignore]]\nid = "x"\nreason = "r"\n'
    judged = apply(report(2), read_text(text, Path("/srv/.diagtool.toml")))
    document = checked(json.leaks(judged), "leaks")
    (known,) = document["ignored"]
    assert known["entry"] == ".diagtool.toml: ignore[1] (line 1)" and known["reason"] == "\x1b known"
    assert known["expires"] == "2099-01-31" and known["finding"]["id"] == "000000"
    assert document["summary"]["ignored"] == 1 and document["summary"]["findings"] == 1
    assert document["baseline"] == {
        "file": "/srv/.diagtool.toml",
        "entries": 2,
        "unused": ["ignore[2] (line 5)"],
        "expired": [],
        "exceeded": [],
    }


def test_odd_names_and_details_are_no_trouble() -> None:
    target = Target("live", details={"when": float("inf"), "raw": b"\xff", "more": {"a": (1, 2)}})
    odd = Report.of(target, [], [], stacks=0, warnings=["\x1b[31m \udc80 \u202e"])
    document = checked(json.leaks(odd), "leaks")
    assert document["target"]["details"] == {"when": None, "raw": "b'\\xff'", "more": {"a": [1, 2]}}
    checked(json.leaks(report(frames=(Frame("\ud800", "\0", None),))), "leaks")


def test_ten_thousand_findings_are_all_there() -> None:
    document = json.leaks(report(10_000))
    assert len(document["findings"]) == 10_000
    checked({**document, "findings": document["findings"][::100]}, "leaks")


def test_snapshot_counts_threads_and_tasks_that_are_not_done() -> None:
    document = checked(json.snapshot(starved(301), "a.diag"), "snapshot")
    assert document["tasks"] == 301
    assert document["threads"] == 2
    assert document["counts"] == {"stacks": 304, "thread": 2, "task": 302}
    assert document["pause_ms"] == 3.125
    checked(json.snapshot(Snapshot(Target("core")), "b.diag"), "snapshot")


def test_stacks_with_all_of_them_and_the_tree() -> None:
    snap = starved(5)
    document = checked(json.stacks(report(), rows=snap, tree=await_tree(snap)), "stacks")
    assert [s["id"] for s in document["stacks"]] == list(range(8))
    assert document["stacks"][2]["waiting_on"]["address"] == "0x7f3a00001000"
    assert document["tree"][0] == {"depth": 0, "count": 2, "stack": 2, "mark": None}
    assert "tree" not in checked(json.stacks(report()), "stacks")


@pytest.mark.parametrize("field", ["verdict", "frames", "id", "waiting_on"])
def test_the_schema_refuses_what_lacks_a_field(field: str) -> None:
    document = json.leaks(report())
    del document["findings"][0][field]
    with pytest.raises(jsonschema.ValidationError):
        checked(document, "leaks")
