"""Which Python frames belong to which call of the interpreter's C function, and where that has its own frame.

A call from Python to Python goes on within one call of ``_PyEval_EvalFrameDefault`` from 3.11 on; a call
through C begins another one. Each of them leaves something on the C stack that the thread's structures lead
to: a ``CFrame`` (3.10 to 3.12), a shim frame (3.12 on). So it can be told which native frame runs which
Python frames, without any symbol.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from diagtool.capture.memory import MemoryFault
from diagtool.runtimes.cpython.context import Context, RawFrame

__all__ = ["Evaluation", "evaluations"]

_MOST_CFRAMES = 100_000


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One call of the interpreter's C function: the Python frames that it runs, innermost first.

    ``anchor``: an address inside its frame on the C stack, 0 where none is known.
    """

    frames: Sequence[RawFrame]
    anchor: int = 0


def evaluations(ctx: Context, thread_state: int, frames: Sequence[RawFrame]) -> list[Evaluation]:
    """The frames of a thread state (``thread_frames``), by call of the interpreter, innermost first."""
    if not frames:
        return []
    if ctx.runtime.version >= (3, 12):
        return _by_shims(frames)
    runs = [[frame] for frame in frames] if ctx.runtime.version < (3, 11) else _by_entries(ctx, frames)
    anchors = _cframes(ctx, thread_state) if ctx.runtime.version >= (3, 10) else []
    if len(anchors) != len(runs):
        anchors = [0] * len(runs)
    return [Evaluation(run, anchor) for run, anchor in zip(runs, anchors, strict=True)]


def _by_shims(frames: Sequence[RawFrame]) -> list[Evaluation]:
    out, run = [], []
    for frame in frames:
        run.append(frame)
        if frame.shim:
            out.append(Evaluation(run, frame.shim))
            run = []
    return [*out, Evaluation(run)] if run else out


def _by_entries(ctx: Context, frames: Sequence[RawFrame]) -> list[list[RawFrame]]:
    field = ctx.runtime.layout["_PyInterpreterFrame.is_entry"]
    out: list[list[RawFrame]] = [[]]
    for frame in frames:
        out[-1].append(frame)
        if ctx.objects.memory.try_read(frame.address + field, 1) != b"\0":
            out.append([])
    return [run for run in out if run]


def _cframes(ctx: Context, thread_state: int) -> list[int]:
    """Addresses of the CFrames of a thread, innermost first, without the one in the thread state."""
    m, lay = ctx.objects.memory, ctx.runtime.layout
    root = thread_state + lay["PyThreadState.root_cframe"]
    previous = lay["CFrame.previous" if ctx.runtime.version < (3, 11) else "_PyCFrame.previous"]
    out: list[int] = []
    try:
        cframe = m.u64(thread_state + lay["PyThreadState.cframe"])
        while cframe and cframe != root and len(out) < _MOST_CFRAMES:
            if out and cframe <= out[-1]:  # stacks grow downwards: anything else is garbage
                return []
            out.append(cframe)
            cframe = m.u64(cframe + previous)
    except MemoryFault:
        return []
    return out
