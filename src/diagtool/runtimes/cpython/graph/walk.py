"""What the nodes of a graph reach, with some of them taken out. scipy walks; it is imported on first use."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Walker", "components", "parents", "reachable"]

Mask = NDArray[np.bool_]

_SMALL = 1 << 20  # nodes
_LEVELS = 100


class Walker:
    """Breadth-first walks over one graph from the same roots, each without some of its nodes.

    ``first`` and ``target``: as in Graph. ``roots``: numbers of nodes. One more node, the last, stands for
    what is outside: it refers to the roots.
    """

    def __init__(self, first: NDArray[np.int64], target: NDArray[np.int32], roots: NDArray[np.intp]) -> None:
        from scipy.sparse import csr_array

        self._nodes = len(first) - 1
        narrow = np.int32 if len(target) + len(roots) < 1 << 31 else np.int64
        indptr = np.append(first, first[-1] + len(roots)).astype(narrow)
        indices = np.concatenate([target, roots.astype(np.int32)]).astype(narrow)
        # No walk looks at the values of edges: one of them stands for all.
        values = np.broadcast_to(np.ones(1), len(indices))
        size = self._nodes + 1
        self._graph: Any = csr_array((values, indices, indptr), shape=(size, size), copy=False)
        self._indices: NDArray[Any] = self._graph.indices
        self._first = first

    def cut(self, nodes: NDArray[np.intp]) -> None:
        """From now on walks reach ``nodes``, and go no further from there."""
        counts = self._first[nodes + 1] - self._first[nodes]
        self._indices[edges_of(self._first, nodes)] = np.repeat(nodes, counts)

    def reach(self, without: NDArray[np.intp] | None = None) -> Mask:
        """Which nodes the roots reach; ``without`` those given, which count as not reached."""
        from scipy.sparse.csgraph import breadth_first_order

        if without is None or not len(without):
            return self._marked(breadth_first_order(self._graph, self._nodes, return_predecessors=False))
        edges = edges_of(self._first, without)
        kept = self._indices[edges]
        counts = self._first[without + 1] - self._first[without]
        self._indices[edges] = np.repeat(without, counts)
        try:
            order = breadth_first_order(self._graph, self._nodes, return_predecessors=False)
        finally:
            self._indices[edges] = kept
        reached = self._marked(order)
        reached[without] = False
        return reached

    def tree(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """(nodes in the order they are reached, the node that each is reached from): the outside comes first,
        as node ``len(nodes)``, and is reached from itself."""
        from scipy.sparse.csgraph import breadth_first_order

        order, parent = breadth_first_order(self._graph, self._nodes, return_predecessors=True)
        parent[self._nodes] = self._nodes
        return order, parent

    def _marked(self, order: NDArray[np.int32]) -> Mask:
        reached = np.zeros(self._nodes + 1, np.bool_)
        reached[order] = True
        return reached[:-1]


def edges_of(first: NDArray[np.int64], nodes: NDArray[np.intp]) -> NDArray[np.int64]:
    """Numbers of the edges that leave ``nodes``."""
    low = first[nodes]
    counts = first[nodes + 1] - low
    before = np.cumsum(counts) - counts
    return np.repeat(low - before, counts) + np.arange(int(counts.sum()))


def reachable(first: NDArray[np.int64], target: NDArray[np.int32], roots: NDArray[np.intp]) -> Mask:
    """Which nodes ``roots`` reach, themselves included.

    A small graph that is not deep is walked level by level, without scipy, which takes longer to import.
    """
    nodes = len(first) - 1
    reached = np.zeros(nodes, np.bool_)
    reached[roots] = True
    frontier = roots
    for _ in range(_LEVELS if nodes <= _SMALL else 0):
        following = target[edges_of(first, frontier)]
        frontier = np.unique(following[~reached[following]])
        if not len(frontier):
            return reached
        reached[frontier] = True
    return Walker(first, target, np.flatnonzero(reached)).reach()


def parents(
    first: NDArray[np.int64], target: NDArray[np.int32], roots: NDArray[np.intp]
) -> NDArray[np.int32]:
    """The node that each is reached from on a shortest way from ``roots``; these from themselves, -1: none.

    Small graphs that are not deep without scipy, as :func:`reachable`.
    """
    nodes = len(first) - 1
    parent = np.full(nodes, -1, np.int32)
    parent[roots] = roots
    frontier = np.unique(roots)
    for _ in range(_LEVELS if nodes <= _SMALL else 0):
        following = target[edges_of(first, frontier)]
        source = np.repeat(frontier, first[frontier + 1] - first[frontier])
        fresh = parent[following] < 0
        parent[following[fresh]] = source[fresh]
        frontier = np.unique(following[fresh])
        if not len(frontier):
            return parent
    order, parent = Walker(first, target, np.unique(roots)).tree()
    reached = np.zeros(nodes + 1, np.bool_)
    reached[order] = True
    parent = np.where(parent[:-1] == nodes, np.arange(nodes, dtype=np.int32), parent[:-1])
    return np.where(reached[:-1], parent, np.int32(-1))


def components(source: NDArray[Any], target: NDArray[Any], nodes: int, strong: bool) -> NDArray[np.int32]:
    """The number of the component that each node is in: of nodes that are connected, or (``strong``) reach
    each other."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    values = np.ones(len(source), np.int8)
    graph = coo_array((values, (source, target)), shape=(nodes, nodes)).tocsr()
    kind = "strong" if strong else "weak"
    labels: NDArray[np.int32] = connected_components(graph, directed=True, connection=kind)[1]
    return labels
