"""Several snapshots of one process: what stayed at its place, what grew, and since when.

A stack is the same one in two snapshots when its kind, address, name, frames (with lines) and the thing it
waits on are; a thread that used the CPU in between is not. An address alone is not enough: freed tasks make
room for new ones. A goroutine is the same one by its number and who made it, if it is where it was and did
not begin to wait anew. Goroutines of a profile have no number: nobody knows whether one was there before, and
only how many there are counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diagtool.leaks.condition import Resolve
from diagtool.leaks.model import Trend
from diagtool.leaks.near import NearClusters
from diagtool.leaks.pattern import MAX_ROUNDS
from diagtool.snapshot.model import KIND, Snapshot

Rows = NDArray[np.intp]
U64 = NDArray[np.uint64]

#: A place grew when its count never fell and rose by this many stacks and by this part at least.
LEAST_GROWTH = 3
LEAST_RATIO = 0.1
#: A place whose earlier stacks are gone to a larger part than this makes progress: only who stayed counts.
MOST_TURNOVER = 0.2
#: Snapshots and seconds from which on growth alone tells a leak: programs warm up, and load comes and goes.
LEAST_SNAPSHOTS, LEAST_SECONDS = 3, 60.0
#: CPU time of a thread, in seconds, above which it did something between two snapshots.
_CPU_PROGRESS = 0.001
#: Seconds by which a goroutine must have waited longer before to wait for something else now: dumps say
#: minutes, and memory tells an estimate.
_WAIT_SLACK = 30.0

_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that multiplication modulo 2**64 loses nothing


class SeriesError(Exception):
    """Snapshots that are no series. ``str()`` says what, ``hint`` what to do."""

    hint = "Name snapshots of one process, taken one after the other."


def in_order(snapshots: Sequence[Snapshot]) -> list[Snapshot]:
    """``snapshots`` oldest first. Raises SeriesError when they are not of the same process."""
    if not snapshots:
        raise SeriesError("no snapshot to look for leaks in")
    # A dump does not say of which process it is.
    first = next((s.target for s in snapshots if s.target.pid is not None), snapshots[0].target)
    for other in (s.target for s in snapshots):
        if None not in (first.pid, other.pid) and first.pid != other.pid:
            raise SeriesError(f"the snapshots are of different processes: pid {first.pid} and {other.pid}")
        if None not in (first.boot_id, other.boot_id) and first.boot_id != other.boot_id:
            raise SeriesError("the snapshots are of different boots of the machine, or of different machines")
        a, b = first.start_time, other.start_time
        if a is not None and b is not None and abs(a - b) > 1.0:  # clock ticks: 10 ms each
            raise SeriesError(f"pid {first.pid} was started anew between the snapshots")
    if len(snapshots) > 1 and all(s.target.captured_at is not None for s in snapshots):
        return sorted(snapshots, key=lambda s: s.target.captured_at or 0.0)
    return list(snapshots)


class Course:
    """What happened to the stacks of the last of ``snapshots`` (oldest first, two at least)."""

    def __init__(self, snapshots: Sequence[Snapshot]) -> None:
        self.snapshots = list(snapshots)
        self.last = self.snapshots[-1]
        self._identities = [_identities(s) for s in self.snapshots]
        self._places = [_places(s) for s in self.snapshots]
        times = [math.nan if s.target.captured_at is None else s.target.captured_at for s in self.snapshots]
        self.seconds = tuple(t - times[0] for t in times)

    @cached_property
    def since(self) -> NDArray[np.intp]:
        """For every stack of the last snapshot, the first snapshot from which on it has been there."""
        latest = len(self.snapshots) - 1
        known = ~self.nameless
        since = np.full(len(self.last.stacks), latest, np.intp)
        here = np.ones(len(since), np.bool_)
        for at in range(latest - 1, -1, -1):
            here = here & known & np.isin(self._identities[-1], self._identities[at])
            here &= ~(self._progressed(at) | self._waits_anew(at))
            since[here] = at
        return since

    @cached_property
    def nameless(self) -> NDArray[np.bool_]:
        """Which stacks of the last snapshot can't be told from others: goroutines of a profile."""
        s = self.last.stacks
        return np.asarray((s.kind == KIND["goroutine"]) & (s.address == 0), np.bool_)

    def _progressed(self, at: int) -> NDArray[np.bool_]:
        """Threads of the last snapshot that used the CPU since snapshot ``at``; goroutines that were awake,
        where it is known exactly since when each waits (a trace)."""
        moved = np.zeros(len(self.last.stacks), np.bool_)
        if self.last.target.details.get("waits_measured"):
            s, elapsed = self.last.stacks, self.seconds[-1] - self.seconds[at]
            with np.errstate(invalid="ignore"):
                moved |= (s.kind == KIND["goroutine"]) & (s.wait_seconds < elapsed * 0.999)
        before = {t.tid: t.cpu_seconds for t in self.snapshots[at].threads}
        for info in self.last.threads:
            then, now = before.get(info.tid), info.cpu_seconds
            if (
                then is not None
                and now is not None
                and now - then > _CPU_PROGRESS
                and info.stack < len(moved)
            ):
                moved[info.stack] = True
        return moved

    def _waits_anew(self, at: int) -> NDArray[np.bool_]:
        """Goroutines of the last snapshot that waited longer in snapshot ``at``: they went on in between."""
        now, then = self.last.stacks, self.snapshots[at].stacks
        anew = np.zeros(len(now), np.bool_)
        rows = np.flatnonzero(
            (then.kind == KIND["goroutine"]) & (then.wait_seconds > 0) & (then.address != 0)
        )
        told = (now.kind == KIND["goroutine"]) & (now.wait_seconds > 0)
        if not len(rows) or not told.any():  # a source that doesn't tell how long they wait
            return anew
        rows = rows[np.argsort(then.address[rows], kind="stable")]
        numbers = then.address[rows]
        place = np.minimum(np.searchsorted(numbers, now.address), len(rows) - 1)
        same = (numbers[place] == now.address) & (now.kind == KIND["goroutine"])
        waits = np.nan_to_num(now.wait_seconds, nan=0.0)
        anew[same] = (waits[same] + _WAIT_SLACK) < then.wait_seconds[rows[place[same]]]
        return anew

    def counts(self, rows: Rows) -> tuple[int, ...]:
        """How many stacks there were at the places of ``rows``, in each snapshot."""
        places = np.unique(self._places[-1][rows])
        return tuple(int(np.isin(p, places).sum()) for p in self._places)

    def grew(self, rows: Rows) -> bool:
        """True when the places of ``rows`` only got more stacks."""
        counts = self.counts(rows)
        growth = min(counts[-1] - counts[0], self._newcomers(rows))
        steady = all(a <= b for a, b in pairwise(counts))
        return steady and growth >= max(LEAST_GROWTH, LEAST_RATIO * counts[0])

    def _newcomers(self, rows: Rows) -> int:
        """How many of ``rows`` may be new since the first snapshot. Goroutines that were elsewhere then are
        not: the workers of a pool come back to their place."""
        s, first = self.last.stacks, self.snapshots[0].stacks
        numbers = s.address[rows]
        if not ((s.kind[rows] == KIND["goroutine"]) & (numbers != 0)).all():
            return len(rows)
        return int((~np.isin(numbers, first.address[first.kind == KIND["goroutine"]])).sum())

    def leaking(self, rows: Rows) -> Rows:
        """Those of ``rows`` that count: all where places grew and kept who was there, else who stayed."""
        nameless = self.nameless[rows]
        if nameless.any():
            named = self.leaking(rows[~nameless])
            return np.union1d(named, self._may_have_stayed(rows[nameless]))
        if not len(rows):
            return rows
        stayed = rows[self.since[rows] < len(self.snapshots) - 1]
        before = self.counts(rows)[-2]
        at_place = np.isin(self._places[-1], np.unique(self._places[-1][rows]))
        still = int((at_place & (self.since < len(self.snapshots) - 1)).sum())
        if before and self.grew(rows) and still >= (1 - MOST_TURNOVER) * before:
            return rows
        return stayed

    def _may_have_stayed(self, rows: Rows) -> Rows:
        """Of stacks that can't be told apart all where there are more, else as many as ever there were."""
        return rows if self.grew(rows) else rows[: min(self.counts(rows))]

    def is_long(self, rows: Rows) -> bool:
        """Whether the places of ``rows`` got more for long enough that this alone tells a leak."""
        every = all(a < b for a, b in pairwise(self.counts(rows)))
        return every and len(self.snapshots) >= LEAST_SNAPSHOTS and self.seconds[-1] >= LEAST_SECONDS

    def ages(self, rows: Rows) -> NDArray[np.float64]:
        """Seconds for which each of ``rows`` has been at its place at least; NaN where nobody knows."""
        seconds = np.array(self.seconds)
        ages = np.asarray(seconds[-1] - seconds[self.since[rows]], np.float64)
        return np.where(self.nameless[rows], math.nan, ages)

    def trend(self, rows: Rows) -> Trend:
        """The course of the places of ``rows``, for a report."""
        persisted = None if self.nameless[rows].any() else int((self.since[rows] == 0).sum())
        return Trend(self.counts(rows), self.seconds, persisted)

    def facts(self, rows: Rows) -> Resolve:
        """Resolves the facts of ``series`` conditions."""

        def resolve(path: str) -> object:
            if path == "snapshots":
                return len(self.snapshots)
            if path == "persisted":
                return int((self.since[rows] == 0).sum())
            if path == "grew":
                return self.grew(rows)
            if path == "growth":
                counts = self.counts(rows)
                return counts[-1] - counts[0]
            if path == "age_seconds":
                stayed = rows[self.since[rows] < len(self.snapshots) - 1]
                age = float(np.median(self.ages(stayed))) if len(stayed) else math.nan
                return None if math.isnan(age) else age
            return None

        return resolve


def trace_hashes(snapshot: Snapshot) -> U64:
    """A hash of every trace that is the same for the same frames in another snapshot (of this run only).

    A polynomial over the frames' hashes, by pointer doubling: log2(depth) steps of numpy.
    """
    traces = snapshot.traces
    size = len(traces.parent)
    of_frames = _frames(snapshot)
    ids = np.where((traces.frame >= 0) & (traces.frame < len(traces.frames)), traces.frame, -1)
    value: U64 = of_frames[ids] * np.uint64(2) + np.uint64(1)
    value[0] = 0
    jump = np.where((traces.parent >= 0) & (traces.parent < size), traces.parent, 0)
    jump[0] = 0
    factor = _BASE
    with np.errstate(over="ignore"):
        for _ in range(MAX_ROUNDS):
            if not jump.any():
                break
            value = value + factor * value[jump]
            factor = factor * factor
            jump = jump[jump]
    return value


def _frames(snapshot: Snapshot) -> U64:
    """A hash of every frame, and 0 for none at the end."""
    return np.array([hash(f) & 0xFFFFFFFFFFFFFFFF for f in snapshot.traces.frames] + [0], np.uint64)


def _texts(texts: Sequence[str]) -> U64:
    return np.array([hash(t) & 0xFFFFFFFFFFFFFFFF for t in texts], np.uint64)


def _mixed(*columns: NDArray[np.unsignedinteger[Any]]) -> U64:
    key = np.zeros(len(columns[0]), np.uint64)
    with np.errstate(over="ignore"):
        for column in columns:
            key = (key ^ column.astype(np.uint64)) * _BASE
            key ^= key >> np.uint64(29)
    return key


def _places(snapshot: Snapshot) -> U64:
    # What stacks that are nearly alike have in common: what lies between may differ the next time.
    s = snapshot.stacks
    waits, frames = _texts(snapshot.waits), _frames(snapshot)
    return _mixed(s.kind, s.state, waits[s.wait], *(frames[ids] for ids in NearClusters(snapshot).places))


def _identities(snapshot: Snapshot) -> U64:
    s = snapshot.stacks
    things = np.array([t.address for t in snapshot.things] + [0], np.uint64)
    traces = trace_hashes(snapshot)
    # Numbers of goroutines are never used again in a process; of another one they are the same, too.
    made = np.where(s.kind == KIND["goroutine"], traces[s.created_by], np.uint64(0))
    return _mixed(s.kind, s.address, _texts(s.name), traces[s.trace], things[s.thing], made)
