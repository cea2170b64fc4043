"""A Snapshot read from rows of the tables in ``schema.sql``, with nothing trusted.

Types, ranges and references are checked, whole columns at a time: a hundred thousand stacks take a fraction
of a second.
"""

from __future__ import annotations

import gc
import json
import sqlite3
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from diagtool.snapshot.columns import (
    FLOAT_OR_NONE,
    I64_MAX,
    I64_MIN,
    INT,
    INT_OR_NONE,
    TARGET_FIELDS,
    TEXT,
    TEXT_OR_NONE,
    THREAD_FIELDS,
    U64,
    Types,
)
from diagtool.snapshot.model import (
    KINDS,
    STACK_COLUMNS,
    STATES,
    Frame,
    Snapshot,
    StackTable,
    Target,
    Thing,
    ThreadInfo,
    Traces,
)
from diagtool.snapshot.packed import read_packed

#: The values of one column: as SQLite gives them, or unpacked.
Column = Sequence[Any] | NDArray[Any]


class BadRows(ValueError):
    """Rows that no diagtool wrote. ``str()`` says which."""


def read_rows(db: sqlite3.Connection) -> Snapshot:
    """The snapshot in a database that has the tables of schema.sql. Raises BadRows, or sqlite3.Error."""
    collects = gc.isenabled()
    # A million new tuples make the collector run all the time, and none of them is garbage.
    gc.disable()
    try:
        return _read(db)
    except BadRows:
        raise
    except (ValueError, OverflowError) as error:  # of a JSON text
        raise BadRows(f"a value is none that diagtool writes ({error})") from None
    finally:
        if collects:
            gc.enable()


def _read(db: sqlite3.Connection) -> Snapshot:
    meta = dict(db.execute("SELECT key, value FROM meta").fetchall())
    frames = _read_frames(db)
    parent, frame = _read_traces(db, len(frames))
    _, waits = _numbered(db, "wait", "name")
    _check(waits, TEXT, "wait.name")
    things = _read_things(db)
    _, holders = _numbered(db, "holder", "path")
    _check(holders, TEXT, "holder.path")
    limits = {
        "trace": len(parent),
        "wait": len(waits),
        "thing": len(things),
        "created_by": len(parent),
        "merged": len(parent),
        "holder": len(holders),
        "stuck": 2,
    }
    stacks = _read_stacks(db, limits)
    count = len(stacks)
    awaiting, awaited = _columns(db, "SELECT awaiting, awaited FROM await_edge", 2)
    edges = [
        _array(awaiting, "i4", 0, count, "await_edge.awaiting"),
        _array(awaited, "i4", 0, count, "await_edge.awaited"),
    ]
    labels = _columns(db, "SELECT stack, name, value FROM label", 3)
    _array(labels[0], "i4", 0, count, "label.stack")
    _check(labels[1], TEXT, "label.name")
    _check(labels[2], TEXT, "label.value")
    _, warnings = _numbered(db, "warning", "text")
    _check(warnings, TEXT, "warning.text")
    return Snapshot(
        target=_read_target(meta),
        traces=Traces(frames, parent, frame),
        stacks=stacks,
        waits=list(waits),
        things=things,
        holders=list(holders),
        threads=_read_threads(db, count),
        awaits=np.stack(edges, axis=1),
        labels=list(zip(*labels, strict=True)),
        tables=_read_tables(db, meta),
        pause_ms=_field(meta, "pause_ms", FLOAT_OR_NONE),
        warnings=list(warnings),
    )


def _read_target(meta: dict[str, Any]) -> Target:
    fields: dict[str, Any] = {name: _field(meta, name, types) for name, types in TARGET_FIELDS.items()}
    fields["cmdline"] = _parse(meta, "cmdline", list)
    fields["details"] = _parse(meta, "details", dict)
    if not all(isinstance(word, str) for word in fields["cmdline"]):
        _bad("meta.cmdline")
    return Target(**fields)


def _read_frames(db: sqlite3.Connection) -> list[Frame]:
    names = ("function", "file", "line", "module", "language", "library")
    types = (TEXT, TEXT, INT_OR_NONE, TEXT_OR_NONE, TEXT, TEXT_OR_NONE)
    _, *columns = _numbered(db, "frame", *names)
    for name, column, allowed in zip(names, columns, types, strict=True):
        _check(column, allowed, f"frame.{name}")
    return [Frame(*row) for row in zip(*columns, strict=True)]


def _read_traces(db: sqlite3.Connection, frames: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    packed = read_packed(db, "trace", ("parent", "frame"))
    parents: Column
    own: Column
    if packed is None:
        _, parents, own = _numbered(db, "trace", "parent", "frame")
    else:
        parents, own = packed["parent"], packed["frame"]
    if not len(parents):
        _bad("trace", "is empty")
    parent = _array(parents, "i4", 0, len(parents), "trace.parent")
    frame = _array(own, "i4", -1, frames, "trace.frame")
    # A parent before its children: so that there is no cycle, and every walk ends at trace 0.
    if parent[0] != 0 or frame[0] != -1 or bool((parent[1:] >= np.arange(1, len(parent))).any()):
        _bad("trace.parent", "has a cycle")
    if bool((frame[1:] < 0).any()):
        _bad("trace.frame")
    return parent, frame


def _read_things(db: sqlite3.Connection) -> list[Thing]:
    names = ("address", "type", "detail", "state", "refs", "from_waiters", "exclusive", "held_by")
    types = (INT, TEXT, TEXT, TEXT, INT_OR_NONE, INT_OR_NONE, INT_OR_NONE, TEXT)
    _, *columns = _numbered(db, "thing", *names)
    for name, column, allowed in zip(names, columns, types, strict=True):
        _check(column, allowed, f"thing.{name}")
    address, kind, detail, state, refs, waiters, exclusive, held_by = columns
    things = zip(
        [a & U64 for a in address],
        kind,
        detail,
        _parse_all(state, dict, "thing.state"),
        refs,
        waiters,
        [None if e is None else bool(e) for e in exclusive],
        _parse_all(held_by, list, "thing.held_by"),
        strict=True,
    )
    return [Thing(*row) for row in things]


def _read_stacks(db: sqlite3.Connection, limits: dict[str, int]) -> StackTable:
    names = list(STACK_COLUMNS)
    packed = read_packed(db, "stack", names)
    columns: list[Column]
    if packed is None:
        _, *rows, texts = _numbered(db, "stack", *names, "name")
        columns = list(rows)
    else:
        columns = [packed[name] for name in names]
        (texts,) = _columns(db, "SELECT name FROM stack ORDER BY id", 1)
    _check(texts, TEXT, "stack.name")
    limits = {**limits, "kind": len(KINDS), "state": len(STATES)}
    table: dict[str, Any] = {}
    for name, column in zip(names, columns, strict=True):
        what = f"stack.{name}"
        dtype = STACK_COLUMNS[name]
        if dtype == "f8":
            _check(column, FLOAT_OR_NONE, what)
            table[name] = np.array(column, dtype)
        elif name in limits:
            table[name] = _array(column, dtype, -1 if name in ("thing", "holder") else 0, limits[name], what)
        elif isinstance(column, np.ndarray):
            table[name] = column.astype(dtype)
        else:
            table[name] = _array(column, "i8", I64_MIN, I64_MAX, what).view(dtype)
    return StackTable(name=list(texts), **table)


def _read_threads(db: sqlite3.Connection, stacks: int) -> list[ThreadInfo]:
    _, *columns, registers = _numbered(db, "thread", *THREAD_FIELDS, "registers")
    fields: dict[str, Sequence[Any]] = {}
    for (name, holds), column in zip(THREAD_FIELDS.items(), columns, strict=True):
        _check(column, INT_OR_NONE if isinstance(holds, str) else holds, f"thread.{name}")
        if holds == "bool":
            column = [None if v is None else bool(v) for v in column]
        elif holds == "address":
            column = [None if v is None else v & U64 for v in column]
        fields[name] = column
    _array(fields["stack"], "i4", 0, stacks, "thread.stack")
    _check(fields["python"], frozenset({bool}), "thread.python")
    fields["registers"] = _parse_all(registers, dict, "thread.registers")
    for values in fields["registers"]:
        if not all(type(v) is int for v in values.values()):
            _bad("thread.registers")
    rows = zip(*fields.values(), strict=True)
    return [ThreadInfo(**dict(zip(fields, row, strict=True))) for row in rows]


def _read_tables(db: sqlite3.Connection, meta: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    tables: dict[str, list[dict[str, Any]]] = {}
    for name in _parse(meta, "tables", list):
        if not isinstance(name, str):
            _bad("meta.tables")
        tables[name] = []
    names, values = _columns(db, "SELECT tbl, value FROM record ORDER BY rowid", 2)
    for name, row in zip(names, _parse_all(values, dict, "record.value"), strict=True):
        if name not in tables:
            _bad("record.tbl")
        tables[name].append(row)
    return tables


def _columns(db: sqlite3.Connection, query: str, width: int) -> list[Sequence[Any]]:
    rows = db.execute(query).fetchall()
    return list(zip(*rows, strict=True)) if rows else [()] * width


def _numbered(db: sqlite3.Connection, table: str, *names: str) -> list[Sequence[Any]]:
    # The columns id, *names of a table whose ids must be 0, 1, 2 … because others refer to them by number.
    columns = _columns(db, f"SELECT id, {', '.join(names)} FROM {table} ORDER BY id", len(names) + 1)
    if columns[0] != tuple(range(len(columns[0]))):
        _bad(f"{table}.id", "has holes")
    return columns


def _check(column: Column, allowed: Types, what: str) -> None:
    if isinstance(column, np.ndarray):
        if (column.dtype.kind == "f") != (float in allowed):
            _bad(what, "has values of the wrong type")
    elif not set(map(type, column)) <= allowed:
        _bad(what, "has a value of the wrong type")


def _array(column: Column, dtype: str, low: int, high: int, what: str) -> NDArray[Any]:
    # Integers that must be in low … high - 1 (in the whole of int64 when high is its maximum).
    _check(column, INT, what)
    values = np.asarray(column, np.int64)
    if values.size and (int(values.min()) < low or (high < I64_MAX and int(values.max()) >= high)):
        _bad(what, "points to nothing")
    return values.astype(dtype)


def _field(meta: dict[str, Any], key: str, allowed: Types) -> Any:
    value = meta.get(key)
    if type(value) not in allowed:
        _bad(f"meta.{key}", "is missing or of the wrong type")
    return value


def _parse(meta: dict[str, Any], key: str, kind: type) -> Any:
    return _parse_all([_field(meta, key, TEXT)], kind, f"meta.{key}")[0]


def _parse_all(texts: Sequence[Any], kind: type, what: str) -> list[Any]:
    # Many JSON texts parsed as one array: several times as fast as one by one.
    _check(texts, TEXT, what)
    values = json.loads("[" + ",".join(texts) + "]")
    if len(values) != len(texts) or not set(map(type, values)) <= {kind}:
        _bad(what, "is not the JSON that diagtool writes")
    return list(values)


def _bad(what: str, why: str = "has an impossible value") -> NoReturn:
    raise BadRows(f"{what} {why}")
