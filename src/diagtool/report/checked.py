"""Rows of a snapshot's tables that hold what they should: a file may have been written by anybody."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from diagtool.snapshot.model import Snapshot

__all__ = ["checked_rows"]

Row = dict[str, Any]

_MOST = 1 << 63


def checked_rows(snapshot: Snapshot, table: str, columns: Mapping[str, str]) -> list[Row]:
    """The rows of a table, with these columns; those that make no sense are left out.

    What a column holds: a ``number`` (of bytes, blocks …), an ``address``, a ``fraction``, ``text``,
    ``texts`` or a ``flag``; ``?`` behind it says that it may be None.
    """
    found = snapshot.tables.get(table, ())
    return [{name: row[name] for name in columns} for row in found if _makes_sense(row, columns)]


def _makes_sense(row: object, columns: Mapping[str, str]) -> bool:
    if not isinstance(row, dict):
        return False
    for name, holds in columns.items():
        if name not in row:
            return False
        value = row[name]
        if not (value is None and holds.endswith("?")) and not _FITS[holds.rstrip("?")](value):
            return False
    return True


def _is_whole(value: object, end: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < end


_FITS: dict[str, Callable[[object], bool]] = {
    "number": lambda v: _is_whole(v, _MOST),
    "address": lambda v: _is_whole(v, 1 << 64),
    "fraction": lambda v: isinstance(v, (int, float)) and not isinstance(v, bool) and 0 <= v <= 1,
    "text": lambda v: isinstance(v, str),
    "flag": lambda v: isinstance(v, bool),
    "texts": lambda v: isinstance(v, list) and all(isinstance(t, str) for t in v),
}
