"""Traces spelled out, many at a time: a million stacks of twenty frames are twenty million numbers.

Each format makes one piece of bytes of each frame, once; a sample is then a row of numbers of such pieces,
and the text of thousands of samples is one look-up and one join.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diagtool.snapshot.model import Traces

__all__ = ("MOST_FRAMES", "Chunk", "depths", "joined", "sequences")

#: Frames of one stack, the innermost; a recursion goes on for thousands more.
MOST_FRAMES = 1_000

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Chunk:
    """The sequences of some samples, one behind the other in ``items``; of each the first and the last item,
    at ``first`` and ``last``, are -1 and to be filled. ``rows`` says which samples these are.

    An item is the number of a frame; ``nothing`` (one more than there are frames) stands for a stack without
    frames, ``cut`` (one more) for outer frames that are left out.
    """

    rows: slice
    items: NDArray[np.int64]
    first: NDArray[np.int64]
    last: NDArray[np.int64]


def depths(parent: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many frames each trace has. A parent must be smaller than its trace."""
    depth = np.ones(len(parent), np.int64)
    depth[:1] = 0
    up = parent
    while up.any():
        depth += depth[up]
        up = up[up]
    return depth


def sequences(traces: Traces, trace: NDArray[np.int64], *, outermost_first: bool) -> Iterator[Chunk]:
    """The frames of each ``trace``, a chunk of about a million frames at a time."""
    numbers = np.arange(len(traces.parent), dtype=np.int64)
    parent = traces.parent.astype(np.int64)
    parent[(parent < 0) | (parent >= numbers)] = 0  # what runs in a circle ends
    nothing = len(traces.frames)
    frame = traces.frame.astype(np.int64)
    frame[(frame < 0) | (frame >= nothing)] = nothing
    depth = depths(parent)[trace]
    told = np.minimum(depth, MOST_FRAMES)
    cut = depth > MOST_FRAMES
    ends = np.cumsum(np.maximum(told, 1) + cut + 2)
    start = 0
    while start < len(trace):
        base = int(ends[start - 1]) if start else 0
        stop = max(int(np.searchsorted(ends, base + _CHUNK, "right")), start + 1)
        rows = slice(start, stop)
        last = ends[rows] - base - 1
        first = np.concatenate([[0], last[:-1] + 1])
        items = np.full(int(last[-1]) + 1, -1, np.int64)
        items[first[depth[rows] == 0] + 1] = nothing
        outer, inner = (first + 1, last - 1) if outermost_first else (last - 1, first + 1)
        items[outer[cut[rows]]] = nothing + 1
        step = -1 if outermost_first else 1
        left, at, place = told[rows], trace[rows], inner
        while len(at):
            going = left > 0
            if not going.all():
                left, at, place = left[going], at[going], place[going]
            items[place] = frame[at]
            at, place, left = parent[at], place + step, left - 1
        yield Chunk(rows, items, first, last)
        start = stop


def joined(pieces: Sequence[bytes], items: NDArray[np.int64]) -> bytes:
    """The text of a chunk whose items are all numbers of ``pieces``."""
    return b"".join(map(pieces.__getitem__, items.tolist()))
