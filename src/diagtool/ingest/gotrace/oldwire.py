"""The wire of Go 1.7 to 1.21 (headers 1.7 to 1.11, 1.19 and 1.21).

Source of facts: internal/trace/parser.go of Go 1.19 and 1.21, runtime/trace.go. A trace is one list of
events; the two upper bits of an event's type say how many numbers follow (one to three), or that their length
in bytes follows. Batch events say on which processor the next events were, and when. Strings and stacks stand
among the events, most of them at the end. Traces of Go 1.5 and 1.6 hold no names of functions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diagtool.ingest.gotrace.model import (
    ENDED,
    MAX_BATCHES,
    MAX_STRINGS,
    NONE,
    READY,
    RUNNING,
    SYSCALL,
    WAITING,
    Batch,
    Births,
    Decoded,
    Part,
    Steps,
    Trace,
    reference,
)
from diagtool.ingest.gotrace.running import Running, follows
from diagtool.ingest.gotrace.varints import Numbers, Places, walk

__all__ = ["REASONS", "OldWire", "index", "old_steps"]

_BATCH, _FREQUENCY, _STACK, _TIMER, _STRING, _LOG = 1, 2, 3, 35, 37, 48
_CREATE, _START, _END, _STOP, _SCHED, _PREEMPT = 13, 14, 15, 16, 17, 18
_SLEEP, _BLOCK, _UNBLOCK, _SEND, _RECEIVE, _SELECT, _SYNC, _COND, _NET = 19, 20, 21, 22, 23, 24, 25, 26, 27
_SYSCALL, _SYSCALL_EXIT, _SYSCALL_BLOCK, _WAITING, _IN_SYSCALL = 28, 29, 30, 31, 32
_START_LOCAL, _UNBLOCK_LOCAL, _SYSCALL_EXIT_LOCAL, _START_LABEL, _BLOCK_GC = 38, 39, 40, 41, 42
#: Types of events are below this.
_TYPES = 50

#: Why a goroutine waits, by the type of the event, in the words of the new wire.
REASONS = {
    _STOP: "forever",
    _SLEEP: "sleep",
    _BLOCK: "unspecified",
    _SEND: "chan send",
    _RECEIVE: "chan receive",
    _SELECT: "select",
    _SYNC: "sync",
    _COND: "sync.(*Cond).Wait",
    _NET: "network",
    _BLOCK_GC: "GC mark assist wait for work",
}

#: Places in a file that are looked at for a batch, where what stands before was damaged.
MAX_TRIES = 2_000
#: Events in a row that tell that these are events.
_ENOUGH = 64
#: Bytes that are looked at together when the file is gone over for the first time.
_CHUNK = 1 << 20

_STATE = np.full(256, NONE, np.uint8)
_STATE[list(REASONS)] = WAITING
_STATE[[_CREATE, _SCHED, _PREEMPT, _UNBLOCK, _UNBLOCK_LOCAL, _SYSCALL_EXIT, _SYSCALL_EXIT_LOCAL]] = READY
_STATE[[_START, _START_LOCAL, _START_LABEL, _SYSCALL]] = RUNNING
_STATE[[_WAITING]] = WAITING
_STATE[[_SYSCALL_BLOCK, _IN_SYSCALL]] = SYSCALL
_STATE[_END] = ENDED


class OldWire:
    """What events are in this wire."""

    def following(self, numbers: Numbers) -> Places:
        data = numbers.data
        end = len(data)
        count = (data >> 6) + np.uint8(1)  # 4: their length follows
        at = numbers.before[1:] + count - 1
        np.clip(at, 0, len(numbers.ends) - 1, out=at)
        out = numbers.ends[at].astype(np.int64) + 1
        long = np.flatnonzero(count == 4)
        out[long] = _behind(numbers, long + 1, 0)
        # A string has its bytes behind two numbers, a line of the user's log behind all others.
        strings = np.flatnonzero((data & 0x3F) == _STRING)
        out[strings] = _behind(numbers, strings + 1, 1)
        logs = np.flatnonzero((data & 0x3F) == _LOG)
        out[logs] = _behind(numbers, np.minimum(out[logs], end), 0)
        return np.asarray(np.minimum(out, end + 1), np.int32)

    def known(self, types: NDArray[np.uint8]) -> NDArray[np.bool_]:
        kind = types & np.uint8(0x3F)
        return np.asarray((kind > 0) & (kind < _TYPES), np.bool_)

    def timed(self, types: NDArray[np.uint8]) -> NDArray[np.bool_]:
        kind = types & np.uint8(0x3F)
        untimed = np.zeros(64, np.bool_)
        untimed[[_BATCH, _FREQUENCY, _STACK, _TIMER, _STRING]] = True
        return np.asarray(~untimed[kind], np.bool_)

    def first(self, numbers: Numbers, places: Places) -> Places:
        out: Places = np.asarray(places + 1, np.int32)
        long = (numbers.data[places] >> 6 == 3) & ((numbers.data[places] & 0x3F) != _STRING)
        out[long] = numbers.end(out[long], 0) + np.int32(1)
        return out

    def kinds(self, types: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.asarray(types & 0x3F, np.uint8)


def _behind(numbers: Numbers, starts: NDArray[np.integer], which: int) -> NDArray[np.int64]:
    """The place behind as many bytes as the number ``which`` at ``starts`` says; they stand behind it."""
    end = len(numbers.data)
    length = np.minimum(numbers.value(starts, which), np.uint64(end + 1)).astype(np.int64)
    return np.asarray(numbers.end(starts, which).astype(np.int64) + 1 + length, np.int64)


def index(trace: Trace) -> None:
    """Go over the whole file: batches, strings and stacks. Warnings say what could not be used."""
    part = Part(1)
    trace.parts.append(part)
    wire = OldWire()
    at, end = 16, len(trace.data)
    stream, base, opened = 0, 0, -1
    while at < end:
        data = np.asarray(trace.data[at : at + _CHUNK])
        numbers = Numbers.of(data)
        following = wire.following(numbers)
        places = walk(following, 0, len(data))
        good = wire.known(data[places]) & (following[places] <= len(data))
        whole = bool(good.all())
        if not whole:
            places = places[: int(np.argmin(good))]
        kinds = data[places] & 0x3F
        first = wire.first(numbers, places)
        heads = np.flatnonzero(kinds == _BATCH)[: MAX_BATCHES - len(part.batches)]
        for begins, goes_on, next_stream, next_base in zip(
            places[heads].tolist(),
            following[places[heads]].tolist(),
            numbers.value(first[heads], 0).tolist(),
            numbers.value(first[heads], 1).tolist(),
            strict=True,
        ):
            if opened >= 0 and at + begins > opened:
                part.batches.append(Batch(opened, at + begins - opened, stream, base))
            stream, base, opened = next_stream, next_base, at + goes_on
        rates = numbers.value(first[kinds == _FREQUENCY])
        part.per_second = int(rates[-1]) if len(rates) else part.per_second
        _strings(part, numbers, first[kinds == _STRING])
        _stacks(part, numbers, first[kinds == _STACK])
        stopped = at + (int(following[places[-1]]) if len(places) else 0)
        if whole or (stopped > at and at + len(data) < end):
            at = stopped
            continue
        at_fault = data[stopped - at] if stopped - at < len(data) else 0
        further = _next_batch(trace, stopped + 1, base)
        if further is not None:
            said = f"{further - stopped:,} bytes are left out"
            trace.warnings.append(f"what stands at byte {stopped:,} is no event: {said}")
            if opened >= 0 and stopped > opened:
                part.batches.append(Batch(opened, stopped - opened, stream, base))
            opened = -1
            at = further
            continue
        if wire.known(np.array([at_fault], np.uint8))[0]:
            trace.warnings.append(f"the file ends in the middle of an event, at byte {stopped:,}")
        else:
            trace.warnings.append(f"no event at byte {stopped:,}: what follows is not read")
        part.complete = False
        at = end
        end = stopped
        break
    if opened >= 0 and end > opened:
        part.batches.append(Batch(opened, end - opened, stream, base))


def _next_batch(trace: Trace, at: int, base: int) -> int | None:
    """Where a batch of events begins behind a damage: with times not before ``base``, and many events."""
    wire, data = OldWire(), trace.data
    while at < len(data) and trace.tries <= MAX_TRIES:
        trace.tries += 1
        window = np.asarray(data[at : at + (1 << 20)])
        numbers = Numbers.of(window)
        places = np.flatnonzero(window == _BATCH | 1 << 6)
        ticks = numbers.value(places + 1, 1)
        near = (numbers.value(places + 1) < 1 << 20) & (ticks >= base) & (ticks < base + (1 << 44))
        for place in places[near].tolist():
            trace.tries += 1
            if trace.tries > MAX_TRIES:
                return None
            part = window[place : place + (1 << 14)]
            following = wire.following(Numbers.of(part))
            found = walk(following, 0, len(part))
            if (
                len(found) >= min(_ENOUGH, (len(data) - at - place) // 8)
                and wire.known(part[found[:-1]]).all()
            ):
                return int(at + place)
        at += len(window)
    return None


def _strings(part: Part, numbers: Numbers, first: Places) -> None:
    first = first[: max(0, MAX_STRINGS - len(part.strings))]
    ids, lengths = numbers.value(first), numbers.value(first, 1)
    starts = numbers.end(first, 1) + 1
    for id_, start, length in zip(ids.tolist(), starts.tolist(), lengths.tolist(), strict=True):
        text = numbers.data[start : start + length].tobytes()
        part.strings.setdefault(id_, text[: 1 << 16].decode("utf-8", "replace"))


def _stacks(part: Part, numbers: Numbers, first: Places) -> None:
    if not len(first):
        return
    ends = numbers.ends[:-1]
    values = numbers.value(np.concatenate([np.zeros(1, np.int32), ends[:-1] + np.int32(1)]))
    ids, counts = numbers.value(first), numbers.value(first, 1)
    where = numbers.before[first] + 2
    found = [
        (id_, at, count)
        for id_, at, count in zip(ids.tolist(), where.tolist(), counts.tolist(), strict=True)
        if count <= 1000 and at + 4 * count <= len(values)
    ]
    part.stacks.read(values, found)
    part.has_stacks |= bool(found)


def _is(type_: NDArray[np.uint8], *types: int) -> NDArray[np.bool_]:
    table = np.zeros(256, np.bool_)
    table[list(types)] = True
    return table[type_]


def old_steps(events: Decoded, running: Running) -> Steps:
    """What ``events`` say of goroutines. ``running``: who runs where, from the events before these."""
    rows = np.flatnonzero(_STATE[events.type] != NONE)
    type_, stream = events.type[rows], events.stream[rows]
    starts = _is(type_, _START, _START_LOCAL, _START_LABEL)
    exits = _is(type_, _SYSCALL_EXIT, _SYSCALL_EXIT_LOCAL)
    named = starts | exits | _is(type_, _CREATE, _UNBLOCK, _UNBLOCK_LOCAL, _WAITING, _IN_SYSCALL)
    goid = np.zeros(len(rows), np.uint64)
    goid[named] = events.argument(rows[named], 0)
    stops = _is(type_, _END, _SCHED, _PREEMPT, _SYSCALL_BLOCK, *REASONS)
    nothing = np.zeros(len(rows), np.int64)
    now, _ = running.before(stream, starts | stops, np.where(starts, goid, np.uint64(0)), nothing)

    out = Steps.blank(len(rows))
    out.goid = np.where(named, goid, now)
    out.at = events.at[rows].copy()
    for kind, which in ((_SYSCALL_EXIT, 2), (_SYSCALL_EXIT_LOCAL, 1)):
        # The system call may have ended before the event was written.
        at = np.flatnonzero(type_ == kind)
        real = (events.argument(rows[at], which) & np.uint64((1 << 62) - 1)).astype(np.int64)
        out.at[at] = np.where((real > 0) & (real <= out.at[at]), real, out.at[at])
    out.order = out.at
    out.state = _STATE[type_]
    out.known[:] = _is(type_, _WAITING, _IN_SYSCALL)
    # Goroutines that were there before are told as if they were created, by nobody, when the trace begins.
    made = np.flatnonzero(type_ == _CREATE)
    out.known[made[now[made] == 0]] = 1
    out.birth[made] = np.arange(len(made))
    out.births = Births.blank(len(made))
    out.births.created[:] = now[made] != 0
    out.births.begin[:] = reference(events.argument(rows[made], 1))
    out.births.made[:] = np.where(now[made] != 0, reference(events.argument(rows[made], 2)), -1)
    out.births.parent[:] = now[made]
    stacked = np.flatnonzero(_is(type_, _SCHED, _PREEMPT, _SYSCALL, *REASONS))
    out.stack[stacked] = reference(events.argument(rows[stacked], 0))
    for kind in REASONS:
        out.reason[type_ == kind] = -2 - kind
    # The stack of a system call is told when it begins; that it blocks, later.
    blocked = np.flatnonzero((type_ == _SYSCALL_BLOCK) & np.append(False, (type_ == _SYSCALL)[:-1]))
    out.stack[blocked] = out.stack[blocked - 1]
    keep = (out.goid != 0) & (type_ != _SYSCALL) & ~(starts & follows(stream, ~named))
    return out.take(keep)
