"""From thread states and kernel threads to stacks."""

from __future__ import annotations

import math
from dataclasses import dataclass

from diagtool.capture.model import CapturedThread
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.frames.evaluations import evaluations
from diagtool.runtimes.cpython.threads.blocked import ThreadWaits
from diagtool.runtimes.cpython.threads.interpreters import Interpreter, PythonThread
from diagtool.runtimes.merge import PythonRun, merge
from diagtool.runtimes.threads import about_thread, native_state
from diagtool.runtimes.waits import ThreadWait
from diagtool.snapshot.model import KIND, STATE, ThreadInfo


@dataclass(slots=True)
class ThreadStack:
    """A Python thread as it went into the builder. ``thing``: address of what it waits on, 0 for none."""

    row: int
    thread: PythonThread
    thing: int
    timed: bool
    time_left: float | None = None  # seconds, where a limit is known


def decode_threads(ctx: Context, interpreters: list[Interpreter]) -> list[ThreadStack]:
    """Add every thread to the builder: Python's with frames, the others with what the kernel says."""
    waits = ThreadWaits(ctx, interpreters)
    merged = _merged(ctx, interpreters)
    stacks: list[ThreadStack] = []
    known: set[int] = set()
    for interpreter in interpreters:
        for thread in interpreter.threads:
            if thread.captured is not None:
                known.add(thread.captured.tid)
            wait = waits.of(thread)
            row = _add(ctx, thread, thread.captured, wait, merged)
            thing = wait.thing.address if wait.thing is not None else 0
            # a wait of which nobody knows whether it ends by itself is taken for one that does
            left = (wait.time_left or 0.0) if wait.timed else None
            stacks.append(ThreadStack(row, thread, thing, wait.timed is not False, left))
    for captured in ctx.capture.threads:
        if captured.tid not in known:
            _add(ctx, None, captured, waits.of_native(captured), merged)
    return stacks


def _merged(ctx: Context, interpreters: list[Interpreter]) -> dict[int, int]:
    """By tid the trace with native frames between those of Python."""
    runs: dict[int, list[PythonRun]] = {tid: [] for tid in ctx.native}
    # Where nothing tells the order (3.9), a subinterpreter is taken to be called by the one that made it.
    for interpreter in reversed(interpreters):
        for thread in interpreter.threads:
            # One kernel thread may be at work for several interpreters, one within the other.
            mine = runs.get(thread.captured.tid) if thread.captured is not None else None
            if mine is None:
                continue
            for run in evaluations(ctx, thread.address, thread.frames):
                frames = [f for f in map(ctx.frame_of, run.frames) if f is not None]
                mine.append(PythonRun(frames, run.anchor))
    traces = {}
    for tid, native in ctx.native.items():
        anchored = all(run.anchor for run in runs[tid])
        ordered = sorted(runs[tid], key=lambda run: run.anchor) if anchored else runs[tid]
        traces[tid] = ctx.builder.trace(merge(native, ordered)[::-1])
    return traces


def _add(
    ctx: Context,
    thread: PythonThread | None,
    captured: CapturedThread | None,
    wait: ThreadWait,
    merged: dict[int, int],
) -> int:
    frames = [ctx.frame_of(f) for f in reversed(thread.frames)] if thread else []
    trace = ctx.builder.trace([f for f in frames if f is not None])
    native = merged.get(captured.tid, 0) if captured is not None else 0
    name = (thread.name if thread else None) or (captured.comm if captured else None) or ""
    tid = max(captured.tid, 0) if captured else 0  # a damaged core may say -1
    row = ctx.builder.add(
        [name],
        kind=KIND["thread"],
        state=STATE[_state(thread, captured, wait)],
        address=tid or (thread.ident if thread else 0),
        trace=trace or (native if thread is None else 0),
        merged=native,
        wait=ctx.builder.wait(wait.name),
        thing=ctx.builder.thing(wait.thing) if wait.thing is not None else -1,
        thread=tid,
        loop=thread.running_loop if thread else 0,
        wait_seconds=math.nan,
    )
    info = ThreadInfo(tid=tid, stack=row, name=name, python=thread is not None)
    if thread is not None:
        info.ident, info.interpreter, info.daemon = thread.ident, thread.interpreter, thread.daemon
        info.holds_gil, info.waits_for_gil = thread.holds_gil, thread.waits_for_gil
        info.collecting = thread.collecting
        info.running_loop = thread.running_loop or None
    if captured is not None:
        about_thread(info, captured)
    ctx.builder.snapshot.threads.append(info)
    return row


def _state(thread: PythonThread | None, captured: CapturedThread | None, wait: ThreadWait) -> str:
    if not wait.name and thread is not None and thread.holds_gil:
        return "running"
    return native_state(captured, wait)
