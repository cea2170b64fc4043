"""Objects with more references than words that hold their address: what native code took and never gave back.

A reference count is the number of places that keep an object, and each place is a word somewhere in memory.
Where the count is higher than the number of such words, the rest was counted and forgotten: a Py_DECREF is
missing. Whatever may hold a reference counts for it: a word that looks stale, a pointer into the object, a
register. Only words in memory that is free for sure count for nothing: freed tables of dicts and arenas of
the compiler are full of addresses.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.graph.scan import Graph
from diagtool.runtimes.cpython.heap.census import HeapCensus
from diagtool.runtimes.cpython.objects.addresssets import Ranges

__all__ = ["LostReferences", "find_lost"]

_MOST_LOOKED_AT = 1 << 22  # objects whose insides are looked for; of more, these
_EXAMPLES = 5
_TOO_MANY = 1 << 24  # references; what claims more is no object


@dataclass(slots=True)
class LostReferences:
    """Objects of one type: how many have references that nothing holds, ``references`` in all, and how many
    of the objects nothing refers to at all (``unreferenced``, with their own ``bytes``)."""

    kind: int
    objects: int
    references: int
    unreferenced: int
    bytes: int
    examples: list[int] = field(default_factory=list)  # addresses, unreferenced ones first
    nodes: NDArray[np.intp] = field(default_factory=lambda: np.zeros(0, np.intp))  # of unreferenced ones


def find_lost(
    ctx: Context, census: HeapCensus, graph: Graph, weight: NDArray[np.int64]
) -> list[LostReferences]:
    """By type, those with most objects first. ``weight``: bytes of each node.

    Only of objects whose reference count means something: not of immortal ones.
    """
    nodes = graph.nodes
    words = graph.inner.astype(np.int64) + graph.outer + graph.stale
    lost = np.where(nodes.kind >= 0, graph.references - words, 0)
    rows = np.flatnonzero((lost > 0) & (graph.references < _TOO_MANY))[:_MOST_LOOKED_AT]
    if not len(rows):
        return []
    address = nodes.addresses(rows)
    size = _sizes(graph, census, rows)
    order = np.argsort(address, kind="stable")
    inner = np.zeros(len(rows), np.int64)
    ranges = [(s.start, s.end) for s in ctx.capture.memory.segments if s.writable]
    inner[order] = _pointers_into(ctx, graph, ranges, address[order], size[order])
    left = lost[rows] - inner
    nothing = (words[rows] == 0) & (inner == 0)
    good = left > 0
    rows, left, nothing, address = rows[good], left[good], nothing[good], address[good]
    kinds = nodes.kind[rows]
    out = []
    for kind in np.unique(kinds).tolist():
        mine = kinds == kind
        shown = np.concatenate([address[mine & nothing], address[mine & ~nothing]])[:_EXAMPLES]
        out.append(
            LostReferences(
                kind,
                int(np.count_nonzero(mine)),
                int(left[mine].sum()),
                int(np.count_nonzero(mine & nothing)),
                int(weight[rows[mine & nothing]].sum()),
                shown.tolist(),
                rows[mine & nothing],
            )
        )
    return sorted(out, key=lambda found: (-found.unreferenced, -found.objects, -found.references))


def _sizes(graph: Graph, census: HeapCensus, rows: NDArray[np.intp]) -> U64:
    """Bytes of objects from their address on: up to the end of their block, or as their types say."""
    nodes = graph.nodes
    kind = nodes.kind[rows]
    size = census.types.basic[kind]
    inside = rows < nodes.slots
    pool = np.searchsorted(nodes.first, np.where(inside, rows, 0), side="right") - 1
    if len(nodes.block):
        size = np.where(inside, nodes.block[pool] - nodes.before[kind], size)
    return np.maximum(size, 16).astype(np.uint64)


def _pointers_into(ctx: Context, graph: Graph, ranges: Ranges, address: U64, size: U64) -> NDArray[np.int64]:
    """How many words point behind the start of each object, but into it. ``address`` ascends.

    C code that keeps a ``char *`` into a str need not know the address of the str.
    """
    found = np.zeros(len(address), np.int64)
    low, high = int(address[0]), int(address[-1]) + int(size[-1])
    for start, words in ctx.capture.memory.blocks(ranges):
        place = np.flatnonzero(words - np.uint64(low) < np.uint64(high - low))
        near = words[place]
        at = np.searchsorted(address, near, side="right") - 1
        distance = near - address[at]
        good = (distance > 0) & (distance < size[at])
        places = np.uint64(start) + np.uint64(8) * place[good].astype(np.uint64)
        hit = at[good][~graph.is_free(places)]
        if len(hit):
            found += np.bincount(hit, minlength=len(address))
    return found
