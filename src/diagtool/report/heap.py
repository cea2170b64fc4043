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
from diagtool.report.text import Line, cells, clean, count, cut, size
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
