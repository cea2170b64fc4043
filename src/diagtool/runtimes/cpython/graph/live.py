"""Which words of a block are references that are held now.

Not those behind the last item of a list or the last entry of a dict, nor behind an object that does not fill
its block: what is there was left by whoever had the memory before. Not the part of a generator's evaluation
stack that is not in use, not weak references, and nothing that is text or a number.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.frames.generators import CREATED, GENERATOR_KINDS, SUSPENDED, read_generators
from diagtool.runtimes.cpython.graph.nodes import BARE, Nodes
from diagtool.runtimes.cpython.heap.census import HeapCensus
from diagtool.runtimes.cpython.heap.types import HEAPTYPE, kinds_named
from diagtool.runtimes.cpython.objects.addresssets import distinct
from diagtool.runtimes.cpython.objects.reader import MANAGED_DICT

__all__ = ["Extents", "live_extents", "weak_kinds"]

_LIST, _TUPLE, _DICT, _TYPE = 1 << 25, 1 << 26, 1 << 29, 1 << 31  # Py_TPFLAGS_*_SUBCLASS, Include/object.h
_PLAIN = ("int", "bool", "float", "complex", "bytes", "bytearray", "array.array")
_ALL = 0xFFFF  # larger than any block of a pool
_WEAK = ("weakref.ReferenceType", "weakref", "weakproxy", "weakcallableproxy", "weakref.ProxyType")


@dataclass(slots=True)
class Extents:
    """``begin``, ``end``: of each block of a pool, bytes from its start; words between them are references.

    By number of type: ``of_kind``, the same for all its objects; ``tuples``: it is one of tuples, which say
    themselves how many items follow; ``plain``: it refers to nothing; ``text``: only to a copy of its text;
    ``weak``: it is a weak reference, which holds its callback only, ``callback`` bytes in.
    """

    begin: NDArray[np.uint16]
    end: NDArray[np.uint16]
    of_kind: NDArray[np.int64]
    tuples: NDArray[np.bool_]
    plain: NDArray[np.bool_]
    text: NDArray[np.bool_]
    weak: NDArray[np.bool_]
    callback: int


def live_extents(ctx: Context, census: HeapCensus, nodes: Nodes) -> Extents:
    """The extents of all blocks of pools."""
    begin, end = np.zeros(nodes.slots, np.uint16), np.full(nodes.slots, _ALL, np.uint16)
    v = ctx.vectors
    for kind, flags in enumerate(census.types.flags.tolist()):
        if flags & _LIST:
            lists = census.of(kind)
            table = v.field(lists, "PyListObject.ob_item")
            size = v.field(lists, "PyVarObject.ob_size").astype(np.int64)
            _cut(nodes, end, table, size)
        elif flags & _DICT:
            _cut_dicts(ctx, nodes, begin, end, census.of(kind))
        elif flags & _TYPE and flags & HEAPTYPE:
            _cut_keys(ctx, nodes, end, v.field(census.of(kind), "PyHeapTypeObject.ht_cached_keys"))
        if flags & MANAGED_DICT and (3, 11) <= ctx.runtime.version < (3, 13):
            address = int(census.types.address[kind])
            values = v.instance_storage(census.of(kind), address)[0]
            keys = np.array([ctx.objects.cached_keys(address)], np.uint64)
            used = v.field(keys, "PyDictKeysObject.dk_nentries").astype(np.int64)
            values = values[values != 0]
            _cut(nodes, end, values, np.repeat(used, len(values)))
            _begin(nodes, begin, values)
    for kind in kinds_named(ctx, census.types, *GENERATOR_KINDS):
        generators = census.of(kind)
        if not len(generators):
            continue
        columns = read_generators(ctx, generators)
        known = np.isin(columns.state, (CREATED, SUSPENDED)) & (columns.locals != 0)
        _cut(nodes, end, columns.locals[known], columns.depth[known], objects=True)
    callback = ctx.runtime.layout["sizeof.PyObject"] + 8  # PyWeakReference: wr_object, wr_callback
    types = census.types
    whole = (types.item == 0) & ~types.inline_values()
    whole[kinds_named(ctx, types, "code")] = ctx.runtime.version >= (3, 11)  # the bytecode follows
    plain, text = np.zeros(len(types), np.bool_), np.zeros(len(types), np.bool_)
    plain[kinds_named(ctx, types, *_PLAIN)] = True
    text[kinds_named(ctx, types, "str")] = True
    return Extents(
        begin,
        end,
        np.where(whole, nodes.before + types.basic, _ALL),
        types.flags & np.uint64(_TUPLE) != 0,
        plain,
        text,
        weak_kinds(ctx, census),
        callback,
    )


def _cut_dicts(
    ctx: Context, nodes: Nodes, begin: NDArray[np.uint16], end: NDArray[np.uint16], dicts: U64
) -> None:
    v = ctx.vectors
    keys = v.field(dicts, "PyDictObject.ma_keys")
    _cut_keys(ctx, nodes, end, keys)
    values = v.field(dicts, "PyDictObject.ma_values")
    split = np.flatnonzero(values != 0)
    first = values[split] + np.uint64(ctx.runtime.layout.get("PyDictValues.values", 0))
    _cut(nodes, end, first, v.field(keys[split], "PyDictKeysObject.dk_nentries").astype(np.int64))
    _begin(nodes, begin, first)


def _cut_keys(ctx: Context, nodes: Nodes, end: NDArray[np.uint16], keys: U64) -> None:
    v, lay = ctx.vectors, ctx.runtime.layout
    keys = distinct(keys[keys != 0])
    first, general = v.dict_entries(keys)
    words = np.where(general, lay["sizeof.PyDictKeyEntry"], lay.get("sizeof.PyDictUnicodeEntry", 16)) // 8
    used = v.field(keys, "PyDictKeysObject.dk_nentries").astype(np.int64)
    _cut(nodes, end, first, np.where((used >= 0) & (used < _ALL), used * words, -1))


def _cut(
    nodes: Nodes, end: NDArray[np.uint16], start: U64, count: NDArray[np.int64], objects: bool = False
) -> None:
    """The words of a block that are references end ``count`` words behind ``start``, which lies in it."""
    node, within = nodes.blocks_of(start)
    good = (node >= 0) & (count >= 0) & (count < _ALL // 8) & (start != 0)
    kind = nodes.kind[np.where(good, node, 0)] if len(nodes.kind) else np.zeros(len(node), np.int32)
    good &= (kind >= 0) if objects else (kind == BARE)
    end[node[good]] = np.minimum(within[good] + 8 * count[good], _ALL).astype(np.uint16)


def _begin(nodes: Nodes, begin: NDArray[np.uint16], values: U64) -> None:
    """Before the values of attributes there are numbers, and some bytes that nobody sets (3.11 and later)."""
    node, within = nodes.blocks_of(values)
    good = (node >= 0) & (values != 0)
    good &= nodes.kind[np.where(good, node, 0)] == BARE if len(nodes.kind) else False
    begin[node[good]] = np.minimum(within[good], _ALL).astype(np.uint16)


def weak_kinds(ctx: Context, census: HeapCensus) -> NDArray[np.bool_]:
    """By number of type: whether it is one of weak references."""
    o = ctx.objects
    weak = [any(o.type_name(t) in _WEAK for t in o.mro(a)) for a in census.types.address.tolist()]
    return np.array(weak, np.bool_)
