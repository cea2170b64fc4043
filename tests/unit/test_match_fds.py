"""Templates over open files: each finds its leak, and stays silent for its twins."""

from __future__ import annotations

import io
from typing import Any

import jsonschema
import pytest
from made_stacks import World

from diagtool.inventory.fdgroups import name_groups
from diagtool.inventory.fds import _own
from diagtool.leaks import find_leaks
from diagtool.leaks.template import builtin
from diagtool.report import json, terminal
from diagtool.report.text import write
from diagtool.snapshot.model import Snapshot

Row = dict[str, Any]

LOST: Row = {"kind": "file", "name": "/srv/data", "settled": True, "owned": False}
PIPE: Row = {"kind": "pipe", "name": "pipe:[1]", "settled": True, "owned": False}
POLL: Row = {"kind": "epoll", "name": "", "settled": True, "owned": True, "watches": 900}
CLIENT: Row = {
    "kind": "socket",
    "name": "10.0.0.9:40001 -> 10.0.0.1:5432",
    "settled": True,
    "protocol": "tcp",
    "local": "10.0.0.9:40001",
    "remote": "10.0.0.1:5432",
    "state": "ESTABLISHED",
    "accepted": False,
}
LOG: Row = {
    "kind": "file",
    "name": "/srv/app.log",
    "settled": True,
    "deleted": True,
    "access": "w",
    "append": True,
}
TEMPORARY: Row = {"kind": "file", "settled": True, "deleted": True, "access": "rw", "owned": True}


def many(row: Row, count: int, **changes: str) -> list[Row]:
    """So many of it; ``{}`` in a change becomes the number."""
    return [
        {"inode": 900 + i, **row, **{k: v.format(i) for k, v in changes.items()}, "fd": 10 + i}
        for i in range(count)
    ]


def turned_over(*looks: list[Row]) -> list[list[Row]]:
    """The same, all of it new in each look."""
    return [[{**row, "inode": row["inode"] + 10_000 * n} for row in rows] for n, rows in enumerate(looks)]


def series(*looks: list[Row], table: str = "fds") -> list[Snapshot]:
    """A snapshot for each list of rows, a minute apart, of one process."""
    out = []
    for i, rows in enumerate(looks):
        if table == "fds":
            name_groups(rows)
        world = World()
        world.table(table, *({k: v for k, v in row.items() if v is not None} for row in rows))
        snapshot = world.build()
        snapshot.target.captured_at = 1.7e9 + 60 * i
        out.append(snapshot)
    return out


def told(snapshots: list[Snapshot]) -> list[tuple[str | None, str, int]]:
    return [(f.template, f.verdict, f.count) for f in find_leaks(snapshots).findings]


CLOSED: Row = {**CLIENT, "state": "CLOSE_WAIT"}
BOTH: Row = {**PIPE, "ends": [11]}

TWICE: Row = {**CLIENT, "accepted": True, "owned": False, "twin": 4}
NUMBERS = {"number": False}
#: One look: rows, template, verdict, count.
ONE: dict[str, tuple[list[Row], str, int]] = {
    "one file, opened again and again": (many(LOST, 200), "descriptors-without-owner", 200),
    "pipes": (many(BOTH, 400), "descriptors-without-owner", 400),
    "numbers that nobody keeps": (many({**BOTH, **NUMBERS}, 400), "descriptors-without-owner", 400),
    "numbers that exist by chance": (
        [{**row, "number": row["fd"] % 20 > 0} for row in many(BOTH, 400)],
        "descriptors-without-owner",
        400,
    ),
    "connections that the other side has closed": (many(CLOSED, 100), "sockets-in-close-wait", 100),
    "a log": (many({**LOG, "allocated": 10_000_000}, 1), "deleted-file-written", 10_000_000),
    "temporary files": (
        many(TEMPORARY, 200, name="/tmp/#{}"),
        "deleted-files-kept-open",
        200,
    ),
    "members that are gone": (many({**POLL, "dead": 50}, 1), "epoll-of-dead-descriptors", 50),
    "sockets that have another number": (many(TWICE, 150), "sockets-open-twice", 150),
}
#: Three looks, each with more.
MORE: dict[str, tuple[list[list[Row]], str]] = {
    "one file": ([many(LOST, n) for n in (40, 60, 80)], "descriptors-without-owner"),
    "connections": ([many(CLOSED, n) for n in (60, 90, 120)], "sockets-in-close-wait"),
    "a log": (
        [many({**LOG, "allocated": n * 1_000_000}, 1) for n in (1, 2, 3)],
        "deleted-file-written",
    ),
    "temporary files": (
        [many(TEMPORARY, n, name="/tmp/#{}") for n in (30, 50, 70)],
        "deleted-files-kept-open",
    ),
    "sockets": ([many(TWICE, n) for n in (20, 50, 90)], "sockets-open-twice"),
    "members": ([many({**POLL, "dead": n}, 1) for n in (10, 20, 30)], "epoll-of-dead-descriptors"),
}
UPLOAD: Row = {**CLIENT, "accepted": True, "local": "10.0.0.9:80", "owned": False}
#: What is as it should be, however many looks there are, and however it grows.
HEALTHY: dict[str, list[list[Row]]] = {
    "files that Python owns": [many({**LOST, "owned": True}, n) for n in (100, 500, 900)],
    "nobody looked who owns them": [many({**LOST, "owned": None}, n) for n in (100, 500, 900)],
    "tables of a database in C": [many(LOST, n, name="/db/{}.sst") for n in (100, 500, 900)],
    "clients of a server in C": [many(UPLOAD, n, remote="10.0.0.2:{}") for n in (100, 500, 900)],
    "numbers that Python keeps": [
        [{**row, **({"number": True} if row["fd"] > 256 else {})} for row in many(BOTH, n)]
        for n in (300, 600, 900)
    ],
    "a few of a library's own": [many({**PIPE, "kind": "eventfd", "name": ""}, 40)] * 3,
    "a GPU's device": [many({**LOST, "kind": "device", "detail": "NVIDIA"}, n) for n in (100, 500, 900)],
    "memory of a library": [many({**LOST, "kind": "memfd"}, n) for n in (100, 500, 900)],
    "a pool that the server has closed": [many(CLOSED, n) for n in (0, 10, 29)],
    "a few sockets with another number": [many(TWICE, n) for n in (10, 20, 40)],
    "connections in use": [many({**CLIENT, "owned": True}, n) for n in (100, 500, 900)],
    "uploads in work": [many(TEMPORARY, n, name="/tmp/#{}") for n in (10, 25, 45)],
    "more and more uploads in work, new ones each time": turned_over(
        *(many(TEMPORARY, n, name="/tmp/#{}") for n in (30, 60, 150))
    ),
    "connections that come and go": turned_over(*(many(CLOSED, n) for n in (30, 60, 90))),
    "pipes that come and go": turned_over(*(many({**PIPE, "ends": [11]}, n) for n in (30, 60, 150))),
    "shared memory of tensors": [many(TEMPORARY, n, name="/dev/shm/torch_{}") for n in (100, 500, 900)],
    "a small log that was deleted": [many({**LOG, "allocated": 4096}, 1)] * 3,
    "a deleted log that nobody writes": [many({**LOG, "allocated": 2_000_000}, 1)] * 3,
    "an epoll of a child": [many({**POLL, "dead": 12}, 1)] * 3,
}


@pytest.mark.parametrize(("rows", "template", "count"), ONE.values(), ids=ONE)
def test_one_look_is_a_suspect(rows: list[Row], template: str, count: int) -> None:
    assert told(series(rows)) == [(template, "suspect", count)]


@pytest.mark.parametrize(("rows", "template", "count"), ONE.values(), ids=ONE)
def test_its_report_fits_the_schema(rows: list[Row], template: str, count: int) -> None:
    document = json.leaks(find_leaks(series(rows)))
    jsonschema.validate(document, json.schema("leaks"), cls=jsonschema.Draft202012Validator)
    (finding,) = document["findings"]
    assert (finding["template"], finding["count"], finding["state"]) == (template, count, "open")
    assert finding["kind"] == ("byte" if template == "deleted-file-written" else "descriptor")
    out = io.StringIO()
    write(terminal.leaks(find_leaks(series(rows)), terminal.View(80)), out, color=False)
    assert f"{count:,} {finding['kind']}s  open" in out.getvalue()


@pytest.mark.parametrize(("looks", "template"), MORE.values(), ids=MORE)
def test_growth_makes_it_likely(looks: list[list[Row]], template: str) -> None:
    assert [(t, v) for t, v, _ in told(series(*looks))] == [(template, "likely")]
    assert told(series(*reversed(looks))) == []


def test_connections_of_a_library_are_a_suspect_at_most() -> None:
    looks = [many({**CLIENT, "owned": False}, n) for n in (100, 500, 900)]
    assert told(series(*looks)) == [("descriptors-without-owner", "suspect", 900)]
    assert told(series(looks[-1])) == []  # a pool, for all that one look can tell


@pytest.mark.parametrize("looks", HEALTHY.values(), ids=HEALTHY)
def test_its_healthy_twin_is_not(looks: list[list[Row]]) -> None:
    assert told(series(*looks)) == []
    assert told(series(looks[-1])) == []


def limit(count: int, soft: int | None, known: bool = True) -> list[Row]:
    share = count / soft if soft else None
    return [{"known": known, "count": count, "soft": soft, "share": share, "most": "9 of pipe"}]


def test_the_limit() -> None:
    def verdicts(*looks: list[Row]) -> list[str]:
        return [f.verdict for f in find_leaks(series(*looks, table="fd_limits")).findings]

    assert verdicts(limit(1000, 1024)) == ["likely"]
    assert verdicts(limit(940, 1024)) == ["suspect"]
    assert verdicts(limit(700, 1024), limit(820, 1024), limit(940, 1024)) == ["likely"]
    assert verdicts(limit(800, 1024)) == verdicts(limit(60, 64)) == []
    assert verdicts(limit(10**6, None)) == verdicts([{"known": False}]) == []


def test_every_template_over_these_tables_is_tested_here() -> None:
    templates = {t.id for t in builtin() if getattr(t.match, "table", "") in ("fds", "fd_limits")}
    tested = {t for _, t, _ in ONE.values()} | {t for _, t in MORE.values()} | {"descriptor-limit-near"}
    assert templates == tested


# --- what templates are asked of ---------------------------------------------------------------------------


def test_what_is_alike_has_one_group() -> None:
    rows = [
        {"fd": 3, "kind": "file", "name": "/srv/shard-12/a.log"},
        {"fd": 4, "kind": "file", "name": "/srv/shard-7/a.log"},
        {**CLIENT, "fd": 5},
        {**UPLOAD, "fd": 6, "remote": "10.0.0.2:9"},
        {"fd": 7, "kind": "socket", "protocol": "tcp", "state": "LISTEN", "local": "0.0.0.0:80"},
        {"fd": 8, "kind": "socket", "protocol": "unix", "ends": [9], "name": ""},
        {"fd": 9, "kind": "socket", "protocol": "unix", "local": "/run/x.sock", "name": ""},
        {"fd": 10, "kind": "socket", "protocol": "tcp", "state": "unconnected", "name": ""},
        {"fd": 11, "kind": "timerfd", "name": ""},
    ]
    name_groups(rows)
    assert [row["group"] for row in rows] == [
        "file /srv/shard-#/a.log",
        "file /srv/shard-#/a.log",
        "tcp to 10.0.0.1:5432",
        "tcp accepted on port 80",
        "tcp that listens",
        "unix pair",
        "unix /run/x.sock",
        "tcp unconnected",
        "timerfd",
    ]


def test_an_owner_must_fit_what_the_number_is_now() -> None:
    """A socket object whose descriptor was closed behind its back does not own what has its number now."""
    rows = [
        {"fd": 1, "kind": "pipe", "settled": True},
        {"fd": 5, "kind": "pipe", "settled": True},
        {"fd": 6, "kind": "pipe", "settled": True},
        {"fd": 7, "kind": "pipe", "settled": False},
    ]
    socket = {"fd": 5, "kind": "socket", "type": "socket.socket", "address": 1}
    file = {"fd": 6, "kind": "file", "type": "io.FileIO", "address": 2, "text": "io.FileIO"}
    transport = {"fd": 6, "kind": "any", "type": "asyncio.Transport", "address": 3}
    _own(rows, [socket, file, transport])
    assert "owned" not in rows[0]  # standard input, output and errors are nobody's leak
    assert rows[1]["owned"] is False
    assert (rows[2]["owner"], rows[2]["also"], rows[2]["owned"]) == ("io.FileIO", ["asyncio.Transport"], True)
    assert "owned" not in rows[3]  # it came or went meanwhile
