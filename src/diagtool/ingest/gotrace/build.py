"""Snapshots of who was alive at some moments of a trace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from diagtool.golang.goroutines import Goroutines, Kind
from diagtool.ingest.gotrace.alive import UNKNOWN, Alive
from diagtool.ingest.gotrace.clusters import clusters
from diagtool.ingest.gotrace.model import READY, RUNNING, SYSCALL, WAITING
from diagtool.ingest.gotrace.places import wait_word
from diagtool.snapshot.model import KIND, Snapshot, SnapshotBuilder, Target

if TYPE_CHECKING:
    from diagtool.ingest.gotrace.read import _Reader

__all__ = ["Look", "Rows", "snapshots"]

#: Which versions of Go write a head.
_WRITERS = {22: "1.22", 21: "1.21", 23: "1.23 or 1.24", 25: "1.25", 26: "1.26 or 1.27", 19: "1.19 or 1.20"}


@dataclass(slots=True)
class Look:
    """Who was alive at a moment (ticks)."""

    at: int
    alive: Alive


@dataclass(slots=True)
class Rows:
    """What the goroutines of a look became: of each its kind (see ``kinds``), and its row or -1."""

    kinds: list[Kind]
    kind: NDArray[np.intp]
    alive: Alive


def snapshots(reader: _Reader) -> list[Snapshot]:
    """A snapshot of each look of ``reader``, oldest first."""
    out = []
    _look_back(reader.looks)
    for number, look in enumerate(reader.looks):
        last = number == len(reader.looks) - 1
        builder = SnapshotBuilder(_target(reader, look))
        rows, hidden = _add(builder, reader, look)
        if last:
            builder.snapshot.tables["go_trace_clusters"] = clusters(builder, reader, rows)
            builder.snapshot.warnings += reader.trace.warnings
            if hidden:
                builder.snapshot.warnings.append(
                    f"of {hidden:,} goroutines that were there before the trace began it does not tell "
                    "where they are"
                )
        out.append(builder.finish())
    return out


def _look_back(looks: list[Look]) -> None:
    """Of who waits since before the trace it is often told only later where, or that it is there at all: at
    the end of a generation, or when it waits there again. So it was there before, too; without this its
    place would seem to fill up."""
    for look, later in zip(looks[-2::-1], looks[:0:-1], strict=True):
        then, now = look.alive, later.alive
        told = now.take((now.born == UNKNOWN) & (now.place > 0))
        if not len(told):
            continue
        at = np.minimum(np.searchsorted(told.goid, then.goid), len(told) - 1)
        dark = (then.place == 0) & (then.stack == 0) & (then.born == UNKNOWN) & (told.goid[at] == then.goid)
        seen = told.take(np.append(at[dark], np.flatnonzero(~np.isin(told.goid, then.goid))))
        seen.since = np.full(len(seen), UNKNOWN)
        look.alive = Alive.joined([then.take(~dark), seen])


def _target(reader: _Reader, look: Look) -> Target:
    version, seconds = reader.trace.version, _seconds(reader, reader.ends - reader.opens)
    written_by = _WRITERS.get(version, f"1.{version}" if version < 11 else "1.11 to 1.18")
    length = "" if seconds != seconds else f", {seconds:.3g} s"
    exact = version in (21, 22, 25)
    details: dict[str, Any] = {
        "evidence": f"execution trace (Go {written_by}{length})",
        "waits_measured": bool(seconds == seconds),
    }
    return Target(
        kind="evidence",
        runtime=f"go1.{version}" if exact else "go",
        captured_at=_moment(reader, look.at),
        details=details,
    )


def _moment(reader: _Reader, at: int) -> float | None:
    """When that was: by the clock in the trace (1.25), else as if the file was written at its end."""
    for part in reader.trace.parts:
        if part.clock is not None and part.per_second:
            ticks, moment = part.clock
            return moment + (at - ticks) / part.per_second
    seconds = _seconds(reader, reader.ends - at)
    if reader.written is None or seconds != seconds:
        return None
    return reader.written - seconds


def _seconds(reader: _Reader, ticks: int) -> float:
    return ticks / reader.per_second if reader.per_second else float("nan")


def _add(builder: SnapshotBuilder, reader: _Reader, look: Look) -> tuple[Rows, int]:
    """Add the goroutines of ``look``; of those that the trace says nothing of, how many there are."""
    alive, places = look.alive, reader.places
    columns = np.stack(
        [alive.state.astype(np.int64), alive.place, alive.stack, alive.begin, alive.made], axis=1
    )
    distinct, inverse = np.unique(columns, axis=0, return_inverse=True)
    inverse = inverse.reshape(-1)
    goroutines = Goroutines(builder)
    kinds: list[Kind] = []
    reasons = reader.population.counts.reasons()
    told = np.zeros(len(distinct), np.bool_)
    for number, (state, place, stack, begin, made) in enumerate(distinct.tolist()):
        reason, own = reader.population.counts.places[place]
        frames = places.frames(own or stack) or places.frames(begin)
        at_place = bool(own or (stack and state in (READY, RUNNING)))
        word = ""
        if state == SYSCALL:
            word = "syscall"
        elif state == WAITING:
            word = wait_word(places.reasons[reason or reasons.get(own, 0)], frames) if at_place else ""
        elif state in (READY, RUNNING):
            word = "running" if state == RUNNING else "runnable"
        kinds.append(goroutines.kind(word, frames, places.maker(made)))
        told[number] = bool(frames)
    shown = told[inverse] if len(inverse) else np.zeros(0, np.bool_)
    rows = Rows(kinds, inverse[shown], alive.take(shown))
    _rows(builder, reader, look, rows)
    return rows, int((~shown).sum())


def _rows(builder: SnapshotBuilder, reader: _Reader, look: Look, rows: Rows) -> None:
    kind, alive = rows.kind, rows.alive
    if not len(kind):
        return

    def column(name: str) -> NDArray[np.int64]:
        return np.array([getattr(k, name) for k in rows.kinds], np.int64)[kind]

    rests = (alive.state == WAITING) | (alive.state == SYSCALL)
    # Who waits since before the trace has waited for as long as it is, at least.
    since = np.maximum(alive.since, reader.opens)
    builder.add(
        [""] * len(kind),
        kind=KIND["goroutine"],
        state=column("state"),
        address=alive.goid,
        trace=column("trace"),
        merged=column("merged"),
        wait=column("wait"),
        created_by=column("created_by"),
        parent=alive.parent,
        wait_seconds=np.where(rests, _ticks(reader, look.at - since), np.nan),
        age_seconds=np.where(alive.born > UNKNOWN, _ticks(reader, look.at - alive.born), np.nan),
    )


def _ticks(reader: _Reader, ticks: NDArray[np.int64]) -> NDArray[np.float64]:
    if not reader.per_second:
        return np.full(len(ticks), np.nan)
    return np.maximum(ticks, 0) / reader.per_second
