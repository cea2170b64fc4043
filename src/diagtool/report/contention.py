"""Where goroutines waited for each other, as profiles of blocking and of mutexes tell it.

CONTENTION              waits that are over, since the process started
count  in all   each  on               at
   19  123 ms  6.5 ms  sync.Mutex.Lock  main.go:150 in main.contend.func1  waited
   19  124 ms  6.5 ms  sync.Mutex.Lock  main.go:152 in main.contend.func1  let others wait
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from diagtool.golang.names import package_of
from diagtool.leaks.own import is_own
from diagtool.report.terminal import View, place
from diagtool.report.text import Line, cells, clean, count, cut, pad
from diagtool.snapshot.model import Frame, Snapshot

__all__ = ["LIMIT", "document", "lines", "time_of", "waited"]

#: Places shown; with --all every one.
LIMIT = 10
_MOST = 5_000
_DOES = {"block": "waited", "mutex": "let others wait"}


def document(snapshot: Snapshot) -> list[dict[str, Any]] | None:
    """``contention`` of the JSON document ``diagtool.stacks/1``; None where nobody measured it."""
    if "contention" not in snapshot.tables:
        return None
    return [
        {
            "kind": row["kind"],
            "wait": row["wait"],
            "count": row["count"],
            "seconds": row["seconds"],
            "frames": [{"function": f.function or None, "file": f.file, "line": f.line} for f in frames],
        }
        for row, frames in _rows(snapshot)
    ]


def lines(snapshot: Snapshot, view: View) -> Iterator[Line]:
    """The places at which most time was lost, then an empty line; nothing where nobody measured it."""
    found = list(_rows(snapshot))
    if not found:
        return
    yield [("CONTENTION", "label"), ("  waits that are over, since the process started", "label")]
    shown = found if view.idle else found[:LIMIT]
    table = [
        (
            f"{row['count']:,}",
            time_of(row["seconds"]),
            time_of(row["seconds"] / max(row["count"], 1)),
            cut(clean(row["wait"] or "-"), 24),
        )
        for row, _ in shown
    ]
    head = ("count", "in all", "each", "on")
    widths = [max(cells(one[i]) for one in [head, *table]) for i in range(4)]
    yield [(_joined(head, widths) + "at", "label")]
    for (row, frames), numbers in zip(shown, table, strict=True):
        start = _joined(numbers, widths)
        note = f"  {_DOES[row['kind']]}"
        room = max(view.width - cells(start) - cells(note), 20)
        yield [(start, ""), (cut(_where(frames), room), "own"), (note, "label")]
    if len(found) > len(shown):
        yield [(f"… {count(len(found) - len(shown), 'more place')} (--all)", "label")]
    yield []


def _joined(row: tuple[str, ...], widths: list[int]) -> str:
    numbers = (f"{text:>{width}}" for text, width in zip(row[:3], widths, strict=False))
    return "  ".join((*numbers, pad(row[3], widths[3]), ""))


def _where(frames: list[Frame]) -> str:
    frame = next((f for f in frames if is_own(f)), frames[0] if frames else None)
    return "?" if frame is None else f"{place(frame)} in {clean(frame.function or '?', 80)}"


def _rows(snapshot: Snapshot) -> Iterator[tuple[dict[str, Any], list[Frame]]]:
    """Rows that make sense, with their frames."""
    for row in snapshot.tables.get("contention", ())[:_MOST]:
        number, seconds, frames = (row.get(c) for c in ("count", "seconds", "frames"))
        wait = row.get("wait")
        if row.get("kind") not in _DOES or not isinstance(number, int) or not 0 <= number < 1 << 63:
            continue
        if not isinstance(seconds, (int, float)) or not math.isfinite(seconds) or seconds < 0:
            continue
        told = [_frame(f, row.get("language")) for f in frames] if isinstance(frames, list) else []
        yield {**row, "wait": wait if isinstance(wait, str) else None}, [f for f in told if f is not None]


def _frame(value: Any, language: object) -> Frame | None:
    if not isinstance(value, list) or len(value) != 3:
        return None
    file, line, function = value
    if not isinstance(file, str) or not isinstance(function, str):
        return None
    number = line if isinstance(line, int) and 0 <= line < 1 << 31 else None
    go = language == "go"
    return Frame(
        function, file, number, package_of(function) or None if go else None, "go" if go else "native"
    )


def waited(kind: str) -> str:
    """What is said of a place in a profile of this kind."""
    return _DOES.get(kind, "waited")


def time_of(seconds: float) -> str:
    """``6.5 ms``: with a unit in which it is one to a thousand, for waits are short."""
    for unit, one in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= one or unit == "µs":
            value = seconds / one
            return f"{value:,.0f} {unit}" if value >= 100 else f"{value:,.2g} {unit}"
    return ""
