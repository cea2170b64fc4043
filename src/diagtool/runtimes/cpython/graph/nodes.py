"""Nodes of the reference graph: every block of a pool, and every object outside of pools, by number.

A block is an object, or bare (a table, the attribute values of an instance), or free. Numbers follow from
places: the pool of an address is one look into a table, its block one division. So tens of millions of
words become nodes without a search. Pools are numbered by the size of their blocks, as they are read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64
from diagtool.runtimes.cpython.heap.census import HeapCensus

__all__ = ["BARE", "FREE", "Nodes", "number_nodes"]

#: In the place of a type's number: a block in use that is no object; a block that is not in use.
BARE, FREE = -1, -2
_MAX_TABLE = 1 << 24  # pools' places in the table of pages; pools further apart are searched for
_TAGS = np.uint64(~7 & (1 << 64) - 1)
_DEBUG_BYTES = 16  # before every object where PYTHONMALLOC=debug


@dataclass(slots=True)
class Nodes:
    """``kind`` has an element a node. Pools are in the order of their numbers; ``first`` is that of each
    pool's first block. From ``slots`` on nodes are objects outside of pools, ``large``, sorted by address."""

    kind: NDArray[np.int32]
    slots: int
    large: U64
    pool: U64
    rows: NDArray[np.intp]  # of each pool in the census
    block: NDArray[np.int64]
    per_pool: NDArray[np.int64]
    first: NDArray[np.int64]
    pool_size: int
    header: int
    before: NDArray[np.int64]  # by number of type: bytes of a block before the object
    low: int = 0  # everything lies between these two
    high: int = 0
    _pages: NDArray[np.int32] | None = None
    _low_page: int = 0
    _order: NDArray[np.intp] | None = None  # of pools by address, where there is no table of pages
    _inverse: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))  # of ``block``

    def __len__(self) -> int:
        return len(self.kind)

    @property
    def is_object(self) -> NDArray[np.bool_]:
        """Which nodes are objects."""
        objects: NDArray[np.bool_] = self.kind >= 0
        return objects

    def blocks_of(self, words: U64) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(number of the block of a pool that each address lies in or -1, bytes from the block's start)."""
        if not len(self.pool):
            return np.full(len(words), -1, np.int64), np.zeros(len(words), np.int64)
        pool = self._pools_of(words)
        there = pool >= 0
        pool = np.maximum(pool, 0)
        offset = (words - self.pool[pool]).astype(np.int32) - np.int32(self.header)
        # Multiplied by the inverse: a division costs ten times as much. Offsets are far below 2**24.
        number = ((offset + np.float32(0.5)) * self._inverse[pool]).astype(np.int32)
        there &= (offset >= 0) & (number < self.per_pool[pool])
        within = offset - number * self.block[pool]
        return np.where(there, self.first[pool] + number, -1), within

    def _pools_of(self, words: U64) -> NDArray[np.signedinteger[Any]]:
        if self._pages is not None:
            shift = np.uint64(self.pool_size.bit_length() - 1)
            page = (words >> shift) - np.uint64(self._low_page)
            inside = page < np.uint64(len(self._pages))
            if inside.all():
                found: NDArray[np.int32] = self._pages[page.view(np.int64)]
                return found
            return np.where(inside, self._pages[np.where(inside, page, 0).astype(np.intp)], np.int32(-1))
        assert self._order is not None
        ordered = self.pool[self._order]
        at = np.maximum(np.searchsorted(ordered, words, side="right"), 1) - 1
        inside = words - ordered[at] < np.uint64(self.pool_size)
        return np.where(inside, self._order[at], -1)

    def find(self, words: U64) -> NDArray[np.int64]:
        """The node that each word refers to, -1 for none.

        A reference to an object is its address (the lowest bits may be tags); one to a bare block may point
        anywhere into it.
        """
        plain = words & _TAGS
        node, within = self.blocks_of(plain)
        in_pool = node >= 0
        kind = self.kind[np.where(in_pool, node, 0)] if len(self.kind) else np.zeros(len(words), np.int32)
        before = self.before[np.maximum(kind, 0)] if len(self.before) else np.zeros(len(words), np.int64)
        good = in_pool & ((kind == BARE) | ((kind >= 0) & (within == before)))
        out = np.where(good, node, -1)
        rest = np.flatnonzero(~in_pool)
        if len(rest) and len(self.large):
            at = np.minimum(np.searchsorted(self.large, plain[rest]), len(self.large) - 1)
            hit = self.large[at] == plain[rest]
            out[rest[hit]] = self.slots + at[hit]
        return out

    def nodes_of(self, objects: U64) -> NDArray[np.int64]:
        """The nodes that the given objects are; -1 for what is no object here."""
        node = self.find(objects)
        return np.where((node >= 0) & (self.kind[np.maximum(node, 0)] >= 0), node, -1)

    def addresses(self, nodes: NDArray[np.int64]) -> U64:
        """Addresses of objects, or of the first byte of bare blocks."""
        out = np.zeros(len(nodes), np.uint64)
        outside = nodes >= self.slots
        out[outside] = self.large[nodes[outside] - self.slots]
        inside = nodes[~outside]
        if len(inside):
            pool = np.searchsorted(self.first, inside, side="right") - 1
            at = self.header + (inside - self.first[pool]) * self.block[pool]
            kind = self.kind[inside]
            at += np.where(kind >= 0, self.before[np.maximum(kind, 0)], 0)
            out[~outside] = self.pool[pool] + at.astype(np.uint64)
        return out


def number_nodes(census: HeapCensus) -> Nodes:
    """Number what the census found."""
    pools = census.pools
    order = np.lexsort((pools.address, pools.block))
    block = pools.block[order]
    per_pool = (pools.size - pools.header) // block if len(block) else block
    first = np.cumsum(per_pool) - per_pool
    slots = int(per_pool.sum())
    before = census.types.before + (_DEBUG_BYTES if pools.debug else 0)
    nodes = Nodes(
        np.full(slots, FREE, np.int32),
        slots,
        np.zeros(0, np.uint64),
        pools.address[order],
        order,
        block,
        per_pool,
        first,
        pools.size,
        pools.header,
        before,
    )
    _make_table(nodes)
    # What was handed out and is not in a list of free blocks is in use.
    handed_out = pools.handed_out[order]
    if slots:
        pool_of = np.repeat(np.arange(len(block), dtype=np.int32), per_pool)
        within = np.arange(slots, dtype=np.int64) - first[pool_of]
        nodes.kind[within < handed_out[pool_of]] = BARE
        rank = np.empty(len(order), np.intp)
        rank[order] = np.arange(len(order))
        free = first[rank[pools.free // pools.per_pool]] + pools.free % pools.per_pool
        nodes.kind[free] = FREE
    # Objects.
    address, kind = census.objects.address, census.objects.kind
    node, _ = nodes.blocks_of(address)
    inside = node >= 0
    nodes.kind[node[inside]] = kind[inside]
    large, large_kind = address[~inside], kind[~inside]
    by_address = np.argsort(large, kind="stable")
    nodes.large = large[by_address]
    nodes.kind = np.concatenate([nodes.kind, large_kind[by_address]])
    _bounds(nodes)
    return nodes


def _make_table(nodes: Nodes) -> None:
    nodes._inverse = (1 / nodes.block).astype(np.float32)
    if not len(nodes.pool):
        return
    shift = nodes.pool_size.bit_length() - 1
    page = (nodes.pool >> np.uint64(shift)).astype(np.int64)
    low, high = int(page.min()), int(page.max()) + 1
    if high - low > _MAX_TABLE:
        nodes._order = np.argsort(nodes.pool)
        return
    nodes._low_page = low
    nodes._pages = np.full(high - low, -1, np.int32)
    nodes._pages[page - low] = np.arange(len(page))


def _bounds(nodes: Nodes) -> None:
    lows, highs = [], []
    if len(nodes.pool):
        lows.append(int(nodes.pool.min()))
        highs.append(int(nodes.pool.max()) + nodes.pool_size)
    if len(nodes.large):
        lows.append(int(nodes.large[0]))
        highs.append(int(nodes.large[-1]) + 8)
    nodes.low, nodes.high = min(lows, default=0), max(highs, default=0)
