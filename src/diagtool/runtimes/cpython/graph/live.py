"""Which words of an object are references that it holds now: not those behind the last item of a list, or
on the part of a generator's evaluation stack that is not in use, nor those of weak references."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.frames.generators import CREATED, GENERATOR_KINDS, SUSPENDED, read_generators
from diagtool.runtimes.cpython.graph.nodes import BARE, Nodes
from diagtool.runtimes.cpython.heap.census import HeapCensus
from diagtool.runtimes.cpython.heap.types import kinds_named

__all__ = ["Extents", "live_extents", "weak_kinds"]

_LIST = 1 << 25  # Py_TPFLAGS_LIST_SUBCLASS, Include/object.h
_ALL = 0xFFFF  # larger than any block of a pool
_WEAK = ("weakref.ReferenceType", "weakref", "weakproxy", "weakcallableproxy", "weakref.ProxyType")


@dataclass(slots=True)
class Extents:
    """``end``: of each block of a pool, bytes from its start in which words are references. ``weak``: by
    number of type, whether it is a weak reference, which holds its callback only, ``callback`` bytes in."""

    end: NDArray[np.uint16]
    weak: NDArray[np.bool_]
    callback: int


def live_extents(ctx: Context, census: HeapCensus, nodes: Nodes) -> Extents:
    """The extents of all blocks of pools."""
    end = np.full(nodes.slots, _ALL, np.uint16)
    v = ctx.vectors
    for kind, flags in enumerate(census.types.flags.tolist()):
        if flags & _LIST:
            lists = census.of(kind)
            table = v.field(lists, "PyListObject.ob_item")
            size = v.field(lists, "PyVarObject.ob_size").astype(np.int64)
            _cut(nodes, end, table, size)
    for kind in kinds_named(ctx, census.types, *GENERATOR_KINDS):
        generators = census.of(kind)
        if not len(generators):
            continue
        columns = read_generators(ctx, generators)
        known = np.isin(columns.state, (CREATED, SUSPENDED)) & (columns.locals != 0)
        _cut(nodes, end, columns.locals[known], columns.depth[known], objects=True)
    callback = ctx.runtime.layout["sizeof.PyObject"] + 8  # PyWeakReference: wr_object, wr_callback
    return Extents(end, weak_kinds(ctx, census), callback)


def _cut(
    nodes: Nodes, end: NDArray[np.uint16], start: U64, count: NDArray[np.int64], objects: bool = False
) -> None:
    """The words of a block that are references end ``count`` words behind ``start``, which lies in it."""
    node, within = nodes.blocks_of(start)
    good = (node >= 0) & (count >= 0) & (count < _ALL // 8) & (start != 0)
    kind = nodes.kind[np.where(good, node, 0)] if len(nodes.kind) else np.zeros(len(node), np.int32)
    good &= (kind >= 0) if objects else (kind == BARE)
    end[node[good]] = np.minimum(within[good] + 8 * count[good], _ALL).astype(np.uint16)


def weak_kinds(ctx: Context, census: HeapCensus) -> NDArray[np.bool_]:
    """By number of type: whether it is one of weak references."""
    o = ctx.objects
    weak = [any(o.type_name(t) in _WEAK for t in o.mro(a)) for a in census.types.address.tolist()]
    return np.array(weak, np.bool_)
