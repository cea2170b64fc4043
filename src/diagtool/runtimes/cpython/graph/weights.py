"""How many bytes each node of the graph takes: its block, and what it owns where no node stands for it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.graph.nodes import FREE, Nodes
from diagtool.runtimes.cpython.heap.census import HeapCensus
from diagtool.runtimes.cpython.heap.owners import Spans
from diagtool.runtimes.cpython.heap.sizes import Sizer

__all__ = ["weights_of"]

#: Types that own buffers, of which nothing else tells.
_OWNERS = ("bytearray", "array.array", "numpy.ndarray")


def weights_of(ctx: Context, census: HeapCensus, nodes: Nodes, spans: Spans) -> NDArray[np.int64]:
    """Bytes by node. ``spans``: blocks and tables outside of pools, which are somebody's."""
    weight = np.zeros(len(nodes), np.int64)
    if nodes.slots:
        weight[: nodes.slots] = np.repeat(nodes.block, nodes.per_pool)
        weight[nodes.kind == FREE] = 0
    # Of a large object without a span the head at least.
    outside = nodes.kind[nodes.slots :]
    weight[nodes.slots :] = census.types.basic[outside] if len(outside) else 0
    owner = nodes.nodes_of(spans.owner)
    good = owner >= 0
    sizes = (spans.end - spans.start).astype(np.int64)
    own = good & (owner >= nodes.slots) & (spans.start <= spans.owner) & (spans.owner < spans.end)
    weight[owner[own]] = 0
    np.add.at(weight, owner[good], sizes[good])
    sizer = Sizer(ctx, census.types)
    o = ctx.objects
    for kind, address in enumerate(census.types.address.tolist()):
        if any(o.type_name(base) in _OWNERS for base in o.mro(address)):
            objects = census.of(kind)
            node = nodes.nodes_of(objects)
            owned = sizer.of(kind, objects)[1]
            good = (node >= 0) & (owned > 0)
            np.add.at(weight, node[good], owned[good])
    return weight
