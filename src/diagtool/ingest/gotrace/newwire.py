"""The wire of Go 1.22 to 1.27 (headers 1.22, 1.23, 1.25 and 1.26).

Source of facts: internal/trace/tracev2, internal/trace/batch.go and generation.go, runtime/trace*.go. A trace
is batches, each with a head: generation, thread, time, length. Batches of strings, stacks, samples and clocks
stand between those of events. Events of a goroutine carry a number that orders them over threads, begun anew
in each generation.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from diagtool.ingest.gotrace.model import MAX_BATCHES, MAX_STRINGS, Batch, Part, Trace
from diagtool.ingest.gotrace.varints import Numbers, Places, number

__all__ = ["NewWire", "index", "tables"]

_EVENT_BATCH, _STACKS, _STACK, _STRINGS, _STRING, _SAMPLES = 1, 2, 3, 4, 5, 6
_FREQUENCY, _EXPERIMENT, _SYNC, _CLOCK, _END = 8, 49, 50, 51, 52

#: Batches of 1.22 to 1.27 have 64 KiB at most.
MAX_BATCH = 1 << 20
#: Places in a file that are looked at for a batch, where the one before was damaged.
MAX_TRIES = 200_000
#: Damaged bytes that are left out at once.
MAX_GAP = 4 << 20
#: Strings are cut to 1 KiB by their writer.
MAX_STRING = 1 << 16

#: How many arguments an event has, the time included, by its type; of others than these nothing is known.
_ARGUMENTS = {
    9: 3, 10: 3, 11: 1, 12: 4, 13: 3,  # processors
    14: 4, 15: 2, 16: 3, 17: 1, 18: 1, 19: 3, 20: 3, 21: 4, 22: 3, 23: 1, 24: 1, 25: 4,  # goroutines
    26: 3, 27: 1, 28: 2, 29: 3, 30: 2, 31: 2, 32: 2, 33: 3, 34: 2, 35: 2, 36: 1, 37: 2, 38: 2,  # collector
    39: 2, 40: 5, 41: 3, 42: 4, 43: 4, 44: 5,  # annotations
    45: 3, 46: 3, 47: 4, 48: 5,  # coroutines, statuses with stacks: 1.23
    128: 4, 129: 4, 130: 2, 131: 3, 132: 3, 133: 2, 134: 3, 135: 3, 136: 2,  # experiments: 1.23
}  # fmt: skip


class NewWire:
    """What events are in this wire: a byte for the type, then as many numbers as the type has."""

    def __init__(self, version: int) -> None:
        self._arity = np.zeros(256, np.int32)
        for type_, count in _ARGUMENTS.items():
            if version >= 23 or type_ <= 44:
                self._arity[type_] = count

    def following(self, numbers: Numbers) -> Places:
        arity = self._arity[numbers.data]
        # The last of its numbers is that many ends on.
        at = numbers.before[1:] + arity - 1
        np.clip(at, 0, len(numbers.ends) - 1, out=at)
        out = numbers.ends[at] + 1
        none = arity == 0
        out[none] = np.flatnonzero(none) + 1
        return np.asarray(out, np.int32)

    def known(self, types: NDArray[np.uint8]) -> NDArray[np.bool_]:
        return np.asarray(self._arity[types] > 0, np.bool_)

    def timed(self, types: NDArray[np.uint8]) -> NDArray[np.bool_]:
        return np.ones(len(types), np.bool_)

    def first(self, numbers: Numbers, places: Places) -> Places:
        return np.asarray(places + 1, np.int32)

    def kinds(self, types: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return types


def index(trace: Trace) -> None:
    """Find the parts and batches of ``trace`` behind its head; warnings say what could not be used."""
    data = memoryview(trace.data)  # type: ignore[arg-type]
    part: Part | None = None
    at, end = 16, len(data)
    for _ in range(MAX_BATCHES):
        if at >= end:
            break
        if data[at] == _END:
            part, at = None, at + 1
            continue
        try:
            experiment, generation, batch, behind = _head(data, at)
        except ValueError:
            further = _next_batch(trace, data, at + 1, part.number if part else 1)
            if further is None:
                trace.warnings.append(f"no batch of events at byte {at:,}: what follows is not read")
                break
            trace.warnings.append(f"no batch of events at byte {at:,}: {further - at:,} bytes are left out")
            at = further
            continue
        if part is None or generation != part.number:
            part = Part(generation)
            trace.parts.append(part)
        at = behind
        if at > end:
            part.complete = False
            trace.warnings.append(f"the file ends in the middle of a batch: {at - end:,} bytes are missing")
            batch = Batch(batch.offset, end - batch.offset, batch.stream, batch.base)
        if experiment or not batch.length:
            continue
        kind = data[batch.offset]
        if kind in (_STACKS, _STRINGS, _SAMPLES, _FREQUENCY, _SYNC):
            part.structural.append((kind, batch.offset, batch.length))
            part.has_stacks |= kind == _STACKS
            if kind in (_FREQUENCY, _SYNC):
                _clocks(part, data[batch.offset : batch.offset + batch.length], batch.base)
        else:
            part.batches.append(batch)


def _next_batch(trace: Trace, data: memoryview, at: int, generation: int) -> int | None:
    """Where batches go on behind a damage: two of this generation or the next, one after the other."""
    for start in range(at, min(len(data), at + MAX_GAP), 1 << 16):
        window = np.frombuffer(data[start : start + (1 << 16)], np.uint8)
        for place in (start + np.flatnonzero(window == _EVENT_BATCH)).tolist():
            trace.tries += 1
            if trace.tries > MAX_TRIES:
                return None
            if _goes_on(data, place, generation):
                return int(place)
    return None


def _goes_on(data: memoryview, at: int, generation: int) -> bool:
    try:
        for _ in range(2):
            _, found, batch, at = _head(data, at)
            if found not in (generation, generation + 1) or not batch.length:
                return False
            if at == len(data) or data[at] == _END:
                return True
    except (ValueError, IndexError):
        return False
    return True


def _head(data: memoryview, at: int) -> tuple[int, int, Batch, int]:
    """(experiment, generation, batch, the place behind it) of the batch at ``at``. Raises ValueError."""
    experiment = 0
    if data[at] == _EXPERIMENT:
        experiment, at = number(data, at + 1)
    elif data[at] == _EVENT_BATCH:
        at += 1
    else:
        raise ValueError("no batch")
    generation, at = number(data, at)
    stream, at = number(data, at)
    base, at = number(data, at)
    length, at = number(data, at)
    if length > MAX_BATCH or not generation:
        raise ValueError("no batch")
    return experiment, generation, Batch(at, length, stream, base), at + length


def _clocks(part: Part, data: memoryview, base: int) -> None:
    """The batch that says how long a tick is, and (1.25) what the clock on the wall said at one."""
    at = 1 if data[0] == _SYNC else 0
    try:
        while at < len(data):
            if data[at] == _FREQUENCY:
                part.per_second, at = number(data, at + 1)
            elif data[at] == _CLOCK:
                delta, at = number(data, at + 1)
                _, at = number(data, at)
                seconds, at = number(data, at)
                nanoseconds, at = number(data, at)
                if 0 < seconds < 1 << 36:
                    part.clock = base + delta, seconds + min(nanoseconds, 10**9) / 1e9
            else:
                return
    except ValueError:  # cut off
        return


def tables(trace: Trace, part: Part) -> None:
    """Read the strings and stacks of ``part``, where it has not been done."""
    for kind, offset, length in part.structural:
        data = trace.data[offset : offset + length]
        if kind == _STRINGS:
            part.strings.update(islice(_strings(bytes(data)), max(0, MAX_STRINGS - len(part.strings))))
        elif kind == _STACKS:
            _read_stacks(part, data)


def _strings(data: bytes) -> Iterator[tuple[int, str]]:
    at = 1
    try:
        while at < len(data) and data[at] == _STRING:
            id_, at = number(data, at + 1)
            length, at = number(data, at)
            if length > min(MAX_STRING, len(data) - at):
                return
            yield id_, data[at : at + length].decode("utf-8", "replace")
            at += length
    except ValueError:
        return


def _read_stacks(part: Part, data: NDArray[np.uint8]) -> None:
    """A batch of nothing but numbers: type, stack, how many frames, four numbers for each."""
    numbers = Numbers.of(data)
    ends = numbers.ends[:-1]
    if not len(ends):
        return
    values = numbers.value(np.concatenate([np.zeros(1, np.int32), ends[:-1] + np.int32(1)]))
    listed = values.tolist()
    found = []
    at = 1
    while at + 3 <= len(listed) and listed[at] == _STACK:
        count = listed[at + 2]
        if at + 3 + 4 * count > len(listed):
            break
        found.append((listed[at + 1], at + 3, count))
        at += 3 + 4 * count
    part.stacks.read(values, found)
