"""Garbage: objects that only refer to each other, which nothing but the cycle collector can free.

By the collector's own rule: what has no reference but from objects that are garbage themselves. Seen
from outside with all doubts on one side: whatever any live word outside of objects refers to is
alive, whatever has a reference that no word explains is alive, and so is all that these reach.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from diagtool.runtimes.cpython.graph.nodes import BARE
from diagtool.runtimes.cpython.graph.scan import Graph
from diagtool.runtimes.cpython.graph.walk import components, reachable
from diagtool.runtimes.cpython.heap.types import HAVE_GC

__all__ = ["Garbage", "GarbageType", "find_garbage"]


@dataclass(slots=True)
class GarbageType:
    """Garbage objects of one type; ``in_cycles``: those that lie on a cycle, the others hang on one."""

    kind: int
    count: int
    bytes: int
    in_cycles: int


@dataclass(slots=True)
class Garbage:
    """``objects`` that only the collector can free, with all that only they keep: ``bytes``.

    ``cycles``: groups of objects that refer to each other. ``mask``: by node.
    """

    objects: int = 0
    bytes: int = 0
    cycles: int = 0
    types: list[GarbageType] = field(default_factory=list)
    mask: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))


def roots_of(graph: Graph) -> NDArray[np.bool_]:
    """Which nodes are kept from outside, for all that is known."""
    kind = graph.nodes.kind
    roots = graph.outer > 0
    # A count that says nothing (immortal), and references that no word of an object explains.
    roots |= (kind >= 0) & ((graph.references < 0) | (graph.references > graph.inner))
    roots &= kind >= BARE
    roots |= blocks_of_others(graph)
    return roots


def blocks_of_others(graph: Graph) -> NDArray[np.bool_]:
    """Which nodes are bare blocks that no object leads to: memory of C code."""
    kind = graph.nodes.kind
    bare: NDArray[np.bool_] = kind == BARE
    to_bare = bare[graph.target]
    counts = np.bincount(graph.sources()[to_bare], minlength=len(kind))
    first = np.concatenate([[0], np.cumsum(counts)])
    return bare & ~reachable(first, graph.target[to_bare], np.flatnonzero(kind >= 0))


def find_garbage(
    graph: Graph, weight: NDArray[np.int64], flags: NDArray[np.uint64], roots: NDArray[np.bool_]
) -> Garbage:
    """``weight``: bytes of each node; ``flags``: tp_flags by number of type; ``roots``: :func:`roots_of`."""
    kind = graph.nodes.kind
    alive = reachable(graph.first, graph.target, np.flatnonzero(roots))
    dead = ~alive & (kind >= BARE)
    rows = np.flatnonzero(dead)
    if not len(rows):
        return Garbage(mask=dead)
    number = np.full(len(kind), -1, np.int32)
    number[rows] = np.arange(len(rows), dtype=np.int32)
    source = graph.sources()
    inside = dead[source] & dead[graph.target]
    ends = number[source[inside]], number[graph.target[inside]]
    loop = components(*ends, len(rows), strong=True)
    sizes = np.bincount(loop)
    own = np.zeros(len(loop), np.bool_)
    own[_selves(graph, rows)] = True
    cyclic = (sizes[loop] > 1) | own
    # What no cycle leads to is not garbage but something not understood: a block just being made, say.
    first = np.concatenate([[0], np.cumsum(np.bincount(ends[0], minlength=len(rows)))])
    order = np.argsort(ends[0], kind="stable")
    collected = (kind[rows] >= 0) & (flags[np.maximum(kind[rows], 0)] & np.uint64(HAVE_GC) != 0)
    good = np.zeros(len(loop), np.bool_)
    good[loop[cyclic & collected]] = True
    kept = reachable(first, ends[1][order], np.flatnonzero(cyclic & good[loop]))
    rows, cyclic, loop = rows[kept], (cyclic & good[loop])[kept], loop[kept]
    mask = np.zeros(len(kind), np.bool_)
    mask[rows] = True
    objects = kind[rows] >= 0
    found = Garbage(
        int(np.count_nonzero(objects)), int(weight[rows].sum()), len(np.unique(loop[cyclic])), [], mask
    )
    kinds = kind[rows[objects]]
    count = np.bincount(kinds)
    size = np.bincount(kinds, weights=weight[rows[objects]].astype(np.float64))
    looped = np.bincount(kinds[cyclic[objects]], minlength=len(count))
    found.types = [
        GarbageType(k, int(count[k]), int(size[k]), int(looped[k])) for k in np.flatnonzero(count).tolist()
    ]
    found.types.sort(key=lambda t: (-t.bytes, -t.count))
    return found


def _selves(graph: Graph, rows: NDArray[np.intp]) -> NDArray[np.intp]:
    """Which of ``rows`` have more words that refer to them than edges: they refer to themselves."""
    counts = np.bincount(graph.target, minlength=len(graph.nodes))
    return np.flatnonzero(graph.inner[rows] > counts[rows])
