"""Frame chains of many suspended greenlets at once, each step one set of gathers for all of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64
from diagtool.runtimes.cpython.context import STACKREF_TAGS, Context

__all__ = ("GreenletFrames", "walk")

_MAX_DEPTH = 10_000  # frames of one greenlet

_0 = np.uint64(0)
_TAGS = np.uint64(~STACKREF_TAGS & (1 << 64) - 1)


@dataclass(slots=True)
class GreenletFrames:
    """Frames of ``count`` greenlets, sorted by greenlet (``row``), then from the innermost outwards.

    ``first`` is where the frames of each greenlet begin (``count`` + 1 entries). The other columns are those
    of :class:`~diagtool.runtimes.cpython.context.RawFrame`.
    """

    count: int
    row: NDArray[np.intp]
    first: NDArray[np.intp]
    address: U64
    code: U64
    offset: NDArray[np.int64]
    globals: U64
    locals: U64

    def at(self, rows: NDArray[np.intp], depth: int) -> NDArray[np.intp]:
        """Index of the frame at ``depth`` (0: innermost) of each greenlet, -1 where it has no such."""
        index = self.first[rows] + depth
        return np.where(index < self.first[rows + 1], index, -1)

    def traces(self, ctx: Context) -> NDArray[np.int32]:
        """The trace of each greenlet, in the builder."""

        def details(at: int) -> tuple[str | None, str | None]:
            return ctx.module_name(int(self.globals[at])), None

        trace = np.zeros(self.count, np.int32)
        ids = ctx.codes.frame_ids(ctx.builder, self.code, self.offset, details)
        depth = np.arange(len(self.row)) - self.first[self.row]
        order = np.argsort(-depth, kind="stable")
        bounds = np.flatnonzero(np.diff(depth[order])) + 1
        for frames in np.split(order, bounds) if len(order) else []:  # all of one depth, outermost first
            frames = frames[ids[frames] >= 0]
            rows = self.row[frames]
            trace[rows] = ctx.builder.nodes(trace[rows], ids[frames])
        return trace


@dataclass(slots=True)
class _Step:
    row: NDArray[np.intp]
    address: U64
    code: U64
    offset: NDArray[np.int64]
    globals: U64
    locals: U64


def walk(ctx: Context, frame: U64, start: U64, saved: U64, copy: U64) -> GreenletFrames:
    """Follow the chains that begin at ``frame``.

    Addresses in [start, start + saved) are of a C stack that others use now: what was there is at ``copy``.
    """
    old = ctx.runtime.version < (3, 11)
    rows = np.arange(len(frame))
    landmark = np.zeros(len(frame), np.uint64)
    steps: list[_Step] = []
    for step in range(_MAX_DEPTH):
        rows = rows[frame[rows] != 0]
        if not len(rows):
            break
        at = frame[rows]
        away = at - start[rows]
        copied = (at >= start[rows]) & (away < saved[rows])
        found, following = _frames(ctx, rows, np.where(copied, copy[rows] + away, at), old)
        steps.append(found)
        frame[rows] = np.where(following == landmark[rows], _0, following)  # a cycle ends here
        if step & step + 1 == 0:
            landmark[rows] = following
    else:
        ctx.warn(f"{len(rows):,} greenlets are deeper than {_MAX_DEPTH:,} frames: their stacks were cut")
    return _joined(steps, len(frame))


def _joined(steps: list[_Step], count: int) -> GreenletFrames:
    def column(name: str, dtype: str) -> NDArray[np.generic]:
        parts = [getattr(s, name) for s in steps]
        return np.concatenate(parts) if parts else np.zeros(0, dtype)

    row = column("row", "i8").astype(np.intp)
    order = np.argsort(row, kind="stable")  # steps are in order already
    row = row[order]
    return GreenletFrames(
        count=count,
        row=row,
        first=np.searchsorted(row, np.arange(count + 1)),
        address=column("address", "u8")[order].astype(np.uint64),
        code=column("code", "u8")[order].astype(np.uint64),
        offset=column("offset", "i8")[order].astype(np.int64),
        globals=column("globals", "u8")[order].astype(np.uint64),
        locals=column("locals", "u8")[order].astype(np.uint64),
    )


def _frames(ctx: Context, rows: NDArray[np.intp], address: U64, old: bool) -> tuple[_Step, U64]:
    """(the frames at these addresses that are Python code, the next outer frame of each)."""
    v, lay = ctx.vectors, ctx.runtime.layout
    if old:
        code = v.field(address, "PyFrameObject.f_code")
        following = v.field(address, "PyFrameObject.f_back")
        offset = v.small(address, "PyFrameObject.f_lasti", "<i4")
        offset = np.where(offset >= 0, offset * (2 if ctx.runtime.version == (3, 10) else 1), -1)
        spaces, first = v.field(address, "PyFrameObject.f_globals"), lay["PyFrameObject.f_localsplus"]
        shim = np.zeros(len(address), np.bool_)
    else:
        executable, pointer = "_PyInterpreterFrame.f_executable", "_PyInterpreterFrame.instr_ptr"
        code = v.field(address, executable if executable in lay else "_PyInterpreterFrame.f_code") & _TAGS
        following = v.field(address, "_PyInterpreterFrame.previous")
        here = v.field(address, pointer if pointer in lay else "_PyInterpreterFrame.prev_instr")
        offset = (here - code - np.uint64(lay["PyCodeObject.co_code_adaptive"])).astype(np.int64)
        offset = np.where((offset >= 0) & (offset < 1 << 30), offset, -1)
        spaces, first = (
            v.field(address, "_PyInterpreterFrame.f_globals"),
            lay["_PyInterpreterFrame.localsplus"],
        )
        owner = v.small(address, "_PyInterpreterFrame.owner", "u1")
        names = ("const.FRAME_OWNED_BY_CSTACK", "const.FRAME_OWNED_BY_INTERPRETER")
        shim = np.isin(owner, [lay[n] for n in names if n in lay])
    python = ctx.codes.code_like(code) & ~shim
    own = address[python]
    step = _Step(rows[python], own, code[python], offset[python], spaces[python], own + np.uint64(first))
    return step, np.where(python | shim, following, _0)
