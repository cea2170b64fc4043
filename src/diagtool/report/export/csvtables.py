"""Every table as CSV (RFC 4180): a line a row, CR LF, UTF-8, the names of the columns in the first line.

What could be a formula to a spreadsheet (a text that begins with ``=``, ``+``, ``-`` or ``@``) has an
apostrophe before it, which spreadsheets take for "this is text"; what is not printable is an escape. Numbers
are plain numbers, addresses hex, what is not known is empty, lists of texts have "; " between them, other
lists and objects are JSON. A cell of text ends after 32,000 characters, because spreadsheets end there.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from diagtool.leaks.cluster import kind_name, state_name
from diagtool.leaks.model import Report
from diagtool.report.export import names
from diagtool.report.export.sequences import depths, joined, sequences
from diagtool.report.json import leaks
from diagtool.report.text import clean
from diagtool.snapshot.columns import TARGET_FIELDS, THREAD_FIELDS
from diagtool.snapshot.model import Frame, Snapshot

__all__ = ("ALWAYS", "Table", "guarded", "lines_of", "tables")

#: Gives the table piece by piece.
Table = Callable[[], Iterator[bytes]]

_MOST_TEXT = 32_000
_MOST_COLUMNS = 200
_FORMULA = ("=", "+", "-", "@")
_ROWS = 1 << 14
_OK = re.compile(r"[a-z0-9_]{1,64}")

#: Columns of records that hold addresses, where they hold numbers.
_ADDRESSES = frozenset(
    (
        "address",
        "owner_address",
        "handler",
        "example",
        "start",
        "end",
        "pointer",
        "instruction",
        "hit",
        "loop",
    )
)


#: Tables of every snapshot.
ALWAYS = ("target", "stacks", "traces", "threads", "things", "awaits", "labels", "warnings")


def tables(snapshot: Snapshot, report: Report | None = None) -> dict[str, Table]:
    """All tables by name: those of every snapshot, those of ``report``, then the others, as they are stored
    (docs/snapshot-format.md)."""
    found: dict[str, Table] = {
        "target": lambda: _target(snapshot),
        "stacks": lambda: _stacks(snapshot),
        "traces": lambda: _traces(snapshot),
        "threads": lambda: _threads(snapshot),
        "things": lambda: _things(snapshot),
        "awaits": lambda: lines_of(("awaiting", "awaited"), snapshot.awaits.tolist()),
        "labels": lambda: lines_of(("stack", "name", "value"), snapshot.labels),
        "warnings": lambda: lines_of(("text",), ((text,) for text in snapshot.warnings)),
    }
    if report is not None:
        document = leaks(report)
        for name in ("findings", "clusters"):
            rows = document[name]
            found[name] = lambda rows=rows: _records(rows, _FIRST)  # type: ignore[misc]
    for number, (name, records) in enumerate(snapshot.tables.items()):
        plain = name if _OK.fullmatch(name) else f"table_{number}"  # a file may come from anybody
        while plain in found:
            plain += "_"
        found[plain] = lambda records=records: _records(records)  # type: ignore[misc]
    return found


def guarded(text: str) -> str:
    """``text`` as a cell: printable, and no formula."""
    text = clean(text, _MOST_TEXT)
    return f"'{text}" if text.startswith(_FORMULA) else text


def _cell(value: Any) -> Any:
    if value is None or value is True or value is False:
        return "" if value is None else "true" if value else "false"
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else ""
    if isinstance(value, str):
        return guarded(value)
    return guarded(json.dumps(value, separators=(",", ":"), default=str))


def lines_of(columns: Sequence[str], rows: Iterable[Iterable[Any]]) -> Iterator[bytes]:
    """A table of plain values, some thousand rows at a time."""
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow([guarded(str(c)) for c in columns])
    for number, row in enumerate(rows, 1):
        writer.writerow([_cell(value) for value in row])
        if not number % _ROWS:
            yield _taken(out)
    yield _taken(out)


def _taken(out: io.StringIO) -> bytes:
    data = out.getvalue().encode("utf-8", "backslashreplace")
    out.seek(0)
    out.truncate()
    return data


def _records(rows: Sequence[Any], first: Sequence[str] = ()) -> Iterator[bytes]:
    """Rows with names: all names that there are, in the order in which they come; nothing without any."""
    kept = [row for row in rows if isinstance(row, dict)]
    seen: dict[str, None] = dict.fromkeys(first)
    for row in kept:
        if not row.keys() <= seen.keys():
            seen.update(dict.fromkeys(row))
    columns = list(seen)[:_MOST_COLUMNS]
    if not columns:
        return iter(())
    return lines_of(columns, ([_record_cell(c, row.get(c)) for c in columns] for row in kept))


def _record_cell(column: str, value: Any) -> Any:
    if column in _ADDRESSES and type(value) is int:
        return _hex(value)
    if column in ("frames", "created_by") and isinstance(value, list):
        return " < ".join(_frame_text(f) for f in value)
    if column == "waiting_on" and isinstance(value, dict):
        return " ".join(str(part) for part in (value.get("type"), value.get("address")) if part)
    if isinstance(value, list) and value and all(isinstance(part, str) for part in value):
        return "; ".join(value)
    return value


def _frame_text(value: Any) -> str:
    """A frame as JSON has it, or the place in a row of an allocation."""
    if isinstance(value, dict) and isinstance(value.get("function"), str):
        line = value.get("line")
        frame = Frame(
            value["function"], str(value.get("file") or ""), line if isinstance(line, int) else None
        )
        return names.labelled(frame)
    if isinstance(value, list) and len(value) > 1 and isinstance(value[0], str):
        named = f"{value[2]} " if len(value) > 2 and isinstance(value[2], str) else ""
        return clean(f"{named}({value[0]}:{value[1]})", 1000)
    return clean(str(value), 1000)


_FIRST = ("id", "verdict", "template", "severity", "kind", "count", "bytes", "title", "state", "wait")


def _hex(value: int) -> str:
    return hex(value & (1 << 64) - 1)


def _target(snapshot: Snapshot) -> Iterator[bytes]:
    target = snapshot.target
    rows: list[tuple[str, Any]] = [(name, getattr(target, name)) for name in TARGET_FIELDS]
    rows += [("cmdline", target.cmdline), ("pause_ms", snapshot.pause_ms), ("details", target.details)]
    return lines_of(("key", "value"), rows)


def _threads(snapshot: Snapshot) -> Iterator[bytes]:
    rows = (
        [
            _hex(value) if holds == "address" and value is not None else value
            for name, holds in THREAD_FIELDS.items()
            for value in (getattr(t, name),)
        ]
        for t in snapshot.threads
    )
    return lines_of(tuple(THREAD_FIELDS), rows)


def _things(snapshot: Snapshot) -> Iterator[bytes]:
    columns = (
        "id",
        "address",
        "type",
        "detail",
        "references",
        "from_waiters",
        "exclusive",
        "held_by",
        "state",
    )
    rows = (
        (
            *(number, _hex(t.address), t.type, t.detail, t.references, t.from_waiters, t.exclusive),
            *("; ".join(map(str, t.held_by)), t.state),
        )
        for number, t in enumerate(snapshot.things)
    )
    return lines_of(columns, rows)


_STACK_COLUMNS = (
    *("id", "kind", "state", "name", "address", "wait", "waits_on", "waits_on_address", "thread", "loop"),
    *("trace", "at", "created_at", "merged", "held_by", "stuck", "wait_seconds", "age_seconds"),
)


def _stacks(snapshot: Snapshot) -> Iterator[bytes]:
    """A million rows: columns are looked up, not made row by row."""
    s, traces = snapshot.stacks, snapshot.traces
    labels = [guarded(names.labelled(f)) for f in traces.frames] + [""]
    things = [(guarded(t.type), _hex(t.address)) for t in snapshot.things] + [("", "")]
    waits = [guarded(w) for w in snapshot.waits]
    holders = [guarded(h) for h in snapshot.holders] + [""]
    kinds, states = [kind_name(i) for i in range(256)], [state_name(i) for i in range(256)]
    innermost = np.where(traces.frame < len(traces.frames), traces.frame, -1)
    yield ",".join(_STACK_COLUMNS).encode() + b"\r\n"
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\r\n")
    for start in range(0, len(s), _ROWS):
        rows = slice(start, start + _ROWS)
        thing = s.thing[rows].tolist()
        writer.writerows(
            zip(
                range(start, start + len(thing)),
                [kinds[k] for k in s.kind[rows].tolist()],
                [states[k] for k in s.state[rows].tolist()],
                [guarded(name) for name in s.name[rows]],
                [
                    hex(a) if k else ""
                    for a, k in zip(s.address[rows].tolist(), s.kind[rows].tolist(), strict=True)
                ],
                [waits[w] for w in s.wait[rows].tolist()],
                [things[t][0] for t in thing],
                [things[t][1] for t in thing],
                [t or "" for t in s.thread[rows].tolist()],
                [hex(a) if a else "" for a in s.loop[rows].tolist()],
                s.trace[rows].tolist(),
                [labels[f] for f in innermost[s.trace[rows]].tolist()],
                [labels[f] for f in innermost[s.created_by[rows]].tolist()],
                [m or "" for m in s.merged[rows].tolist()],
                [holders[h] for h in s.holder[rows].tolist()],
                ["true" if b else "false" for b in s.stuck[rows].tolist()],
                [_seconds(v) for v in s.wait_seconds[rows].tolist()],
                [_seconds(v) for v in s.age_seconds[rows].tolist()],
                strict=True,
            )
        )
        yield _taken(out)


def _seconds(value: float) -> Any:
    return value if math.isfinite(value) else ""


def _traces(snapshot: Snapshot) -> Iterator[bytes]:
    """``trace``, ``depth`` and ``frames`` (innermost first) of every trace that a stack has."""
    s, traces = snapshot.stacks, snapshot.traces
    used = np.unique(np.concatenate([s.trace, s.created_by, s.merged]))
    used = used[(used > 0) & (used < len(traces.parent))].astype(np.int64)
    yield b"trace,depth,frames\r\n"
    parent = traces.parent.astype(np.int64)
    parent[(parent < 0) | (parent >= np.arange(len(parent)))] = 0
    depth = depths(parent)
    labels = [*(names.labelled(f) for f in traces.frames), names.NOTHING, names.CUT]
    quoted = [(name.replace('"', '""'), guarded(name).replace('"', '""')) for name in labels]
    pieces = [f" < {plain}".encode("utf-8", "backslashreplace") for plain, _ in quoted]
    pieces += [first.encode("utf-8", "backslashreplace") for _, first in quoted]
    pieces += [b'"\r\n']
    for chunk in sequences(traces, used, outermost_first=False):
        rows = used[chunk.rows]
        heads = [b'%d,%d,"' % pair for pair in zip(rows.tolist(), depth[rows].tolist(), strict=True)]
        chunk.items[chunk.first + 1] += len(labels)
        chunk.items[chunk.first] = len(pieces) + np.arange(len(rows))
        chunk.items[chunk.last] = len(pieces) - 1
        yield joined([*pieces, *heads], chunk.items)
