"""The heap of Go, for a person and as JSON: sizes of objects, and types where the runtime notes them.

in use  objects     free  bytes of an object
4.2 MB  131,072   12 kB                   32

in use  objects  type
1.0 MB    1,000  []*main.Order

Go heap: 140,222 objects, 6.3 MB in use; 1.1 MB free in 812 spans; 2.1 MB of stacks
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from diagtool.report.checked import checked_rows
from diagtool.report.terminal import View, about, warnings
from diagtool.report.text import Line, clean, columns, count, size, wrap
from diagtool.snapshot.model import Snapshot

__all__ = ["LIMIT", "document", "has_go_heap", "lines"]

#: Sizes and types shown when nobody asks for another number.
LIMIT = 12

_COLUMNS = {
    "go_heap": {
        "spans": "number",
        "bytes": "number",
        "objects": "number",
        "used": "number",
        "free": "number",
        "large": "number",
        "no_pointers": "number",
        "stacks": "number",
        "typed": "number",
        "lost": "number",
    },
    "go_heap_sizes": {
        "size": "number",
        "spans": "number",
        "bytes": "number",
        "objects": "number",
        "used": "number",
        "free": "number",
        "no_pointers": "number",
    },
    "go_heap_types": {"type": "text", "count": "number", "bytes": "number"},
}

_Row = dict[str, Any]


def _rows(snapshot: Snapshot, table: str) -> list[_Row]:
    return checked_rows(snapshot, table, _COLUMNS[table])


def has_go_heap(snapshot: Snapshot) -> bool:
    """Whether the process had a Go runtime whose heap was read."""
    return bool(_rows(snapshot, "go_heap"))


def document(snapshot: Snapshot, limit: int | None = None) -> _Row | None:
    """The key ``go`` of ``diagtool.heap/1``; None where there is no heap of Go."""
    totals = _rows(snapshot, "go_heap")
    if not totals:
        return None
    sizes, types = _rows(snapshot, "go_heap_sizes"), _rows(snapshot, "go_heap_types")
    return {**totals[0], "sizes": sizes[:limit], "types": types[:limit]}


def lines(snapshot: Snapshot, limit: int, view: View) -> Iterator[Line]:
    """The whole view. ``limit``: sizes and types that are shown; the rest is summed up."""
    total = _rows(snapshot, "go_heap")[0]
    yield from _sizes(_rows(snapshot, "go_heap_sizes"), limit)
    yield []
    types = _rows(snapshot, "go_heap_types")
    if types:
        yield from _types(types, limit)
        text = (
            f"Go notes types of objects of more than 512 bytes with pointers: {size(total['typed'])} in all."
        )
    else:
        text = (
            "Go notes no types here: it does from 1.22 on, of objects of more than 512 bytes with pointers."
        )
    for part in wrap(text, view.width):
        yield [(part, "label")]
    yield []
    yield from warnings(snapshot.warnings, view)
    said = f"Go heap: {count(total['objects'], 'object')}, {size(total['used'])} in use; "
    said += (
        f"{size(total['free'])} free in {count(total['spans'], 'span')}; {size(total['stacks'])} of stacks"
    )
    yield [(said, "count"), (about(snapshot.target, snapshot.pause_ms), "")]


def _sizes(rows: list[_Row], limit: int) -> Iterator[Line]:
    body = [
        (size(r["used"]), f"{r['objects']:,}", size(r["free"]), f"{r['size']:,}" if r["size"] else "large")
        for r in rows[:limit]
    ]
    if rest := rows[limit:]:
        used, objects, free = (sum(r[name] for r in rest) for name in ("used", "objects", "free"))
        body.append((size(used), f"{objects:,}", size(free), f"{count(len(rest), 'more size')} (--limit N)"))
    yield from columns(("in use", "objects", "free", "bytes of an object"), body)


def _types(rows: list[_Row], limit: int) -> Iterator[Line]:
    body = [(size(r["bytes"]), f"{r['count']:,}", clean(r["type"], 200)) for r in rows[:limit]]
    if rest := rows[limit:]:
        taken, objects = (sum(r[name] for r in rest) for name in ("bytes", "count"))
        body.append((size(taken), f"{objects:,}", f"{count(len(rest), 'more type')} (--limit N)"))
    yield from columns(("in use", "objects", "type"), body)
