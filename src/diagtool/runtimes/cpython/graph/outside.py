"""The memory that is in no pool: objects and tables that are too large for one, and everything else."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diagtool.capture.memory import U64
from diagtool.capture.plan import is_anonymous
from diagtool.capture.segments import merged, without
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.graph.free import (
    Stretches,
    free_in_pages,
    free_of_malloc,
    joined,
    unused_by_malloc,
)
from diagtool.runtimes.cpython.graph.freethreaded import spans_in_pages, whole_blocks
from diagtool.runtimes.cpython.graph.nodes import Nodes
from diagtool.runtimes.cpython.heap.buffers import big_buffers
from diagtool.runtimes.cpython.heap.census import HeapCensus
from diagtool.runtimes.cpython.heap.mimalloc import Pages
from diagtool.runtimes.cpython.heap.owners import Owners, Spans, spans
from diagtool.runtimes.cpython.heap.pools import empty_pools
from diagtool.runtimes.cpython.heap.ranges import heap_ranges, joined_ranges, mapped_ranges
from diagtool.runtimes.cpython.heap.types import TypeTable, kinds_named
from diagtool.runtimes.cpython.objects.addresssets import Ranges
from diagtool.runtimes.native.fetching import fetch
from diagtool.runtimes.native.memorymap import data_of_modules, private_memory, sealed, stacks_of
from diagtool.runtimes.native.walked import walked

__all__ = ["Outside", "memory_outside"]

_QUIET = 64 << 10  # bytes: smaller buffers of numbers are read faster than they are left out
_OWNS_DATA = 4  # NPY_ARRAY_OWNDATA
_MAX_BUFFER = 1 << 44
_HEAD = 4096  # bytes of a large object that are read, with its fields


@dataclass(slots=True)
class Outside:
    """``ranges`` are to be read; in them ``spans`` belong to objects, ``stale`` to nobody any more, ``free``
    (a part of that) for sure. ``takes`` are the blocks that objects take. ``sealed`` was writable once.
    ``why_not``: why what is found there may not be all, "" where it is."""

    ranges: Ranges
    spans: Spans
    takes: Spans
    stale: Stretches
    free: Stretches
    sealed: Ranges
    why_not: str


def memory_outside(ctx: Context, census: HeapCensus, owners: Owners, nodes: Nodes) -> Outside:
    """Sort out the memory outside of pools. What a capture left out is read now, where there is room."""
    capture = ctx.capture
    late = capture.late_pages
    fetched = fetch(capture, private_memory(capture.mappings))
    why_not = _why_not(ctx, fetched.missing, fetched.late > 0 or late > 0)
    written = [(s.start, s.end) for s in capture.memory.segments if s.writable]
    mapped = mapped_ranges(ctx, heap_ranges(ctx))
    used = joined_ranges(nodes.pool, np.full(len(nodes.pool), nodes.pool_size))
    empty = empty_pools(ctx, without(mapped, used))
    gone = joined_ranges(empty, np.full(len(empty), nodes.pool_size))
    ranges = without(without(merged(written), used), _quiet(ctx, census, owners))
    mine = _joined(owners.large, owners.tables)
    stale, free = _stale(ctx, census.pages, gone)
    takes = mine
    if census.pages:
        takes = whole_blocks(census.pages, mine)
        mine, gaps = spans_in_pages(ctx, census, census.pages, owners)
        stale = joined(stale, gaps)
    return Outside(ranges, mine, takes, stale, free, without(sealed(capture), merged(written)), why_not)


def _joined(*parts: Spans) -> Spans:
    return spans(
        np.concatenate([p.start for p in parts]),
        np.concatenate([(p.end - p.start).astype(np.int64) for p in parts]),
        np.concatenate([p.owner for p in parts]),
    )


def _stale(ctx: Context, pages: Pages | None, pools: Ranges) -> tuple[Stretches, Stretches]:
    """(memory nobody reads, that of it which is free for sure); ``pools``: free ones.

    Free pools, all that malloc has and nobody uses, stacks below their pointer.
    """
    stacks, dead = stacks_of(ctx.capture)
    glibc = walked(ctx.capture, data_of_modules(ctx.capture), stacks)
    free = [free_of_malloc(glibc)] if glibc is not None else []
    unused = [unused_by_malloc(glibc)] if glibc is not None else []
    if pages is not None:
        free.append(free_in_pages(pages))
    own = glibc.own if glibc is not None else []
    sure = joined(*free, ranges=[*pools, *dead, *own])
    return joined(sure, *unused), sure


def _quiet(ctx: Context, census: HeapCensus, owners: Owners) -> Ranges:
    """Big buffers that hold no references: of bytearrays, bytes and str, and of numpy's arrays of numbers."""
    found = big_buffers(ctx, census.objects, census.types)
    start, size = [], []
    big = owners.large.end - owners.large.start >= np.uint64(_QUIET)
    text = np.isin(owners.kind(owners.large.owner[big]), kinds_named(ctx, census.types, "bytes", "str"))
    for low, high in zip(owners.large.start[big][text], owners.large.end[big][text], strict=True):
        start.append(int(low) + _HEAD)
        size.append(int(high) - int(low) - _HEAD)
    for kind in _arrays(ctx, census.types):
        for s, n in zip(*_numbers(ctx, census.of(kind)), strict=True):
            start.append(s)
            size.append(n)
    arrays = joined_ranges(np.array(start, np.uint64), np.array(size, np.int64))
    return merged([*found, *arrays])


def _arrays(ctx: Context, types: TypeTable) -> list[int]:
    o = ctx.objects
    return [
        i
        for i, a in enumerate(types.address.tolist())
        if any(o.type_name(base) == "numpy.ndarray" for base in o.mro(a))
    ]


def _numbers(ctx: Context, arrays: U64) -> tuple[list[int], list[int]]:
    """(start, bytes) of the data that arrays of numbers own. See Sizer._ndarray for the fields.

    PyArray_Descr: the header of an object, typeobj, then ``kind``, one letter: "O" for objects, "V" for
    structures, which may have some.
    """
    v = ctx.vectors
    first = ctx.runtime.layout["sizeof.PyObject"]
    data, flags = v.words(arrays, first), v.memory.load(arrays + np.uint64(first + 48), "<i4")[0]
    letter = v.memory.load(v.words(arrays, first + 40) + np.uint64(first + 8), "u1")[0]
    dimensions = v.memory.load(arrays + np.uint64(first + 8), "<i4")[0]
    count, step = v.words(v.words(arrays, first + 16)), v.words(v.words(arrays, first + 24))
    # Of more dimensions the first steps over all others, where the array is as it was made.
    size = np.where(dimensions > 0, count * step, np.uint64(0)).astype(np.int64)
    good = (flags & _OWNS_DATA != 0) & np.isin(letter, np.frombuffer(b"biufcSUmM", np.uint8))
    good &= (size >= _QUIET) & (size < _MAX_BUFFER) & (data != 0) & (step < np.uint64(1 << 40))
    return data[good].tolist(), size[good].tolist()


def _why_not(ctx: Context, missing: Ranges, late: bool) -> str:
    """As native.heap: why it would be wrong to say that nothing refers to something."""
    capture = ctx.capture
    if missing:
        return "a part of the memory could not be read, references may be there"
    if late:
        return "a part of the memory was read after the stop, references may have moved meanwhile"
    if not capture.threads or any(not t.registers for t in capture.threads):
        return "a thread has no registers, references may be in them"
    if capture.missing:
        return f"{capture.missing:,} bytes that the core should hold are missing"
    if capture.kind == "core":
        held = merged((s.start, s.end) for s in capture.memory.segments)
        absent = without(private_memory([m for m in capture.mappings if is_anonymous(m)]), held)
        if absent:
            size = sum(end - start for start, end in absent)
            return f"{size:,} bytes of memory are not in the core, references may be there"
    return ""
