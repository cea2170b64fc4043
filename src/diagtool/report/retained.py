"""The views of ``diagtool heap --retained`` and ``--garbage``: who keeps how much, and what nobody refers to.

   frees    objects      own  type: without all objects of it
104.0 MB  2,000,000  32.0 MB  app.Image
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from diagtool.report.terminal import View, about, warnings
from diagtool.report.text import Line, cells, clean, count, cut, size, wrap
from diagtool.snapshot.model import Snapshot

__all__ = ["LIMIT", "document", "garbage_lines", "has_garbage", "has_retained", "retained_lines"]

#: Rows of each kind shown when nobody asks for another number.
LIMIT = 10

_Row = dict[str, Any]
_HEADS = (
    ("type", "type: without all objects of it"),
    ("module", "module: without its globals"),
    ("container", "container: without it"),
)
_MOST = 1 << 63


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST


def _rows(snapshot: Snapshot, table: str, numbers: Sequence[str], texts: Sequence[str]) -> list[_Row]:
    """The rows of a table that make sense: these columns are numbers, those text."""
    return [
        row
        for row in snapshot.tables.get(table, ())
        if isinstance(row, dict)
        and all(_whole(row.get(name)) for name in numbers)
        and all(isinstance(row.get(name), str) for name in texts)
    ]


def has_retained(snapshot: Snapshot) -> bool:
    """Whether it was found out what keeps how much when the snapshot was taken."""
    return "heap_retained" in snapshot.tables


def has_garbage(snapshot: Snapshot) -> bool:
    """Whether objects that nobody refers to were looked for."""
    return "garbage" in snapshot.tables


def retained(snapshot: Snapshot) -> list[_Row]:
    """Types, modules and containers with what only they keep, most bytes first."""
    rows = _rows(snapshot, "heap_retained", ("bytes", "objects", "own"), ("what", "name"))
    columns = ("what", "name", "bytes", "objects", "own", "sure", "address", "items", "held_by")
    found = [{name: row.get(name) for name in columns} for row in rows]
    return sorted(found, key=lambda row: -int(row["bytes"]))


def document(snapshot: Snapshot) -> dict[str, Any]:
    """The parts of ``diagtool heap --format json``. What was not looked at is null."""
    lost = _rows(snapshot, "heap_lost", ("objects", "references", "unreferenced", "bytes"), ("type",))
    totals = _rows(snapshot, "garbage", ("count", "bytes", "cycles"), ())
    by_type = _rows(snapshot, "heap_garbage", ("count", "bytes", "in_cycles"), ("type",))
    return {
        "retained": retained(snapshot) if has_retained(snapshot) else None,
        "collectors": [_plain(row) for row in snapshot.tables.get("gc", ()) if isinstance(row, dict)],
        "garbage": {**_plain(totals[0]), "by_type": [_plain(row) for row in by_type]} if totals else None,
        "lost": [_plain(row) for row in lost] if "heap_lost" in snapshot.tables else None,
    }


def _plain(row: _Row) -> _Row:
    return {str(key): value for key, value in row.items() if not isinstance(value, dict)}


def retained_lines(snapshot: Snapshot, limit: int, view: View) -> Iterator[Line]:
    """What would be free without each type, module, container: a table of each."""
    rows = retained(snapshot)
    for what, head in _HEADS:
        mine = [row for row in rows if row["what"] == what]
        if not mine:
            continue
        yield from _columns(
            ("frees", "objects", "own", head),
            [(size(r["bytes"]), f"{r['objects']:,}", size(r["own"]), _named(r)) for r in mine[:limit]],
            view,
        )
        if not all(row["sure"] for row in mine):
            yield [("others may keep as much: there was no time to ask all of them", "label")]
        yield []
    if not rows:
        yield [("Nothing keeps anything.", "")]
        yield []
    yield from warnings(snapshot.warnings, view)
    total = next(iter(snapshot.tables.get("heap_graph", ())), {}).get("reached_bytes")
    said = f"{size(total)} are kept in all" if isinstance(total, int) else "all that is kept is not known"
    yield [(said, "count"), (about(snapshot.target, snapshot.pause_ms), "")]


def _named(row: _Row) -> str:
    if row["what"] != "container":
        return clean(row["name"])
    items = f", {row['items']:,} items" if _whole(row["items"]) else ""
    path = clean(str(row["held_by"]), 2000) if row["held_by"] else f"at {clean(str(row['address']))}"
    return path if items and path.endswith(")") else f"{path} ({clean(row['name'])}{items})"


def _columns(head: Sequence[str], rows: Sequence[Sequence[str]], view: View) -> Iterator[Line]:
    widths = [max(cells(line[i]) for line in (head, *rows)) for i in range(len(head) - 1)]
    for line, style in ((head, "label"), *((row, "") for row in rows)):
        text = "  ".join(f"{value:>{width}}" for value, width in zip(line, widths, strict=False)) + "  "
        yield [(text + cut(line[-1], max(view.width - cells(text), 20)), style)]


def garbage_lines(snapshot: Snapshot, limit: int, view: View) -> Iterator[Line]:
    """The collectors, garbage that only they can free, and objects whose references C code lost."""
    found = document(snapshot)
    for row in found["collectors"]:
        for part in wrap(_collector(row), view.width):
            yield [(part, "")]
    yield []
    garbage, lost = found["garbage"], found["lost"]
    if garbage is not None:
        yield [("garbage that only the collector can free: ", "label"), (_sum(garbage), "count")]
        if garbage["by_type"]:
            rows = [
                (f"{r['count']:,}", size(r["bytes"]), f"{r['in_cycles']:,}", clean(r["type"]))
                for r in garbage["by_type"][:limit]
            ]
            yield from _columns(("objects", "bytes", "in cycles", "type"), rows, view)
        yield []
    graph = next(iter(snapshot.tables.get("heap_graph", ())), {})
    if lost is None:
        why = graph.get("why_not")
        yield [(f"lost references: not looked for{f': {clean(str(why))}' if why else ''}", "label")]
    else:
        unreferenced = sum(r["unreferenced"] for r in lost)
        yield [
            ("references that C code never gave back: ", "label"),
            (f"{count(unreferenced, 'object')} that nothing refers to", "count"),
        ]
        rows = [
            (f"{r['unreferenced']:,}", size(r["bytes"]), f"{r['references']:,}", clean(r["type"]))
            for r in lost[:limit]
        ]
        if rows:
            yield from _columns(("objects", "bytes", "references", "type"), rows, view)
    yield []
    yield from warnings(snapshot.warnings, view)
    yield [(about(snapshot.target, snapshot.pause_ms).removeprefix(" · "), "")]


def _sum(garbage: _Row) -> str:
    cycles = count(garbage["cycles"], "cycle")
    return f"{count(garbage['count'], 'object')} in {cycles}, {size(garbage['bytes'])}"


def _collector(row: _Row) -> str:
    """interpreter 0: the collector is on; thresholds 700, 10, 10; counts 12, 3, 1; 4,900 objects frozen"""
    off = row.get("off")
    state = "off" if off is True else "on" if off is False else "in an unknown state"
    number = row.get("interpreter")
    said = f"interpreter {number if _whole(number) else '?'}: the collector is {state}"
    if off is True and row.get("enabled") is True:
        said += " (a threshold of 0)"
    for name in ("thresholds", "counts", "generations"):
        numbers = row.get(name)
        if isinstance(numbers, list) and numbers and all(_whole(n) for n in numbers):
            label = "objects by generation" if name == "generations" else name
            said += f"; {label} {', '.join(f'{n:,}' for n in numbers)}"
    if _whole(row.get("frozen_objects")) and row["frozen_objects"]:
        said += f"; {count(row['frozen_objects'], 'object')} frozen"
    elif row.get("frozen") is True:
        said += "; some objects frozen"
    if _whole(row.get("uncollectable")) and row["uncollectable"]:
        said += f"; {count(row['uncollectable'], 'object')} in gc.garbage"
    return clean(said, 400)
