"""What containers hold, as arrays: for those that may be larger than one reads one by one."""

from __future__ import annotations

import numpy as np

from diagtool.capture.memory import U64, MemoryFault
from diagtool.runtimes.cpython.context import Context

MOST = 1 << 20  # items of one container that are looked at
NOTHING: U64 = np.zeros(0, np.uint64)


def run(first: int, count: int, step: int = 8) -> U64:
    """The addresses of ``count`` fields from ``first`` on, ``step`` bytes apart."""
    if not first or count <= 0:
        return NOTHING
    places: U64 = np.arange(min(count, MOST), dtype=np.uint64) * np.uint64(step) + np.uint64(first)
    return places


def items_of(ctx: Context, address: int) -> U64:
    """Items of a list, tuple, set or deque; the values of a dict; nothing of anything else."""
    o, lay = ctx.objects, ctx.runtime.layout
    try:
        if o.is_a(address, "dict"):
            return o.dict_items(address)[1]
        size = o.memory.i64(address + lay["PyVarObject.ob_size"])
        if o.is_a(address, "list"):
            return ctx.vectors.words(run(o.memory.u64(address + lay["PyListObject.ob_item"]), size))
        if o.is_a(address, "tuple"):
            return ctx.vectors.words(run(address + lay["PyTupleObject.ob_item"], size))
        return np.array(o.sequence_items(address, MOST), np.uint64)
    except MemoryFault:
        return NOTHING


def first_items(ctx: Context, tuples: U64) -> U64:
    """The first item of each tuple; 0 of an empty one and of anything else."""
    v = ctx.vectors
    tuples = v.only(tuples, "tuple")
    size = v.field(tuples, "PyVarObject.ob_size")
    item = v.words(tuples, ctx.runtime.layout["PyTupleObject.ob_item"])
    return np.where(size > 0, item, np.uint64(0))
