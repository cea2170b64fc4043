"""Objects of Go's heap by number, and which object an address lies in.

Every slot of a span whose objects have pointers is a node: their numbers ascend with their addresses. Objects
without pointers lead nowhere and are no nodes, except those that are asked for (a channel of integers).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64, AddressSpace, Mask
from diagtool.runtimes.golang.heap.spans import PAGE, Spans

__all__ = ["Objects"]

_Index = NDArray[np.int64]

_SHIFT = np.uint64(13)  # PAGE is 1 << 13
_WIDEST = 1 << 25  # pages between the first and the last span up to which there is a table of them: 256 GiB
_BITS = 16  # words of allocBits of a span, at most


class Objects:
    """The objects of ``spans`` (in use, sorted). ``special``: addresses inside of objects that are nodes,
    though they may have no pointers."""

    def __init__(self, memory: AddressSpace, spans: Spans, sweepgen: int, special: U64) -> None:
        self.spans = spans
        slots = np.where(spans.noscan, 0, spans.objects)
        ends = np.cumsum(slots)
        #: Number of the first object of each span; meaningless where it has no pointers.
        self.first: _Index = ends - slots
        self.scanned = int(ends[-1]) if len(ends) else 0
        self.base = spans.base.astype(np.int64)
        self.low = int(spans.base[0]) if len(spans) else 0
        self.high = int(spans.limit[-1]) if len(spans) else 0
        self._table = _page_table(spans, self.low, self.high)
        #: Which of the objects with pointers are allocated.
        self.allocated = _allocated(memory, spans, self.first, self.scanned, sweepgen)
        #: Addresses of those objects without pointers that are nodes; they follow after all others.
        self.extra = np.zeros(0, np.uint64)
        self._with_extra = np.zeros(len(spans), np.bool_)
        span, slot, ok = self.slots(special)
        ok &= spans.noscan[span]
        if ok.any():
            self.extra = np.unique(self.starts(span[ok], slot[ok]))
            self._with_extra[span[ok]] = True

    def __len__(self) -> int:
        return self.scanned + len(self.extra)

    def starts(self, span: _Index, slot: _Index) -> U64:
        """The addresses of objects."""
        return self.spans.base[span] + (slot * self.spans.size[span]).astype(np.uint64)

    def near(self, words: U64) -> Mask:
        """Which words lie between the first and the last span: most others are told by that."""
        with np.errstate(over="ignore"):
            inside: Mask = words - np.uint64(self.low) < np.uint64(self.high - self.low)
        return inside

    def slots(self, addresses: U64) -> tuple[_Index, _Index, Mask]:
        """(span, slot in it, whether there is an object) for each address; 0, 0 where there is none."""
        ok = self.near(addresses)
        if not len(self.spans):
            return np.zeros(len(addresses), np.int64), np.zeros(len(addresses), np.int64), ok
        if self._table is not None:
            page = ((addresses - np.uint64(self.low)) >> _SHIFT).astype(np.int64)
            span = self._table[np.where(ok, page, 0)].astype(np.int64)
            ok &= span >= 0
        else:
            span = np.searchsorted(self.spans.base, addresses, side="right") - 1
            ok &= addresses < self.spans.limit[np.maximum(span, 0)]
        span = np.where(ok, span, 0)
        offset = addresses - self.spans.base[span]
        slot = ((offset * self.spans.divisor[span]) >> np.uint64(32)).astype(np.int64)
        slot = np.where(ok, slot, 0)
        ok &= slot < self.spans.objects[span]
        return span, np.where(ok, slot, 0), ok

    def nodes(self, addresses: U64) -> tuple[_Index, Mask]:
        """(number of the allocated object that holds each address, whether there is one that is a node)."""
        span, slot, ok = self.slots(addresses)
        number = self.first[span] + slot
        pointers = ok & ~self.spans.noscan[span]
        number = np.where(pointers, number, 0)
        if self.scanned:
            pointers &= self.allocated[number]
        if len(self.extra):
            some = np.flatnonzero(ok & self._with_extra[span])
            if len(some):
                start = self.starts(span[some], slot[some])
                place = np.minimum(np.searchsorted(self.extra, start), len(self.extra) - 1)
                there = self.extra[place] == start
                number[some[there]] = self.scanned + place[there]
                pointers[some[there]] = True
        return number, pointers


def _page_table(spans: Spans, low: int, high: int) -> NDArray[np.int32] | None:
    """Which span each page belongs to, -1: none. None where that would be too long."""
    pages = (high - low) // PAGE
    if pages > _WIDEST:
        return None
    table = np.full(pages + 1, -1, np.int32)
    first = ((spans.base - np.uint64(low)) >> _SHIFT).astype(np.int64)
    owner = np.repeat(np.arange(len(spans), dtype=np.int32), spans.pages)
    before = np.cumsum(spans.pages) - spans.pages
    table[np.arange(len(owner)) - np.repeat(before - first, spans.pages)] = owner
    return table


def _allocated(memory: AddressSpace, spans: Spans, first: _Index, count: int, sweepgen: int) -> Mask:
    out = np.ones(count, np.bool_)
    sure = ~spans.noscan & ~spans.swept_now(sweepgen) & (spans.free_from < spans.objects)
    rows = np.flatnonzero(sure)
    if not len(rows):
        return out
    words = np.zeros((len(rows), _BITS), np.uint64)
    known = np.ones(len(rows), np.bool_)
    for place in range(_BITS):
        some = np.flatnonzero(spans.objects[rows] > 64 * place)
        words[some, place], ok = memory.load(spans.bits[rows[some]] + np.uint64(8 * place))
        known[some[~ok]] = False
    rows, words = rows[known], words[known]
    for number in np.unique(spans.objects[rows]).tolist():
        alike = np.flatnonzero(spans.objects[rows] == number)
        bits = np.unpackbits(words[alike].view(np.uint8), axis=1, bitorder="little")[:, :number].astype(bool)
        slot = np.arange(number)
        bits |= slot < spans.free_from[rows[alike], None]
        out[(first[rows[alike], None] + slot).reshape(-1)] = bits.reshape(-1)
    return out
