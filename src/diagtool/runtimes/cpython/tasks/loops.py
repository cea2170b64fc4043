"""Event loops: which thread runs which, what is ready and due in them, what time they last noted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64, MemoryFault
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.objects.census import Census, TypeNames
from diagtool.runtimes.cpython.tasks.timers import Timers, read_handles
from diagtool.runtimes.cpython.tasks.uvloops import is_uvloop, read_loop
from diagtool.runtimes.cpython.threads.interpreters import Interpreter, PythonThread

__all__ = ("Loops", "loop_types", "note_time", "read_loops")

_MAX_LOOPS = 1000  # that are described one by one
_MAX_WALK = 200_000  # frames of all threads that are looked through
_MAX_TIMERS = 1 << 20
_LONGEST_SELECT = 24 * 3600  # seconds, MAXIMUM_SELECT_TIMEOUT of asyncio/base_events.py

#: Key of the running loop in a thread's state dict, up to 3.13 (Modules/_asynciomodule.c).
_RUNNING_LOOP = "__asyncio_running_event_loop__"


@dataclass(slots=True)
class Loops:
    """``threads``: loop -> tid of the thread that runs it. ``timers`` of all of them; ``hidden``: loops whose
    timers can't be seen. ``rows``: the snapshot's table of loops:

    {"address": 0x7f…, "type": "uvloop.Loop", "thread": 4242, "running": True, "closed": False,
     "debug": False, "ready": 0, "scheduled": 12, "tasks": 300, "overdue": None}

    ``ready`` callbacks, ``scheduled`` timers, ``overdue``: seconds since the next timer was due.
    """

    threads: dict[int, int]
    timers: Timers
    hidden: list[int] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)


def loop_types(names: TypeNames) -> list[int]:
    """Types of loops that a census should look for: those without any task would not be found otherwise."""
    return sorted(
        {
            *names.types("asyncio.unix_events", "_UnixSelectorEventLoop"),
            *names.types("asyncio.selector_events", "BaseSelectorEventLoop"),
            *names.types("uvloop", "Loop"),
            *names.types("uvloop.loop", "Loop"),
        }
    )


def read_loops(
    ctx: Context, interpreters: list[Interpreter], census: Census, types: list[int], of_tasks: U64
) -> Loops:
    """All loops that have tasks, run, or are of one of ``types``; ``of_tasks`` are the loops of tasks."""
    threads = _threads_of_loops(ctx, interpreters)
    running = np.array(sorted(threads), np.uint64)
    addresses = np.unique(np.concatenate([of_tasks, running, census.of(types)]))
    tasks = dict(zip(*(a.tolist() for a in np.unique(of_tasks, return_counts=True)), strict=True))
    if len(addresses) > _MAX_LOOPS:
        ctx.warn(f"there are {len(addresses):,} event loops: only {_MAX_LOOPS:,} are described")
        most = sorted(addresses.tolist(), key=lambda a: (a not in threads, -tasks.get(a, 0)))
        addresses = np.array(sorted(most[:_MAX_LOOPS]), np.uint64)
    loops = Loops(threads, read_handles(ctx, np.zeros(0, np.uint64)))
    idents = {
        t.ident: t.captured.tid for i in interpreters for t in i.threads if t.captured is not None and t.ident
    }
    read = [_read(ctx, loops, a, idents, tasks.get(a, 0)) for a in addresses.tolist() if a]
    heaps = [heap for heap in read if heap is not None]
    if heaps:
        loops.timers = read_handles(ctx, np.concatenate(heaps))
        ends = np.cumsum([len(heap) for heap in heaps]).tolist()
        for row, end, heap in zip(loops.rows, ends, heaps, strict=True):
            row["overdue"] = _overdue(loops.timers.left[end - len(heap) : end]) if row["running"] else None
    return loops


def _read(ctx: Context, loops: Loops, address: int, idents: dict[int, int], tasks: int) -> U64 | None:
    """Add one loop to ``loops``; gives its timers, None for what is no loop."""
    o = ctx.objects
    row: dict[str, Any] = {"address": address, "type": o.qualified_kind(address) or "unreadable"}
    none = np.zeros(0, np.uint64)
    if is_uvloop(ctx, address):
        uv = read_loop(ctx, address)
        if uv is None:
            loops.hidden.append(address)
            ident, closed, debug, ready, timers = 0, None, None, None, none
        else:
            ident, closed, debug, ready, timers = uv.ident, uv.closed, uv.debug, uv.ready, uv.timers
    else:
        ident = o.integer(o.attribute(address, "_thread_id")) or 0
        closed, debug = o.truth(o.attribute(address, "_closed")), o.truth(o.attribute(address, "_debug"))
        waiting, scheduled = o.attribute(address, "_ready"), o.attribute(address, "_scheduled")
        ready = o.size(waiting) if waiting else None
        timers = np.array(_items(ctx, scheduled), np.uint64)
        if not scheduled:
            loops.hidden.append(address)
    if closed is None and not tasks and address not in loops.threads:
        return None  # came from the census, but has nothing that a loop has
    if ident in idents:
        loops.threads[address] = idents[ident]
    thread = loops.threads.get(address)
    row.update(thread=thread, running=thread is not None or bool(ident), closed=closed, debug=debug)
    row.update(ready=ready, scheduled=len(timers), tasks=tasks, overdue=None)
    loops.rows.append(row)
    return timers


def _items(ctx: Context, heap: int) -> list[int]:
    try:
        return ctx.objects.list_items(heap, _MAX_TIMERS) if ctx.objects.kind(heap) == "list" else []
    except MemoryFault:
        return []


def _overdue(left: NDArray[np.float64]) -> float | None:
    """Seconds since a loop's next timer was due, where that is past."""
    soonest = np.fmin.reduce(left) if len(left) else np.nan
    return round(-float(soonest), 3) if soonest < 0 else None


# -- who runs what ----------------------------------------------------------------------------------------


def _threads_of_loops(ctx: Context, interpreters: list[Interpreter]) -> dict[int, int]:
    """From the thread states, and for want of that from the frame of ``asyncio.run``."""
    out: dict[int, int] = {}
    for interpreter in interpreters:
        for thread in interpreter.threads:
            if thread.captured is not None:
                loop = thread.running_loop or _noted_loop(ctx, thread)
                if loop and not ctx.objects.is_none(loop):
                    out[loop] = thread.captured.tid
    for thread, frame in _frames_in(ctx, interpreters, "asyncio/runners.py"):
        runner = ctx.local_of(frame, "self")
        loop = ctx.objects.attribute(runner, "_loop") if runner else ctx.local_of(frame, "loop")
        if loop and not ctx.objects.is_none(loop) and thread.captured is not None:
            out.setdefault(loop, thread.captured.tid)
    return out


def _frames_in(ctx: Context, interpreters: list[Interpreter], file: str) -> list[tuple[PythonThread, Any]]:
    found = []
    budget = _MAX_WALK
    for interpreter in interpreters:
        for thread in interpreter.threads:
            frames = thread.frames[-budget:] if budget > 0 else []
            budget -= len(frames)
            for frame in frames:
                code = ctx.codes.get(frame.code)
                if code is not None and code.filename.endswith(file):
                    found.append((thread, frame))
    return found


def _noted_loop(ctx: Context, thread: PythonThread) -> int:
    """Up to 3.13: the running loop in the thread state's dict; up to 3.11 inside of a holder."""
    o, lay = ctx.objects, ctx.runtime.layout
    if "PyThreadState.dict" not in lay:
        return 0
    try:
        own = o.memory.u64(thread.address + lay["PyThreadState.dict"])
        value = o.dict_get(own, _RUNNING_LOOP) if own else 0
        if value and "PyRunningLoopHolder.rl_loop" in lay and "RunningLoopHolder" in o.kind(value):
            value = o.memory.u64(value + lay["PyRunningLoopHolder.rl_loop"])
    except MemoryFault:
        return 0
    return value


# -- what time it is --------------------------------------------------------------------------------------


def note_time(ctx: Context, interpreters: list[Interpreter]) -> None:
    """Set ``ctx.now``: of a live process exactly, of a core to the latest time that a loop noted.

    ``BaseEventLoop._run_once`` computes ``timeout`` from the time and when the next timer is due right before
    it waits, and ``end_time`` right after.
    """
    ctx.now, ctx.now_exact = ctx.capture.process.monotonic, True
    if ctx.now is not None:
        return
    ctx.now_exact = False
    for _, frame in _frames_in(ctx, interpreters, "asyncio/base_events.py"):
        end, timeout = (_float(ctx, ctx.local_of(frame, n)) for n in ("end_time", "timeout"))
        heap = ctx.objects.attribute(ctx.local_of(frame, "self"), "_scheduled")
        due = [_float(ctx, ctx.objects.attribute(timer, "_when")) for timer in _items(ctx, heap)[:1]]
        started = None
        if due and due[0] is not None and timeout is not None and 0 < timeout < _LONGEST_SELECT:
            started = due[0] - timeout
        for noted in (end, started):
            if noted is not None and (ctx.now is None or noted > ctx.now):
                ctx.now = noted


def _float(ctx: Context, address: int) -> float | None:
    try:
        return ctx.objects.real(address) if ctx.objects.kind(address) == "float" else None
    except MemoryFault:
        return None
