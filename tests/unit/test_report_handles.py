"""What `diagtool handles` shows, and what it makes of rows that somebody tampered with."""

from __future__ import annotations

import io
import json as texts
from typing import Any

import jsonschema
import pytest

from diagtool.report import handles, json
from diagtool.report.terminal import View
from diagtool.report.text import write
from diagtool.snapshot.model import Snapshot, Target

SOCKET: dict[str, Any] = {
    "fd": 7,
    "kind": "socket",
    "name": "10.0.0.9:40001 -> 10.0.0.1:5432",
    "group": "tcp to 10.0.0.1:5432",
    "settled": True,
    "access": "rw",
    "protocol": "tcp",
    "local": "10.0.0.9:40001",
    "remote": "10.0.0.1:5432",
    "state": "CLOSE_WAIT",
    "receive": 1,
    "send": 0,
    "idle": 7200.5,
    "owner": "socket.socket",
    "owner_address": 0x7F0000001000,
    "owner_text": "socket.socket of asyncio.selector_events._SelectorSocketTransport, registered with a loop",
    "also": ["asyncio.selector_events._SelectorSocketTransport"],
    "owned": True,
}
PIPE = {"fd": 9, "kind": "pipe", "name": "pipe:[1]", "group": "pipe", "access": "w", "settled": True}
LIMITS = {"known": True, "open": 12, "count": 12, "highest": 40, "soft": 1024, "hard": 4096, "share": 0.0117}


def snapshot(*rows: Any, owners: bool = True, limits: Any = LIMITS) -> Snapshot:
    snap = Snapshot(Target("live", pid=4242, runtime="cpython 3.12.1"), pause_ms=3.1)
    snap.tables["fds"] = list(rows)
    snap.tables["fd_limits"] = [limits]
    if owners:
        snap.tables["fd_owners"] = []
    return snap


def shown(snap: Snapshot, *, verbose: bool = False, every: bool = False) -> list[str]:
    out = io.StringIO()
    write(handles.lines(snap, handles.rows(snap), View(100, verbose, every)), out, color=False)
    return out.getvalue().splitlines()


def test_a_descriptor_is_a_line() -> None:
    assert shown(snapshot(SOCKET, {**PIPE, "ends": [10], "owned": False}))[1:3] == [
        " 7  socket  tcp CLOSE_WAIT 10.0.0.9:40001 -> 10.0.0.1:5432, 1 byte unread…  "
        "_SelectorSocketTransport",
        " 9  pipe    to fd 10                                                        nobody",
    ]


def test_many_alike_are_one_line_unless_every_one_is_asked_for() -> None:
    rows = [{**SOCKET, "fd": n, "owner_text": "socket.socket"} for n in range(3, 1203)]
    lines = shown(snapshot(*rows))
    assert "3 …  socket  1,200 × tcp CLOSE_WAIT to 10.0.0.1:5432, 1,200 bytes unread" in lines[1]
    assert lines[-2].startswith("1,200 open files of 12, at most 1,024 (1 % in use), 0 without an owner")
    assert len(shown(snapshot(*rows), every=True)) == 1200 + len(lines) - 1


def test_more_is_told_when_asked_for() -> None:
    rows = snapshot(SOCKET, {**PIPE, "peers": ["77 worker (fd 3, r)"]})
    text = " ".join(" ".join(shown(rows, verbose=True)).split())
    assert "in full tcp CLOSE_WAIT 10.0.0.9:40001 -> 10.0.0.1:5432, 1 byte unread, silent for 2 h" in text
    assert f"owned by {SOCKET['owner_text']} 0x7f0000001000 and by {SOCKET['also'][0]}" in text
    assert "other end 77 worker (fd 3, r)" in text


def test_what_is_not_known_is_said() -> None:
    assert any("who owns them was not looked for" in line for line in shown(snapshot(PIPE, owners=False)))
    text = " ".join(" ".join(shown(snapshot(PIPE, limits={"known": False}))).split())
    assert "a core has no table of open files" in text
    assert shown(snapshot())[0] == "No such open file."


def test_a_name_can_do_nothing_to_a_terminal() -> None:
    assert "\x1b" not in "\n".join(shown(snapshot({**PIPE, "kind": "file", "name": "/tmp/\x1b[31m\n"})))


BAD: list[dict[str, Any]] = [
    {"fd": "7"},
    {"fd": None},
    {"fd": True},
    {"kind": 3},
    {"name": ["x"], "state": 5, "protocol": {}, "group": None},
    {"receive": "1", "send": None, "idle": "x", "ends": ["y"], "also": 3, "peers": [1]},
    {"owner_address": "x", "owner_text": 7, "owned": "yes"},
    {"idle": float("nan"), "size": 1 << 70, "dead_fds": [None]},
]


@pytest.mark.parametrize("change", BAD, ids=lambda c: next(iter(c)) + str(len(c)))
def test_what_makes_no_sense_is_left_out(change: dict[str, Any]) -> None:
    snap = snapshot({**SOCKET, **change}, limits={"known": "yes", "open": [], "share": "all"})
    for verbose in (False, True):
        assert shown(snap, verbose=verbose)
    checked(snap)


def checked(snap: Snapshot) -> Any:
    document = texts.loads(json.dumps(json.handles(snap, handles.rows(snap))))
    schema = json.schema("handles")
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(document, schema, cls=jsonschema.Draft202012Validator)
    return document


def test_json_has_every_descriptor_and_fits_its_schema() -> None:
    document = checked(snapshot(PIPE, SOCKET))
    assert [row["fd"] for row in document["handles"]] == [7, 9]
    assert document["handles"][0]["owner_address"] == "0x7f0000001000"
    assert document["handles"][1]["owner"] is None
    assert document["limits"]["soft"] == 1024 and document["owners_known"] is True


def test_rows_are_chosen_by_kind_protocol_and_owner() -> None:
    found = handles.rows(snapshot(SOCKET, {**PIPE, "owned": False}))
    assert [r["fd"] for r in handles.chosen(found, "tcp", False)] == [7]
    assert [r["fd"] for r in handles.chosen(found, None, True)] == [9]
    assert handles.kinds(found) == ["pipe", "socket"]


def test_nothing_in_a_process_without_python_could_own_a_descriptor() -> None:
    snap = snapshot(PIPE, owners=False)
    snap.target.runtime = "native"
    lines = shown(snap)
    assert lines[0].split() == ["fd", "kind", "what"]
    assert not any("owns" in line for line in lines)
