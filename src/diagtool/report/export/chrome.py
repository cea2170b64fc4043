"""The Trace Event Format of Perfetto (ui.perfetto.dev) and chrome://tracing: a track a stack, over time.

What is known of time is little, and nothing else is drawn. A snapshot is one instant. A stack that waits has
a slice from when it began to wait, where that is known, to the last snapshot in which it waits in the same
place for the same thing, whether or not it was awake in between; a thread that used its processor meanwhile
was. All others have a mark at each snapshot that they are in. Counters say how many stacks there were; of an
execution trace of Go, how many waited at each place all along.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from diagtool._version import __version__
from diagtool.leaks.cluster import kind_name, state_name
from diagtool.report.export import ExportError, names
from diagtool.report.html.timeline import timeline
from diagtool.report.terminal import thing
from diagtool.report.text import clean
from diagtool.snapshot.model import KIND, KINDS, STATE, Snapshot

__all__ = ("MOST_TRACKS", "chrome")

#: Tracks that are drawn if nobody asks for another number: Perfetto is quick with as many.
MOST_TRACKS = 2_000
#: Counters of a picture over time.
MOST_COUNTERS = 20
#: Frames told of one stack, the innermost.
MOST_FRAMES = 50

#: No process has such a number (PID_MAX_LIMIT): tracks of what is no thread, by kind, stand below these.
_GROUPS = 1 << 22
#: Seconds of processor time above which a thread did something between two snapshots.
_AWAKE = 0.001
_LONGEST = 10 * 365 * 86400.0
#: Those whose state says that nothing happens to them while it lasts.
_AT_REST = frozenset(STATE[name] for name in ("waiting", "suspended", "created", "done"))


def chrome(snapshots: Sequence[Snapshot], most: int = MOST_TRACKS) -> Iterator[bytes]:
    """The JSON document, ASCII only. ``snapshots``: of one process, oldest first. ``most``: tracks; threads
    first, then what is in most snapshots, then what waits longest. Raises ExportError without times."""
    times = [s.target.captured_at for s in snapshots]
    if not all(t is not None and 0 < t < 1e11 for t in times):
        raise ExportError(
            "it is not known when this was taken, and a trace is about nothing else",
            "Take snapshots of the running process, or choose another format.",
        )
    series = _Series(snapshots, [float(t or 0) for t in times])
    tracks, left_out = series.tracks(most)
    zero = min((s.begin for t in tracks for s in t.slices), default=series.times[0])
    zero = min(zero, series.times[0])
    about = {
        "exporter": f"diagtool {__version__}",
        "target": clean(snapshots[-1].target.runtime, 200),
        "pid": snapshots[-1].target.pid,
        "zero": zero,
        "snapshots": [round(t - zero, 6) for t in series.times],
        "tracks_left_out": left_out,
    }
    yield b'{"displayTimeUnit":"ms","otherData":' + _json(about) + b',"traceEvents":[\n'
    yield _json(_named("process_name", series.pid, 0, f"threads of {series.name}"))
    for kind in range(1, len(KINDS)):
        if any(t.kind == kind for t in tracks):
            yield b",\n" + _json(
                _named("process_name", _GROUPS + kind, 0, f"{KINDS[kind]}s of {series.name}")
            )
    for number, track in enumerate(tracks, 1):
        pid = series.pid if track.kind == KIND["thread"] else _GROUPS + track.kind
        tid = track.address if track.kind == KIND["thread"] else number
        events = [_named("thread_name", pid, tid, track.name)]
        events += [_event(s, pid, tid, zero) for s in track.slices]
        yield b"".join(b",\n" + _json(e) for e in events)
    for event in series.counters(zero):
        yield b",\n" + _json(event)
    for event in series.traced(zero):
        yield b",\n" + _json(event)
    yield b"\n]}\n"


@dataclass(slots=True)
class _Slice:
    """What one stack did from ``begin`` to ``end`` (of the epoch); a mark where these are equal."""

    begin: float
    end: float
    what: str
    state: str
    details: dict[str, Any]
    same: tuple[Any, ...]
    cpu: float | None = None  # that the thread had used until then
    seen: int = 1


@dataclass(slots=True)
class _Track:
    kind: int
    address: int
    name: str
    slices: list[_Slice]


class _Series:
    def __init__(self, snapshots: Sequence[Snapshot], times: list[float]) -> None:
        self.snapshots = list(snapshots)
        self.times = times
        target = snapshots[-1].target
        self.pid = target.pid or 1
        words = clean(" ".join(target.cmdline), 100)
        self.name = f"pid {self.pid} ({words})" if words else f"pid {self.pid}"
        self._cpu = [{t.stack: t.cpu_seconds for t in s.threads} for s in snapshots]
        self._frames = [lru_cache(None)(_Frames(s).of) for s in snapshots]

    def tracks(self, most: int) -> tuple[list[_Track], int]:
        """Those that are drawn, and how many are not. A stack is the same by kind, address and name."""
        rows: dict[tuple[int, int, str], list[tuple[int, int]]] = {}
        for number, snapshot in enumerate(self.snapshots):
            for row in self._candidates(snapshot, most):
                key = int(snapshot.stacks.kind[row]), int(snapshot.stacks.address[row])
                rows.setdefault((*key, snapshot.stacks.name[row]), []).append((number, row))
        order = sorted(rows, key=lambda key: (key[0] != KIND["thread"], -len(rows[key])))
        last = len(self.snapshots[-1].stacks)
        chosen = [self._track(key, rows[key]) for key in order[:most]]
        shown = sum(1 for key in order[:most] if rows[key][-1][0] == len(self.snapshots) - 1)
        return chosen, last - shown

    def _candidates(self, snapshot: Snapshot, most: int) -> list[int]:
        """Threads first, then what is known to wait longest, then what is older."""
        s = snapshot.stacks
        waited = np.nan_to_num(s.wait_seconds, nan=-1.0)
        order = np.lexsort((s.address, -waited, s.kind != KIND["thread"]))
        rows: list[int] = order[:most].tolist()
        return rows

    def _track(self, key: tuple[int, int, str], rows: list[tuple[int, int]]) -> _Track:
        kind, address, name = key
        numbered = str(address) if kind == KIND["goroutine"] else f"{address:#x}"
        label = clean(name, 200) or f"{kind_name(kind)} {numbered}"
        track = _Track(kind, address, label, [])
        before = -1
        for number, row in rows:
            now = self._slice(number, row)
            last = track.slices[-1] if track.slices else None
            if last is not None and before == number - 1 and self._goes_on(last, now):
                last.end, last.cpu, last.seen = now.end, now.cpu, last.seen + 1
                before = number
                continue
            if last is not None:
                now.begin = max(now.begin, last.end)
            track.slices.append(now)
            before = number
        return track

    @staticmethod
    def _goes_on(last: _Slice, now: _Slice) -> bool:
        if not now.same or last.same != now.same or last.end < now.begin < now.end:
            return False  # the last: it began to wait after it was looked at
        return last.cpu is None or now.cpu is None or now.cpu - last.cpu <= _AWAKE

    def _slice(self, number: int, row: int) -> _Slice:
        snapshot = self.snapshots[number]
        s = snapshot.stacks
        at, state, trace = self.times[number], int(s.state[row]), int(s.trace[row])
        wait = snapshot.waits[int(s.wait[row])]
        frames = self._frames[number](trace)
        waited, age, held = float(s.wait_seconds[row]), float(s.age_seconds[row]), int(s.holder[row])
        index = int(s.thing[row])
        on = snapshot.things[index] if index >= 0 else None
        details: dict[str, Any] = {"frames": frames}
        if on is not None:
            details["waits_on"] = thing(on)
        if math.isfinite(age):
            details["age_seconds"] = round(age, 3)
        if held >= 0:
            details["held_by"] = clean(snapshot.holders[held], 300)
        what = clean(wait, 200) or (frames[0] if frames else state_name(state))
        begin = at - min(waited, _LONGEST) if waited > 0 else at
        rests = state in _AT_REST
        same = (state, wait, on.address if on is not None else 0, tuple(frames), trace > 0) if rests else ()
        return _Slice(begin, at, what, state_name(state), details, same, self._cpu[number].get(row))

    def counters(self, zero: float) -> Iterator[dict[str, Any]]:
        for snapshot, at in zip(self.snapshots, self.times, strict=True):
            s = snapshot.stacks
            pairs, counts = np.unique(np.stack([s.kind, s.state], axis=1), axis=0, return_counts=True)
            by_kind: dict[str, dict[str, int]] = {}
            for (kind, state), number in zip(pairs.tolist(), counts.tolist(), strict=True):
                by_kind.setdefault(f"{kind_name(kind)}s", {})[state_name(state)] = number
            heap = next(iter(snapshot.tables.get("heaps", ())), {})
            rss = heap.get("rss") if isinstance(heap, dict) else None
            if isinstance(rss, int) and not isinstance(rss, bool) and 0 <= rss < 1 << 62:
                by_kind["resident bytes"] = {"rss": rss}
            for name, values in by_kind.items():
                yield {
                    "ph": "C",
                    "name": name,
                    "pid": self.pid,
                    "ts": _microseconds(at - zero),
                    "args": values,
                }

    def traced(self, zero: float) -> Iterator[dict[str, Any]]:
        """Of an execution trace of Go: how many goroutines waited at each place, a counter for each."""
        told = timeline(self.snapshots[-1], MOST_COUNTERS)
        if told is None:
            return
        begin = self.times[-1] - told["seconds"]
        for line in (line for picture in told["pictures"] for line in picture["lines"]):
            for seconds, number in line["points"]:
                at = _microseconds(begin + seconds - zero)
                name = {"name": line["name"], "pid": self.pid, "ts": at}
                yield {"ph": "C", **name, "args": {"goroutines": number}}


class _Frames:
    """The frames of a trace as text, the innermost ones."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._traces = snapshot.traces

    def of(self, trace: int) -> list[str]:
        out: list[str] = []
        traces = self._traces
        while 0 < trace < len(traces.parent) and len(out) < MOST_FRAMES:
            index = int(traces.frame[trace])
            if 0 <= index < len(traces.frames):
                out.append(names.labelled(traces.frames[index]))
            trace = int(traces.parent[trace])
        return out


def _named(what: str, pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": pid, "tid": tid, "args": {"name": clean(name, 300)}}


def _event(s: _Slice, pid: int, tid: int, zero: float) -> dict[str, Any]:
    event: dict[str, Any] = {
        "name": s.what,
        "cat": s.state,
        "pid": pid,
        "tid": tid,
        "ts": _microseconds(s.begin - zero),
        "args": {"state": s.state, "snapshots": s.seen, **s.details},
    }
    if s.end > s.begin:
        return {"ph": "X", "dur": _microseconds(s.end - s.begin), **event}
    return {"ph": "i", "s": "t", **event}


def _microseconds(seconds: float) -> int:
    return max(round(seconds * 1e6), 0)


def _json(value: dict[str, Any]) -> bytes:
    return _encode(value).encode()


_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False, ensure_ascii=True).encode
