"""Stacks that are alike, grouped: same kind, state, wait and frames. Linear in the number of stacks.

Equal traces are the same integer already (see snapshot.model.Traces), so a cluster is a distinct row of four
columns. Line numbers are part of a frame: two places in one function are two clusters.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from diagtool.leaks.model import MAX_EXAMPLES
from diagtool.snapshot.model import KINDS, STATES, Frame, Snapshot

#: Frames of one trace that are shown; of a deeper one the innermost and the outermost.
MAX_FRAMES = 400

#: The widths of the fields in the 64-bit key of a cluster.
_KIND, _STATE, _WAIT, _TRACE = 4, 4, 24, 32


@dataclass(frozen=True, slots=True)
class Group:
    """One cluster: codes of kind, state and wait, the trace, and the ``rows`` of its stacks, ascending."""

    kind: int
    state: int
    wait: int
    trace: int
    rows: NDArray[np.intp]

    @property
    def count(self) -> int:
        return len(self.rows)


class Clusters:
    """All clusters of a snapshot: columns over clusters, and each one's rows.

    ``kind``, ``state``, ``wait``, ``trace``, ``count``: arrays with one entry a cluster. ``of``: the cluster
    of every stack.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        s = snapshot.stacks
        key = (
            s.kind.astype(np.uint64) << np.uint64(_STATE + _WAIT + _TRACE)
            | s.state.astype(np.uint64) << np.uint64(_WAIT + _TRACE)
            | (s.wait.astype(np.uint64) & np.uint64((1 << _WAIT) - 1)) << np.uint64(_TRACE)
            | s.trace.astype(np.uint64) & np.uint64((1 << _TRACE) - 1)
        )
        keys, of, counts = np.unique(key, return_inverse=True, return_counts=True)
        self.snapshot = snapshot
        self.of: NDArray[np.intp] = of.reshape(-1)
        self.count: NDArray[np.intp] = counts
        self.kind = (keys >> np.uint64(_STATE + _WAIT + _TRACE)).astype(np.uint8)
        self.state = (keys >> np.uint64(_WAIT + _TRACE)).astype(np.uint8) & np.uint8((1 << _STATE) - 1)
        self.wait = (keys >> np.uint64(_TRACE)).astype(np.int32) & np.int32((1 << _WAIT) - 1)
        self.trace = (keys & np.uint64((1 << _TRACE) - 1)).astype(np.uint32).astype(np.int32)

    def __len__(self) -> int:
        return len(self.count)

    @cached_property
    def _order(self) -> NDArray[np.intp]:
        return np.argsort(self.of, kind="stable")

    @cached_property
    def _starts(self) -> NDArray[np.intp]:
        return np.concatenate([[0], np.cumsum(self.count)])

    def rows(self, index: int) -> NDArray[np.intp]:
        """The rows of cluster ``index``, ascending."""
        return self._order[self._starts[index] : self._starts[index + 1]]

    def group(self, index: int) -> Group:
        """Cluster ``index`` as an object."""
        return Group(
            int(self.kind[index]),
            int(self.state[index]),
            int(self.wait[index]),
            int(self.trace[index]),
            self.rows(index),
        )

    def largest_first(self) -> NDArray[np.intp]:
        """Indices of all clusters, largest first."""
        return np.argsort(-self.count, kind="stable")


def things_of(snapshot: Snapshot, rows: NDArray[np.intp]) -> NDArray[np.intp]:
    """Indices of the distinct things that ``rows`` wait on, the most waited-on first."""
    things = snapshot.stacks.thing[rows]
    things = things[(things >= 0) & (things < len(snapshot.things))]
    distinct, counts = np.unique(things, return_counts=True)
    return distinct[np.argsort(-counts, kind="stable")].astype(np.intp)


def examples(snapshot: Snapshot, rows: Iterable[int]) -> tuple[str, ...]:
    """A few names of stacks, each once."""
    names: dict[str, None] = {}
    for row in rows:
        name = snapshot.stacks.name[row]
        if name:
            names.setdefault(name)
            if len(names) == MAX_EXAMPLES:
                break
    return tuple(names)


def frames_of(snapshot: Snapshot, trace: int) -> tuple[Frame, ...]:
    """The frames of a trace, innermost first; the middle of a very deep one is left out, and says so."""
    frames = snapshot.traces.frames
    ids = [i for i in snapshot.traces.frame_ids(trace) if 0 <= i < len(frames)]
    if len(ids) <= MAX_FRAMES:
        return tuple(frames[i] for i in ids)
    half = MAX_FRAMES // 2
    gap = Frame(f"[{len(ids) - 2 * half:,} frames left out]", "", None)
    return (*(frames[i] for i in ids[:half]), gap, *(frames[i] for i in ids[-half:]))


def stable_id(what: str, kind: int, state: int, wait: str, frames: Iterable[Frame]) -> str:
    """A hash that is the same for the same stacks in another run: no addresses, paths or line numbers.

    Of functions only the last part of the name counts, because older versions of Python have no more.
    """
    import hashlib  # and with it a library for all that it can do

    parts = [what, _name(KINDS, kind), _name(STATES, state), wait]
    parts += [f.function if f.language == "go" else f.function.rpartition(".")[2] for f in frames]
    return hashlib.blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def _name(names: tuple[str, ...], code: int) -> str:
    return names[code] if 0 <= code < len(names) else "unknown"


def kind_name(code: int) -> str:
    """The name of a kind's code; hostile codes are "unknown"."""
    return _name(KINDS, code)


def state_name(code: int) -> str:
    """The name of a state's code; hostile codes are "unknown"."""
    return _name(STATES, code)
