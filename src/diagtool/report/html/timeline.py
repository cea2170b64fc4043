"""Goroutines over time, from an execution trace: how many waited at each place, how many each maker had."""

from __future__ import annotations

import math
import posixpath
from collections.abc import Iterator
from typing import Any

from diagtool.report.text import clean
from diagtool.snapshot.model import Snapshot

__all__ = ["timeline"]

Row = dict[str, Any]

#: Pieces of time in a row of the table; a file may say any number.
_MOST_POINTS = 200


def timeline(snapshot: Snapshot, most: int) -> Row | None:
    """``pictures`` with ``lines`` of ``[seconds, goroutines]`` points; None where there was no trace.

    ``seconds``: how long the trace is. ``most``: lines of a picture; those with most at the end come first.
    """
    rows = [r for r in snapshot.tables.get("go_trace_clusters", ()) if isinstance(r, dict)]
    seconds = next((r["seconds"] for r in rows if _is_length(r.get("seconds"))), None)
    if seconds is None:
        return None
    made = []
    for title, lines in (
        ("Goroutines that wait, by place", list(_waiting(rows, seconds))),
        (
            "Goroutines begun since the trace began and still alive, by who made them",
            list(_alive(rows, seconds)),
        ),
    ):
        lines = [line for line in lines if not line["runtime"]] or lines
        lines.sort(key=lambda line: (-line["points"][-1][1], -max(p[1] for p in line["points"])))
        if lines:
            left_out = max(len(lines) - most, 0)
            shown = [{"name": line["name"], "points": line["points"]} for line in lines[:most]]
            made.append({"title": title, "unit": "count", "lines": shown, "left_out": left_out})
    return {"pictures": made, "seconds": seconds} if made else None


def _is_length(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf


def _waiting(rows: list[Row], seconds: float) -> Iterator[Row]:
    for row in rows:
        name = f"{row.get('wait') or 'waiting'} in {_place(row, '')}"
        if (points := _points(row.get("waiting"), seconds)) is not None:
            yield {"name": clean(name, 80), "points": points, "runtime": _is_runtime(row.get("function"))}


def _alive(rows: list[Row], seconds: float) -> Iterator[Row]:
    seen = set()
    for row in rows:
        place = _place(row, "created_")
        if row.get("created_by") is None or place in seen:
            continue
        seen.add(place)
        if (points := _points(row.get("alive"), seconds)) is not None:
            name = clean(f"made by {place}", 80)
            yield {"name": name, "points": points, "runtime": _is_runtime(row.get("created_by"))}


def _is_runtime(function: object) -> bool:
    """Whether it is the runtime's, or the tracer's: these are shown where there is nothing else."""
    return isinstance(function, str) and function.startswith(("runtime.", "runtime/"))


def _place(row: Row, prefix: str) -> str:
    function = row.get("created_by" if prefix else "function")
    file, line = row.get(f"{prefix}file"), row.get(f"{prefix}line")
    where = f" ({posixpath.basename(file)}:{line})" if isinstance(file, str) and file else ""
    return f"{function or '?'}{where}"


def _points(values: object, seconds: float) -> list[list[float]] | None:
    """At the end of each piece of time; None where nothing ever was there."""
    if not isinstance(values, list) or not 0 < len(values) <= _MOST_POINTS:
        return None
    if not all(isinstance(v, int) and not isinstance(v, bool) and abs(v) < 1 << 53 for v in values):
        return None
    if not any(v > 0 for v in values):
        return None
    step = seconds / len(values)
    return [[round((i + 1) * step, 6), max(v, 0)] for i, v in enumerate(values)]
