"""Big buffers that objects own, which hold no objects themselves: they need not be read."""

from __future__ import annotations

import numpy as np

from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.heap.found import Found
from diagtool.runtimes.cpython.heap.ranges import joined_ranges
from diagtool.runtimes.cpython.heap.types import TypeTable, kinds_named
from diagtool.runtimes.cpython.objects.addresssets import Ranges

LEAST = 64 << 10  # bytes: smaller ones are read through faster than they are left out
_MOST = 1 << 40


def big_buffers(ctx: Context, found: Found, types: TypeTable) -> Ranges:
    """The insides of large bytearrays: sorted, disjoint."""
    v = ctx.vectors
    objects = found.address[np.isin(found.kind, kinds_named(ctx, types, "bytearray"))]
    start = v.field(objects, "PyByteArrayObject.ob_bytes")
    size = v.field(objects, "PyByteArrayObject.ob_alloc").astype(np.int64)
    good = (start != 0) & (size >= LEAST) & (size < _MOST)
    return joined_ranges(start[good], size[good])
