"""What grew between snapshots: the heaps, types, containers, stacks, mapped files; and how fast.

Only numbers that were taken are compared. A heap is told by four of them, because they tell different leaks
apart: objects that the collector tracks, blocks of Python's allocator, the native heap, resident memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np

from diagtool.snapshot.model import KINDS, STATES, Frame, Snapshot
from diagtool.snapshot.trend import Course, Number, course, slope

#: The heaps in the order of reports: (key, what it is called, whether it is bytes, growth that counts).
HEAPS = (
    ("collected", "objects that the collector tracks", False, 1_000),
    ("blocks", "blocks of Python's allocator", False, 2_000),
    ("object_bytes", "all Python objects", True, 1 << 20),
    ("native", "native heap in use", True, 1 << 20),
    ("rss", "resident memory", True, 4 << 20),
)
_LEAST_COUNT, _LEAST_BYTES = 10, 4096  # of a type: less is noise
_LEAST_ITEMS = 10  # of a container
_LEAST_STACKS = 3
_LEAST_WAITED = 0.01  # seconds
_MOST_CLUSTERS = 20_000  # looked at in one snapshot
_MOST_FRAMES = 40  # of a stack, the innermost ones
_MOST_ROWS = 50_000  # of a table

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Change:
    """One number over all snapshots, oldest first; None where a snapshot does not tell it."""

    values: tuple[Number, ...]
    course: Course
    per_hour: float | None = None
    per_unit: float | None = None

    @property
    def delta(self) -> float:
        """Last less first of what is known."""
        known = [v for v in self.values if v is not None]
        return known[-1] - known[0] if known else 0


@dataclass(frozen=True, slots=True)
class HeapChange:
    """One of HEAPS."""

    key: str
    title: str
    bytes: bool
    change: Change


@dataclass(frozen=True, slots=True)
class TypeChange:
    """Objects of one type."""

    type: str
    count: Change
    bytes: Change


@dataclass(frozen=True, slots=True)
class HolderChange:
    """One container: ``row`` is what the last snapshot says of it (table heap_containers).

    ``kept``: whether those of its oldest items that are known are the same in all snapshots; None: not known.
    """

    row: Row
    items: Change
    bytes: Change
    kept: bool | None


@dataclass(frozen=True, slots=True)
class StackChange:
    """Stacks at one place: alike in kind, state, wait and frames (innermost first)."""

    kind: str
    state: str
    wait: str | None
    frames: tuple[Frame, ...]
    count: Change


@dataclass(frozen=True, slots=True)
class SiteChange:
    """Blocks in use that were allocated at one place, as tracemalloc or memray recorded it."""

    file: str
    line: int | None
    function: str | None
    count: Change
    bytes: Change


@dataclass(frozen=True, slots=True)
class WaitChange:
    """Waits at one place that are over, of profiles of blocking (``kind`` block) or of mutexes."""

    kind: str
    wait: str | None
    file: str
    line: int | None
    function: str | None
    count: Change
    seconds: Change


@dataclass(frozen=True, slots=True)
class MapChange:
    """Mappings of files whose names have this pattern."""

    pattern: str
    count: Change
    bytes: Change


@dataclass(frozen=True, slots=True)
class Diff:
    """What became of the numbers. Everything but ``heaps`` has only what changed, most bytes first.

    ``seconds``: times since the first snapshot, NaN where not known; ``units``: work done since then.
    ``same``: all snapshots are of one process, so that addresses mean the same.
    """

    snapshots: tuple[Snapshot, ...]
    seconds: tuple[float, ...]
    units: tuple[float, ...] = ()
    same: bool = True
    heaps: tuple[HeapChange, ...] = ()
    types: tuple[TypeChange, ...] = ()
    holders: tuple[HolderChange, ...] = ()
    stacks: tuple[StackChange, ...] = ()
    sites: tuple[SiteChange, ...] = ()
    maps: tuple[MapChange, ...] = ()
    waits: tuple[WaitChange, ...] = ()
    warnings: tuple[str, ...] = field(default_factory=tuple)


def diff(
    snapshots: Sequence[Snapshot],
    *,
    work: Sequence[float] = (),
    same: bool = True,
    stacks: bool = True,
    notes: Sequence[str] = (),
) -> Diff:
    """Compare ``snapshots``, oldest first, two at least.

    ``work``: units of work in each interval; or one number for all, of which every interval has its share by
    time (in equal parts, where times are not known). ``same``: they are of one process. ``stacks``: compare
    these, too. ``notes``: further warnings.
    """
    at = [s.target.captured_at for s in snapshots]
    seconds = tuple(math.nan if None in (t, at[0]) else (t or 0.0) - (at[0] or 0.0) for t in at)
    measure = _Measure(seconds, _units(seconds, work))
    return Diff(
        snapshots=tuple(snapshots),
        seconds=seconds,
        units=measure.units,
        same=same,
        heaps=tuple(_heaps(snapshots, measure)),
        types=tuple(_types(snapshots, measure)),
        holders=tuple(_holders(snapshots, measure, same)),
        stacks=tuple(_stacks(snapshots, measure)) if stacks else (),
        sites=tuple(_sites(snapshots, measure)),
        maps=tuple(_maps(snapshots, measure)),
        waits=tuple(_waits(snapshots, measure)),
        warnings=(*notes, *not_counted(snapshots), *dict.fromkeys(w for s in snapshots for w in s.warnings)),
    )


def four_heaps(snapshot: Snapshot) -> dict[str, Number]:
    """The numbers of HEAPS, and ``mappings`` and ``rss_anon``, as far as the snapshot has them."""
    row = _first(snapshot, "heaps")
    native = _first(snapshot, "native_heap")
    used = _number(native.get("used")) if native.get("allocator") else None
    keys = [key for key, *_ in HEAPS if key != "native"]
    return {**{k: _number(row.get(k)) for k in (*keys, "mappings", "rss_anon")}, "native": used}


def _units(seconds: Sequence[float], work: Sequence[float]) -> tuple[float, ...]:
    intervals, whole = len(seconds) - 1, seconds[-1]
    if not work:
        return ()
    if len(work) == intervals:
        return (0.0, *accumulate(work))
    if all(math.isfinite(s) for s in seconds) and whole > 0:
        return tuple(work[0] * s / whole for s in seconds)
    return tuple(work[0] * i / intervals for i in range(len(seconds)))


@dataclass(frozen=True, slots=True)
class _Measure:
    """Makes Changes of values."""

    seconds: tuple[float, ...]
    units: tuple[float, ...]

    def __call__(self, values: Sequence[Number], least: float, ratio: float = 0.02) -> Change:
        per_second = slope(values, self.seconds)
        return Change(
            tuple(values),
            course(values, self.seconds, least, ratio),
            None if per_second is None else per_second * 3600,
            slope(values, self.units) if self.units else None,
        )


def _first(snapshot: Snapshot, table: str) -> Row:
    return next((row for row in snapshot.tables.get(table, ()) if isinstance(row, dict)), {})


def _number(value: object) -> Number:
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1 << 63
    return value if good else None  # type: ignore[return-value]


def _rows(snapshot: Snapshot, table: str) -> Iterable[Row]:
    return (row for row in snapshot.tables.get(table, [])[:_MOST_ROWS] if isinstance(row, dict))


def _heaps(snapshots: Sequence[Snapshot], measure: _Measure) -> Iterable[HeapChange]:
    told = [four_heaps(s) for s in snapshots]
    for key, title, in_bytes, least in HEAPS:
        values = [row[key] for row in told]
        if any(v is not None for v in values):
            yield HeapChange(key, title, in_bytes, measure(values, least))


def _table(
    snapshots: Sequence[Snapshot], table: str, key: Callable[[Row], Any], *columns: str
) -> dict[Any, tuple[list[list[Number]], Row]]:
    """For each key: a list of values for each column, and the last row that there is.

    What a snapshot that has the table does not list is 0 in it; without the table nothing is known.
    """
    there = [table in s.tables for s in snapshots]
    found: dict[Any, tuple[list[list[Number]], Row]] = {}
    for at, snapshot in enumerate(snapshots):
        for row in _rows(snapshot, table):
            name = key(row)
            if name is None:
                continue
            blank: list[list[Number]] = [[0 if t else None for t in there] for _ in columns]
            lists, _ = found.get(name, (blank, row))
            for values, column in zip(lists, columns, strict=True):
                values[at] = (values[at] or 0) + (_number(row.get(column)) or 0)
            found[name] = (lists, row)
    return found


def _text(column: str) -> Callable[[Row], str | None]:
    def key(row: Row) -> str | None:
        value = row.get(column)
        return value if isinstance(value, str) else None

    return key


def _types(snapshots: Sequence[Snapshot], measure: _Measure) -> list[TypeChange]:
    out = []
    for name, ((counts, sizes), _) in _table(
        snapshots, "heap_types", _text("type"), "count", "bytes"
    ).items():
        one = TypeChange(name, measure(counts, _LEAST_COUNT), measure(sizes, _LEAST_BYTES))
        if "flat" != one.count.course != "unknown" or "flat" != one.bytes.course != "unknown":
            out.append(one)
    return sorted(out, key=lambda c: (-c.bytes.delta, -c.count.delta, c.type))


def _holders(snapshots: Sequence[Snapshot], measure: _Measure, same: bool) -> list[HolderChange]:
    """Containers that two snapshots at least list. Which are listed is a choice of the largest: what one
    snapshot does not list is not known there."""
    rows: dict[Any, list[Row | None]] = {}
    for at, snapshot in enumerate(snapshots):
        for row in _rows(snapshot, "heap_containers"):
            key = _who(row, same)
            if key is not None:
                rows.setdefault(key, [None] * len(snapshots))[at] = row
    out = []
    for listed in rows.values():
        last = listed[-1]
        if last is None or sum(row is not None for row in listed) < 2:
            continue
        items, sizes = (
            [None if row is None else _number(row.get(c)) for row in listed] for c in ("items", "bytes")
        )
        change = measure(items, _LEAST_ITEMS)
        if change.course not in ("flat", "unknown"):
            kept = _kept([row for row in listed if row is not None]) if same else None
            out.append(HolderChange(last, change, measure(sizes, _LEAST_BYTES), kept))
    return sorted(out, key=lambda c: (-c.bytes.delta, -c.items.delta))


def _who(row: Row, same: bool) -> tuple[Any, ...] | None:
    """What tells that a container is the same one: its address, in another process its name."""
    kind, address, name = row.get("type"), row.get("address"), row.get("name")
    if not isinstance(kind, str):
        return None
    if same:
        return (kind, address) if isinstance(address, int) else None
    return (kind, str(row.get("of")), name) if isinstance(name, str) else None


def _kept(rows: Sequence[Row]) -> bool | None:
    """Whether most of the oldest items of each row are among those of the next."""
    oldest = [row.get("oldest") for row in rows]
    sets = [set(o) for o in oldest if isinstance(o, list) and o and all(isinstance(a, int) for a in o)]
    if len(sets) < len(rows):
        return None
    return all(2 * len(sets[0] & other) >= min(len(sets[0]), len(other)) for other in sets[1:])


def _stacks(snapshots: Sequence[Snapshot], measure: _Measure) -> list[StackChange]:
    counted = [_clusters(s) for s in snapshots]
    out = []
    for key in dict.fromkeys(key for one in counted for key in one):
        change = measure([one.get(key, 0) for one in counted], _LEAST_STACKS)
        if change.course not in ("flat", "unknown"):
            kind, state, wait, frames = key
            out.append(StackChange(kind, state, wait, frames, change))
    return sorted(out, key=lambda c: -c.count.delta)


def _clusters(snapshot: Snapshot) -> dict[tuple[str, str, str | None, tuple[Frame, ...]], int]:
    s = snapshot.stacks
    columns = np.stack([np.asarray(getattr(s, c), np.int64) for c in ("kind", "state", "wait", "trace")])
    distinct, counts = np.unique(columns, axis=1, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:_MOST_CLUSTERS]
    out: dict[tuple[str, str, str | None, tuple[Frame, ...]], int] = {}
    for (kind, state, wait, trace), count in zip(
        distinct[:, order].T.tolist(), counts[order].tolist(), strict=True
    ):
        frames = tuple(snapshot.traces.of(trace)[:_MOST_FRAMES])
        key = (KINDS[kind], STATES[state], snapshot.waits[wait] or None, frames)
        out[key] = out.get(key, 0) + count
    return out


def _sites(snapshots: Sequence[Snapshot], measure: _Measure) -> list[SiteChange]:
    def key(row: Row) -> tuple[str, int | None, str | None] | None:
        file, line, function = row.get("file"), row.get("line"), row.get("function")
        if not isinstance(file, str) or not isinstance(line, (int, type(None))):
            return None
        return file, line, function if isinstance(function, str) else None

    out = []
    for (file, line, function), ((counts, sizes), _) in _table(
        snapshots, "allocation_sites", key, "count", "bytes"
    ).items():
        one = SiteChange(file, line, function, measure(counts, _LEAST_COUNT), measure(sizes, _LEAST_BYTES))
        if one.bytes.course not in ("flat", "unknown"):
            out.append(one)
    return sorted(out, key=lambda c: -c.bytes.delta)


def _waits(snapshots: Sequence[Snapshot], measure: _Measure) -> list[WaitChange]:
    def key(row: Row) -> tuple[str, str | None, str, int | None, str | None] | None:
        texts = [row.get(c) for c in ("kind", "wait", "file", "function")]
        kind, wait, file, function = (t if isinstance(t, str) else None for t in texts)
        line = row.get("line")
        if kind is None or not isinstance(line, (int, type(None))):
            return None
        return kind, wait, file or "", line, function

    out = []
    found = _table(snapshots, "contention", key, "count", "seconds")
    for (kind, wait, file, line, function), ((counts, seconds), _) in found.items():
        times = measure(seconds, _LEAST_WAITED)
        if times.course not in ("flat", "unknown"):
            out.append(WaitChange(kind, wait, file, line, function, measure(counts, 1), times))
    return sorted(out, key=lambda c: -c.seconds.delta)


def _maps(snapshots: Sequence[Snapshot], measure: _Measure) -> list[MapChange]:
    out = []
    found = _table(snapshots, "mapped_files", _text("pattern"), "count", "bytes")
    for pattern, ((counts, sizes), _) in found.items():
        one = MapChange(pattern, measure(counts, _LEAST_STACKS), measure(sizes, _LEAST_BYTES))
        if one.count.course not in ("flat", "unknown"):
            out.append(one)
    return sorted(out, key=lambda c: -c.count.delta)


def not_counted(snapshots: Sequence[Snapshot]) -> Iterable[str]:
    """That the heap can't be compared, and why, if so."""
    if all(s.target.kind == "evidence" for s in snapshots):
        return  # what was written down is all that there is
    counted = ["heap_types" in s.tables for s in snapshots]
    if any(counted) and not all(counted):
        yield "the heap was not looked at in all of the snapshots: take each with --heap"
    elif not any(counted) and not all("allocation_sites" in s.tables for s in snapshots):
        yield "the heap was not looked at: take the snapshots with --heap"
