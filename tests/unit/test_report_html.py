"""The HTML report: one file that asks for nothing, in which no name is ever markup, and that stays small."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_snapshots import LEAF, RUN, container, finding, report, starved

from diagtool.leaks.model import Cluster, Ignored, Report, SourceLine
from diagtool.leaks.template import builtin
from diagtool.report.html import page
from diagtool.report.html.data import subject
from diagtool.report.html.flame import DEPTH, flame
from diagtool.report.html.limits import MOST_BYTES
from diagtool.report.html.runbook import nodes
from diagtool.report.html.series import growth
from diagtool.report.html.waits import waits
from diagtool.snapshot.model import (
    KIND,
    STATE,
    Frame,
    Snapshot,
    SnapshotBuilder,
    StackTable,
    Target,
    Thing,
    ThreadInfo,
    Traces,
)

ROOT = Path(__file__).resolve().parents[2]
VENDOR = ROOT / "src/diagtool/report/html/assets/vendor"
TABLES = (
    "heap_types heap_retained heap_containers memory memory_owners memory_libraries fds fd_limits libraries "
    "thread_pools signals signal_state allocation_sites heaps native_heap mapped_files"
).split()
COLUMNS = (
    "type count own owned types what name bytes objects items held_by root owner rss pss swap used free note "
    "path fd kind state idle owner_text group signal number disposition text python blocked_in file line "
    "function pool threads running limit version role modules on_disk allocator address oldest"
).split()
WORST = "</script><script>alert(1)</script><!--<img src=x onerror=alert(1)>\u2028\u202e\x1b[31m&lt;"


class _Parsed(HTMLParser):
    """What a browser makes of the markup: scripts by type, style, policy, addresses."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.scripts: list[tuple[str, str]] = []
        self.style = ""
        self.title = ""
        self.policy = ""
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self._in = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        self.tags.append(tag)
        self._in = tag
        self.addresses += [str(v) for k, v in attrs if k in ("src", "href", "action", "data", "srcset")]
        if tag == "script":
            self.scripts.append((known.get("type") or "", ""))
        if known.get("http-equiv") == "Content-Security-Policy":
            self.policy = known["content"] or ""

    def handle_endtag(self, tag: str) -> None:
        self._in = ""

    def handle_data(self, data: str) -> None:
        if self._in == "script":
            kind, text = self.scripts.pop()
            self.scripts.append((kind, text + data))
        elif self._in == "style":
            self.style += data
        elif self._in == "title":
            self.title += data

    @property
    def data(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(next(text for kind, text in self.scripts if kind))
        return found


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def test_the_page_asks_for_nothing_and_runs_nothing_but_its_own_scripts() -> None:
    parsed = _Parsed(page(report(), [starved()]))

    assert [a for a in parsed.addresses if not a.startswith("#")] == []
    assert parsed.policy.startswith("default-src 'none'; ")
    assert "unsafe" not in parsed.policy
    assert [kind for kind, _ in parsed.scripts] == ["application/json", "", ""]
    for kind, text in parsed.scripts:
        assert (_hash(text) in parsed.policy) == (kind == "")
    assert _hash(parsed.style) in parsed.policy


def test_it_opens_with_the_findings_and_everything_known_about_them() -> None:
    data = _Parsed(page(report(), [starved()])).data

    assert data["verdict"] == "1 likely finding"
    one = data["findings"][0]
    assert (one["count"], one["does"]) == ("10,000 tasks", "waiting in asyncio.Queue.get")
    own = [data["frames"][i][0] for i in one["frames"] if data["frames"][i][3] == "own"]
    assert own == ["leaf", "fetch_all"]
    facts = dict(one["facts"])
    assert facts["held by"] == ["__main__.background_tasks (set, 10,000 items)"]
    assert facts["why"] == ["no task, timer or fd can fill it"]
    assert "sentinel" in one["fix"]
    assert "Stop the bleeding" in json.dumps(data["runbooks"][one["template"]])


@pytest.mark.parametrize("name", [WORST, "@DATA@ @OURS@ @STYLE@", "]]>", "\\u003c", "\ud800"])
def test_no_name_becomes_markup(name: str) -> None:
    snap = starved(5, names=name)
    snap.target.cmdline = ["python", name]
    told = finding(examples=(name,), title=name, evidence=(name,), frames=(Frame(name, name, 1, name),))
    clusters = [Cluster("c", name, 1, name, name, frames=(Frame(name, f"/{name}.py", 3),))]
    plain = _Parsed(page(report(), [starved(5)]))

    text = page(Report.of(snap.target, [told], clusters, stacks=1, warnings=[name]), [snap])

    text.encode()  # no half of a character is left
    parsed = _Parsed(text)
    assert parsed.tags == plain.tags
    assert parsed.scripts[1:] == plain.scripts[1:]
    assert name.split("\u2028")[0].replace("\ud800", "\\ud800") in parsed.data["findings"][0]["title"]
    assert not set(text) & set("\u2028\u202e\x1b")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["/usr/bin/python3", "-u", "/srv/app/service.py", "4"], "service.py, pid 7"),
        (["python3.12", "-X", "dev", "-m", "celery", "worker"], "celery, pid 7"),
        (["python3", "-m", "celery", "worker"], "celery, pid 7"),
        (["python3", "-c", "import this"], "python3, pid 7"),
        (["/usr/bin/sleep", "100"], "sleep, pid 7"),
        ([], "a process, pid 7"),
    ],
    ids=["script", "options", "module", "text", "no python", "unknown"],
)
def test_the_program_is_named_as_people_call_it(command: list[str], said: str) -> None:
    assert subject(Target("live", pid=7, cmdline=command)) == said


def test_hints_stand_with_the_warnings() -> None:
    data = _Parsed(page(report(), [starved()], notes=["the heap was not looked at"])).data

    assert data["warnings"] == ["a page was missing", "the heap was not looked at"]


def test_lines_of_the_source_are_shown_with_what_they_say() -> None:
    lines = (SourceLine("/srv/app/worker.py", 41, "asyncio.create_task(go())", "dropped", "nobody keeps it"),)

    data = _Parsed(page(report(source=lines), [starved()])).data

    shown = [["worker.py:41", "asyncio.create_task(go())", "nobody keeps it"]]
    assert data["findings"][0]["source"] == shown


def test_the_baseline_is_told_never_hidden() -> None:
    known = report()
    made = Report(
        known.target, ignored=(Ignored(known.findings[0], ".diagtool.toml: ignore[0]", "ticket 12"),)
    )

    data = _Parsed(page(made, [starved()])).data

    assert data["verdict"] == "No leak found"
    assert data["ignored"]["rows"][0][2] == "ticket 12"


def test_a_million_different_stacks_fit_and_what_is_left_out_is_counted() -> None:
    snap = _many(1_000_000)
    clusters = [
        Cluster(f"{i}", "task", 1, "waiting", "asyncio.Queue.get", frames=tuple(snap.traces.of(i + 1)))
        for i in range(5_000)
    ]
    found = Report.of(snap.target, [finding()], clusters, stacks=len(snap.stacks))

    text = page(found, [snap])

    assert len(text.encode()) <= MOST_BYTES // 2
    data = _Parsed(text).data
    stacks = next(t for t in data["tables"] if t["id"] == "stacks")
    assert (len(stacks["rows"]), stacks["total"]) == (2_000, 1_000_000)
    assert data["flame"]["nodes"][0]["count"] == 1_000_000
    assert data["flame"]["left_out"] > 100_000
    assert data["waits"]["left_out"] > 0


def test_however_long_the_texts_are_it_stays_small() -> None:
    long = "漢" * 5_000
    found = [finding(id=str(i), evidence=(long,) * 50, cause=long, fix=long) for i in range(100)]

    text = page(Report.of(starved().target, found, [], stacks=1, warnings=[long] * 5_000), [starved()])

    assert len(text.encode()) <= MOST_BYTES
    data = _Parsed(text).data
    assert len(data["findings"]) + data["findings_left_out"] == 100


def test_the_flames_add_up() -> None:
    snap = starved(300)

    tree = flame(snap, 1_000)

    assert tree is not None
    nodes = tree["nodes"]
    assert nodes[0]["count"] == len(snap.stacks) == sum(n["self"] for n in nodes)
    for node in nodes:
        assert node["count"] == node["self"] + sum(n["count"] for n in nodes if n["parent"] == node["id"])
    leaf = next(n for n in nodes if n["name"] == "leaf")
    assert (leaf["count"], leaf["whose"], leaf["place"]) == (300, "own", "worker.py:41")


def test_deep_recursion_and_circles_in_a_damaged_file_end() -> None:
    deep = 60_000
    snap = _of_traces(np.arange(-1, deep, dtype=np.int32).clip(0), [deep, deep, 7])
    tree = flame(snap, 1_000)
    assert tree is not None
    counts = [n["count"] for n in tree["nodes"][2:]]
    assert counts == [3] * 7 + [2] * (DEPTH - 7)

    circle = np.array([0, 2, 3, 1, -5, 99, 0], np.int32)
    tree = flame(_of_traces(circle, [1, 2, 3, 4, 5, 6, 99, -1]), 1_000)
    assert tree is not None
    assert [n["count"] for n in tree["nodes"]] == [8, 8, 1]  # trace 6 alone makes sense


def test_alike_stacks_are_one_box_and_who_holds_what_they_wait_on_is_told_one_by_one() -> None:
    builder = SnapshotBuilder(Target("core", pid=1))
    trace, wait = builder.trace([RUN, LEAF]), builder.wait("threading.Lock.acquire")
    locks = [builder.thing(Thing(0x10 * (i + 1), "_thread.lock", "", {"owner": 102 - i})) for i in range(2)]
    builder.add(["a", "b"], address=[101, 102], trace=trace, wait=wait, thing=locks, state=STATE["waiting"])
    full = builder.thing(Thing(0x1000, "asyncio.queues.Queue", "empty"))
    builder.add([""] * 500, kind=KIND["task"], state=STATE["waiting"], trace=trace, thing=full)
    snap = builder.finish()
    snap.threads = [ThreadInfo(101, 0, "a"), ThreadInfo(102, 1, "b")]

    picture = waits(snap, Report(snap.target), 60)

    assert picture is not None
    title = {box["id"]: box["title"] for box in picture["boxes"]}
    arrows = {(title[a["from"]], a["text"], title[a["to"]], a["count"]) for a in picture["arrows"]}
    assert arrows == {
        ("thread a", "waits on", "_thread.lock", 1),
        ("thread b", "waits on", "_thread.lock", 1),
        ("_thread.lock", "is held by", "thread a", 1),
        ("_thread.lock", "is held by", "thread b", 1),
        ("500 tasks", "waits on", "asyncio.queues.Queue", 500),
    }


def test_a_series_has_lines_and_a_single_snapshot_none() -> None:
    snaps = [starved(n) for n in (100, 200, 300)]
    for number, snap in enumerate(snaps):
        snap.target.captured_at = 1000.0 + 60 * number
        snap.tables["heaps"] = [{"rss": (number + 1) * 10_000_000}]
        snap.tables["heap_containers"] = [container(100 * (number + 1))]

    told = growth(snaps, 12)

    assert told is not None and told["timed"]
    lines = {line["name"]: line["points"] for p in told["pictures"] for line in p["lines"]}
    assert lines["resident memory"] == [[0, 10_000_000], [60, 20_000_000], [120, 30_000_000]]
    assert [y for _, y in lines["tasks"]] == [s.count("task") for s in snaps]
    assert growth(snaps[:1], 12) is None


@pytest.mark.parametrize("seed", range(5))
def test_tables_of_a_file_that_anybody_wrote_do_no_harm(seed: int) -> None:
    rng = random.Random(seed)
    values = [
        None,
        -1,
        0,
        7,
        1 << 70,
        0.5,
        float("nan"),
        float("inf"),
        True,
        "",
        WORST,
        [],
        [WORST],
        {},
        {"a": 1},
    ]
    snap = starved(10)
    for name in TABLES:
        rows: list[Any] = [
            {column: rng.choice(values) for column in COLUMNS if rng.random() < 0.9} for _ in range(60)
        ]
        snap.tables[name] = [*rows, *({**row, **container(5), "rss": 7, "owner": "x"} for row in rows)]
    snap.target.details = {"crash": rng.choice(values)}
    snap.target.captured_at = rng.choice([None, -1.0, 1e300, float("nan")])

    parsed = _Parsed(page(report(), [snap, snap]))

    assert parsed.data["tables"]
    assert len(parsed.scripts) == 3


def test_areas_add_up_to_what_was_counted() -> None:
    snap = starved()
    snap.tables["heap_types"] = [
        {"type": f"app.T{i}", "count": 2, "own": 100, "owned": i, "types": 1} for i in range(300)
    ]
    snap.tables["heap_containers"] = [container(100), container(0, root="nonsense"), {"type": 5}]
    snap.tables["memory_owners"] = [
        {"owner": "glibc heap", "rss": 1000, "used": 1500, "free": 300, "note": ""},
        {"owner": "Python objects", "rss": 500, "used": 300, "free": 200, "note": "<b>"},
    ]

    data = _Parsed(page(report(), [snap])).data

    total = sum(row["own"] + row["owned"] for row in snap.tables["heap_types"])
    for name, expected in (("heap", total), ("memory", 1500), ("containers", 260_000)):
        assert sum(node.get("value", 0) for node in data[name]["nodes"]) == expected
    parts = [(n["name"], n["value"]) for n in data["memory"]["nodes"] if "value" in n]
    assert parts == [("in use", 1000), ("in use", 300), ("free", 200)]
    assert data["heap"]["left_out"] == 60


def test_every_template_brings_its_runbook() -> None:
    for template in builtin():
        assert template.idle or nodes(template.id), template.id
    assert nodes("../../../../../README") == nodes("no-such-template") == []


def test_the_library_is_the_one_that_the_lock_file_names_with_its_licences() -> None:
    text = (VENDOR / "charts.js").read_text("utf-8")
    licences = (VENDOR / "LICENSES.txt").read_text("utf-8")
    locked = json.loads((ROOT / "tools/charts/package-lock.json").read_text())["packages"]

    assert text.startswith(f"/*!\n{licences}*/")
    assert "</script" not in text.lower() and "<!--" not in text
    for name in ("vega-view", "vega-interpreter", "@dagrejs/dagre"):
        assert f"{name} {locked[f'node_modules/{name}']['version']} (" in licences
    assert not re.search(
        r"\beval\(|new Function\(", "".join(p.read_text() for p in VENDOR.parent.glob("*.js"))
    )


def _of_traces(parent: np.ndarray[Any, Any], leaves: list[int]) -> Snapshot:
    frames = np.zeros(len(parent), np.int32)
    n = len(leaves)
    columns = {"kind": np.ones(n, np.uint8), "trace": np.array(leaves, np.int32)}
    return Snapshot(Target("core"), Traces([LEAF], parent, frames), StackTable(name=[""] * n, **columns))


def _many(n: int) -> Snapshot:
    """``n`` tasks, each with a stack of its own, of 30,000 functions; below ten others."""
    size = 30_000
    frames = [Frame(f"funktiön_{i}", f"/srv/app/mödule_{i % 999}.py", i) for i in range(size)]
    top = 11
    numbers = np.arange(n, dtype=np.int32)
    parent = np.concatenate([np.zeros(top, np.int32), numbers % (top - 1) + 1])
    frame = np.concatenate([np.full(1, -1, np.int32), np.arange(top - 1, dtype=np.int32), numbers % size])
    stacks = StackTable(
        kind=np.full(n, KIND["task"], np.uint8),
        state=np.full(n, STATE["waiting"], np.uint8),
        address=numbers.astype(np.uint64) + 0x7F00_0000_0000,
        name=[f"Task-{i}" for i in range(n)],
        trace=(numbers + top).astype(np.int32),
        thing=numbers % 1_000,
        **{c: np.zeros(n, np.int32) for c in ("wait", "created_by", "merged")},
        thread=np.zeros(n, np.int64),
        loop=np.zeros(n, np.uint64),
        parent=np.zeros(n, np.uint64),
        holder=np.full(n, -1, np.int32),
        stuck=np.zeros(n, np.uint8),
        wait_seconds=np.full(n, np.nan),
        age_seconds=np.full(n, np.nan),
    )
    things = [Thing(0x1000 + i, "asyncio.queues.Queue", "empty") for i in range(1_000)]
    return Snapshot(Target("core", pid=4242), Traces(frames, parent, frame), stacks, things=things)
