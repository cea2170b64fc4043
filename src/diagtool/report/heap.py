"""The view of ``diagtool heap``: objects by type, for a person.

  count     bytes  type
500,000   28.0 MB  app.Node
  1,024    1.1 GB  bytearray
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from diagtool.report.terminal import View, about, warnings
from diagtool.report.text import Line, cells, clean, count, cut, size, wrap
from diagtool.snapshot.model import Snapshot

#: Types shown when nobody asks for another number.
LIMIT = 30


@dataclass(frozen=True, slots=True)
class TypeCount:
    """Objects of types of one name: how many, and the bytes that they and what they own take."""

    type: str
    count: int
    own: int
    owned: int
    types: int = 1  # distinct type objects of this name

    @property
    def bytes(self) -> int:
        return self.own + self.owned


def has_census(snapshot: Snapshot) -> bool:
    """Whether the objects were counted when the snapshot was taken."""
    return "heap_types" in snapshot.tables


def counts(snapshot: Snapshot, pattern: str | None = None) -> list[TypeCount]:
    """The rows of the census, most bytes first. Rows of a file that make no sense are left out.

    ``pattern``: only types of this name, with or without module, or that match it (``*`` and ``?``).
    """
    rows = [row for row in map(_row, snapshot.tables.get("heap_types", ())) if row is not None]
    if pattern is not None:
        rows = [row for row in rows if matches(row.type, pattern)]
    return sorted(rows, key=lambda r: (-r.bytes, -r.count, r.type))


def matches(name: str, pattern: str) -> bool:
    """Whether the name of a type, or its last part, is ``pattern`` or matches it."""
    return any(fnmatch.fnmatchcase(n, pattern) for n in (name, name.rpartition(".")[2]))


def _row(row: dict[str, Any]) -> TypeCount | None:
    numbers = [row.get("count"), row.get("own"), row.get("owned"), row.get("types", 1)]
    name = row.get("type")
    if not isinstance(name, str):
        return None
    whole = [n for n in numbers if isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 1 << 63]
    return TypeCount(name, *whole) if len(whole) == len(numbers) else None


@dataclass(frozen=True, slots=True)
class Way:
    """Who keeps objects: a path from a root, and how many of those looked at it leads to."""

    text: str
    root: str
    count: int
    example: str  # address of one of them
    steps: list[dict[str, Any]]


def ways(snapshot: Snapshot) -> list[Way]:
    """The paths to what was asked for with --why, those to most objects first."""
    found = []
    for row in snapshot.tables.get("heap_ways", ()):
        texts = [row.get(key) for key in ("text", "root", "example")]
        number, steps = row.get("count"), row.get("steps")
        if all(isinstance(t, str) for t in texts) and isinstance(number, int) and isinstance(steps, list):
            found.append(Way(str(texts[0]), str(texts[1]), number, str(texts[2]), steps))
    return found


def answer_from_paths(snapshot: Snapshot, wanted: str) -> bool:
    """Answer --why from what a snapshot stores of the types with most bytes; false: it is of none of these.

    The tables ``heap_why`` and ``heap_ways`` are made of ``heap_paths``.
    """
    rows = [
        row
        for row in snapshot.tables.get("heap_paths", ())
        if isinstance(row, dict)
        and all(isinstance(row.get(key), str) for key in ("type", "text", "root", "example"))
        and all(isinstance(row.get(key), int) for key in ("count", "looked_at"))
        and matches(row["type"], wanted)
    ]
    looked_at = {row["type"]: row["looked_at"] for row in rows}
    total = sum(r.count for r in counts(snapshot) if r.type in looked_at)
    snapshot.tables["heap_why"] = [{"wanted": wanted, "total": total, "looked_at": sum(looked_at.values())}]
    snapshot.tables["heap_ways"] = [
        {**row, "root": {"outside": "native"}.get(row["root"], row["root"]), "steps": []}
        for row in sorted(rows, key=lambda row: -row["count"])
    ]
    return bool(rows)


def paths(snapshot: Snapshot, view: View) -> Iterator[Line]:
    """Who keeps what was asked for: a path a paragraph, with how many of the objects it leads to."""
    asked = next(iter(snapshot.tables.get("heap_why", ())), {})
    total, looked_at = asked.get("total", 0), asked.get("looked_at", 0)
    found = ways(snapshot)
    widest = max((len(f"{way.count:,}") for way in found), default=0)
    for way in found:
        head = f"{way.count:>{widest},}  "
        for i, part in enumerate(wrap(clean(way.text, 2000), view.width - len(head))):
            yield [(head if not i else " " * len(head), "count"), (part, "")]
        if view.verbose:
            yield [(" " * len(head) + f"for one, the object at {clean(way.example)}", "label")]
    if not found:
        yield [("No such object.", "")]
    yield []
    yield from warnings(snapshot.warnings, view)
    said = (
        f"{looked_at:,} of {count(total, 'object')} looked at"
        if looked_at != total
        else count(total, "object")
    )
    yield [(f"who keeps {clean(str(asked.get('wanted', '')))}: {said}", "count")]
    yield [(about(snapshot.target, snapshot.pause_ms).removeprefix(" · "), "")]


def _name(row: TypeCount) -> str:
    name = clean(row.type)
    return f"{name}  ({row.types:,} types of this name)" if row.types > 1 else name


def table(snapshot: Snapshot, rows: Sequence[TypeCount], limit: int, view: View) -> Iterator[Line]:
    """The types, most bytes first, the sums, and what could not be read."""
    rest = rows[limit:]
    lines = [("count", "bytes", "type", "label")]
    lines += [(f"{r.count:,}", size(r.bytes), _name(r), "") for r in rows[:limit]]
    if rest:
        more = f"in {count(len(rest), 'more type')} (--limit N)"
        lines.append((f"{sum(r.count for r in rest):,}", size(sum(r.bytes for r in rest)), more, "label"))
    widths = [max(cells(line[i]) for line in lines) for i in range(2)]
    for number, amount, name, style in lines if rows else ():
        text = f"{number:>{widths[0]}}  {amount:>{widths[1]}}  "
        yield [(text + cut(name, max(view.width - len(text), 20)), style)]
    if not rows:
        yield [("No such object.", "")]
    yield []
    yield from warnings(snapshot.warnings, view)
    totals = f"{count(sum(r.count for r in rows), 'object')} of {count(len(rows), 'type')}, "
    totals += size(sum(r.bytes for r in rows))
    yield [(totals, "count"), (about(snapshot.target, snapshot.pause_ms), "")]
