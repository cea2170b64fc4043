"""A Snapshot written as rows of the tables in ``schema.sql``.

Column by column (numpy to lists to ``executemany``): a hundred thousand stacks take a fraction of a second.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diagtool._version import __version__
from diagtool.snapshot.columns import (
    I64_MAX,
    I64_MIN,
    INT,
    INT_OR_NONE,
    TARGET_FIELDS,
    TEXT,
    TEXT_OR_NONE,
    THREAD_FIELDS,
    U64,
)
from diagtool.snapshot.model import KINDS, STACK_COLUMNS, STATES, Snapshot, Thing, ThreadInfo
from diagtool.snapshot.packed import write_packed


def write_rows(db: sqlite3.Connection, snapshot: Snapshot) -> None:
    """Insert ``snapshot`` into a database that has the tables of schema.sql and no rows."""
    _write_meta(db, snapshot)
    _insert(db, "kind", range(len(KINDS)), KINDS)
    _insert(db, "state", range(len(STATES)), STATES)
    frames = snapshot.traces.frames
    _insert(
        db,
        "frame",
        range(len(frames)),
        _texts([f.function for f in frames]),
        _texts([f.file for f in frames]),
        [None if f.line is None else _clamp(f.line) for f in frames],
        _texts([f.module for f in frames]),
        _texts([f.language for f in frames]),
        _texts([f.library for f in frames]),
    )
    parents = snapshot.traces.parent
    _insert(db, "trace", range(len(parents)), parents.tolist(), snapshot.traces.frame.tolist())
    write_packed(db, "trace", {"parent": parents, "frame": snapshot.traces.frame})
    _insert(db, "wait", range(len(snapshot.waits)), _texts(snapshot.waits))
    _write_things(db, snapshot.things)
    _insert(db, "holder", range(len(snapshot.holders)), _texts(snapshot.holders))
    stacks = snapshot.stacks
    columns = [_plain(getattr(stacks, column)) for column in STACK_COLUMNS]
    _insert(db, "stack", range(len(stacks)), *columns, _texts(stacks.name))
    write_packed(db, "stack", {column: getattr(stacks, column) for column in STACK_COLUMNS})
    _write_threads(db, snapshot.threads)
    _insert(db, "await_edge", snapshot.awaits[:, 0].tolist(), snapshot.awaits[:, 1].tolist())
    labels = snapshot.labels
    _insert(
        db, "label", [r[0] for r in labels], _texts([r[1] for r in labels]), _texts([r[2] for r in labels])
    )
    for name, rows in snapshot.tables.items():
        _insert(db, "record", _texts([name]) * len(rows), range(len(rows)), _jsons(rows))
    _insert(db, "warning", range(len(snapshot.warnings)), _texts(snapshot.warnings))


def _write_meta(db: sqlite3.Connection, snapshot: Snapshot) -> None:
    target = snapshot.target
    meta: dict[str, Any] = {"diagtool": __version__}
    for name in TARGET_FIELDS:
        value = getattr(target, name)
        if isinstance(value, str):
            value = _text(value)
        meta[name] = _clamp(value) if isinstance(value, int) else value
    meta["pause_ms"] = snapshot.pause_ms
    meta["cmdline"] = _json(target.cmdline)
    meta["details"] = _json(target.details)
    meta["tables"] = _json(list(snapshot.tables))
    _insert(db, "meta", meta.keys(), meta.values())


def _write_things(db: sqlite3.Connection, things: Sequence[Thing]) -> None:
    _insert(
        db,
        "thing",
        range(len(things)),
        [_signed(t.address) for t in things],
        _texts([t.type for t in things]),
        _texts([t.detail for t in things]),
        _jsons([t.state for t in things]),
        [None if t.references is None else _clamp(t.references) for t in things],
        [None if t.from_waiters is None else _clamp(t.from_waiters) for t in things],
        [t.exclusive for t in things],
        _jsons([t.held_by for t in things]),
    )


def _write_threads(db: sqlite3.Connection, threads: Sequence[ThreadInfo]) -> None:
    columns: list[Sequence[Any]] = []
    for name, holds in THREAD_FIELDS.items():
        values = [getattr(t, name) for t in threads]
        if holds == "address":
            values = [None if v is None else _signed(v) for v in values]
        elif holds in (INT, INT_OR_NONE):
            values = [None if v is None else _clamp(v) for v in values]
        elif holds in (TEXT, TEXT_OR_NONE):
            values = _texts(values)
        columns.append(values)
    _insert(db, "thread", range(len(threads)), *columns, _jsons([t.registers for t in threads]))


def _insert(db: sqlite3.Connection, table: str, *columns: Iterable[Any]) -> None:
    marks = ",".join("?" * len(columns))
    db.executemany(f"INSERT INTO {table} VALUES ({marks})", zip(*columns, strict=True))


def _plain(column: NDArray[Any]) -> list[Any]:
    # uint64 as the int64 of the same bits, NaN as it is: SQLite stores it as NULL.
    values: list[Any] = (column.view(np.int64) if column.dtype == np.uint64 else column).tolist()
    return values


def _signed(value: int) -> int:
    value &= U64
    return value - 2**64 if value > I64_MAX else value


def _clamp(value: int) -> int:
    # A count read from garbage: no reader needs its exact value.
    return min(max(value, I64_MIN), I64_MAX)


def _text(value: str) -> str:
    # A lone surrogate, which file names that are no UTF-8 decode to, is not text for SQLite.
    return value.encode("utf-8", "backslashreplace").decode("utf-8")


def _texts(values: Sequence[Any]) -> list[Any]:
    try:
        "".join(filter(None, values)).encode()
    except UnicodeEncodeError:
        return [None if v is None else _text(v) for v in values]
    return list(values)


def _json(value: Any) -> str:
    try:
        return _encode(value)
    except ValueError:  # NaN and infinities, which are no JSON
        return _encode(_finite(value))


def _jsons(values: Sequence[Any]) -> list[str]:
    # Encoded as one array with a marker between, then cut: three times as fast as one by one.
    try:
        whole = _encode([part for value in values for part in (_MARK, value)])
    except ValueError:
        return [_json(value) for value in values]
    texts = whole[1:-1].replace(_ENCODED_MARK, "", 1).split("," + _ENCODED_MARK)
    if len(texts) != max(len(values), 1):  # the marker stands in a value, too
        return [_json(value) for value in values]
    return texts[: len(values)]


_MARK = "\0"
_ENCODED_MARK = '"\\u0000",'
_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False, default=str).encode


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return value
