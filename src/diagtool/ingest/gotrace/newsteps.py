"""Steps of goroutines in the new wire (1.22 to 1.27)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diagtool.ingest.gotrace.model import (
    ENDED,
    NONE,
    READY,
    RUNNING,
    SYSCALL,
    WAITING,
    Births,
    Decoded,
    Steps,
    reference,
)
from diagtool.ingest.gotrace.running import Running, follows

__all__ = ["new_steps"]

_CREATE, _CREATE_SYSCALL, _START, _DESTROY, _DESTROY_SYSCALL = 14, 15, 16, 17, 18
_STOP, _BLOCK, _UNBLOCK, _SYSCALL, _SYSCALL_END, _SYSCALL_LOST, _STATUS = 19, 20, 21, 22, 23, 24, 25
_SWITCH, _SWITCH_DESTROY, _CREATE_BLOCKED, _STATUS_STACK = 45, 46, 47, 48

#: State after an event; of the goroutine that runs, unless the event names one.
_STATE = np.full(256, NONE, np.uint8)
for _type, _state in (
    (_CREATE, READY),
    (_CREATE_BLOCKED, WAITING),
    (_CREATE_SYSCALL, SYSCALL),
    (_START, RUNNING),
    (_SWITCH, RUNNING),
    (_SWITCH_DESTROY, RUNNING),
    (_DESTROY, ENDED),
    (_DESTROY_SYSCALL, ENDED),
    (_STOP, READY),
    (_BLOCK, WAITING),
    (_UNBLOCK, READY),
    (_SYSCALL, SYSCALL),
    (_SYSCALL_END, RUNNING),
    (_SYSCALL_LOST, READY),
    (_STATUS, READY),
    (_STATUS_STACK, READY),
):
    _STATE[_type] = _state

#: What GoStatus says: bad, runnable, running, in a system call, waiting.
_SAID = np.array([NONE, READY, RUNNING, SYSCALL, WAITING], np.uint8)


def _is(type_: NDArray[np.uint8], *types: int) -> NDArray[np.bool_]:
    table = np.zeros(256, np.bool_)
    table[list(types)] = True
    return table[type_]


def new_steps(events: Decoded, running: Running) -> Steps:
    """What ``events`` say of goroutines. ``running``: who runs where, from the events before these."""
    rows = np.flatnonzero(_STATE[events.type] != NONE)
    type_, stream = events.type[rows], events.stream[rows]
    named = _is(
        type_, _CREATE, _CREATE_BLOCKED, _CREATE_SYSCALL, _START, _UNBLOCK, _STATUS, _STATUS_STACK
    ) | _is(type_, _SWITCH, _SWITCH_DESTROY)
    goid = np.zeros(len(rows), np.uint64)
    goid[named] = events.argument(rows[named], 0)
    counted = _is(type_, _START, _UNBLOCK, _SWITCH, _SWITCH_DESTROY)
    order = np.zeros(len(rows), np.int64)
    order[counted] = (events.argument(rows[counted], 1) & np.uint64((1 << 40) - 1)).astype(np.int64)

    state = _STATE[type_]
    status = np.flatnonzero(_is(type_, _STATUS, _STATUS_STACK))
    state[status] = _SAID[np.minimum(events.argument(rows[status], 2), 4) % np.uint64(5)]
    thread = events.argument(rows[status], 1).astype(np.int64)
    here = (state[status] == RUNNING) | ((state[status] == SYSCALL) & (thread == stream[status]))

    begins = _is(type_, _START, _SWITCH, _SWITCH_DESTROY, _CREATE_SYSCALL)
    begins[status] = here
    stops = _is(type_, _DESTROY, _DESTROY_SYSCALL, _STOP, _BLOCK, _SYSCALL_LOST)
    now, now_order = running.before(
        stream, begins | stops, np.where(begins, goid, np.uint64(0)), np.where(begins, order, 0)
    )

    out = Steps.blank(len(rows))
    out.goid = np.where(named, goid, now)
    fresh = _is(type_, _CREATE, _CREATE_BLOCKED, _CREATE_SYSCALL)
    out.known[:] = 0
    out.known[status] = 1
    # What is said of a goroutine in a new generation, and its creation, come before all else of it.
    out.order = np.where(named, order, now_order) * 2 + 1
    out.order[fresh | (out.known == 1)] = 0
    out.at = events.at[rows]
    out.state = state
    stacked = np.flatnonzero(_is(type_, _STOP, _BLOCK, _SYSCALL))
    out.stack[stacked] = reference(events.argument(rows[stacked], 1))
    with_stack = np.flatnonzero(type_ == _STATUS_STACK)
    out.stack[with_stack] = reference(events.argument(rows[with_stack], 3))
    blocked = np.flatnonzero(_is(type_, _BLOCK, _STOP))
    out.reason[blocked] = reference(events.argument(rows[blocked], 0))
    born = np.flatnonzero(fresh)
    out.birth[born] = np.arange(len(born))
    out.births = Births.blank(len(born))
    out.births.created[:] = 1
    told = type_[born] != _CREATE_SYSCALL
    out.births.begin[told] = reference(events.argument(rows[born[told]], 1))
    out.births.made[told] = reference(events.argument(rows[born[told]], 2))
    out.births.parent[:] = now[born]

    # A switch is two steps: the goroutine that ran waits or ends, another one runs.
    switches = np.flatnonzero(_is(type_, _SWITCH, _SWITCH_DESTROY))
    left = Steps.blank(len(switches))
    left.goid, left.order, left.at = now[switches], now_order[switches] * 2 + 1, out.at[switches]
    left.state = np.where(type_[switches] == _SWITCH, WAITING, ENDED).astype(np.uint8)

    # What is over by the next event in this stream needs no step of its own.
    ends_at_once = (type_ == _SYSCALL) & follows(stream, type_ == _SYSCALL_END)
    returns = (type_ == _SYSCALL_END) & np.append(False, ends_at_once[:-1])
    goes_on = (type_ == _START) & follows(stream, ~named)
    keep = (out.goid != 0) & (state != NONE) & ~returns & ~goes_on & ~ends_at_once
    return Steps.joined([out.take(keep), left.take(left.goid != 0)])
