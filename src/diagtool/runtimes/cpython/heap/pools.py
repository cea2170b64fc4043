"""The pools of CPython's small object allocator (pymalloc), found by what their headers say.

A pool is POOL_SIZE bytes (4 KiB up to 3.9, 16 KiB since) at a multiple of POOL_SIZE, cut into blocks of one
size, of 16 to 512 bytes. Its header (struct pool_header, Objects/obmalloc.c up to 3.11, pycore_obmalloc.h
since) says how many blocks are in use, where the list of free ones begins, and up to where blocks were ever
handed out:

    ref.count  freeblock  nextpool  prevpool  arenaindex  szidx  nextoffset  maxnextoffset

``maxnextoffset`` is POOL_SIZE less one block, and ``nextoffset`` ends a whole number of blocks: together with
the count that makes a signature of some 80 bits. So no arena table is needed, which has no symbol in stripped
builds and lies elsewhere in every version.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.objects.addresssets import Ranges

_BATCH = 1 << 16  # headers looked at together
_FORBIDDEN = np.uint64(0xFDFDFDFDFDFDFD)  # PYMEM_FORBIDDENBYTE, seven times, behind the API's letter
_MAX_ARENAS = 1 << 26  # a larger number of an arena is no number of an arena


@dataclass(slots=True)
class Pools:
    """Pools with at least one block in use, sorted by address: one array element a pool.

    ``block`` is the size of its blocks in bytes, ``handed_out`` how many of its blocks (the first ones) were
    ever in use, ``used`` how many are. ``free`` are those of them that are not, sorted, as
    ``pool * per_pool + block``, counted from 0.
    """

    address: U64
    block: NDArray[np.int64]
    handed_out: NDArray[np.int64]
    used: NDArray[np.int64]
    free: NDArray[np.int64]
    size: int  # of a pool, bytes
    header: int  # bytes before its first block
    debug: bool  # PYTHONMALLOC=debug puts words of its own around each block
    damaged: U64  # addresses of pools whose list of free blocks leads astray

    @property
    def per_pool(self) -> int:
        """More blocks than any pool has."""
        return self.size // 16


def find_pools(ctx: Context, ranges: Ranges) -> Pools:
    """All pools in ``ranges``. Reads one header for each POOL_SIZE bytes of them, and the free lists.

    Damaged lists of free blocks are followed as far as they make sense.
    """
    lay = ctx.runtime.layout
    size, header = lay["const.POOL_SIZE"], lay["const.POOL_OVERHEAD"]
    parts: list[U64] = [np.zeros((0, 5), np.uint64)]
    if not ctx.runtime.free_threaded:
        for batch in _batches(ranges, size):
            parts.append(_headers(ctx, batch, size, header))
    found = np.concatenate(parts)
    pools = Pools(
        found[:, 0],
        found[:, 1].astype(np.int64),
        found[:, 2].astype(np.int64),
        found[:, 3].astype(np.int64),
        np.zeros(0, np.int64),
        size,
        header,
        _is_debug(ctx, found[:, 0], header),
        np.zeros(0, np.uint64),
    )
    _follow_free(ctx, pools, found[:, 4])
    return pools


def _is_debug(ctx: Context, pools: U64, header: int) -> bool:
    """Whether the first blocks of most pools begin as the debug allocator has them."""
    sample = pools[np.linspace(0, max(len(pools) - 1, 0), min(64, len(pools))).astype(np.intp)]
    second = ctx.vectors.words(sample, header + 8)
    return int(np.count_nonzero(second >> np.uint64(8) == _FORBIDDEN)) * 2 > len(sample)


def _batches(ranges: Ranges, size: int) -> list[U64]:
    every = [
        np.arange(low + size - 1 & -size, high - size // 4 + 1, size, dtype=np.uint64)
        for low, high in ranges
        if high - low >= size // 4
    ]
    if not every:
        return []
    joined = np.concatenate(every)
    return [joined[i : i + _BATCH] for i in range(0, len(joined), _BATCH)]


def empty_pools(ctx: Context, ranges: Ranges) -> U64:
    """Addresses of pools in ``ranges`` that had blocks in use once and have none now, sorted."""
    lay = ctx.runtime.layout
    size, header = lay["const.POOL_SIZE"], lay["const.POOL_OVERHEAD"]
    parts: list[U64] = [np.zeros(0, np.uint64)]
    if not ctx.runtime.free_threaded:
        parts += [_headers(ctx, batch, size, header, empty=True)[:, 0] for batch in _batches(ranges, size)]
    return np.concatenate(parts)


def _headers(ctx: Context, pools: U64, size: int, header: int, empty: bool = False) -> U64:
    """Rows (address, block size, blocks handed out, blocks in use, first free) of what is a used pool."""
    lay = ctx.runtime.layout
    data, ok = ctx.capture.memory.load_block(pools, lay["sizeof.pool_header"])

    def field(name: str, kind: str = "<u4") -> NDArray[np.int64]:
        at = lay[f"pool_header.{name}"]
        column = np.ascontiguousarray(data[:, at : at + np.dtype(kind).itemsize]).view(kind)[:, 0]
        return column.astype(np.int64)

    index, used = field("szidx"), field("ref.count")
    block = (index + 1) * lay["const.ALIGNMENT"]
    following, last = field("nextoffset"), field("maxnextoffset")
    good = ok & (index < lay["const.NB_SMALL_SIZE_CLASSES"]) & (last == size - block)
    good &= (following > header) & (following <= size)
    block = np.where(good, block, 16)
    handed_out = (following - header) // block
    good &= (handed_out * block + header == following) & (used <= handed_out) & ((used == 0) == empty)
    good &= field("arenaindex") < _MAX_ARENAS
    first = field("freeblock", "<u8").astype(np.uint64)
    rows: U64 = np.stack(
        [pools, block.astype(np.uint64), handed_out.astype(np.uint64), used.astype(np.uint64), first], axis=1
    )
    kept: U64 = rows[good]
    return kept


def _follow_free(ctx: Context, pools: Pools, first: U64) -> None:
    """Follow the free lists of all pools, one step of all of them at a time.

    A list is as long as blocks were handed out and are not in use, which bounds it even where it is a ring.
    """
    missing = pools.handed_out - pools.used
    row = np.flatnonzero(missing > 0)
    at = first[row]
    found: list[NDArray[np.int64]] = []
    damaged: list[NDArray[np.intp]] = []
    while len(row):
        offset = (at - pools.address[row]).view(np.int64) - pools.header
        block = pools.block[row]
        number = offset // block
        good = (offset >= 0) & (number < pools.handed_out[row]) & (number * block == offset)
        damaged.append(row[~good & (at != 0)])
        row, at, number = row[good], at[good], number[good]
        found.append(row * pools.per_pool + number)
        missing[row] -= 1
        more = missing[row] > 0
        row, at = row[more], at[more]
        at = ctx.capture.memory.load(at)[0]
    if found:
        pools.free = np.unique(np.concatenate(found))
    if damaged:
        pools.damaged = pools.address[np.unique(np.concatenate(damaged))]
