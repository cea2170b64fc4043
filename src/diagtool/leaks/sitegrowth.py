"""Heap profiles one after the other: places of allocation from which ever more is in use.

A profile is a sample: what it says of a place with little is chance. Places are those of the program's own,
because what a library allocates for it (a buffer, a decoded message) is kept by whoever asked for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from diagtool.golang.names import package_of
from diagtool.leaks.own import is_own
from diagtool.snapshot.diff import Change
from diagtool.snapshot.model import Frame, Snapshot
from diagtool.snapshot.trend import course, slope

__all__ = ["site_rows"]

Place = tuple[str, str, int | None]  # function, file, line
Row = dict[str, Any]

_MOST_ROWS = 50_000
_MOST_PLACES = 20
#: Growth that counts: bytes, so many samples, a part of what was there, and of the growth of all.
_LEAST_BYTES, _LEAST_SAMPLES, _LEAST_RATIO, _LEAST_SHARE = 4 << 20, 16, 0.2, 0.1


def site_rows(snapshots: Sequence[Snapshot]) -> Iterator[tuple[Row, Change, list[int]]]:
    """(facts, how the bytes went, blocks in each snapshot) of each place that has ever more in use.

    Nothing where one of ``snapshots`` has no heap profile.
    """
    if not all(s.tables.get("profiles") for s in snapshots):
        return
    told = [_places(s) for s in snapshots]
    at = [s.target.captured_at for s in snapshots]
    seconds = [float("nan") if None in (t, at[0]) else (t or 0.0) - (at[0] or 0.0) for t in at]
    least = max(_LEAST_BYTES, _LEAST_SAMPLES * max(_rate(s) for s in snapshots))
    whole = sum(size for _, size in told[-1].values()) - sum(size for _, size in told[0].values())
    found = []
    for place, (_, last) in told[-1].items():
        sizes = [one.get(place, (0, 0))[1] for one in told]
        if last - sizes[0] < max(least, _LEAST_SHARE * whole):
            continue
        per_second = slope(sizes, seconds)
        change = Change(
            tuple(sizes),
            course(sizes, seconds, least, _LEAST_RATIO),
            None if per_second is None else per_second * 3600,
        )
        if change.course in ("grows", "grew"):
            found.append((place, change, [one.get(place, (0, 0))[0] for one in told]))
    found.sort(key=lambda one: -one[1].delta)
    for (function, file, line), change, counts in found[:_MOST_PLACES]:
        where = f"{file.rpartition('/')[2]}:{line}" if line else file
        share = min(change.delta / whole, 1.0) if whole > 0 else 1.0
        yield (
            {
                "key": function or where,
                "place": f"{where} in {function}" if function else where,
                "bytes": int(change.values[-1] or 0),
                "share": round(100 * share),
                "brief": seconds[-1] < 60.0,
            },
            change,
            counts,
        )


def _rate(snapshot: Snapshot) -> int:
    row = snapshot.tables["profiles"][0]
    rate = row.get("rate") if isinstance(row, dict) else None
    return rate if isinstance(rate, int) and 0 < rate < 1 << 40 else 1


def _places(snapshot: Snapshot) -> dict[Place, tuple[int, int]]:
    """Blocks and bytes in use by place."""
    out: dict[Place, tuple[int, int]] = {}
    for row in snapshot.tables.get("allocation_sites", ())[:_MOST_ROWS]:
        if not isinstance(row, dict) or row.get("source") != "pprof":
            continue
        count, size, place = row.get("count"), row.get("bytes"), _place(row)
        if place is not None and isinstance(count, int) and isinstance(size, int) and min(count, size) >= 0:
            before = out.get(place, (0, 0))
            out[place] = (before[0] + count, before[1] + size)
    return out


def _place(row: Row) -> Place | None:
    told = row.get("frames")
    frames = [
        Frame(f[2], f[0], f[1], package_of(f[2]) or None, "go")
        for f in (told if isinstance(told, list) else ())
        if isinstance(f, list) and len(f) == 3 and isinstance(f[0], str) and isinstance(f[2], str)
        if isinstance(f[1], (int, type(None)))
    ]
    best = next((f for f in frames if is_own(f)), frames[0] if frames else None)
    return None if best is None else (best.function, best.file, best.line)
