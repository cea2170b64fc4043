"""Where tasks and coroutines were made, as far as asyncio's debug mode wrote it down.

A task keeps ``traceback.extract_stack()`` of its creation: a list of FrameSummary objects, outermost first. A
coroutine keeps its ``cr_origin``: a tuple of (file, line, function), innermost first.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64, MemoryFault
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.objects.referents import ragged
from diagtool.snapshot.model import Frame

__all__ = ("creation_traces", "origin_trace")

_MAX_FRAMES = 128  # of one place of creation, the innermost ones
_MAX_TOTAL = 1 << 21  # distinct names and files stay below that, too: see the keys

_0 = np.uint64(0)


def creation_traces(ctx: Context, sources: U64) -> NDArray[np.int32]:
    """A trace for each list of FrameSummary objects; 0 (the empty trace) for whatever is none."""
    v = ctx.vectors
    out = np.zeros(len(sources), np.int32)
    rows = np.flatnonzero(sources)
    rows = rows[_is_list(ctx, sources[rows])]
    if not len(rows):
        return out
    sizes = v.field(sources[rows], "PyVarObject.ob_size").astype(np.int64)
    depth = np.clip(sizes, 0, _MAX_FRAMES)
    skipped = (np.maximum(sizes - depth, 0) * 8).astype(np.uint64)
    if int(depth.sum()) > _MAX_TOTAL:
        ctx.warn(f"where tasks were created was left out: more than {_MAX_TOTAL:,} frames are recorded")
        return out
    first = v.field(sources[rows], "PyListObject.ob_item")
    owner, places = ragged(np.where(first != 0, first + skipped, _0), depth)
    frames = _frame_ids(ctx, v.words(places))
    level = np.arange(len(owner)) - np.searchsorted(owner, owner)
    order = np.argsort(level, kind="stable")
    bounds = np.searchsorted(level[order], np.arange(int(depth.max(initial=0)) + 1))
    for begin, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        pick = order[begin:end]
        pick = pick[frames[pick] >= 0]
        at = rows[owner[pick]]
        out[at] = ctx.builder.nodes(out[at], frames[pick])
    return out


def _is_list(ctx: Context, addresses: U64) -> NDArray[np.bool_]:
    return ctx.vectors.inherit(addresses, "list")


def _frame_ids(ctx: Context, summaries: U64) -> NDArray[np.int32]:
    """Interned frames of FrameSummary objects; -1 where there is none to read.

    File and function names are shared by all summaries of a code object, so their addresses tell them apart.
    """
    v = ctx.vectors
    files, names = v.attribute(summaries, "filename"), v.attribute(summaries, "name")
    lines = v.integers(v.attribute(summaries, "lineno"))
    file_at, name_at = np.unique(files, return_inverse=True)[1], np.unique(names, return_inverse=True)[1]
    key = (file_at.astype(np.int64) << 21 | name_at & 0x1FFFFF) << 21 | np.clip(lines, -1, 1 << 20) + 1
    _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
    ids = [_frame(ctx, int(files[i]), int(names[i]), int(lines[i])) for i in first]
    return np.array(ids, np.int32)[inverse] if len(summaries) else np.zeros(0, np.int32)


def _frame(ctx: Context, file: int, name: int, line: int) -> int:
    filename, function = ctx.objects.text(file), ctx.objects.text(name)
    if filename is None or function is None:
        return -1
    return ctx.builder.frame(Frame(function, filename, line if line > 0 else None))


def origin_trace(ctx: Context, origin: int) -> int:
    """The trace of a coroutine's ``cr_origin``; 0 when there is none."""
    o = ctx.objects
    frames: list[Frame] = []
    try:
        if o.kind(origin) != "tuple":
            return 0
        for item in o.tuple_items(origin, _MAX_FRAMES):
            if o.kind(item) != "tuple":
                return 0
            parts = o.tuple_items(item, 3)
            if len(parts) != 3:
                return 0
            file, function = o.text(parts[0]), o.text(parts[2])
            if file is None or function is None:
                return 0
            frames.append(Frame(function, file, o.integer(parts[1])))
    except MemoryFault:
        return 0
    return ctx.builder.trace(frames[::-1])
