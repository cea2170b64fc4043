"""What an execution trace tells of places where goroutines wait, for ``group`` conditions: ``trace.*``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diagtool.snapshot.model import Snapshot

__all__ = ["TRACE_FACTS", "traced"]

#: Numbers of the table that are added up over the places of a group.
_SUMS = ("fresh", "standing", "arrived", "left")
_FIRST = ("created", "ended", "created_per_second", "ended_per_second", "seconds")

TRACE_FACTS = tuple(f"trace.{name}" for name in (*_SUMS, *_FIRST, "left_share", "ended_share", "steady"))


def traced(snapshot: Snapshot, rows: NDArray[np.intp], what: str) -> Any:
    """The fact ``trace.<what>`` of ``rows`` together; None where there was no trace.

    ``steady``: whether more waited there at the end of each third of the trace than at the end of the one
    before. ``left_share`` and ``ended_share``: of those that arrived there, of those that were created.
    """
    s = snapshot.stacks
    table = snapshot.tables.get("go_trace_clusters", ())
    if not table:
        return None
    pairs = np.unique(s.trace[rows].astype(np.int64) << 32 | s.wait[rows]).tolist()
    wanted = {(pair >> 32, snapshot.waits[pair & 0xFFFFFFFF]) for pair in pairs}
    found = [
        r for r in table if isinstance(r, dict) and _hashable(r) and (r.get("trace"), r.get("wait")) in wanted
    ]
    if not found:
        return None
    if what in _SUMS:
        return _sum(found, what)
    if what in _FIRST:
        value = found[0].get(what)
        return value if _is_number(value) else None
    if what == "left_share":
        return _share(_sum(found, "left"), _sum(found, "arrived"))
    if what == "ended_share":
        return _share(found[0].get("ended"), found[0].get("created"))
    return _steady(r.get("waiting") for r in found) if what == "steady" else None


def _hashable(row: dict[str, Any]) -> bool:
    return isinstance(row.get("trace"), int) and isinstance(row.get("wait"), str)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _share(part: Any, whole: Any) -> float | None:
    return float(part / whole) if _is_number(part) and _is_number(whole) and whole > 0 else None


def _sum(rows: list[dict[str, Any]], column: str) -> int | None:
    values = [r.get(column) for r in rows]
    numbers = [v for v in values if isinstance(v, int) and not isinstance(v, bool)]
    return sum(numbers) if len(numbers) == len(values) else None


def _steady(timelines: Iterable[object]) -> bool | None:
    total: list[int] | None = None
    for values in timelines:
        if (
            not isinstance(values, list)
            or len(values) < 3
            or (total is not None and len(values) != len(total))
        ):
            return None
        if not all(isinstance(v, int) for v in values):
            return None
        total = values if total is None else [a + b for a, b in zip(total, values, strict=True)]
    if total is None:
        return None
    at = [total[0], total[len(total) // 3], total[2 * len(total) // 3], total[-1]]
    return at[0] < at[1] < at[2] < at[3]
