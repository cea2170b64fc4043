"""The await tree: who awaits whom, with alike subtrees counted instead of repeated.

A service has ten thousand handlers that each await the same three tasks. Two stacks are of one *shape* when
kind, state, wait and frames are equal and the stacks they await are of equal shapes; a tree shows one of
each shape with a count. Shapes are found bottom-up without recursion: a chain can be as long as the number of
tasks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from diagtool.snapshot.model import KIND, Snapshot


@dataclass(frozen=True, slots=True)
class Node:
    """One line of the tree: ``count`` stacks like ``stack``, awaited by the last node of depth ``depth - 1``.

    ``mark``: ``"cycle"`` where the stack awaits, over others, itself; ``"shown"`` where its subtree was shown
    above; else "".
    """

    depth: int
    count: int
    stack: int
    mark: str = ""


def await_tree(snapshot: Snapshot) -> Iterator[Node]:
    """The nodes of the tree in the order to print them, the most frequent first.

    Roots are the tasks that nobody awaits; of a cycle that nothing outside awaits, its first stack.
    """
    children = _children(snapshot)
    awaited = {c for row in children.values() for c in row}
    stacks = snapshot.stacks
    tasks = np.flatnonzero(stacks.kind == KIND["task"]).tolist()
    members = sorted({*tasks, *children, *awaited})
    roots = [m for m in members if m not in awaited]
    order, loops = _post_order(children, roots)
    seen = set(order)
    for member in members:  # what is left stands in cycles
        if member not in seen:
            roots.append(member)
            more, more_loops = _post_order(children, [member], seen)
            order += more
            loops |= more_loops
            seen.update(more)
    shape = _shapes(snapshot, children, order, loops)
    yield from _walk(children, roots, shape, loops)


def _children(snapshot: Snapshot) -> dict[int, list[int]]:
    children: dict[int, list[int]] = {}
    for awaiting, awaited in np.unique(snapshot.awaits, axis=0).tolist():
        children.setdefault(awaiting, []).append(awaited)
    return children


def _post_order(
    children: dict[int, list[int]], roots: list[int], known: set[int] | None = None
) -> tuple[list[int], set[tuple[int, int]]]:
    # Stacks after those they await, and the edges that close a cycle.
    done = set(known or ())
    order: list[int] = []
    loops: set[tuple[int, int]] = set()
    for root in roots:
        if root in done:
            continue
        path = {root}
        todo = [(root, iter(children.get(root, ())))]
        while todo:
            stack, rest = todo[-1]
            child = next(rest, None)
            if child is None:
                todo.pop()
                path.discard(stack)
                done.add(stack)
                order.append(stack)
            elif child in path:
                loops.add((stack, child))
            elif child not in done:
                path.add(child)
                todo.append((child, iter(children.get(child, ()))))
    return order, loops


def _shapes(
    snapshot: Snapshot, children: dict[int, list[int]], order: list[int], loops: set[tuple[int, int]]
) -> dict[int, int]:
    stacks = snapshot.stacks
    columns = (stacks.kind, stacks.state, stacks.wait, stacks.trace)
    own = list(zip(*(c.tolist() for c in columns), strict=True))
    numbers: dict[tuple[object, ...], int] = {}
    shape: dict[int, int] = {}
    for stack in order:
        below = sorted(-1 if (stack, c) in loops else shape[c] for c in children.get(stack, ()))
        shape[stack] = numbers.setdefault((own[stack], *below), len(numbers))
    return shape


def _walk(
    children: dict[int, list[int]], roots: list[int], shape: dict[int, int], loops: set[tuple[int, int]]
) -> Iterator[Node]:
    expanded: set[int] = set()
    todo = _grouped(0, roots, shape)
    while todo:
        node = todo.pop()
        if node.mark:
            yield node
            continue
        below = children.get(node.stack, [])
        number = shape[node.stack]
        if below and number in expanded:
            yield Node(node.depth, node.count, node.stack, "shown")
            continue
        expanded.add(number)
        yield node
        closing = [Node(node.depth + 1, 1, c, "cycle") for c in below if (node.stack, c) in loops]
        todo += closing + _grouped(node.depth + 1, [c for c in below if (node.stack, c) not in loops], shape)


def _grouped(depth: int, stacks: list[int], shape: dict[int, int]) -> list[Node]:
    # One node a shape, as a stack to pop from: the most frequent last.
    counts = Counter(shape[s] for s in stacks)
    first = {shape[s]: s for s in reversed(stacks)}
    ranked = sorted(counts.items(), key=lambda item: (item[1], -first[item[0]]))
    return [Node(depth, count, first[number]) for number, count in ranked]
