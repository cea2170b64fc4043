"""What a profile holds: traces, what each one weighs, and what is known about its stacks.

Stacks that are alike are one sample. Three things can be weighed: how many stacks there are, how much
processor time their threads took, how many bytes were allocated and are in use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from diagtool.leaks.cluster import MAX_FRAMES, Clusters, frames_of, kind_name, state_name
from diagtool.leaks.model import Report
from diagtool.report.allocations import sites
from diagtool.report.export import ExportError
from diagtool.report.text import clean
from diagtool.snapshot.model import KINDS, STATES, Frame, Snapshot, SnapshotBuilder, Traces

__all__ = ("BY", "By", "Column", "Samples", "Weight", "alike", "samples")

By = Literal["count", "bytes", "cpu"]
BY: tuple[By, ...] = ("count", "bytes", "cpu")

#: Clusters of which a report's template is looked for: as many as a report lists, the largest.
_MAX_JUDGED = 2_000
_MAX_NAME = 300


@dataclass(frozen=True, slots=True)
class Weight:
    """What samples weigh, in whole ``unit``s; ``name`` as Go's profiles say it."""

    name: str
    unit: Literal["count", "bytes", "microseconds"]
    values: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Column:
    """One label of every sample: ``codes`` are indices into ``names``; "" is none."""

    codes: NDArray[np.intp]
    names: list[str]


@dataclass(frozen=True, slots=True)
class Samples:
    """Samples as columns of one length: ``trace`` (in ``traces``), ``root`` (in words what kind of stacks),
    ``weights`` (the first is the one that was asked for) and ``labels`` by name."""

    traces: Traces
    trace: NDArray[np.int64]
    root: Column
    weights: tuple[Weight, ...]
    labels: dict[str, Column] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.trace)

    @property
    def weight(self) -> Weight:
        """The one that was asked for."""
        return self.weights[0]


def samples(
    snapshot: Snapshot, by: By = "count", *, native: bool = False, report: Report | None = None
) -> Samples:
    """The samples of a snapshot, heaviest first where they weigh bytes, else in the order of their stacks.

    ``native``: threads with their native frames. ``report``: where templates are taken from. Raises
    ExportError where nothing was recorded of what is to be weighed.
    """
    if by == "bytes":
        return _allocated(snapshot, native)
    s = snapshot.stacks
    trace = np.where(s.merged > 0, s.merged, s.trace) if native else s.trace
    trace = np.where((trace > 0) & (trace < len(snapshot.traces.parent)), trace, 0).astype(np.int64)
    cpu = _cpu(snapshot)
    rows = np.arange(len(s))
    if by == "cpu":
        rows = rows[cpu > 0]
        if not len(rows):
            raise ExportError(
                "it is not known how much processor time the threads took",
                "Take a snapshot of a running process; a core does not tell. Or export --by count.",
            )
    kind, state = np.minimum(s.kind, len(KINDS)), np.minimum(s.state, len(STATES))
    thread, threads = _threads(snapshot)
    template, templates = _templates(snapshot, report)
    thing, things = _types(snapshot)
    wait = np.where((s.wait > 0) & (s.wait < len(snapshot.waits)), s.wait, 0)
    columns = [c[rows].astype(np.int64) for c in (kind, state, wait, thing, trace, thread, template)]
    first, of = alike(columns)
    kind, state, wait, thing, trace, thread, template = (c[first] for c in columns)
    stacks = Weight("stacks", "count", np.bincount(of, minlength=len(first)).astype(np.int64))
    spent = np.bincount(of, cpu[rows], len(first)).astype(np.int64)
    time = Weight("cpu", "microseconds", spent)
    kinds = [*KINDS, "stack"]
    states = [*STATES, "unknown"]
    pair = kind * len(states) + state
    names = [f"{state} {kind}s" for kind in kinds for state in states]
    return Samples(
        snapshot.traces,
        trace,
        Column(pair, names),
        (time, stacks) if by == "cpu" else (stacks, time) if spent.any() else (stacks,),
        {
            "kind": Column(kind, kinds),
            "state": Column(state, states),
            "wait": Column(wait, _clean(snapshot.waits)),
            "waits_on": Column(thing, things),
            "thread": Column(thread, threads),
            "template": Column(template, templates),
        },
    )


def alike(columns: Sequence[NDArray[np.int64]]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Of rows that are equal in all columns the first, and of every row which of these it is like."""
    key = np.zeros(len(columns[0]), np.int64)
    for column in columns:
        values, codes = np.unique(column, return_inverse=True)
        _, key = np.unique(key * max(len(values), 1) + codes.reshape(-1), return_inverse=True)
        key = key.reshape(-1)
    _, first, of = np.unique(key, return_index=True, return_inverse=True)
    order = np.argsort(first)
    place = np.empty(len(order), np.intp)
    place[order] = np.arange(len(order))
    return first[order], place[of.reshape(-1)]


def _clean(names: list[str]) -> list[str]:
    return [clean(name, _MAX_NAME) for name in names]


def _threads(snapshot: Snapshot) -> tuple[NDArray[np.int64], list[str]]:
    """Of every stack the thread that it belongs to, by name: alike named ones of a pool are one."""
    numbers: dict[str, int] = {"": 0}
    known = {t.tid: clean(t.name, _MAX_NAME) or f"tid {t.tid}" for t in snapshot.threads}
    tids, of = np.unique(snapshot.stacks.thread, return_inverse=True)
    names = [known.get(tid) or (f"tid {tid}" if tid else "") for tid in tids.tolist()]
    codes = np.array([numbers.setdefault(name, len(numbers)) for name in names], np.int64)
    return codes[of.reshape(-1)], list(numbers)


def _types(snapshot: Snapshot) -> tuple[NDArray[np.int64], list[str]]:
    """Of every stack the type of what it waits on."""
    numbers: dict[str, int] = {"": 0}
    codes = [numbers.setdefault(clean(t.type, _MAX_NAME), len(numbers)) for t in snapshot.things]
    thing = snapshot.stacks.thing
    known = (thing >= 0) & (thing < len(codes))
    return np.array([0, *codes], np.int64)[np.where(known, thing, -1) + 1], list(numbers)


def _cpu(snapshot: Snapshot) -> NDArray[np.float64]:
    """Microseconds of processor time of every stack that is a thread."""
    spent = np.zeros(len(snapshot.stacks))
    for thread in snapshot.threads:
        seconds = thread.cpu_seconds
        if seconds is not None and 0 <= seconds < 1e10 and 0 <= thread.stack < len(spent):
            spent[thread.stack] = round(seconds * 1e6)
    return spent


def _templates(snapshot: Snapshot, report: Report | None) -> tuple[NDArray[np.int64], list[str]]:
    """Of every stack the template that its cluster matched, of the clusters that the report lists."""
    found = np.zeros(len(snapshot.stacks), np.int64)
    told = [c for c in report.clusters if c.template] if report is not None else []
    if not told:
        return found, [""]
    numbers: dict[str, int] = {"": 0}
    by_key: dict[tuple[Any, ...], int] = {}
    for c in told:
        key = (c.kind, c.state, c.wait, c.frames)
        by_key[key] = numbers.setdefault(clean(c.template or "", _MAX_NAME), len(numbers))
    clusters = Clusters(snapshot)
    of = np.zeros(len(clusters), np.int64)
    for index in clusters.largest_first()[:_MAX_JUDGED].tolist():
        group = clusters.group(index)
        wait = snapshot.waits[group.wait] or None
        frames = frames_of(snapshot, group.trace)
        of[index] = by_key.get((kind_name(group.kind), state_name(group.state), wait, frames), 0)
    return of[clusters.of], list(numbers)


def _allocated(snapshot: Snapshot, native: bool) -> Samples:
    found = [site for site in sites(snapshot) if site.bytes > 0]
    if not found:
        raise ExportError(
            "nobody recorded where memory was allocated",
            "`diagtool snapshot PID --allocations 30s` watches it, or run the program with tracemalloc "
            "(python3 -X tracemalloc). `diagtool heap` counts objects by type without.",
        )
    build = SnapshotBuilder(snapshot.target)
    trace, sources, kinds = [], [], []
    for site in found:
        inner = [*site.native, *site.frames] if native else site.frames
        frames = [_bounded(f) for f in inner[:MAX_FRAMES]]
        if site.sites:
            frames = [Frame(f"({site.sites:,} more places)", "", None)]
        trace.append(build.trace(frames[::-1]))
        sources.append(clean(site.source, _MAX_NAME))
        kinds.append(clean(site.allocator, _MAX_NAME) or ("" if not site.domain else f"domain {site.domain}"))
    return Samples(
        build.finish().traces,
        np.array(trace, np.int64),
        _column([f"recorded by {name}" for name in sources]),
        (
            Weight("inuse_space", "bytes", np.array([s.bytes for s in found], np.int64)),
            Weight("inuse_objects", "count", np.array([s.count for s in found], np.int64)),
        ),
        {"source": _column(sources), "allocator": _column(kinds)},
    )


def _bounded(frame: Frame) -> Frame:
    return frame if isinstance(frame.function, str) else Frame("", frame.file, frame.line)


def _column(values: list[str]) -> Column:
    numbers: dict[str, int] = {"": 0}
    codes = [numbers.setdefault(value, len(numbers)) for value in values]
    return Column(np.array(codes, np.intp), list(numbers))
