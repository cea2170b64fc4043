"""The tables of a page: everything that can be searched and sorted. A cell is text, a number, or nothing.

What a column holds says how it is shown and sorted: ``text``, ``code``, ``id`` (a number that is a
name), ``count``, ``bytes``, ``seconds``,
``verdict``, ``stack`` (numbers of frames).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from diagtool.leaks.model import Report
from diagtool.report import ffirows, signals
from diagtool.report.checked import checked_rows
from diagtool.report.handles import rows as descriptors
from diagtool.report.heap import counts
from diagtool.report.html.frames import Frames
from diagtool.report.html.limits import Limits
from diagtool.report.terminal import baseline_name, thing
from diagtool.report.words import headline, where
from diagtool.snapshot.model import Snapshot

__all__ = ["ignored_table", "tables"]

Row = dict[str, Any]
Columns = Sequence[tuple[str, str]]


def _table(
    name: str, title: str, columns: Columns, rows: Sequence[Sequence[Any]], total: int | None = None
) -> Row:
    """One table; ``total`` is how many rows there would be, were none left out."""
    return {
        "id": name,
        "title": title,
        "columns": [{"label": label, "holds": holds} for label, holds in columns],
        "rows": list(rows),
        "total": len(rows) if total is None else total,
    }


def tables(snapshot: Snapshot, report: Report, frames: Frames, limits: Limits) -> list[Row]:
    """All tables that have rows."""
    found = [
        _clusters(report, frames, limits.clusters),
        _stacks(snapshot, frames, limits.stacks),
        *(make(snapshot, limits.rows) for make in _OF_SNAPSHOT),
    ]
    return [t for t in found if t["rows"]]


def ignored_table(report: Report, most: int) -> Row | None:
    """Findings that the baseline file says are known; None where there are none."""
    rows = [
        [
            headline(known.finding),
            where(known.finding) or None,
            known.reason,
            known.expires.isoformat() if known.expires else None,
            known.entry,
        ]
        for known in report.ignored[:most]
    ]
    columns = (
        *(("what", "text"), ("where", "code"), ("reason", "text"), ("until", "text")),
        ("entry", "code"),
    )
    title = f"Ignored, because {baseline_name(report.baseline)} says so"
    return _table("ignored", title, columns, rows, len(report.ignored)) if rows else None


def _clusters(report: Report, frames: Frames, most: int) -> Row:
    """Stacks that are alike, largest first."""
    verdicts = {f.id: f.verdict for f in report.findings}
    rows = [
        [
            c.count,
            c.kind,
            c.state,
            c.wait,
            verdicts.get(c.finding or "") or ("idle" if c.idle else None),
            frames.ids(c.frames),
            c.template,
            thing(c.waiting_on) if c.waiting_on else None,
        ]
        for c in report.clusters[:most]
    ]
    columns = (
        *(("count", "count"), ("kind", "text"), ("state", "text"), ("waits in", "code")),
        *(("verdict", "verdict"), ("stack", "stack"), ("template", "code"), ("waits on", "text")),
    )
    return _table("clusters", "Clusters: stacks that are alike", columns, rows, report.summary.clusters)


def _stacks(snapshot: Snapshot, frames: Frames, most: int) -> Row:
    rows = []
    for index in range(min(len(snapshot.stacks), most)):
        s = snapshot.stack(index)
        name = f"{s.address}" if s.kind == "thread" else f"{s.address:#x}"
        held = s.held_by
        rows.append(
            [
                s.kind,
                s.name or None,
                name,
                s.state,
                s.wait,
                s.wait_seconds,
                s.age_seconds,
                held,
                frames.ids(s.frames),
            ]
        )
    columns = (
        *(("kind", "text"), ("name", "text"), ("tid or address", "code"), ("state", "text")),
        *(("waits in", "code"), ("waiting", "seconds"), ("age", "seconds"), ("held by", "text")),
        ("stack", "stack"),
    )
    return _table("stacks", "Stacks, one by one", columns, rows, len(snapshot.stacks))


def _threads(snapshot: Snapshot, most: int) -> Row:
    rows = [
        [
            t.tid,
            t.name,
            "Python" if t.python else "native",
            {"R": "running", "S": "sleeping", "D": "in the kernel"}.get(t.state or "", t.state),
            _yes(t.daemon),
            _yes(t.holds_gil),
            t.wchan,
            t.cpu_seconds,
        ]
        for t in snapshot.threads[:most]
    ]
    columns = (
        *(("tid", "id"), ("name", "text"), ("of", "text"), ("kernel says", "text"), ("daemon", "text")),
        *(("has the GIL", "text"), ("waits in the kernel in", "code"), ("processor time", "seconds")),
    )
    return _table("threads", "Threads", columns, rows, len(snapshot.threads))


def _yes(value: bool | None) -> str | None:
    return None if value is None else "yes" if value else "no"


def _descriptors(snapshot: Snapshot, most: int) -> Row:
    found = descriptors(snapshot)
    rows = [
        [
            r["fd"],
            r["kind"],
            r["name"] or r.get("detail"),
            r.get("state"),
            r.get("idle"),
            r.get("owner_text") or ("nobody" if r.get("owned") is False else None),
        ]
        for r in found[:most]
    ]
    columns = (
        *(("fd", "id"), ("kind", "text"), ("name", "code"), ("state", "text"), ("silent", "seconds")),
        ("owner", "text"),
    )
    return _table("descriptors", "Open files and sockets", columns, rows, len(found))


def _libraries(snapshot: Snapshot, most: int) -> Row:
    found = ffirows.rows(snapshot, "libraries") if ffirows.is_told(snapshot) else []
    rows = [
        [r["name"], r["version"], r["role"], ", ".join(r["modules"][:4]), r["on_disk"], r["path"]]
        for r in found[:most]
    ]
    columns = (
        *(("library", "code"), ("version", "text"), ("role", "text"), ("modules", "text")),
        *(("on disk", "text"), ("path", "code")),
    )
    return _table("libraries", "Libraries", columns, rows, len(found))


def _types(snapshot: Snapshot, most: int) -> Row:
    found = counts(snapshot)
    rows = [[r.type, r.count, r.bytes, r.own, r.owned] for r in found[:most]]
    columns = (
        *(("type", "code"), ("objects", "count"), ("bytes", "bytes"), ("own", "bytes")),
        ("owned outside", "bytes"),
    )
    return _table("types", "Objects by type", columns, rows, len(found))


def _simple(
    name: str, title: str, source: str, columns: Sequence[tuple[str, str, str, str]]
) -> Callable[[Snapshot, int], Row]:
    """A table that is stored as it is shown: ``columns`` are key, what is stored, label, what it holds."""
    checked = {key: stored for key, stored, _, _ in columns}

    def make(snapshot: Snapshot, most: int) -> Row:
        found = checked_rows(snapshot, source, checked)
        rows = [[row[key] for key in checked] for row in found[:most]]
        return _table(name, title, [(label, holds) for _, _, label, holds in columns], rows, len(found))

    return make


def _signals(snapshot: Snapshot, most: int) -> Row:
    found = signals.rows(snapshot) if signals.is_told(snapshot) else []
    rows = [
        [r["signal"], r["disposition"], r["text"], r["python"], len(r["blocked_in"])] for r in found[:most]
    ]
    columns = (
        *(("signal", "code"), ("does", "text"), ("handled by", "text"), ("in Python", "code")),
        ("threads that block it", "count"),
    )
    return _table("signals", "Signals", columns, rows, len(found))


#: All others, in the order of the page.
_OF_SNAPSHOT: Iterable[Callable[[Snapshot, int], Row]] = (
    _threads,
    _descriptors,
    _types,
    _simple(
        "containers",
        "Largest containers",
        "heap_containers",
        (
            ("type", "text", "type", "code"),
            ("items", "number", "items", "count"),
            ("bytes", "number", "bytes", "bytes"),
            ("held_by", "text?", "held by", "text"),
        ),
    ),
    _simple(
        "retained",
        "What is kept, and by what",
        "heap_retained",
        (
            ("what", "text", "what", "text"),
            ("name", "text", "name", "code"),
            ("bytes", "number", "frees", "bytes"),
            ("objects", "number", "objects", "count"),
        ),
    ),
    _simple(
        "sites",
        "Where memory was allocated",
        "allocation_sites",
        (
            ("file", "text", "file", "code"),
            ("line", "number?", "line", "id"),
            ("function", "text?", "function", "code"),
            ("count", "number", "blocks", "count"),
            ("bytes", "number", "bytes", "bytes"),
        ),
    ),
    _simple(
        "memory",
        "Memory by owner",
        "memory_owners",
        (
            ("owner", "text", "owner", "text"),
            ("rss", "number", "resident", "bytes"),
            ("pss", "number?", "shared out", "bytes"),
            ("swap", "number?", "swapped", "bytes"),
            ("used", "number?", "in use", "bytes"),
            ("free", "number?", "free", "bytes"),
            ("note", "text", "note", "text"),
        ),
    ),
    _simple(
        "pools",
        "Thread pools of libraries",
        "thread_pools",
        (
            ("pool", "text", "pool", "text"),
            ("threads", "number", "threads", "count"),
            ("running", "number", "running", "count"),
            ("limit", "text?", "limited by", "code"),
        ),
    ),
    _signals,
    _libraries,
)
