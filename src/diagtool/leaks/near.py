"""Stacks that are nearly alike: they wait at the same place, for the same creator, by different ways.

One cause is one finding, though the frames between where the stacks began and where they wait differ: a
recursion of any depth, a retry, one handler among many. Linear in the number of stacks and of trace nodes.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from diagtool.leaks.own import is_own
from diagtool.snapshot.model import KIND, Frame, Snapshot

__all__ = ["NearClusters"]

_MAX_LEVELS = 10_000  # of a trace; deeper ones end somewhere in the middle


class NearClusters:
    """Groups of the stacks of a snapshot.

    Stacks of one group are of the same kind, state and wait, have the same innermost frame, the same
    innermost frame of the program's own, and the same creator: the innermost own frame of where they were
    made, or where that was not recorded, and of goroutines, the outermost frame of the stack itself.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot

    @cached_property
    def of(self) -> NDArray[np.int64]:
        """The group of every stack."""
        s = self.snapshot.stacks
        return _numbered(s.kind, s.state, s.wait, *self.places)

    @cached_property
    def places(self) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
        """Of every stack the indices of three frames: innermost, innermost own, creator; -1 where unknown."""
        s, size = self.snapshot.stacks, len(self._frame)
        trace = np.where((s.trace >= 0) & (s.trace < size), s.trace, 0)
        # Profiles don't tell who made a goroutine: what it runs stands for that, in every source.
        known = (s.created_by > 0) & (s.created_by < size) & (s.kind != KIND["goroutine"])
        made = np.where(known, s.created_by, 0)
        creator = np.where(made > 0, self._own[made], self._outermost[trace])
        return self._frame[trace], self._own[trace], creator

    def frames(self, row: int) -> tuple[Frame, ...]:
        """What all stacks of the group of ``row`` have in common, innermost first, each frame once."""
        frames = self.snapshot.traces.frames
        ids = dict.fromkeys(int(column[row]) for column in self.places)
        return tuple(frames[i] for i in ids if i >= 0)

    @cached_property
    def _frame(self) -> NDArray[np.int32]:
        """The index of each trace's innermost frame, -1 of the empty one and of what is damaged."""
        traces = self.snapshot.traces
        frame = traces.frame.astype(np.int32, copy=True)
        frame[(frame < 0) | (frame >= len(traces.frames))] = -1
        return frame

    @cached_property
    def _parent(self) -> NDArray[np.int32]:
        parent = self.snapshot.traces.parent.astype(np.int32, copy=True)
        parent[(parent < 0) | (parent >= len(parent))] = 0
        return parent

    @cached_property
    def _own(self) -> NDArray[np.int32]:
        """The index of each trace's innermost frame of the program's own, -1 where there is none."""
        own = np.array([is_own(f) for f in self.snapshot.traces.frames] + [False], np.bool_)
        out = np.full(len(self._frame), -1, np.int32)
        at = np.arange(len(out), dtype=np.int32)  # where each trace's search has come to
        left = np.flatnonzero(at > 0)
        for _ in range(_MAX_LEVELS):
            if not len(left):
                break
            here = self._frame[at[left]]
            found = own[here]
            out[left[found]] = here[found]
            left = left[~found]
            at[left] = self._parent[at[left]]
            left = left[at[left] > 0]
        return out

    @cached_property
    def _outermost(self) -> NDArray[np.int32]:
        """The index of each trace's outermost frame."""
        root = np.where(self._parent > 0, self._parent, np.arange(len(self._frame), dtype=np.int32))
        for _ in range(_MAX_LEVELS.bit_length()):  # each step goes twice as far as the one before
            further = root[root]
            if np.array_equal(further, root):
                break
            root = further
        return self._frame[root]


def _numbered(*columns: NDArray[np.generic]) -> NDArray[np.int64]:
    """A number for each distinct row of these columns."""
    number = np.zeros(len(columns[0]), np.int64)
    for column in columns:
        _, codes = np.unique(column, return_inverse=True)
        codes = codes.reshape(-1).astype(np.int64)
        most = int(codes.max(initial=0)) + 1
        _, number = np.unique(number * most + codes, return_inverse=True)
        number = number.reshape(-1).astype(np.int64)
    return number
