"""How numbers went over several snapshots: lines, a picture for each unit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from diagtool.report.text import clean
from diagtool.snapshot.diff import Diff, StackChange, diff
from diagtool.snapshot.model import KINDS, Snapshot

__all__ = ["growth"]

Row = dict[str, Any]
_Values = Sequence[int | float | None]
_Named = tuple[str, _Values]


def growth(snapshots: Sequence[Snapshot], most: int) -> Row | None:
    """``pictures`` with ``lines`` of ``[seconds, value]`` points; None for a single snapshot.

    ``timed``: whether the first numbers are seconds since the first snapshot, else its place in the series.
    """
    if len(snapshots) < 2:
        return None
    found = diff(snapshots)
    timed = all(math.isfinite(s) for s in found.seconds) and found.seconds[-1] > 0
    at = list(found.seconds) if timed else [float(i + 1) for i in range(len(snapshots))]
    pictures: list[tuple[str, str, list[_Named]]] = [
        ("Memory", "bytes", [(h.title, h.change.values) for h in found.heaps if h.bytes]),
        ("Stacks and descriptors", "count", list(_numbers(snapshots))),
        ("Objects", "count", [(h.title, h.change.values) for h in found.heaps if not h.bytes]),
        ("Types that grew most", "bytes", _types(found)),
        ("Containers that grew most", "count", _holders(found)),
        ("Stacks that grew most", "count", _stacks(found)),
    ]
    made = []
    for title, unit, lines in pictures:
        shown = [line for name, values in lines[:most] if (line := _line(name, values, at)) is not None]
        if shown:
            left_out = max(len(lines) - most, 0)
            made.append({"title": title, "unit": unit, "lines": shown, "left_out": left_out})
    return {"pictures": made, "timed": timed, "snapshots": len(snapshots)} if made else None


def _line(name: str, values: _Values, at: Sequence[float]) -> Row | None:
    points = [[t, v] for t, v in zip(at, values, strict=True) if v is not None and math.isfinite(v)]
    return {"name": clean(name, 80), "points": points} if len(points) > 1 else None


def _numbers(snapshots: Sequence[Snapshot]) -> Iterable[_Named]:
    for kind in KINDS:
        values = [s.count(kind) for s in snapshots]
        if any(values):
            yield f"{kind}s", values
    if all("fds" in s.tables for s in snapshots):
        yield "descriptors", [len(s.tables["fds"]) for s in snapshots]


def _types(found: Diff) -> list[_Named]:
    return [(t.type, t.bytes.values) for t in found.types if t.bytes.delta > 0]


def _holders(found: Diff) -> list[_Named]:
    grew = [h for h in found.holders if h.items.delta > 0]
    return [(str(h.row.get("held_by") or h.row.get("type") or "?"), h.items.values) for h in grew]


def _stacks(found: Diff) -> list[_Named]:
    grew = [s for s in found.stacks if s.count.delta > 0]
    return [(f"{s.kind}s in {_place(s)}", s.count.values) for s in grew]


def _place(stack: StackChange) -> str:
    return stack.wait or (stack.frames[0].function if stack.frames else stack.state)
