"""Objects in the blocks of pools: every block in use begins with an object, or is none.

Before the object there may be the collector's head (16 bytes) and, from 3.11 on, two words for the instance's
dict and weak references: how many bytes there are is a matter of its type, so what has the wrong number of
them is no object. PYTHONMALLOC=debug has 16 bytes of its own before everything (Objects/obmalloc.c).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import PAGE, U64
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.heap.found import Found, by_value, counts_of_living, together
from diagtool.runtimes.cpython.heap.pools import Pools
from diagtool.runtimes.cpython.heap.types import TypeTable

_BATCH_BYTES = 16 << 20  # of pools read together
_PLACES = (0, 2, 4)  # words of a block before the object: nothing, a head, a head and two words
_DEBUG_WORDS = 2


def objects_in_pools(ctx: Context, pools: Pools, types: TypeTable) -> Found:
    """All objects in blocks that are in use, sorted by address within each size of blocks."""
    found: list[Found] = []
    shift = _DEBUG_WORDS if pools.debug else 0
    for block, rows in by_value(pools.block):
        step = max(1, _BATCH_BYTES // pools.size)
        for at in range(0, len(rows), step):
            part = rows[at : at + step]
            found.append(_objects(ctx, pools, types, part, block // 8, shift))
    return together(found)


def _objects(
    ctx: Context, pools: Pools, types: TypeTable, rows: NDArray[np.intp], words: int, shift: int
) -> Found:
    """The objects in pools ``rows``, all of the same size of blocks, in 64-bit ``words``."""
    per_pool = (pools.size - pools.header) // (8 * words)
    blocks = read_blocks(ctx, pools, rows, words, per_pool)
    used = np.arange(per_pool)[None, :] < pools.handed_out[rows][:, None]
    _clear_free(pools, rows, used)
    at = np.flatnonzero(used.reshape(-1))
    out: list[Found] = []
    kind_word = ctx.objects.type_offset // 8
    for place in _PLACES:
        place += shift
        if place + kind_word >= words or not len(at):
            break
        plain = blocks[at, place]
        living = np.flatnonzero(counts_of_living(ctx, plain))
        kind = types.index(blocks[at[living], place + kind_word])
        good = kind >= 0
        before = types.before[kind[good]] if len(types) else np.zeros(0, np.int64)
        good[good] = before == 8 * (place - shift)
        hits = living[good]
        flat = at[hits]
        base = pools.address[rows[flat // per_pool]] + np.uint64(pools.header + 8 * place)
        address = base + (flat % per_pool * (8 * words)).astype(np.uint64)
        out.append(Found(address, kind[good]))
        keep = np.ones(len(at), np.bool_)
        keep[hits] = False
        at = at[keep]
    return together(out)


def read_blocks(ctx: Context, pools: Pools, rows: NDArray[np.intp], words: int, per_pool: int) -> U64:
    """All blocks of pools as rows of words; 0 where no block was ever in use, or memory is missing."""
    pages = pools.size // PAGE
    starts = pools.address[rows][:, None] + (np.arange(pages) * PAGE).astype(np.uint64)[None, :]
    ends = pools.header + pools.handed_out[rows] * 8 * words
    starts = np.where(np.arange(pages)[None, :] * PAGE < ends[:, None], starts, np.uint64(0))
    data = ctx.capture.memory.load_block(starts.reshape(-1), PAGE)[0]
    whole = data.reshape(len(rows), pools.size)[:, pools.header : pools.header + per_pool * words * 8]
    return np.ascontiguousarray(whole).view("<u8").reshape(len(rows) * per_pool, words)


def _clear_free(pools: Pools, rows: NDArray[np.intp], used: NDArray[np.bool_]) -> None:
    low = np.searchsorted(pools.free, rows * pools.per_pool)
    high = np.searchsorted(pools.free, (rows + 1) * pools.per_pool)
    lengths = high - low
    total = int(lengths.sum())
    if not total:
        return
    row = np.repeat(np.arange(len(rows)), lengths)
    within = np.arange(total) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    blocks = pools.free[low[row] + within] - rows[row] * pools.per_pool
    used[row, blocks] = False
