"""Where objects of a type were allocated, as far as a snapshot tells it: for the words of findings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from diagtool.leaks.model import is_own
from diagtool.snapshot.model import Frame, Snapshot

__all__ = ["allocated_at"]

_MOST_ROWS = 50_000


def allocated_at(snapshot: Snapshot, types: Sequence[str]) -> str | None:
    """``cache.py:41``: where most bytes of objects of ``types`` were allocated, None where nobody knows.

    Of a place in a library it is the innermost line of the program's own that led there.
    """
    sums: dict[str, int] = {}
    for row in snapshot.tables.get("allocation_sites", ())[:_MOST_ROWS]:
        size = sum(_bytes(row, types)) if isinstance(row, dict) else 0
        place = _place(row) if size else None
        if place is not None:
            sums[place] = sums.get(place, 0) + size
    return max(sums, key=lambda place: sums[place], default=None)


def _bytes(row: dict[str, Any], types: Sequence[str]) -> Iterable[int]:
    told = row.get("types")
    for one in told if isinstance(told, list) else ():
        if isinstance(one, dict) and one.get("type") in types and isinstance(one.get("bytes"), int):
            yield max(one["bytes"], 0)


def _place(row: dict[str, Any]) -> str | None:
    told = row.get("frames")
    frames = [
        Frame("", f[0], f[1])
        for f in (told if isinstance(told, list) else ())
        if isinstance(f, list) and len(f) >= 2 and isinstance(f[0], str) and isinstance(f[1], int)
    ]
    best = next((f for f in frames if is_own(f)), frames[0] if frames else None)
    return None if best is None else f"{best.file}:{best.line}"
