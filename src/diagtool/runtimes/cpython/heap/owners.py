"""Whose memory a word lies in: an object's own block, a buffer that one owns, or a block that is no object.

What is no object but lies in a pool (a small table of a list, the keys of a dict, the values of an instance)
is a *bare block*: who points into it owns it, which is found in the same way as who refers to an object.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.heap.census import HeapCensus
from diagtool.runtimes.cpython.heap.large import SMALL
from diagtool.runtimes.cpython.heap.mimalloc import OBJECT, Pages
from diagtool.runtimes.cpython.heap.sizes import NO_SIZE, Sizer
from diagtool.runtimes.cpython.heap.types import kinds_named
from diagtool.runtimes.cpython.objects.addresssets import contains

_DICT, _LIST = 1 << 29, 1 << 25  # Py_TPFLAGS_*_SUBCLASS, Include/object.h
_HEAD = 16  # sizeof(PyGC_Head)
_MAX_LINKS = 1 << 16  # blocks of one deque
_0 = np.uint64(0)


@dataclass(slots=True)
class Spans:
    """Sorted address ranges, each somebody's."""

    start: U64
    end: U64
    owner: U64

    def find(self, addresses: U64) -> U64:
        """The owner of the range that each address lies in, 0 for none."""
        if not len(self.start):
            return np.zeros(len(addresses), np.uint64)
        at = np.maximum(np.searchsorted(self.start, addresses, side="right"), 1) - 1
        inside = (self.start[at] <= addresses) & (addresses < self.end[at])
        found: U64 = np.where(inside, self.owner[at], _0)
        return found


def spans(start: U64, size: NDArray[np.int64], owner: U64) -> Spans:
    """Ranges of ``size`` bytes, sorted; those without size or start are left out."""
    good = (start != 0) & (size > 0) & (size < NO_SIZE)
    start, size, owner = start[good], size[good], owner[good]
    order = np.argsort(start, kind="stable")
    start = start[order]
    return Spans(start, start + size[order].astype(np.uint64), owner[order])


class Owners:
    """From addresses of words to the objects and bare blocks that hold them."""

    def __init__(self, ctx: Context, census: HeapCensus) -> None:
        self.ctx = ctx
        self.census = census
        order = np.argsort(census.objects.address, kind="stable")
        self.objects = census.objects.address[order]
        self._kinds = census.objects.kind[order]
        #: What is smaller lies in pools, if there are any.
        self._least = SMALL + 1 if len(census.pools.address) else 1
        sizer = Sizer(ctx, census.types)
        #: Outside of pools: the own blocks of objects, and the tables of lists, dicts, sets and deques.
        self.large = self._own_blocks(sizer)
        self.tables = self._owned(sizer)

    def kind(self, addresses: U64) -> NDArray[np.int32]:
        """Numbers of the types of objects; -1 for what is none."""
        if not len(self.objects):
            return np.full(len(addresses), -1, np.int32)
        at = np.minimum(np.searchsorted(self.objects, addresses), len(self.objects) - 1)
        return np.where(self.objects[at] == addresses, self._kinds[at], -1).astype(np.int32)

    def find(self, words: U64) -> tuple[U64, U64, NDArray[np.bool_]]:
        """(object or bare block that holds each word, or 0; bytes of the bare block, 0 for objects; unused).

        ``unused``: the word lies in a pool, but in no block that is in use, or in an object that is dead and
        kept for the next one.
        """
        unused = np.zeros(len(words), np.bool_)
        holder = self.tables.find(words)
        holder = np.where(holder != 0, holder, self.large.find(words))
        bare = np.zeros(len(words), np.uint64)
        pools, pages = self.census.pools, self.census.pages
        if pages:
            return self._in_pages(pages, words, holder)
        if len(pools.address):
            at = np.maximum(np.searchsorted(pools.address, words, side="right"), 1) - 1
            offset = (words - pools.address[at]).view(np.int64) - pools.header
            block = pools.block[at]
            number = offset // block
            inside = (holder == 0) & (words >= pools.address[at])
            inside &= words - pools.address[at] < np.uint64(pools.size)
            used = inside & (offset >= 0) & (number < pools.handed_out[at])
            if len(pools.free):
                used &= ~np.isin(at * pools.per_pool + number, pools.free, assume_unique=False)
            start = pools.address[at] + (pools.header + number * block).astype(np.uint64)
            end = start + block.astype(np.uint64)
            last = np.maximum(np.searchsorted(self.objects, end), 1) - 1
            inner = self.objects[last] if len(self.objects) else np.zeros(len(words), np.uint64)
            whole = used & (inner >= start) & (inner < end)
            holder = np.where(whole, inner, np.where(used, start, holder))
            bare = np.where(used & ~whole, block, 0).astype(np.uint64)
            unused = inside & ~used
            rows = np.flatnonzero(bare)
            unused[rows] = self._dead(start[rows], block[rows])
        return holder, bare, unused

    def _in_pages(self, pages: Pages, words: U64, holder: U64) -> tuple[U64, U64, NDArray[np.bool_]]:
        """As :meth:`find` in a free-threaded build, whose objects and tables all lie in pages of mimalloc.

        A block for objects that has no living one is one that is kept for the next one.
        """
        inside, used, start, end, tag = pages.find(words)
        unused = inside & ~used & (holder == 0)
        last = np.maximum(np.searchsorted(self.objects, end), 1) - 1
        inner = self.objects[last] if len(self.objects) else np.zeros(len(words), np.uint64)
        whole = used & (holder == 0) & (inner >= start) & (inner < end)
        bare = used & (holder == 0) & ~whole
        unused |= bare & (tag > OBJECT)
        rows = np.flatnonzero(bare & (tag == OBJECT))
        unused[rows] |= contains(
            np.sort(self.census.types.address),
            self.ctx.vectors.words(start[rows], self.ctx.objects.type_offset),
        )
        bare &= end - start <= np.uint64(SMALL)  # larger ones are tables of what is not known
        holder = np.where(whole, inner, np.where(bare, start, holder))
        return holder, np.where(bare, end - start, _0), unused

    def _dead(self, blocks: U64, size: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which bare blocks hold an object without references: a frame that waits for the next call, say.

        It has the head of one that the collector does not track, a count of 0, and its type. (Only such:
        other blocks may begin with what is left of an object, as those of attribute values do in 3.11.)
        """
        v, types = self.ctx.vectors, self.census.types
        collected = np.sort(types.address[types.before == _HEAD])
        kind = v.words(blocks, _HEAD + self.ctx.objects.type_offset)
        dead: NDArray[np.bool_] = contains(collected, kind) & (size > 2 * _HEAD)
        dead &= (v.words(blocks) == 0) & (v.words(blocks, _HEAD) == 0)
        return dead

    def block_of(self, address: int) -> int:
        """The object at an address, or whose own block it lies in; 0 for none."""
        holder, bare, unused = self.find(np.array([address], np.uint64))
        return int(holder[0]) if holder[0] and not bare[0] and not unused[0] else 0

    def _own_blocks(self, sizer: Sizer) -> Spans:
        if self.census.pages:
            start, end = self.census.pages.find(self.objects)[2:4]
            return spans(start, (end - start).astype(np.int64), self.objects)
        starts, sizes, owners = [], [], []
        for kind in range(len(self.census.types)):
            objects = self.census.of(kind)
            if not len(objects):
                continue
            if (
                self._least > 1
                and not self.census.types.item[kind]
                and self.census.types.basic[kind] < SMALL // 2
            ):
                continue  # all of them lie in pools
            own = sizer.of(kind, objects)[0]
            big = own >= self._least
            before = np.uint64(int(self.census.types.before[kind]))
            starts.append(objects[big] - before)
            sizes.append(own[big])
            owners.append(objects[big])
        return _together(starts, sizes, owners)

    def _owned(self, sizer: Sizer) -> Spans:
        """Tables of lists, dicts, sets and deques that lie outside of pools."""
        v, flags = self.ctx.vectors, self.census.types.flags
        starts: list[U64] = []
        sizes: list[NDArray[np.int64]] = []
        owners: list[U64] = []
        sets = kinds_named(self.ctx, self.census.types, "set", "frozenset")
        deques = kinds_named(self.ctx, self.census.types, "collections.deque")
        for kind in range(len(self.census.types)):
            objects = self.census.of(kind)
            if not len(objects):
                continue
            if int(flags[kind]) & _LIST:
                table = "PyListObject.ob_item"
            elif int(flags[kind]) & _DICT:
                table = "PyDictObject.ma_keys"
            elif kind in sets:
                table = "PySetObject.table"
            else:
                if kind in deques:
                    self._links(objects, starts, sizes, owners)
                continue
            owned = sizer.of(kind, objects)[1]
            big = owned >= self._least
            if int(flags[kind]) & _LIST:  # what lies behind the last item is left from others
                owned = np.minimum(owned, 8 * v.field(objects, "PyVarObject.ob_size").astype(np.int64))
            starts.append(v.field(objects[big], table))
            sizes.append(owned[big])
            owners.append(objects[big])
        return _together(starts, sizes, owners)

    def _links(
        self, objects: U64, starts: list[U64], sizes: list[NDArray[np.int64]], owners: list[U64]
    ) -> None:
        """The blocks of deques, one step of all of them at a time (Modules/_collectionsmodule.c)."""
        lay, v = self.ctx.runtime.layout, self.ctx.vectors
        size = 8 * (lay.get("const.BLOCKLEN", 64) + 2)
        left = v.field(objects, "PyVarObject.ob_size").astype(np.int64) // lay.get("const.BLOCKLEN", 64) + 2
        block = v.field(objects, "dequeobject.leftblock")
        last = v.field(objects, "dequeobject.rightblock")
        for _ in range(_MAX_LINKS):
            there = (block != 0) & (left > 0)
            if not there.any():
                break
            objects, block, last, left = objects[there], block[there], last[there], left[there] - 1
            starts.append(block)
            sizes.append(np.full(len(block), size))
            owners.append(objects)
            block = np.where(block != last, v.field(block, "deque_block.rightlink"), _0)


def _together(starts: list[U64], sizes: list[NDArray[np.int64]], owners: list[U64]) -> Spans:
    none = np.zeros(0, np.uint64)
    return spans(
        np.concatenate([none, *starts]),
        np.concatenate([np.zeros(0, np.int64), *sizes]),
        np.concatenate([none, *owners]),
    )
