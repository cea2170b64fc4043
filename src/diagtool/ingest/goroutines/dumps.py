"""From what was read to snapshots: which rows are one dump, which dumps are of one process."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from diagtool.golang.goroutines import MAX_COUNT, Goroutines, go_frame
from diagtool.golang.waits import SYSTEM_WAITS, wait_of
from diagtool.ingest.goroutines.columns import Columns, Kind
from diagtool.ingest.goroutines.counted import Counted
from diagtool.ingest.goroutines.hidden import reasons
from diagtool.ingest.goroutines.parser import Parser
from diagtool.ingest.goroutines.races import Race
from diagtool.snapshot.model import KIND, Frame, Snapshot, SnapshotBuilder, Target

__all__ = ["snapshots"]

#: Dumps of one file that are compared; of more the last ones.
MAX_DUMPS = 200
#: From so many on a file is no series: goroutine 1 again and again.
_TOO_MANY = 5000

_VERSION = re.compile(
    r"(?:/toolchain@v[0-9.]+-|/)go(1\.\d{1,2}(?:\.\d{1,3})?)[./-](?:[a-z0-9-]+/)?(?:src|libexec)?"
)
_SIGNALS = {"SIGQUIT": 3, "SIGILL": 4, "SIGTRAP": 5, "SIGABRT": 6, "SIGBUS": 7, "SIGFPE": 8, "SIGSEGV": 11}
_SIGNAL = re.compile(r"(?:^|signal )(SIG[A-Z]{3,5})")
_DEADLOCK = "all goroutines are asleep"

Rows = NDArray[np.int64]


@dataclass(slots=True)
class Dump:
    """``rows`` of the columns, ascending; ``why`` they were written, "" if asked for."""

    rows: Rows
    why: str = ""
    notes: list[str] = field(default_factory=list)


def snapshots(parser: Parser) -> list[Snapshot]:
    """What was read, oldest first. Of processes that ended only the last one's."""
    dumps = _dumps(parser)
    notes = []
    ended = [i for i, dump in enumerate(dumps[:-1]) if dump.why]
    if ended:
        gone = ended[-1] + 1
        notes.append(
            f"{_several(gone, 'earlier dump')} in it {'is' if gone == 1 else 'are'} of a process that ended "
            "with it: what is looked at is the last process"
        )
        dumps = dumps[gone:]
    if len(dumps) > MAX_DUMPS:
        notes.append(f"there are {len(dumps):,} dumps: the last {MAX_DUMPS} are compared")
        dumps = dumps[-MAX_DUMPS:]
    out = [_snapshot(parser.columns, dump) for dump in dumps]
    if not out:
        out = [_counted(profile) for profile in parser.counted[-MAX_DUMPS:]]
    elif parser.counted:
        notes.append(f"{_several(len(parser.counted), 'profile')} with counts alone in it left out")
    if parser.races.found:
        if not out:
            out = [_races(parser.races.found)]
        out[-1].tables["data_races"] = _race_rows(parser)
        notes.append(
            f"{_several(len(parser.races.found), 'report')} of the race detector in it: table data_races"
        )
    if out:
        out[-1].warnings += [*notes, *_warnings(parser)]
    return out


def _several(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _warnings(parser: Parser) -> Iterator[str]:
    if parser.unknown:
        lines = _several(parser.unknown, "line")
        yield f"{lines} among the frames mean nothing, such as {parser.example[:120]!r}: left out"
    if parser.cut:
        yield "the text ends within a goroutine: it may be cut off, and others left out"
    if parser.columns.too_many:
        yield f"{parser.columns.too_many:,} goroutines are of too many different stacks: theirs are left out"
    lost = sum(profile.left_out for profile in parser.counted)
    if lost:
        yield f"{lost:,} goroutines of profiles with too many different stacks are left out"


# --- which rows are one dump ------------------------------------------------------------------------------


def _dumps(parser: Parser) -> list[Dump]:
    goid = np.frombuffer(parser.columns.goid, np.int64)
    if not len(goid):
        return []
    starts = sorted({0, *(h.row for h in parser.happened if h.row < len(goid))})
    lone = _lone(parser)
    every = bool(lone.all())
    out = []
    for first, last in zip(starts, [*starts[1:], len(goid)], strict=True):
        why = "; ".join([h.what for h in parser.happened if h.row == first][-3:])
        rows = np.arange(first, last) if every else first + np.flatnonzero(~lone[first:last])
        if not len(rows):
            continue
        cuts = [0] if every else _repeats(goid[rows])
        for a, b in zip(cuts, [*cuts[1:], len(rows)], strict=True):
            # What the runtime said before is about the first of them.
            out.append(Dump(rows[a:b], why if not a else ""))
    if every:
        return [Dump(np.arange(len(goid)), out[-1].why)]
    if left := int(lone.sum()):
        out[-1].notes.append(f"{_several(left, 'stack')} of one goroutine, as panics leave, left out")
    return out


def _lone(parser: Parser) -> NDArray[np.bool_]:
    """Rows that are no part of a dump: one goroutine that ran, and other text on both sides."""
    columns = parser.columns
    runs = np.array([kind.reason == "running" for kind in columns.kinds], np.bool_)
    gap = np.zeros(len(columns.goid) + 1, np.bool_)
    gap[np.frombuffer(parser.gaps, np.int64)] = True
    gap[[h.row for h in parser.happened]] = True
    gap[[0, -1]] = True
    return np.asarray(runs[np.frombuffer(columns.kind, np.int32)] & gap[:-1] & gap[1:], np.bool_)


def _repeats(goid: Rows) -> list[int]:
    """Where a number comes again that the dump has already: there the next one begins."""
    order = np.argsort(goid, kind="stable")
    before = np.full(len(goid), -1, np.int64)
    same = goid[order[1:]] == goid[order[:-1]]
    before[order[1:][same]] = order[:-1][same]
    again = np.flatnonzero(before >= 0)
    cuts = [0]
    at = 0
    while at < len(again):
        later = again[at : at + 4096]
        hit = np.flatnonzero(before[later] >= cuts[-1])
        if not len(hit):
            at += len(later)
            continue
        cuts.append(int(later[hit[0]]))
        at += int(hit[0]) + 1
        if len(cuts) > _TOO_MANY:
            return [0]
    return cuts


# --- snapshots --------------------------------------------------------------------------------------------


def _snapshot(columns: Columns, dump: Dump) -> Snapshot:
    span = _span(dump.rows)
    number = np.frombuffer(columns.kind, np.int32)[span]
    used = np.flatnonzero(np.bincount(number, minlength=len(columns.kinds)))
    place = np.zeros(len(columns.kinds), np.int32)
    place[used] = np.arange(len(used))
    kind = place[number]
    kinds = [columns.kinds[i] for i in used.tolist()]
    builder = SnapshotBuilder(_target(dump, kinds))
    goroutines = Goroutines(builder)
    made = [goroutines.kind(k.reason, k.frames, k.created_by) for k in kinds]
    asleep = _DEADLOCK in dump.why
    stuck = [k.leaked or (asleep and _sleeps(k)) for k in kinds]
    seconds = np.frombuffer(columns.minutes, np.float32)[span].astype(np.float64)
    seconds *= 60
    seconds[seconds == 0] = np.nan
    codes = np.array(
        [(m.state, m.wait, m.trace, m.merged, m.created_by, s) for m, s in zip(made, stuck, strict=True)],
        np.int32,
    )
    builder.add(
        [""] * len(kind),
        kind=KIND["goroutine"],
        state=codes[kind, 0],
        wait=codes[kind, 1],
        trace=codes[kind, 2],
        merged=codes[kind, 3],
        created_by=codes[kind, 4],
        stuck=codes[kind, 5],
        address=np.frombuffer(columns.goid, np.uint64)[span],
        parent=np.frombuffer(columns.parent, np.uint64)[span],
        wait_seconds=seconds,
    )
    snap = builder.snapshot
    if len(columns.labelled):
        snap.labels = _labels(columns, dump.rows)
    if any(stuck):
        snap.target.details["exact"] = True  # the runtime itself marked them, or found that nobody can run
    snap.warnings += dump.notes
    away = sum(not k.available for k in kinds)
    if away:
        rows = int(np.isin(number, used[[not k.available for k in kinds]]).sum())
        snap.warnings.append(
            f"{_several(rows, 'goroutine')} ran on other threads: their stacks were not written"
        )
    return builder.finish()


def _labels(columns: Columns, rows: Rows) -> list[tuple[int, str, str]]:
    labelled = np.frombuffer(columns.labelled, np.int32)
    at = np.minimum(np.searchsorted(rows, labelled), len(rows) - 1)
    here = rows[at] == labelled
    sets = np.frombuffer(columns.label_set, np.int32)[here]
    return [
        (row, key, value)
        for row, number in zip(at[here].tolist(), sets.tolist(), strict=True)
        for key, value in columns.label_sets[number]
    ]


def _span(rows: Rows) -> slice | Rows:
    """``rows`` as a slice where they are one: of a million no copy is made."""
    first, last = int(rows[0]), int(rows[-1]) + 1
    return slice(first, last) if last - first == len(rows) else rows


def _sleeps(kind: Kind) -> bool:
    wait = wait_of(kind.reason, [f.function for f in kind.frames])
    return bool(wait) and wait not in SYSTEM_WAITS and wait not in ("IO wait", "syscall", "sleep", "cgo call")


def _target(dump: Dump, kinds: list[Kind]) -> Target:
    target = Target(kind="evidence", runtime=_runtime(kinds))
    target.details["evidence"] = "goroutine dump"
    if dump.why:
        target.details["evidence"] = f"goroutine dump ({dump.why[:200]})"
        target.details["cause"] = dump.why[:1000]
        signal = _SIGNAL.search(dump.why)
        target.signal = _SIGNALS.get(signal[1]) if signal else None
    return target


def _runtime(kinds: list[Kind]) -> str:
    """``go1.22.10`` where a path tells it: of a toolchain, or of an installation named after its version."""
    for frame in (f for kind in kinds[:200] for f in kind.frames):
        if (
            frame.module
            and "." not in frame.module.partition("/")[0]
            and (found := _VERSION.search(frame.file))
        ):
            return f"go{found[1]}"
    return "go"


def _counted(profile: Counted) -> Snapshot:
    target = Target(kind="evidence", runtime="go", details={"evidence": f"{profile.name} profile (debug=1)"})
    builder = SnapshotBuilder(target)
    goroutines = Goroutines(builder)
    left = MAX_COUNT
    leaked = profile.name == "goroutineleak"
    for entry, reason in zip(profile.entries, reasons(profile.entries), strict=True):
        count = min(entry.count, left)
        left -= count
        goroutines.add(
            goroutines.kind(reason, entry.frames), count=count, labels=entry.labels or None, leaked=leaked
        )
    if leaked:
        target.details["exact"] = True
    snap = builder.finish()
    lost = sum(e.count for e in profile.entries) - (MAX_COUNT - left)
    if lost:
        snap.warnings.append(f"{lost:,} of the goroutines that it counts are left out")
    return snap


# --- the race detector --------------------------------------------------------------------------------------


def _races(races: list[Race]) -> Snapshot:
    builder = SnapshotBuilder(
        Target(kind="evidence", runtime="go", details={"evidence": "report of the race detector"})
    )
    goroutines = Goroutines(builder)
    seen = set()
    for who in (who for race in races for who in race.who):
        if who.goid in seen:
            continue
        seen.add(who.goid)
        made = who.made[0] if who.made else None
        kind = goroutines.kind("running" if who.state == "running" else "dead", who.frames, made)
        goroutines.add(kind, goid=who.goid)
    return builder.finish()


def _race_rows(parser: Parser) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for number, race in enumerate(parser.races.found):
        count = parser.races.counts[tuple((w.does, tuple(w.frames)) for w in race.who)]
        for who in race.who:
            place = next((f for f in who.frames if f.line is not None), go_frame("", "", None))
            rows.append(
                {
                    "race": number + 1,
                    "count": count,
                    "does": who.does,
                    "address": who.address,
                    "goroutine": who.goid,
                    "state": who.state,
                    "function": place.function,
                    "file": place.file,
                    "line": place.line,
                    "frames": _plain(who.frames),
                    "created_by": _plain(who.made),
                }
            )
    return rows


def _plain(frames: list[Frame]) -> list[list[object]]:
    return [[f.file, f.line, f.function] for f in frames[:50]]
