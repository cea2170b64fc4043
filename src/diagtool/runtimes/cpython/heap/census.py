"""All objects of a process: how many of which type, and how many bytes they take."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.blobs import without_blobs
from diagtool.capture.memory import U64
from diagtool.capture.segments import without
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.heap.blocks import objects_in_pools
from diagtool.runtimes.cpython.heap.buffers import big_buffers
from diagtool.runtimes.cpython.heap.found import Found, together
from diagtool.runtimes.cpython.heap.large import DEBUG_BYTES, SMALL, objects_outside
from diagtool.runtimes.cpython.heap.mimalloc import Pages, find_pages
from diagtool.runtimes.cpython.heap.mimallocobjects import objects_in_pages
from diagtool.runtimes.cpython.heap.pools import Pools, find_pools
from diagtool.runtimes.cpython.heap.ranges import heap_ranges, joined_ranges, mapped_ranges
from diagtool.runtimes.cpython.heap.sizes import NO_SIZE, Sizer
from diagtool.runtimes.cpython.heap.types import TypeTable, kinds_named
from diagtool.runtimes.cpython.objects.addresssets import contains, distinct


@dataclass(slots=True)
class TypeRow:
    """Objects of one type. Types of the same name and module are one row; ``types`` says how many they are.

    ``bytes`` is what the objects take themselves (their blocks, as sys.getsizeof counts) and what they own
    outside: ``own`` and ``owned``.
    """

    name: str
    count: int
    own: int
    owned: int
    types: int = 1
    address: int = 0  # of the type with the most objects

    @property
    def bytes(self) -> int:
        return self.own + self.owned


@dataclass(slots=True)
class HeapCensus:
    """The objects of a process. ``objects`` is sorted by type, each type's by address where it is in pools.

    ``first[i]`` to ``first[i + 1]`` are the rows in ``objects`` of type number i. A free-threaded build has
    no pools: all its objects lie in ``pages``.
    """

    objects: Found
    types: TypeTable
    pools: Pools
    first: NDArray[np.int64]
    rows: list[TypeRow] = field(default_factory=list)
    pages: Pages | None = None
    #: Sorted addresses of objects that go when the collector runs; empty until the graph was made.
    garbage: U64 = field(default_factory=lambda: np.zeros(0, np.uint64))
    senseless: int = 0  # what was taken out because it claims more bytes than it can have

    def of(self, kind: int) -> U64:
        """Addresses of the objects of type number ``kind``; none of a type that was met later."""
        if kind >= len(self.first) - 1:
            return self.objects.address[:0]
        return self.objects.address[self.first[kind] : self.first[kind + 1]]


def take_census(ctx: Context) -> HeapCensus:
    """Count every object on the heap, tracked by the collector or not.

    Not counted is what lies in the interpreter's own data: small integers, static types, None. Warnings in
    ``ctx`` say what was damaged or missing.
    """
    ranges = heap_ranges(ctx)
    pages = find_pages(ctx, ranges) if ctx.runtime.free_threaded else None
    pools = find_pools(ctx, mapped_ranges(ctx, ranges))
    types = TypeTable(ctx)
    sizer = Sizer(ctx, types)
    small = objects_in_pools(ctx, pools, types) if not pages else objects_in_pages(ctx, pages, types)
    taken = joined_ranges(pools.address, np.full(len(pools.address), pools.size))
    buffers = big_buffers(ctx, small, types)
    rest = without_blobs(without(without(ranges, taken), buffers), ctx.capture.memory.load)[0]
    ctx.vectors.leave_out(buffers)
    _read_left_out(ctx, rest)
    least = SMALL + 1 - DEBUG_BYTES * pools.debug if len(pools.address) else 0
    large = objects_outside(ctx, rest if not pages else [], types, sizer, least)
    found = _without_inner(ctx, together([small, large]), types)
    census = _sorted_by_type(found, types, pools)
    census.pages = pages
    _size(ctx, census, np.bincount(small.kind[: len(small) if not pages else 0], minlength=len(types)))
    _warn(ctx, census)
    return census


def _sorted_by_type(found: Found, types: TypeTable, pools: Pools) -> HeapCensus:
    found = found.only(np.argsort(found.kind, kind="stable"))
    return HeapCensus(found, types, pools, np.searchsorted(found.kind, np.arange(len(types) + 1)))


def _without_inner(ctx: Context, found: Found, types: TypeTable) -> Found:
    """Without the bytes objects that bytearrays use as their buffers (3.15), which count as theirs."""
    name = "PyByteArrayObject.ob_bytes_object"
    if name not in ctx.runtime.layout:
        return found
    arrays = found.address[np.isin(found.kind, kinds_named(ctx, types, "bytearray"))]
    inner = distinct(ctx.vectors.field(arrays, name))
    return found.only(~contains(inner, found.address))


def _read_left_out(ctx: Context, rest: list[tuple[int, int]]) -> None:
    """Have what a live capture did not copy read now, where it may hold objects."""
    for low, high in ctx.capture.left_out:
        for start, end in rest:
            if start < high and low < end:
                pages = np.arange(max(low, start) & -4096, min(high, end), 4096, dtype=np.uint64)
                ctx.capture.memory.load(pages, "u1")


def _size(ctx: Context, census: HeapCensus, in_pools: NDArray[np.int64]) -> None:
    """Make the rows. What lies in a pool and is larger than its blocks is no object, and taken out."""
    sizer = Sizer(ctx, census.types)
    by_name: dict[str, TypeRow] = {}
    most: dict[str, int] = {}
    keep = np.ones(len(census.objects), np.bool_)
    for kind, address in enumerate(census.types.address.tolist()):
        own, owned = sizer.of(kind, census.of(kind))
        fits = own < NO_SIZE
        fits[: int(in_pools[kind])] &= own[: int(in_pools[kind])] <= SMALL
        census.senseless += int(np.count_nonzero(~fits))
        number = int(np.count_nonzero(fits))
        keep[census.first[kind] : census.first[kind + 1]] = fits
        if not number:
            continue
        name = ctx.objects.qualified_type(address) or f"type at {address:#x}"
        row = by_name.setdefault(name, TypeRow(name, 0, 0, 0, 0))
        row.count += number
        row.own += int(own[fits].sum())
        row.owned += int(owned[fits].sum())
        row.types += 1
        if number > most.get(name, 0):
            most[name], row.address = number, address
    if not keep.all():
        census.objects = census.objects.only(keep)
        census.first = np.searchsorted(census.objects.kind, np.arange(len(census.types) + 1))
    census.rows = sorted(by_name.values(), key=lambda r: (-r.bytes, -r.count, r.name))


def _warn(ctx: Context, census: HeapCensus) -> None:
    damaged = census.pools.damaged if census.pages is None else census.pages.damaged
    if len(damaged):
        shown = ", ".join(hex(a) for a in damaged[:3].tolist())
        ctx.warn(
            f"the lists of free blocks in {len(damaged):,} pools of the small object allocator are damaged "
            f"({shown}): what is in them is counted as far as it looks alive"
        )
    if census.senseless * 1000 > len(census.objects):  # a few are chance
        ctx.warn(f"{census.senseless:,} would-be objects claim more bytes than they can have: not counted")
    if not len(census.objects):
        ctx.warn("no Python object was found on the heap: its memory is not in the capture")
