"""All stacks as one tree, weighed by their number: what the flame picture shows.

The tree is that of ``Traces`` already; what is added up here are counts, level by level, and the smallest
branches are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diagtool.report.html.frames import short_name, whose
from diagtool.report.terminal import place
from diagtool.report.text import clean
from diagtool.snapshot.model import KINDS, Frame, Snapshot

__all__ = ["flame"]

#: Frames from the outermost one inward; a recursion goes on for thousands more.
DEPTH = 100


def flame(snapshot: Snapshot, most: int) -> dict[str, Any] | None:
    """``nodes`` (id, parent, name, place, count, self, whose), ``left_out`` stacks' frames; None: no stacks.

    The first node is everything, below it are the kinds of stacks, below these their outermost frames.
    ``self`` is what no shown child accounts for.
    """
    stacks, traces = snapshot.stacks, snapshot.traces
    if not len(stacks):
        return None
    nodes: list[dict[str, Any]] = [_node(0, None, "all stacks", "", len(stacks), "root")]
    kinds, numbers = np.unique(stacks.kind, return_counts=True)
    depth = _depths(traces.parent)
    trees = []
    for kind, number in sorted(zip(kinds.tolist(), numbers.tolist(), strict=True), key=lambda k: -k[1]):
        name = KINDS[kind] if kind < len(KINDS) else "stack"
        nodes.append(_node(len(nodes), 0, f"{name}s", "", number, "root"))
        weight = _weights(traces.parent, depth, stacks.trace[stacks.kind == kind])
        kept = np.flatnonzero((weight > 0) & (depth > 0) & (depth <= DEPTH))
        trees.append((nodes[-1]["id"], weight, kept))
    left_out = 0
    for root, weight, kept in trees:
        # A branch is never heavier than what it grows from, so the heaviest are a tree.
        order = kept[np.lexsort((kept, depth[kept], -weight[kept]))]
        share = max(most * nodes[root]["count"] // len(stacks), most // 20, 10)
        left_out += max(len(order) - share, 0)
        _add(nodes, root, order[:share], weight, snapshot)
    _set_self(nodes)
    return {"nodes": nodes, "left_out": left_out, "deeper": int((depth > DEPTH).sum())}


def _node(number: int, parent: int | None, name: str, where: str, count: int, who: str) -> dict[str, Any]:
    return {
        "id": number,
        "parent": parent,
        "name": name,
        "place": where,
        "count": count,
        "self": 0,
        "whose": who,
    }


def _add(
    nodes: list[dict[str, Any]],
    root: int,
    chosen: NDArray[np.intp],
    weight: NDArray[np.int64],
    snapshot: Snapshot,
) -> None:
    traces = snapshot.traces
    known = {0: root}
    for trace in chosen.tolist():
        parent = known.get(int(traces.parent[trace]))
        index = int(traces.frame[trace])
        if parent is None or not 0 <= index < len(traces.frames):
            continue
        frame = traces.frames[index]
        known[trace] = len(nodes)
        nodes.append(_node(len(nodes), parent, _name(frame), place(frame), int(weight[trace]), whose(frame)))


def _name(frame: Frame) -> str:
    return clean(short_name(frame), 80)


def _set_self(nodes: list[dict[str, Any]]) -> None:
    for node in nodes:
        node["self"] += node["count"]
        if node["parent"] is not None:
            nodes[node["parent"]]["self"] -= node["count"]
    for node in nodes:
        node["self"] = max(node["self"], 0)


def _ancestors(parent: NDArray[np.int32]) -> Iterator[NDArray[np.int64]]:
    """For every trace its ancestor 1, 2, 4, 8 … frames outward, 0 for none, until nobody has one."""
    up = parent.astype(np.int64)
    up[(up < 0) | (up >= len(up))] = 0
    for _ in range(len(up).bit_length() + 1):  # of a circle, in a damaged file, there would be no end
        yield up
        if not up.any():
            return
        up = up[up]


def _depths(parent: NDArray[np.int32]) -> NDArray[np.int64]:
    """How many frames each trace has; 0 for the empty one, and for those that run in a circle."""
    depth = np.ones(len(parent), np.int64)
    depth[:1] = 0
    up = np.zeros(0, np.int64)
    for up in _ancestors(parent):
        depth += depth[up]
    depth[up > 0] = 0
    return depth


def _weights(
    parent: NDArray[np.int32], depth: NDArray[np.int64], leaves: NDArray[np.int32]
) -> NDArray[np.int64]:
    """Stacks that go through each trace, as far as DEPTH."""
    at = leaves[(leaves > 0) & (leaves < len(parent))].astype(np.int64)
    steps = np.maximum(depth[at] - DEPTH, 0)
    for bit, up in enumerate(_ancestors(parent)):
        at = np.where(steps >> bit & 1, up[at], at)
    weight = np.bincount(at, minlength=len(parent))
    order = np.argsort(depth, kind="stable")
    bounds = np.searchsorted(depth[order], np.arange(DEPTH + 2))
    for level in range(DEPTH, 1, -1):
        here = order[bounds[level] : bounds[level + 1]]
        np.add.at(weight, parent[here], weight[here])
    return weight
