"""Questions in SQL to a .diag file: read-only, bounded in time, memory and rows.

The file may come from anybody and the question from a script, so a question may only read: whatever else
SQLite can do (write, attach other files, load code, change settings) is refused before it runs.
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from diagtool.snapshot import store

__all__ = ["Answer", "BadQuery", "Column", "Database", "TableInfo", "TooLong", "opened"]

#: Keys of records that become columns, and rows of a table in which they are looked for.
_MOST_COLUMNS = 200
_LOOKED_AT = 1_000
_MOST_TABLES = 500
_MOST_FRAMES = 1_000
#: Bytes: of one value, and of what SQLite may use in all.
_LONGEST = 64 << 20
_MOST_MEMORY = 1 << 30
_PREPARING = 60.0  # seconds for finding out what there is: a machine may be slow, a file without an end
_LIMIT_LENGTH, _LIMIT_ATTACHED = 0, 7  # sqlite.org/c3ref/c_limit_attached.html
_EVERY = 10_000  # instructions of SQLite's machine between two looks at the clock

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
#: What no question is about: one has the records, which are views here, the other what diagtool reads faster.
_INTERNAL = frozenset(("record", "packed"))
_READING = frozenset(
    (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE, sqlite3.SQLITE_FUNCTION)
)
_PRAGMAS = frozenset(("table_info", "table_xinfo", "table_list", "index_list", "function_list"))
_FORBIDDEN = frozenset(("load_extension", "fts3_tokenizer", "randomblob", "zeroblob"))


class BadQuery(Exception):
    """SQLite does not take the question. ``str()`` says why, ``hint`` what to do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class TooLong(BadQuery):
    """The question is taken, and answering it needs more time or memory than it was given."""


@dataclass(frozen=True, slots=True)
class Answer:
    """``rows``, at most as many as were asked for; ``more``: there are others. Values are None, int, float,
    str or bytes."""

    columns: list[str]
    rows: list[tuple[Any, ...]]
    more: bool


@dataclass(frozen=True, slots=True)
class Column:
    """A column and what it means, "" where nothing is said."""

    name: str
    text: str = ""


@dataclass(frozen=True, slots=True)
class TableInfo:
    """A table, a view, or a table of records, and its columns."""

    name: str
    kind: str  # table, view, records
    text: str
    columns: tuple[Column, ...]


class Database:
    """An open .diag file. See :func:`opened`."""

    def __init__(self, path: str | os.PathLike[str], *, alone: bool = False) -> None:
        self._path = path
        self._db = store.connect(path)
        self._frames = store.connect(path)  # a function may not ask the connection that it is called by
        self._deadline = float("inf")
        self._records: dict[str, list[str]] = {}
        try:
            if alone:
                self._db.execute(f"PRAGMA hard_heap_limit = {_MOST_MEMORY}")
            self._prepare()
        except (sqlite3.Error, ValueError) as error:  # ValueError: messages that are no UTF-8
            self.close()
            raise store.damaged(path, error) from None

    def close(self) -> None:
        self._db.close()
        self._frames.close()

    def _prepare(self) -> None:
        db = self._db
        db.execute("PRAGMA cell_size_check = ON")
        db.text_factory = self._frames.text_factory = _text
        set_limit = getattr(db, "setlimit", None)  # from Python 3.11 on
        if set_limit is not None:
            set_limit(_LIMIT_LENGTH, _LONGEST)
            set_limit(_LIMIT_ATTACHED, 0)
        self._deadline = time.monotonic() + _PREPARING
        for connection in (db, self._frames):
            connection.set_progress_handler(self._late, _EVERY)
        self._view_records()
        db.create_function("hex64", 1, _hex64, deterministic=True)
        whole, innermost = lru_cache(4096)(self._frames_of), lru_cache(4096)(partial(self._frames_of, most=1))
        db.create_function("frames", 1, whole, deterministic=True)
        db.create_function("frame", 1, innermost, deterministic=True)
        db.execute("PRAGMA query_only = ON")
        db.set_authorizer(_may)

    def _view_records(self) -> None:
        """A view for each table of records, with its keys as columns."""
        db = self._db
        taken = {name.lower() for (name,) in db.execute("SELECT name FROM sqlite_master")}
        keys: dict[str, list[str]] = {}
        found = db.execute(
            "SELECT DISTINCT record.tbl, each.key FROM record, "
            "json_each(CASE WHEN json_valid(record.value) THEN record.value ELSE '{}' END) AS each "
            "WHERE record.row < ? AND typeof(record.tbl) = 'text'",
            (_LOOKED_AT,),
        )
        for table, key in found:
            lower = table.lower()
            if not _NAME.fullmatch(table) or lower in taken or lower.startswith("sqlite_"):
                continue
            if table not in keys and (len(keys) == _MOST_TABLES or lower in {t.lower() for t in keys}):
                continue
            columns = keys.setdefault(table, [])
            named = isinstance(key, str) and _NAME.fullmatch(key) and len(columns) < _MOST_COLUMNS
            if named and key.lower() not in {column.lower() for column in columns}:
                columns.append(key)
        for table, columns in keys.items():
            picked = ", ".join(f"""json_extract(value, '$."{c}"') AS "{c}\"""" for c in columns)
            if picked:
                db.execute(
                    f'CREATE TEMP VIEW "{table}" AS SELECT {picked} FROM main.record '
                    f"WHERE tbl = '{table}' AND json_valid(value)"
                )
                self._records[table] = columns

    def ask(self, query: str, *, rows: int, seconds: float) -> Answer:
        """The answer to one SELECT. Raises BadQuery, TooLong, or StoreError for a damaged file."""
        if not query.strip().strip(";").strip():
            raise BadQuery("there is no query", "Give one: select * from stack_text.")
        self._deadline = time.monotonic() + seconds
        try:
            cursor = self._db.execute(query)
            if cursor.description is None:
                raise BadQuery("a query may only read", "Ask with SELECT.")
            found = cursor.fetchmany(rows + 1)
        except (sqlite3.Error, sqlite3.Warning, OverflowError, ValueError, MemoryError) as error:
            raise self._said(error, seconds) from None
        return Answer([column[0] for column in cursor.description], found[:rows], len(found) > rows)

    def _said(self, error: Exception, seconds: float) -> Exception:
        said = str(error) or type(error).__name__
        if "interrupted" in said or "user-defined function" in said:  # one of ours was interrupted
            if time.monotonic() > self._deadline:
                return TooLong(
                    f"the query took longer than {seconds:g} s",
                    "Ask for less, or give it more with --timeout.",
                )
            if "interrupted" in said:
                return KeyboardInterrupt()  # type: ignore[return-value]  # it came while SQLite worked
        if isinstance(error, MemoryError) or "out of memory" in said or "too big" in said:
            return TooLong("the query needs too much memory", "Ask for less at a time.")
        if any(word in said for word in ("authoriz", "prohibited", "readonly")):
            return BadQuery("a query may only read", "Ask with SELECT.")
        if "one statement" in said:
            return BadQuery("there is more than one statement", "Ask one question at a time.")
        if any(word in said for word in ("malformed", "not a database", "user-defined function")):
            return store.damaged(self._path, error)
        return BadQuery(f"the query can't be answered: {said}", "--schema lists tables, views and columns.")

    def _late(self) -> int:
        return time.monotonic() > self._deadline

    def _frames_of(self, trace: Any, most: int = _MOST_FRAMES) -> str | None:
        """The frames of a trace, innermost first, as text."""
        if not isinstance(trace, int):
            return None
        out: list[str] = []
        step = (
            "SELECT trace.parent, frame.function, frame.file, frame.line, frame.library "
            "FROM trace LEFT JOIN frame ON frame.id = trace.frame WHERE trace.id = ?"
        )
        while trace > 0 and len(out) < most:
            row = self._frames.execute(step, (trace,)).fetchone()
            if row is None:
                break
            parent, function, file, line, library = row
            place = str(file or library or "?").rpartition("/")[2]
            out.append(f"{function or '?'} ({place}{'' if line is None else f':{line}'})")
            if not isinstance(parent, int) or parent >= trace:
                break
            trace = parent
        return " < ".join(out) or None

    def tables(self) -> list[TableInfo]:
        """What can be asked about: our tables and views, those that somebody added, those of records."""
        meant = _meanings()
        found = []
        listed = "SELECT type, name FROM sqlite_master WHERE type IN ('table', 'view') ORDER BY rowid"
        self._deadline = time.monotonic() + _PREPARING
        try:
            names = self._db.execute(listed).fetchall()
        except (sqlite3.Error, ValueError) as error:
            raise store.damaged(self._path, error) from None
        for kind, name in names:
            if isinstance(name, str) and name not in _INTERNAL and not name.startswith("sqlite_"):
                text, comments = meant.get(name, ("", {}))
                columns = tuple(Column(c, comments.get(c, "")) for c in self._columns(name))
                found.append(TableInfo(name, kind, text, columns))
        found += [
            TableInfo(name, "records", "", tuple(map(Column, columns)))
            for name, columns in sorted(self._records.items())
        ]
        return found

    def _columns(self, table: str) -> list[str]:
        quoted = '"' + table.replace('"', '""') + '"'
        with contextlib.suppress(sqlite3.Error, ValueError):  # somebody's view of what is not there
            return [row[1] for row in self._db.execute(f"PRAGMA table_info({quoted})")]
        return []


@contextlib.contextmanager
def opened(path: str | os.PathLike[str], *, alone: bool = False) -> Iterator[Database]:
    """A .diag file to ask. Raises StoreError.

    ``alone``: nobody else in this process uses SQLite, so that it may be told to take a gigabyte at most.
    """
    database = Database(path, alone=alone)
    try:
        yield database
    finally:
        database.close()


def _may(action: int, first: str | None, second: str | None, *_: str | None) -> int:
    """What SQLite asks while it reads the question: whether it may do that."""
    if action == sqlite3.SQLITE_FUNCTION and (second or "").lower() in _FORBIDDEN:
        return sqlite3.SQLITE_DENY
    if action == sqlite3.SQLITE_PRAGMA and (first or "").lower() in _PRAGMAS:
        return sqlite3.SQLITE_OK
    return sqlite3.SQLITE_OK if action in _READING else sqlite3.SQLITE_DENY


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _hex64(value: Any) -> Any:
    """An address as it is written; what is no whole number stays as it is."""
    return hex(value & (1 << 64) - 1) if isinstance(value, int) else value


_TABLE = re.compile(r"^CREATE (TABLE|VIEW) (\w+)")
_COLUMN = re.compile(r"^ {4}(\w+)[^-]*?(?:-- (.*))?$")


def _meanings() -> dict[str, tuple[str, dict[str, str]]]:
    """Of our tables and views what schema.sql says: about each, and about its columns."""
    found: dict[str, tuple[str, dict[str, str]]] = {}
    before: list[str] = []
    columns: dict[str, str] = {}
    for line in store.schema().splitlines():
        head = _TABLE.match(line)
        if head is not None:
            columns = {}
            behind = line.rpartition("-- ")[2] if ");" in line and "-- " in line else ""
            found[head[2]] = (behind or " ".join(before), columns)
        elif line.startswith("--"):
            before.append(line.lstrip("- "))
            continue
        elif (column := _COLUMN.match(line)) is not None:
            columns[column[1]] = (column[2] or "").strip()
        before = []
    return found
