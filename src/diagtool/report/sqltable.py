"""Answers to questions in SQL: a table for a person, JSON, CSV; and what can be asked about."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from diagtool.report.export.csvtables import lines_of
from diagtool.report.text import Line, cells, clean, cut, pad, wrap
from diagtool.snapshot.query import Answer, TableInfo

__all__ = ("csv", "document", "schema", "table")

_MOST_CELL = 10_000
#: No column of a table becomes narrower than this for the sake of others.
_LEAST = 8
_GAP = 2


def table(answer: Answer, width: int | None) -> Iterator[Line]:
    """A line a row under the names of the columns, in ``width`` columns; None: as wide as it is."""
    if not answer.columns:
        return
    rows = [[_text(value) for value in row] for row in answer.rows]
    heads = [clean(name, 200) or "?" for name in answer.columns]
    widths = [max(cells(row[i]) for row in [heads, *rows]) for i in range(len(heads))]
    if width is not None:
        widths = _fitting(widths, width)
    numeric = [
        bool(answer.rows) and all(row[i] is None or _is_number(row[i]) for row in answer.rows)
        for i in range(len(heads))
    ]
    yield [(_row(heads, widths, numeric), "label")]
    for row in rows:
        yield [(_row(row, widths, numeric), "")]


def _row(values: Sequence[str], widths: Sequence[int], numeric: Sequence[bool]) -> str:
    parts = []
    for value, width, right in zip(values, widths, numeric, strict=True):
        text = cut(value, width)
        parts.append(" " * (width - cells(text)) + text if right else pad(text, width))
    return (" " * _GAP).join(parts).rstrip()


def _fitting(widths: list[int], width: int) -> list[int]:
    """The widest columns made narrower until all fit, if they can."""
    room = max(width - _GAP * (len(widths) - 1), len(widths))
    narrow = list(widths)
    while sum(narrow) > room:
        widest = max(narrow)
        if widest <= _LEAST:
            break
        next_one = max((w for w in narrow if w < widest), default=_LEAST)
        many = narrow.count(widest)
        less = max((sum(narrow) - room + many - 1) // many, 1)
        narrow = [max(w - less, next_one, _LEAST) if w == widest else w for w in narrow]
    return narrow


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float))


def _text(value: Any) -> str:
    if value is None:
        return ""
    return clean(value.hex() if isinstance(value, bytes) else str(value), _MOST_CELL)


def document(answer: Answer) -> dict[str, Any]:
    """The document ``diagtool.sql/1``: rows as objects; a name that comes twice has a number behind it."""
    names: list[str] = []
    for name in answer.columns:
        number, free = 2, name
        while free in names:
            free, number = f"{name}:{number}", number + 1
        names.append(free)
    return {
        "schema": "diagtool.sql/1",
        "columns": names,
        "rows": [dict(zip(names, map(_plain, row), strict=True)) for row in answer.rows],
        "more": answer.more,
    }


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def csv(answer: Answer) -> Iterator[bytes]:
    """The same as CSV (see ``report.export.csvtables``)."""
    return lines_of(answer.columns, (map(_plain, row) for row in answer.rows))


def schema(tables: Iterable[TableInfo], width: int) -> Iterator[Line]:
    """Every table with its columns and what they mean."""
    kind = ""
    for info in tables:
        if info.kind == "records" and kind != "records":
            yield []
            yield [("records: one view a table, described in docs/snapshot-format.md", "label")]
        kind = info.kind
        if kind == "records":
            names = ", ".join(clean(c.name, 100) for c in info.columns)
            yield from _paragraph(clean(info.name, 100), names, width)
            continue
        yield []
        yield [(clean(info.name, 100), "own"), (f"  {kind}", "label")]
        for line in wrap(info.text, width - 2) if info.text else ():
            yield [("  " + line, "label")]
        longest = max((len(clean(c.name, 100)) for c in info.columns), default=0)
        for column in info.columns:
            text = clean(column.text, 300)
            yield [(f"  {clean(column.name, 100):<{longest}}  ", ""), (text, "label")]


def _paragraph(name: str, text: str, width: int) -> Iterator[Line]:
    yield [(name, "own")]
    for line in wrap(text, width - 4):
        yield [("    " + line, "")]
