"""A trace from file to snapshots, a group of batches at a time."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.errors import BadEvidence, NotSupported
from diagtool.ingest.gotrace import HEAD, newwire, oldwire
from diagtool.ingest.gotrace.alive import BINS, Alive, Population
from diagtool.ingest.gotrace.build import Look, snapshots
from diagtool.ingest.gotrace.decode import decode, groups
from diagtool.ingest.gotrace.model import Batch, Decoded, Part, Steps, Trace, Wire
from diagtool.ingest.gotrace.newsteps import new_steps
from diagtool.ingest.gotrace.places import Places
from diagtool.ingest.gotrace.running import Running
from diagtool.snapshot.model import Snapshot

__all__ = ["read_data", "read_file"]

#: Versions in heads of traces that are read; 1.24 writes 1.23, 1.27 writes 1.26.
_OLD = (7, 8, 9, 10, 11, 19, 21)
_NEW = (22, 23, 25, 26)

#: Steps that are kept until the end of their generation. More are settled before: the states at the end stay
#: right, some waits in between are not counted.
MAX_STEPS = 1_000_000

#: Seconds of a trace from which on it is a series in itself.
LONG_ENOUGH = 1.0


def read_file(path: str | os.PathLike[str]) -> list[Snapshot]:
    """The snapshots of an execution trace, oldest first. Raises TargetError."""
    name = os.fspath(path)
    file = Path(name)
    data = np.memmap(name, np.uint8, "r") if file.stat().st_size else np.zeros(0, np.uint8)
    return read_data(data, name, file.stat().st_mtime)


def read_data(data: NDArray[np.uint8], name: str, written: float | None = None) -> list[Snapshot]:
    """The same of the bytes of a file. ``written``: when, in seconds since the epoch."""
    found = HEAD.match(data[:16].tobytes())
    if found is None:
        raise BadEvidence(f"{name} is no execution trace of Go", "Name what runtime/trace wrote.")
    version = int(found[1])
    if version not in _OLD + _NEW:
        raise NotSupported(
            f"{name} is an execution trace whose head says Go 1.{version}: the events of "
            f"{'a newer wire' if version > _NEW[-1] else 'this wire'} are not known, those of 1.7 to 1.11, "
            "1.19, 1.21 to 1.23, 1.25 and 1.26 are",
            "Dump the goroutines instead: /debug/pprof/goroutine?debug=2.",
        )
    trace = Trace(version, data)
    (newwire.index if version in _NEW else oldwire.index)(trace)
    return _Reader(trace, name, written).read()


class _Reader:
    def __init__(self, trace: Trace, name: str, written: float | None) -> None:
        self.trace, self.name, self.written = trace, name, written
        new = trace.version in _NEW
        self.wire: Wire = newwire.NewWire(trace.version) if new else oldwire.OldWire()
        self.steps: Callable[[Decoded, Running], Steps] = new_steps if new else oldwire.old_steps
        self.places = Places()
        self.running = Running()
        self.damaged = 0

    def read(self) -> list[Snapshot]:
        parts = self._usable()
        first = min(b.base for p in parts for b in p.batches)
        self.opens = first
        self.ends = max(self._last_moment(parts), first + 1)
        self.per_second = next((p.per_second for p in parts if p.per_second), 0)
        if not self.per_second:
            self.trace.warnings.append("how long a tick is is not told: no times are known")
        self.population = Population(self.opens, (self.ends - self.opens) // BINS + 1)
        self.looks: list[Look] = []
        self.due = self._due()
        for part in parts:
            self._part(part)
        self._look(self.ends)
        if self.damaged:
            said = "a batch is damaged" if self.damaged == 1 else f"{self.damaged:,} batches are damaged"
            self.trace.warnings.append(f"{said}: the events behind the damage are not read")
        return snapshots(self)

    def _usable(self) -> list[Part]:
        """The parts that can be told. The last of a trace that was cut off has no stacks: they come last."""
        usable = []
        for part in self.trace.parts:
            if part.batches and part.has_stacks:
                usable.append(part)
            elif part.batches:
                self.trace.warnings.append(
                    f"part {part.number} of the trace was cut off before its stacks: nothing is told of it"
                )
        if not usable:
            raise BadEvidence(
                f"{self.name} holds no events whose stacks are known" + self._why(),
                "Record it anew, and stop tracing before the file is copied (trace.Stop).",
            )
        return usable

    def _why(self) -> str:
        return f": {self.trace.warnings[0]}" if self.trace.warnings else ""

    def _last_moment(self, parts: list[Part]) -> int:
        """When the last event was: the last batch of each stream says so."""
        last: dict[int, Batch] = {}
        for batch in parts[-1].batches:
            last[batch.stream] = batch
        moments = [b.base for p in parts for b in p.batches]
        for group in groups(last.values()):
            events, _ = decode(self.trace.data, group, self.wire)
            if len(events.at):
                moments.append(int(events.at.max()))
        return max(moments)

    def _due(self) -> list[int]:
        length = self.ends - self.opens
        if not self.per_second or length < LONG_ENOUGH * self.per_second:
            return []
        return [self.opens + length // 3, self.opens + 2 * length // 3]

    def _part(self, part: Part) -> None:
        if part.structural:
            newwire.tables(self.trace, part)
        kept: list[Steps] = []
        for group in groups(part.batches):
            events, damaged = decode(self.trace.data, group, self.wire)
            self.damaged += damaged
            steps = self.steps(events, self.running)
            self.places.settle(steps, part)
            kept.append(steps)
            if sum(map(len, kept)) > MAX_STEPS:
                self._settle(Steps.joined(kept))
                kept = []
        if kept:
            self._settle(Steps.joined(kept))
        self.running.forget_order()
        self.population.next_part()
        part.strings.clear()
        part.stacks.clear()

    def _settle(self, steps: Steps) -> None:
        while self.due and len(steps) and int(steps.at.max()) > self.due[0]:
            past = steps.at <= self.due[0]
            self.population.settle(steps.take(past))
            self._look(self.due.pop(0))
            steps = steps.take(~past)
        self.population.settle(steps)

    def _look(self, at: int) -> None:
        alive: Alive = self.population.copy()
        self.looks.append(Look(at, alive))
