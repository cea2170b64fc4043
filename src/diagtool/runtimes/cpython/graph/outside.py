"""The memory that is in no pool: objects and tables that are too large for one, and everything else."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64
from diagtool.capture.plan import is_anonymous
from diagtool.capture.segments import merged
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.graph.freethreaded import joined, spans_in_pages, whole_blocks
from diagtool.runtimes.cpython.graph.nodes import Nodes
from diagtool.runtimes.cpython.heap.buffers import big_buffers
from diagtool.runtimes.cpython.heap.census import HeapCensus
from diagtool.runtimes.cpython.heap.owners import Owners, Spans, spans
from diagtool.runtimes.cpython.heap.pools import empty_pools
from diagtool.runtimes.cpython.heap.ranges import heap_ranges, joined_ranges, mapped_ranges
from diagtool.runtimes.cpython.heap.types import TypeTable, kinds_named
from diagtool.runtimes.cpython.objects.addresssets import Ranges, without
from diagtool.runtimes.native.fetching import fetch
from diagtool.runtimes.native.glibc.heap import GlibcHeap, read_glibc
from diagtool.runtimes.native.memorymap import data_of_modules, private_memory, sealed, stacks_of

__all__ = ["Outside", "memory_outside"]

_QUIET = 64 << 10  # bytes: smaller buffers of numbers are read faster than they are left out
_OWNS_DATA = 4  # NPY_ARRAY_OWNDATA
_MAX_BUFFER = 1 << 44
_HEAD = 4096  # bytes of a large object that are read, with its fields
_HEADER = np.uint64(8)  # bytes between two blocks of malloc, at least


@dataclass(slots=True)
class Outside:
    """``ranges`` are to be read; in them ``spans`` belong to objects, ``stale_start`` to ``stale_end``
    (sorted, disjoint) to nobody any more. ``takes`` are the blocks that objects take. ``sealed`` was writable
    once. ``why_not``: why what is found there may not be all, "" where it is."""

    ranges: Ranges
    spans: Spans
    takes: Spans
    stale_start: U64
    stale_end: U64
    sealed: Ranges
    why_not: str

    def is_stale(self, places: U64) -> NDArray[np.bool_]:
        """Which words (ascending addresses) nobody reads any more."""
        if not len(self.stale_start):
            return np.zeros(len(places), np.bool_)
        at = np.maximum(np.searchsorted(self.stale_start, places, side="right"), 1) - 1
        stale: NDArray[np.bool_] = (self.stale_start[at] <= places) & (places < self.stale_end[at])
        return stale


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
    start, end = _stale(ctx, gone)
    takes = mine
    if census.pages:
        takes = whole_blocks(census.pages, mine)
        mine, low, high = spans_in_pages(ctx, census, census.pages, owners)
        start, end = joined(np.concatenate([start, low]), np.concatenate([end, high]))
    return Outside(ranges, mine, takes, start, end, without(sealed(capture), merged(written)), why_not)


def _joined(*parts: Spans) -> Spans:
    return spans(
        np.concatenate([p.start for p in parts]),
        np.concatenate([(p.end - p.start).astype(np.int64) for p in parts]),
        np.concatenate([p.owner for p in parts]),
    )


def _stale(ctx: Context, pools: Ranges) -> tuple[U64, U64]:
    """Memory nobody reads: free pools, all that malloc has and nobody uses, stacks below their pointer."""
    capture = ctx.capture
    stacks, dead = stacks_of(capture)
    threads = [(t.tid, t.registers.get("fs_base", 0)) for t in capture.threads]
    glibc = read_glibc(capture.memory, capture.mappings, data_of_modules(capture), stacks, threads)
    start, end = _unused(glibc) if glibc is not None else (np.zeros(0, np.uint64), np.zeros(0, np.uint64))
    others = [*pools, *dead, *(glibc.own if glibc is not None else [])]
    size = np.concatenate([(end - start).astype(np.int64), np.array([b - a for a, b in others], np.int64)])
    start = np.concatenate([start, np.array([low for low, _ in others], np.uint64)])
    joined = np.array(joined_ranges(start, size), np.uint64).reshape(-1, 2)
    return np.ascontiguousarray(joined[:, 0]), np.ascontiguousarray(joined[:, 1])


def _unused(glibc: GlibcHeap) -> tuple[U64, U64]:
    """What lies between used blocks: free ones, and the rest at the end of a heap, which is no block."""
    heaps = np.array(glibc.heaps, np.uint64).reshape(-1, 2)
    used = glibc.blocks.used & (glibc.blocks.arena >= 0)
    low = glibc.blocks.address[used]
    high = low + glibc.blocks.usable[used]
    if not len(heaps):
        return low[:0], low[:0]
    at = np.maximum(np.searchsorted(heaps[:, 0], low, side="right"), 1) - 1
    inside = (heaps[at, 0] <= low) & (high <= heaps[at, 1])
    # Blocks are disjoint and lie within heaps: the n-th end of something used is followed by the n-th begin.
    start = np.sort(np.concatenate([heaps[:, 0], high[inside]]))
    end = np.sort(np.concatenate([low[inside], heaps[:, 1]]))
    gaps = (start < end) & (end - start > _HEADER)
    return start[gaps], end[gaps]


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
