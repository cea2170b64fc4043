"""Which words of an object are pointers, as the collector itself knows it; without that, all may be.

Up to 1.21 a bitmap beside each arena says it: 1.19 has two bits a word, four pointer bits and four others in
a byte. From 1.22 on objects of up to 512 bytes have a bitmap at the end of their span, larger ones begin
with their type, and
very large ones have it in their mspan; a type has a mask of its own (runtime/mbitmap.go).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64, Mask
from diagtool.runtimes.golang.heap.spans import PAGE, Spans
from diagtool.runtimes.golang.model import GoRuntime

__all__ = ["Masks"]

_Index = NDArray[np.int64]

_ANY, _IN_SPAN, _HEADER, _LARGE = range(4)  # how the objects of a span say it; _ANY: not
_ARENA_BITS = 26
_ARENA_BASE = 1 << 47  # amd64: the address space begins at -2**47 for arenaIndex
_SMALL = 512  # bytes of objects whose bitmap is in their span
_LARGEST_SMALL = 32768 - 8  # bytes; larger ones have a span each, and no header
_MARKS = 128  # bytes behind the bitmap: runtime.spanInlineMarkBits, where there are any
_WORDS = PAGE // 8
_MOST_WORDS = 1 << 20  # of a type
_GC_PROGRAM = 1 << 6  # of kind, up to 1.23
_ON_DEMAND = 1 << 4  # of tflag, from 1.24 on


class Masks:
    """The pointers in objects of ``spans``, of the heap at ``heap``."""

    def __init__(self, runtime: GoRuntime, heap: int, spans: Spans) -> None:
        self.runtime = runtime
        self.spans = spans
        self.kind = np.full(len(spans), _ANY, np.uint8)
        self._arena_bits = 0
        self._arenas = np.zeros(0, np.uint64)
        self._arena_first = 0
        plain = "noallocheaders" not in runtime.version
        if runtime.minor < 22:
            self._find_arenas(heap)
        elif plain:
            small = (spans.size <= _SMALL) & (spans.pages == 1)
            self.kind[small] = _IN_SPAN
            self.kind[(spans.size > _SMALL) & (spans.objects > 1)] = _HEADER
            one = (spans.size > _SMALL) & (spans.objects == 1)
            self.kind[one & (spans.sizeclass > 0)] = _HEADER
            self.kind[one & (spans.sizeclass == 0) & (spans.large_type != 0)] = _LARGE
            self.kind[spans.user_arena] = _ANY
        marks = _with_marks(spans) if runtime.minor >= 25 else False
        if marks is None:
            self.kind[self.kind == _IN_SPAN] = _ANY
        ends = np.where(spans.size >= 16, PAGE - _MARKS if marks else PAGE, PAGE)
        #: Where in its page the bitmap of a span begins.
        self._bitmap = ends - PAGE // 64
        self._types = _Types(runtime)

    def _find_arenas(self, heap: int) -> None:
        if self.runtime.machine != "x86_64" or not self.runtime.has("heapArena", "bitmap"):
            return
        first = int(self.spans.base[0]) + _ARENA_BASE >> _ARENA_BITS if len(self.spans) else 0
        last = int(self.spans.limit[-1]) + _ARENA_BASE >> _ARENA_BITS if len(self.spans) else -1
        table = self.runtime.word(heap, "mheap", "arenas")
        if not table or last - first > 1 << 20:
            return
        numbers = np.arange(first, last + 1, dtype=np.uint64)
        self._arenas = self.runtime.memory.load(numbers * np.uint64(8) + np.uint64(table))[0]
        self._arena_first = first
        self._arena_bits = 2 if self.runtime.minor < 20 else 1

    def pointers(
        self, span: _Index, pages: U64, data: NDArray[np.uint8], row: _Index, word: _Index, slot: _Index
    ) -> Mask:
        """Which of the words are pointers.

        ``data`` (n x PAGE bytes) are the pages at ``pages``. For each word: its ``span``, the ``row`` of
        its page in
        ``data``, which ``word`` of the page it is, and the ``slot`` of its object.
        """
        out = np.ones(len(row), np.bool_)
        if self._arena_bits:
            return self._in_arena(pages, row, word)
        kind = self.kind[span]
        some = np.flatnonzero(kind == _IN_SPAN)
        if len(some):
            at = self._bitmap[span[some]] + (word[some] >> 3)
            out[some] = (data[row[some], at] >> (word[some] & 7).astype(np.uint8)) & 1
        some = np.flatnonzero(kind >= _HEADER)
        if len(some):
            out[some] = self._typed(
                kind[some] == _HEADER, span[some], pages[row[some]], word[some], slot[some]
            )
        return out

    def _typed(self, header: Mask, span: _Index, page: U64, word: _Index, slot: _Index) -> Mask:
        spans = self.spans
        start = spans.base[span] + (slot * spans.size[span]).astype(np.uint64)
        types = spans.large_type[span].copy()
        types[header] = self.runtime.memory.load(start[header])[0]
        at = (page + (word * 8).astype(np.uint64) - start).astype(np.int64) // 8 - header
        return self._types.pointers(types, at)

    def _in_arena(self, pages: U64, row: _Index, word: _Index) -> Mask:
        number = ((pages + np.uint64(_ARENA_BASE)) >> np.uint64(_ARENA_BITS)).astype(
            np.int64
        ) - self._arena_first
        inside = (pages & np.uint64((1 << _ARENA_BITS) - 1)) >> np.uint64(3)  # words from the arena's start
        size = PAGE // 8 * self._arena_bits // 8
        bits = self._arenas[number] + np.uint64(self.runtime.o("heapArena", "bitmap"))
        bits += inside * np.uint64(self._arena_bits) >> np.uint64(3)
        bitmap, ok = self.runtime.memory.load_block(bits, size)
        ok &= self._arenas[number] != 0
        if self._arena_bits == 1:
            found = bitmap[row, word >> 3] >> (word & 7).astype(np.uint8)
        else:
            found = bitmap[row, word >> 2] >> (word & 3).astype(np.uint8)
        out: Mask = ((found & 1) != 0) | ~ok[row]
        return out


def _with_marks(spans: Spans) -> bool | None:
    """Whether small spans have mark bits of their own behind the bitmap: GOEXPERIMENT=greenteagc.

    There is room for fewer objects then. None where that shows nowhere.
    """
    small = ~spans.noscan & (spans.size <= _SMALL) & (spans.size >= 16) & (spans.pages == 1)
    size, count = spans.size[small], spans.objects[small]
    without = (PAGE - PAGE // 64) // size
    marked = (PAGE - PAGE // 64 - _MARKS) // size
    said = [bool(((count == n) & (without != marked)).any()) for n in (without, marked)]
    return None if said[0] == said[1] else said[1]


class _Types:
    """Pointer masks of types, as one array of flags."""

    def __init__(self, runtime: GoRuntime) -> None:
        self.runtime = runtime
        self._known = np.zeros(0, np.uint64)
        self._first = np.zeros(0, np.int64)
        self._pointers = np.zeros(0, np.int64)  # words up to the last pointer; -1: not known
        self._words = np.zeros(0, np.int64)  # of a value
        self._flags = np.ones(1, np.bool_)

    def pointers(self, types: U64, at: _Index) -> Mask:
        """Which words ``at`` (from the start of the values) are pointers of objects of ``types``."""
        self._learn(np.unique(types))
        number = np.searchsorted(self._known, types)
        words, last = self._words[number], self._pointers[number]
        rest = at % np.maximum(words, 1)
        inside = (last > 0) & (rest < last) & (at >= 0)
        flag = self._flags[np.where(inside, self._first[number] + rest, 0)]
        out: Mask = (last < 0) | (inside & flag)
        return out

    def _learn(self, types: U64) -> None:
        fresh = types[~np.isin(types, self._known)]
        if not len(fresh):
            return
        masks = [self._mask(address) for address in fresh.tolist()]
        length = len(self._flags)
        starts = []
        for _, flags in masks:
            starts.append(length)
            length += len(flags) if flags is not None else 0
        self._flags = np.concatenate([self._flags, *(flags for _, flags in masks if flags is not None)])
        known = np.concatenate([self._known, fresh])
        order = np.argsort(known)
        self._known = known[order]
        last = [-1 if flags is None else len(flags) for _, flags in masks]
        self._first = np.concatenate([self._first, np.array(starts, np.int64)])[order]
        self._pointers = np.concatenate([self._pointers, np.array(last, np.int64)])[order]
        self._words = np.concatenate([self._words, np.array([w for w, _ in masks], np.int64)])[order]

    def _mask(self, address: int) -> tuple[int, Mask | None]:
        """(words of a value, which of its words up to the last pointer are pointers; None: not known)."""
        memory = self.runtime.memory
        head = memory.try_read(address, 48) if address else None
        if head is None:
            return 1, None
        size, pointers = (int.from_bytes(head[i : i + 8], "little") for i in (0, 8))
        flags, kind = head[20], head[23]
        data = int.from_bytes(head[32:40], "little")
        words = pointers // 8
        if not 0 < words <= size // 8 or words > _MOST_WORDS or pointers % 8 or size % 8:
            return 1, None
        if self.runtime.minor < 24 and kind & _GC_PROGRAM:
            return 1, None
        if self.runtime.minor >= 24 and flags & _ON_DEMAND:
            place = memory.try_read(data, 8)
            data = int.from_bytes(place, "little") if place else 0
        raw = memory.try_read(data, -(-words // 8)) if data else None
        if raw is None:
            return 1, None
        bits = np.unpackbits(np.frombuffer(raw, np.uint8), bitorder="little")[:words]
        return size // 8, bits.astype(np.bool_)
