"""The views of ``diagtool heap --show`` and ``--values``: caches, registries, what keeps objects unseen.

entries  no bound   hits  misses   lost    bytes  cache
  1,200       yes      0   1,200  1,200   1.8 MB  app.Store.total (class app.Store)

Each view is a table of the snapshot (docs/snapshot-format.md) of which rows that make no sense are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from diagtool.report.heap import matches
from diagtool.report.terminal import View, about, warnings
from diagtool.report.text import Line, cells, clean, count, cut, pad, size
from diagtool.snapshot.model import Snapshot

__all__ = ["LIMIT", "VIEWS", "document", "has_values", "lines", "values"]

#: Rows shown when nobody asks for another number.
LIMIT = 30

_Row = dict[str, Any]
_MOST = 1 << 63

#: The columns of each table, with what they hold; ``?`` means that it may be missing.
_COLUMNS: dict[str, dict[str, str]] = {
    "caches": {
        "function": "text",
        "held_in": "text?",
        "held_by": "texts",
        "caches": "number",
        "size": "number",
        "maxsize": "number?",
        "hits": "number",
        "misses": "number",
        "method": "flag",
        "instances": "number",
        "instances_of": "text?",
        "lost": "number",
        "bytes": "number",
        "looked_at": "number?",
        "address": "address",
    },
    "registries": {
        "registry": "text",
        "name": "text",
        "items": "number",
        "same": "number",
        "example": "text?",
        "instances": "number",
        "bound_to": "text?",
        "duplicates": "number?",
        "self_kept": "number?",
        "held_by": "texts",
        "address": "address",
    },
    "interned": {
        "count": "number",
        "bytes": "number",
        "mortal": "number",
        "immortal": "number",
        "immortal_bytes": "number",
        "all_immortal": "flag",
    },
    "exceptions": {
        "type": "text",
        "count": "number",
        "frames": "number",
        "bytes": "number",
        "held_by": "texts",
        "address": "address",
    },
    "array_views": {
        "type": "text",
        "views": "number",
        "bases": "number",
        "view_bytes": "number",
        "base_bytes": "number",
        "bytes": "number",
        "address": "address",
    },
    "asyncio_debug": {
        "tracebacks": "number",
        "origins": "number",
        "frames": "number",
        "bytes": "number",
        "debug_loops": "number",
    },
    "heap_values": {"type": "text", "address": "address", "value": "text?", "hidden": "text?"},
}

#: Views by the name that --show knows, and their tables.
VIEWS = {
    "caches": "caches",
    "registries": "registries",
    "strings": "interned",
    "exceptions": "exceptions",
    "views": "array_views",
    "debug": "asyncio_debug",
}
#: Columns of text, which begin at the left.
_TEXTS = ("registry",)
_Cell = str
_Columns = Sequence[tuple[str, Callable[[_Row], _Cell]]]


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST


_HOLDS: dict[str, Callable[[Any], bool]] = {
    "text": lambda v: isinstance(v, str),
    "number": _whole,
    "address": lambda v: isinstance(v, int) and not isinstance(v, bool),
    "flag": lambda v: isinstance(v, bool),
    "texts": lambda v: isinstance(v, list) and all(isinstance(t, str) for t in v),
}


def rows(snapshot: Snapshot, table: str) -> list[_Row]:
    """The rows of a table whose columns are what they should be, with None for those that are missing."""
    found = []
    for row in snapshot.tables.get(table, ()):
        kept: _Row = {}
        for name, kind in _COLUMNS[table].items():
            value = row.get(name)
            if not (value is None and kind.endswith("?")) and not _HOLDS[kind.rstrip("?")](value):
                break
            kept[name] = value
        else:
            found.append(kept)
    return found


def document(snapshot: Snapshot) -> dict[str, Any]:
    """All tables for JSON, addresses as hex; without those that the snapshot does not have."""
    out: dict[str, Any] = {}
    for table, columns in _COLUMNS.items():
        if table not in snapshot.tables:
            continue
        name = "values" if table == "heap_values" else table
        out[name] = [
            {key: hex(v & (1 << 64) - 1) if columns[key] == "address" else v for key, v in row.items()}
            for row in rows(snapshot, table)
        ]
    return out


def has_values(snapshot: Snapshot) -> bool:
    """Whether values were asked for when the snapshot was taken."""
    return "heap_values" in snapshot.tables


def values(snapshot: Snapshot, view: View) -> Iterator[Line]:
    """Examples of objects: a paragraph a type, a line an object."""
    found = rows(snapshot, "heap_values")
    before = None
    for row in found:
        if row["type"] != before:
            if before is not None:
                yield []
            before = row["type"]
            yield [(clean(row["type"]), "count")]
        text = row["value"] if row["value"] is not None else f"(hidden: {row['hidden'] or 'not told'})"
        head = f"  {row['address'] & (1 << 64) - 1:#x}  "
        yield [(head, "label"), (cut(clean(text, 1000), max(view.width - len(head), 20)), "")]
    if not found:
        yield [("No such object.", "")]
    yield from _foot(snapshot, view, f"{count(len(found), 'object')} shown")


def lines(snapshot: Snapshot, name: str, pattern: str | None, limit: int, view: View) -> Iterator[Line]:
    """One of VIEWS; ``pattern``: only rows that are called so, or whose names match it."""
    table = VIEWS[name]
    found = rows(snapshot, table)
    if pattern is not None:
        found = [r for r in found if any(matches(n, pattern) for n in _names(r))]
    columns = _SHOWN[name]
    shown = [[head for head, _ in columns], *([cell(r) for _, cell in columns] for r in found[:limit])]
    widths = [max(cells(line[i]) for line in shown) for i in range(len(columns) - 1)]
    for number, line in enumerate(shown if found else ()):
        text = "".join(
            f"{pad(c, w) if head in _TEXTS else ' ' * (w - cells(c)) + c}  "
            for w, c, (head, _) in zip(widths, line, columns, strict=False)
        )
        yield [(text + cut(line[-1], max(view.width - cells(text), 20)), "" if number else "label")]
    if not found:
        yield [(_NOTHING[name], "")]
    said = f"{len(found):,} {_NOUNS[name][len(found) != 1]}"
    if len(found) > limit:
        said += f", {limit:,} shown (--limit N)"
    yield from _foot(snapshot, view, said)


def _foot(snapshot: Snapshot, view: View, said: str) -> Iterator[Line]:
    yield []
    yield from warnings(snapshot.warnings, view)
    yield [(said, "count"), (about(snapshot.target, snapshot.pause_ms), "")]


def _names(row: _Row) -> list[str]:
    return [
        row[key] for key in ("function", "registry", "name", "example", "type", "bound_to") if row.get(key)
    ]


def _number(key: str) -> Callable[[_Row], _Cell]:
    return lambda row: f"{row[key]:,}"


def _size(key: str) -> Callable[[_Row], _Cell]:
    return lambda row: size(row[key])


def _cache(row: _Row) -> str:
    more = [row["held_in"]] if row["held_in"] else []
    if row["caches"] > 1:
        more.append(f"{row['caches']:,} of them")
    if row["method"]:
        more.append(f"{count(row['instances'], 'instance')} of {row['instances_of']}")
    return clean(row["function"] + (f"  ({', '.join(more)})" if more else ""))


def _registered(row: _Row) -> str:
    parts = [row["name"], row["example"] or ""]
    text = ": ".join(p for p in parts if p)
    if row["instances"]:
        text += f", bound to {row['instances']:,} {row['bound_to'] or 'objects'}"
    if row["duplicates"]:
        text += f", {row['duplicates']:,} that write where another one writes"
    if row["self_kept"]:
        text += f", {row['self_kept']:,} that keep their own object"
    return clean(text)


def _exception(row: _Row) -> str:
    return clean(row["type"] + (f"  in {'; '.join(row['held_by'])}" if row["held_by"] else ""))


_SHOWN: dict[str, _Columns] = {
    "caches": [
        ("entries", _number("size")),
        ("at most", lambda row: "–" if row["maxsize"] is None else f"{row['maxsize']:,}"),
        ("hits", _number("hits")),
        ("misses", _number("misses")),
        ("lost", _number("lost")),
        ("bytes", _size("bytes")),
        ("cache", _cache),
    ],
    "registries": [
        ("items", _number("items")),
        ("alike", _number("same")),
        ("registry", lambda row: clean(row["registry"])),
        ("of them most", _registered),
    ],
    "strings": [
        ("interned", _number("count")),
        ("bytes", _size("bytes")),
        ("immortal", _number("immortal")),
        ("bytes", _size("immortal_bytes")),
        ("", lambda row: "this version never frees them" if row["all_immortal"] else ""),
    ],
    "exceptions": [
        ("count", _number("count")),
        ("frames", _number("frames")),
        ("bytes", _size("bytes")),
        ("type", _exception),
    ],
    "views": [
        ("views", _number("views")),
        ("show", _size("view_bytes")),
        ("arrays", _number("bases")),
        ("take", _size("base_bytes")),
        ("type", lambda row: clean(row["type"])),
    ],
    "debug": [
        ("tracebacks", _number("tracebacks")),
        ("origins", _number("origins")),
        ("frames", _number("frames")),
        ("bytes", _size("bytes")),
        ("", lambda row: f"{count(row['debug_loops'], 'loop')} in debug mode"),
    ],
}
_NOUNS = {
    "caches": ("cached function", "cached functions"),
    "registries": ("registry", "registries"),
    "strings": ("process", "processes"),
    "exceptions": ("type", "types"),
    "views": ("type", "types"),
    "debug": ("process", "processes"),
}
_NOTHING = {
    "caches": "No function is cached with functools.lru_cache.",
    "registries": "No such registry.",
    "strings": "Nothing is known of interned strings.",
    "exceptions": "No stored exception keeps frames of calls that are over.",
    "views": "No view of an array keeps a much larger one.",
    "debug": "Nothing was written down by asyncio's debug mode.",
}
