"""The table ``go_trace_clusters``: what happened at each place where goroutines wait, over the trace."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from diagtool.golang.goroutines import Goroutines, own_part
from diagtool.ingest.gotrace.alive import BINS, UNKNOWN
from diagtool.ingest.gotrace.model import SYSCALL, WAITING
from diagtool.ingest.gotrace.places import wait_word
from diagtool.snapshot.model import Frame, SnapshotBuilder

if TYPE_CHECKING:
    from diagtool.ingest.gotrace.build import Rows
    from diagtool.ingest.gotrace.read import _Reader

__all__ = ["MAX_ROWS", "clusters"]

#: Places that the table has: those where most wait at the end, then those where most ever waited.
MAX_ROWS = 200


@dataclass(slots=True)
class _Cluster:
    """Places with the same wait and frames."""

    wait: int
    trace: int
    frame: Frame | None
    places: list[int] = field(default_factory=list)


def clusters(builder: SnapshotBuilder, reader: _Reader, rows: Rows) -> list[dict[str, Any]]:
    """Rows of the table, most waiting at the end first. ``rows``: the goroutines of the last look."""
    counts, places = reader.population.counts, reader.places
    goroutines = Goroutines(builder)
    found: dict[tuple[int, int], _Cluster] = {}
    told = counts.reasons()
    for number, (reason, stack) in enumerate(counts.places):
        if not stack:
            continue
        frames = places.frames(stack)
        word = places.reasons[reason or told.get(stack, 0)]
        kind = goroutines.kind(word if word == "syscall" else wait_word(word, frames), frames)
        own = own_part(frames)
        key = (kind.wait, kind.trace)
        known = found.setdefault(key, _Cluster(*key, own[0] if own else None))
        known.places.append(number)
    at_end = _at_end(rows)
    makers = _makers(reader)
    waiting = _cumulated(counts.change)
    peak = {key: _sum(waiting, c.places).max(initial=0) for key, c in found.items()}
    order = sorted(found, key=lambda key: (-len(at_end.get(key, ())), -int(peak[key])))
    made = [
        _row(reader, found[key], builder, rows, at_end.get(key, np.zeros(0, np.intp)), makers, waiting)
        for key in order[:MAX_ROWS]
    ]
    return [row for row in made if row["count"] or max(row["waiting"], default=0)]


def _at_end(rows: Rows) -> dict[tuple[int, int], NDArray[np.intp]]:
    """By wait and trace, the goroutines that wait there at the end."""
    out: dict[tuple[int, int], NDArray[np.intp]] = {}
    rests = np.flatnonzero((rows.alive.state == WAITING) | (rows.alive.state == SYSCALL))
    keys = [(k.wait, k.trace) for k in rows.kinds]
    numbers: dict[tuple[int, int], int] = {}
    of_kind = np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.intp)
    if not len(rests):
        return out
    of = of_kind[rows.kind[rests]]
    order = np.argsort(of, kind="stable")
    parts = np.split(rests[order], np.flatnonzero(np.diff(of[order])) + 1)
    by_number = {number: key for key, number in numbers.items()}
    for part in parts:
        out[by_number[int(of_kind[rows.kind[part[0]]])]] = part
    return out


def _makers(reader: _Reader) -> dict[tuple[str, str, int | None], list[int]]:
    """By go statement, the stacks of creators that end there."""
    counts = reader.population.counts
    out: dict[tuple[str, str, int | None], list[int]] = {}
    for stack in np.flatnonzero(counts.created.any(axis=1)).tolist():
        maker = reader.places.maker(stack) if stack else None
        if maker is not None:
            out.setdefault((maker.function, maker.file, maker.line), []).append(stack)
    return out


def _row(
    reader: _Reader,
    cluster: _Cluster,
    builder: SnapshotBuilder,
    rows: Rows,
    here: NDArray[np.intp],
    makers: dict[tuple[str, str, int | None], list[int]],
    waiting: NDArray[np.int64],
) -> dict[str, Any]:
    counts = reader.population.counts
    at, seconds = cluster.places, (reader.ends - reader.opens) / (reader.per_second or 1)
    known = bool(reader.per_second)
    born = rows.alive.born[here]
    fresh = here[(born > UNKNOWN) & (rows.alive.since[here] > UNKNOWN)]
    maker = _most(reader, rows.alive.made[fresh])
    stacks = makers.get((maker.function, maker.file, maker.line), []) if maker else []
    created, ended = _sum(counts.created, stacks), _sum(counts.ended, stacks)
    first = min((int(counts.first[p]) for p in at if p < len(counts.first)), default=1 << 62)
    last = max((int(counts.last[p]) for p in at if p < len(counts.last)), default=UNKNOWN)
    arrived = any(p < len(counts.arrived) and counts.arrived[p] for p in at)

    def moment(ticks: int) -> float | None:
        return round((ticks - reader.opens) / reader.per_second, 6) if known and arrived else None

    def rate(number: int) -> float | None:
        return round(number / seconds, 3) if known and seconds > 0 else None

    frame = cluster.frame
    return {
        "trace": cluster.trace,
        "wait": builder.snapshot.waits[cluster.wait],
        "function": frame.function if frame else None,
        "file": frame.file if frame else None,
        "line": frame.line if frame else None,
        "created_by": maker.function if maker else None,
        "created_file": maker.file if maker else None,
        "created_line": maker.line if maker else None,
        "count": len(here),
        "fresh": len(fresh),
        "standing": _total(counts.standing, at),
        "arrived": _total(counts.arrived, at),
        "left": _total(counts.left, at),
        "unplaced": _total(counts.left, [0]),
        "created": int(created.sum()),
        "ended": int(ended.sum()),
        "created_per_second": rate(int(created.sum())),
        "ended_per_second": rate(int(ended.sum())),
        "arrived_per_second": rate(_total(counts.arrived, at)),
        "first_seen": moment(first),
        "last_seen": moment(last),
        "seconds": round(seconds, 6) if known else None,
        "waiting": _sum(waiting, at).tolist(),
        "alive": np.cumsum(created.astype(np.int64) - ended).tolist() if stacks else [],
    }


def _most(reader: _Reader, made: NDArray[np.int32]) -> Frame | None:
    """The go statement that made most."""
    made = made[made > 0]
    return reader.places.maker(int(np.bincount(made).argmax())) if len(made) else None


def _total(column: NDArray[np.int64], at: list[int]) -> int:
    return int(sum(column[p] for p in at if p < len(column)))


def _sum(table: NDArray[Any], at: list[int]) -> NDArray[np.int64]:
    at = [p for p in at if p < len(table)]
    return table[at].sum(axis=0, dtype=np.int64) if at else np.zeros(BINS, np.int64)


def _cumulated(change: NDArray[np.int32]) -> NDArray[np.int64]:
    return np.cumsum(change, axis=1, dtype=np.int64)
