"""The arenas of CPython's small object allocator: where they are, and how much of them is in use.

The allocator keeps a table of them (struct arena_object, Objects/obmalloc.c and pycore_obmalloc.h): a pointer
to it is in the interpreter's state since 3.12, before that in static data, where it is found by its symbol
or, in stripped builds, by what a table of arenas looks like. Nothing of the heap's insides is read but the
first bytes of each pool. A free-threaded build has segments of mimalloc instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.claims import claim
from diagtool.capture.errors import NotSupported
from diagtool.capture.memory import PAGE, U64, MemoryFault
from diagtool.capture.model import Capture
from diagtool.capture.peek import Peek, overlap, pages_with_content, present_pages
from diagtool.capture.plan import is_writable_private
from diagtool.capture.segments import merged
from diagtool.runtimes.cpython.runtime import Runtime, find_runtime
from diagtool.snapshot.model import Snapshot

__all__ = ["OWNER", "add_arenas"]

OWNER = "Python objects"

_MOST = 1 << 20  # arenas
_ENTRY = 48  # sizeof(struct arena_object)
_LOOKED_AT = 16  # entries of what may be a table: INITIAL_ARENA_OBJECTS
_MOST_DATA = 8 << 20  # bytes of static data that are searched for the table
_MOST_TRIES = 64
_MOST_INTERPRETERS = 10_000
_TOP = np.uint64(1 << 47)
_ENOUGH = 0.9  # of the pools of a core, those that must be in it to say how much is in use


def add_arenas(capture: Capture, snapshot: Snapshot) -> None:
    """The table ``python_arenas`` of the snapshot (one row), and whose the memory is (``capture.claims``).

    ``arenas`` (segments of mimalloc in a free-threaded build), ``bytes`` of these, ``used``: bytes of blocks
    in use, ``free``: bytes of the arenas that are in no block in use (free blocks, free pools, headers),
    ``free_pools``: of these the bytes of pools with no block in use; ``pools`` with blocks in use;
    ``allocator``; ``rss`` of the arenas, ``idle``: of that what is in no block in use, ``idle_share``.
    ``used``, ``free``, ``pools`` and ``idle`` are None where memory is missing. No row: not found.
    """
    rows: list[dict[str, Any]] = []
    snapshot.tables["python_arenas"] = rows
    try:
        runtime = find_runtime(capture)
    except NotSupported:
        return
    try:
        _add(_Allocator(capture, runtime), rows)
    except MemoryFault as fault:
        snapshot.warnings.append(f"Python's small object allocator could not be read: {fault}")


@dataclass(frozen=True, slots=True)
class _Allocator:
    capture: Capture
    runtime: Runtime


def _add(ctx: _Allocator, rows: list[dict[str, Any]]) -> None:
    if ctx.runtime.free_threaded:
        ranges, used, paged = _segments(ctx)
        if len(ranges):
            claim(ctx.capture, OWNER, ranges)
            empty = int((ranges[:, 1] - ranges[:, 0]).sum()) - paged
            rows.append(_row("mimalloc", ranges, _resident(ctx, ranges), used, empty, None))
        return
    size = ctx.runtime.layout["const.ARENA_SIZE"]
    found = _arenas(ctx)
    if len(found):
        ranges = np.stack([found[:, 0], found[:, 0] + np.uint64(size)], axis=1)
        claim(ctx.capture, OWNER, ranges)
        in_use, pools = _in_use(ctx, found[:, 0], size)
        empty = int(found[:, 1].sum()) * ctx.runtime.layout["const.POOL_SIZE"]
        rows.append(_row("pymalloc", ranges, _resident(ctx, ranges), in_use, empty, pools))


def _resident(ctx: _Allocator, ranges: U64) -> int:
    capture = ctx.capture
    pages = present_pages(capture) if capture.kind == "live" else pages_with_content(capture)
    return int(overlap(pages, ranges[:, 0], ranges[:, 1]).sum())


def _segments(ctx: _Allocator) -> tuple[U64, int, int]:
    from diagtool.runtimes.cpython.context import Context
    from diagtool.runtimes.cpython.frames.codes import Codes
    from diagtool.runtimes.cpython.heap.mimalloc import segment_figures
    from diagtool.runtimes.cpython.heap.ranges import heap_ranges
    from diagtool.runtimes.cpython.objects.reader import Objects
    from diagtool.runtimes.cpython.objects.vectors import Vectors
    from diagtool.snapshot.model import SnapshotBuilder, Target

    capture, runtime = ctx.capture, ctx.runtime
    objects = Objects(capture.memory, runtime.layout, runtime.version, runtime.free_threaded)
    builder = SnapshotBuilder(Target(capture.kind))
    whole = Context(capture, runtime, objects, Vectors(objects), Codes(objects), builder)
    return segment_figures(whole, heap_ranges(whole))


def _row(
    allocator: str, ranges: U64, resident: int, used: int | None, empty: int, pools: int | None
) -> dict[str, Any]:
    whole = int((ranges[:, 1] - ranges[:, 0]).sum())
    idle = None if used is None else max(resident - used, 0)
    share = idle / resident if idle is not None and resident else None
    text = None
    if idle is not None and share is not None:
        where = f"{resident / 1e6:,.0f} MB that {len(ranges):,} arenas have in memory"
        text = f"{idle / 1e6:,.0f} MB of the {where} hold no object ({share:.0%})"
    return {
        "allocator": allocator,
        "arenas": len(ranges),
        "bytes": whole,
        "used": used,
        "free": None if used is None else max(whole - used, 0),
        "free_pools": empty,
        "pools": pools,
        "rss": resident,
        "idle": idle,
        "idle_share": None if share is None else round(share, 4),
        "text": text,
    }


# n x (address, free pools) of all arenas that are allocated, sorted.
def _arenas(ctx: _Allocator) -> U64:
    parts = [np.zeros((0, 2), np.uint64)]
    for table, most in dict(_tables(ctx)).items():
        parts.append(_entries(ctx, table, min(most, _MOST)))
    found = np.concatenate(parts)
    return found[np.unique(found[:, 0], return_index=True)[1]]


# (address of a table of arenas, its entries).
def _tables(ctx: _Allocator) -> Iterator[tuple[int, int]]:
    memory, lay = ctx.capture.memory, ctx.runtime.layout
    if "_obmalloc_state.mgmt.arenas" in lay:
        embedded = "sizeof.PyInterpreterState.obmalloc" in lay
        for interpreter in _interpreters(ctx):
            try:
                state = interpreter + lay["PyInterpreterState.obmalloc"]
                state = state if embedded else memory.u64(state)
                table = memory.u64(state + lay["_obmalloc_state.mgmt.arenas"]) if state else 0
                if table:
                    yield table, memory.u32(state + lay["_obmalloc_state.mgmt.maxarenas"])
            except MemoryFault:
                continue
        return
    module = next((m for m in ctx.capture.modules if m.path == ctx.runtime.module), None)
    places = [module.symbol(name) for name in ("arenas", "maxarenas")] if module is not None else []
    if len(places) == 2 and places[0] and places[1]:
        try:
            table, most = memory.u64(places[0]), memory.u32(places[1])
            if table and _like_arenas(ctx, np.array([table], np.uint64))[0]:
                yield table, most
                return
        except MemoryFault:
            pass
    yield from _searched(ctx)


def _interpreters(ctx: _Allocator) -> Iterator[int]:
    lay, memory = ctx.runtime.layout, ctx.capture.memory
    seen: set[int] = set()
    try:
        address = memory.u64(ctx.runtime.address + lay["_PyRuntimeState.interpreters.head"])
        while address and address not in seen and len(seen) < _MOST_INTERPRETERS:
            seen.add(address)
            yield address
            address = memory.u64(address + lay["PyInterpreterState.next"])
    except MemoryFault:
        return


# Tables of arenas come from malloc: a word of static data points to them, and malloc knows their size.
def _searched(ctx: _Allocator) -> Iterator[tuple[int, int]]:
    capture = ctx.capture
    module = next((m for m in capture.modules if m.path == ctx.runtime.module), None)
    if module is None:
        return
    data = merged(
        (m.start, m.end)
        for m in capture.mappings
        if is_writable_private(m) and module.start <= m.start < module.end
    )
    if sum(high - low for low, high in data) > _MOST_DATA:
        return
    tries = 0
    for _, words in capture.memory.blocks(data):
        near = np.unique(words[(words % np.uint64(16) == 0) & (words >= PAGE) & (words < _TOP)])
        near = near[capture.memory.mapped(near, _LOOKED_AT * _ENTRY)]
        for table in near[_like_arenas(ctx, near)].tolist():
            head = int.from_bytes(capture.memory.try_read(table - 8, 8) or b"", "little")
            tries += 1
            # The lowest one: others point to single arenas within the table.
            if head & 8 == 0 and (head & ~7) - 8 >= _LOOKED_AT * _ENTRY and tries <= _MOST_TRIES:
                yield table, ((head & ~7) - 8) // _ENTRY
                return


# Which addresses hold what may be a table of arenas: its first entries are free ones, or make sense.
def _like_arenas(ctx: _Allocator, tables: U64) -> NDArray[np.bool_]:
    places = tables[:, None] + np.arange(_LOOKED_AT, dtype=np.uint64)[None, :] * np.uint64(_ENTRY)
    data, ok = ctx.capture.memory.load_block(places.reshape(-1), _ENTRY)
    address, good, _ = _parsed(ctx, data)
    free = address == 0
    fine = (ok & (free | good)).reshape(places.shape).all(axis=1)
    result: NDArray[np.bool_] = fine & good.reshape(places.shape).any(axis=1)
    return result


def _parsed(ctx: _Allocator, data: NDArray[np.uint8]) -> tuple[U64, NDArray[np.bool_], U64]:
    """(address, whether the entry makes sense, free pools) of each entry."""
    lay = ctx.runtime.layout
    words = np.ascontiguousarray(data).view("<u8")
    numbers = np.ascontiguousarray(data).view("<u4")
    address = words[:, lay["arena_object.address"] // 8].copy()
    pool = words[:, lay["arena_object.pool_address"] // 8]
    free = numbers[:, lay["arena_object.nfreepools"] // 4]
    total = numbers[:, lay["arena_object.ntotalpools"] // 4]
    size, pools = lay["const.ARENA_SIZE"], lay["const.ARENA_SIZE"] // lay["const.POOL_SIZE"]
    good = (address % np.uint64(PAGE) == 0) & (address >= PAGE) & (address < _TOP) & (total >= pools - 1)
    good &= (total <= pools) & (free <= total) & (pool >= address) & (pool - address <= np.uint64(size))
    good &= pool % np.uint64(lay["const.POOL_SIZE"]) == 0
    return address, good, free.astype(np.uint64)


def _entries(ctx: _Allocator, table: int, most: int) -> U64:
    places = np.uint64(table) + np.arange(most, dtype=np.uint64) * np.uint64(_ENTRY)
    data, ok = ctx.capture.memory.load_block(places, _ENTRY)
    address, good, free = _parsed(ctx, data)
    good &= ok
    return np.stack([address[good], free[good]], axis=1)


# (bytes of blocks in use, pools with such blocks); None where headers of pools are missing.
def _in_use(ctx: _Allocator, arenas: U64, size: int) -> tuple[int | None, int | None]:
    lay = ctx.runtime.layout
    pool, header = lay["const.POOL_SIZE"], lay["sizeof.pool_header"]
    first = (arenas + np.uint64(pool - 1)) & np.uint64(-pool & (1 << 64) - 1)
    places = (first[:, None] + np.arange(0, size, pool, dtype=np.uint64)).reshape(-1)
    places = places[places + np.uint64(pool) <= np.repeat(arenas, size // pool) + np.uint64(size)]
    peek = Peek(ctx.capture)
    try:
        data, ok = peek(places, header)
    finally:
        peek.close()
    if ctx.capture.kind == "core" and ok.mean() < _ENOUGH:
        return None, None
    numbers = np.ascontiguousarray(data).view("<u4")
    used = numbers[:, lay["pool_header.ref.count"] // 4].astype(np.int64)
    index = numbers[:, lay["pool_header.szidx"] // 4].astype(np.int64)
    block = (index + 1) * lay["const.ALIGNMENT"]
    good = ok & (index < lay["const.NB_SMALL_SIZE_CLASSES"]) & (used * block <= pool) & (used > 0)
    return int((used * block)[good].sum()), int(good.sum())
