"""What would be free if a type, a module's globals or one container went: with all that only it keeps.

One walk over the whole graph for each question, from the roots, with the nodes in question taken out: what is
no longer reached is what they keep. Which questions are worth a walk follows from the tree of one walk: what
hangs below a node there is the most that it can keep.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diagtool.runtimes.cpython.graph.garbage import blocks_of_others
from diagtool.runtimes.cpython.graph.scan import Graph
from diagtool.runtimes.cpython.graph.walk import Walker, edges_of

__all__ = ["Candidate", "Kept", "keepers", "most_kept", "strong_roots", "subtree_sums"]

Ints = NDArray[np.int64]


@dataclass(slots=True)
class Candidate:
    """A question: what would be free without ``nodes``? ``key`` is the caller's."""

    key: int
    nodes: NDArray[np.intp]


@dataclass(slots=True)
class Kept:
    """The answer: ``bytes`` and ``objects`` that only these nodes keep, their own (``own``) included."""

    key: int
    bytes: int
    objects: int
    own: int


def strong_roots(graph: Graph, interned: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Which nodes are kept from outside, whatever the objects of the heap do: those with more references than
    words of objects explain. ``interned``: the dicts of interned strings, whose references do not count.

    A word on a stack alone keeps nothing: it may be borrowed, or left from an earlier call.
    """
    kind = graph.nodes.kind
    weak = edges_of(graph.first, interned)
    inner = graph.inner - np.bincount(graph.target[weak], minlength=len(kind))
    roots = (kind >= 0) & ((graph.references < 0) | (graph.references > inner))
    roots[interned] = True
    strong: NDArray[np.bool_] = roots | blocks_of_others(graph)
    return strong


def keepers(graph: Graph, roots: NDArray[np.bool_], interned: NDArray[np.intp]) -> Walker:
    """A walker from ``roots`` that passes no dict of interned strings."""
    walker = Walker(graph.first, graph.target, np.flatnonzero(roots))
    walker.cut(interned)
    return walker


def subtree_sums(order: NDArray[np.int32], parent: NDArray[np.int32], weight: Ints) -> Ints:
    """Of each node of a tree the weights of all nodes below it and its own.

    By doubling: after k rounds of all nodes fewer than 2**k steps below. ``order``: the nodes that are in the
    tree; ``parent``: of each node, the root's is itself.
    """
    total = np.append(weight, 0).astype(np.float64)
    inside = np.zeros(len(parent), np.bool_)
    inside[order] = True
    total[~inside] = 0
    nothing = len(parent)  # above the root
    jump = np.append(np.where(inside, parent, nothing), nothing).astype(np.int64)
    root = int(order[0])
    jump[root] = nothing
    total = np.append(total, 0) if len(total) == nothing else total
    for _ in range(64):
        rows = np.flatnonzero(jump < nothing)
        if not len(rows):
            break
        total += np.bincount(jump[rows], weights=total[rows], minlength=len(total))
        jump = jump[jump]
    return total[:nothing].astype(np.int64)


def most_kept(
    walker: Walker,
    weight: Ints,
    is_object: NDArray[np.bool_],
    candidates: Sequence[Candidate],
    most: NDArray[np.int64],
    wanted: int,
    seconds: float,
) -> tuple[list[Kept], bool]:
    """The ``wanted`` candidates that keep most bytes; and whether these are sure to be the most.

    ``most``: of each candidate more bytes than it can keep. Those who can keep most are asked first; what can
    keep less than the last of those found is not. It ends after ``seconds`` at the latest.
    """
    everything = walker.reach()
    total, count = int(weight[everything].sum()), int(np.count_nonzero(everything & is_object))
    found: list[Kept] = []
    deadline = time.monotonic() + seconds
    for row in np.argsort(-most, kind="stable").tolist():
        found.sort(key=lambda kept: -kept.bytes)
        if len(found) >= wanted and most[row] <= found[wanted - 1].bytes:
            return found[:wanted], True
        if time.monotonic() > deadline:
            return found[:wanted], False
        candidate = candidates[row]
        nodes = candidate.nodes[everything[candidate.nodes]]
        if not len(nodes):
            continue
        left = walker.reach(without=nodes)
        own = int(weight[nodes].sum())
        kept = total - int(weight[left].sum())
        found.append(Kept(candidate.key, kept, count - int(np.count_nonzero(left & is_object)), own))
    found.sort(key=lambda kept: -kept.bytes)
    return found[:wanted], True
