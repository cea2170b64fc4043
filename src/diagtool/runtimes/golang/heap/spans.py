"""Spans: the runs of pages that Go's heap is made of, each with objects of one size (runtime/mheap.go).

``mheap_`` is found without symbols: the slice ``allspans`` in it refers to structures mspan, which say where
their pages are.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64, Mask
from diagtool.runtimes.golang.model import GoRuntime

__all__ = ["PAGE", "Spans", "find_heap", "read_spans"]

PAGE = 8192  # bytes: runtime.pageSize on all machines
IN_USE, MANUAL = 1, 2  # mspan.state: objects; stacks and what the runtime itself needs

_STEP = 4 << 20  # bytes of data searched together
_BATCH = 1 << 15  # spans read at a time
_MOST_SPANS = 1 << 25
_SAMPLE = 256
_MOST_PAGES = 1 << 28  # of one span
_MOST_OBJECTS = PAGE // 8  # in one span


@dataclass(slots=True)
class Spans:
    """Spans in use, by address, as columns of one length.

    base, limit: addresses; pages: of 8 KiB; size: bytes of an object, objects: how many there is room for.
    free_from: objects from this one on are free where their bit of allocBits is 0. divisor: multiplies an
    offset, then shifted by 32 bits it is the number of the object (0: there is one object). noscan: no
    pointers in it.
    """

    address: U64
    base: U64
    pages: NDArray[np.int64]
    size: NDArray[np.int64]
    objects: NDArray[np.int64]
    free_from: NDArray[np.int64]
    bits: U64
    divisor: U64
    noscan: Mask
    state: NDArray[np.uint8]
    sizeclass: NDArray[np.uint8]
    used: NDArray[np.int64]  # allocCount
    sweepgen: NDArray[np.uint32]
    specials: U64
    large_type: U64
    user_arena: Mask

    def __len__(self) -> int:
        return len(self.base)

    def take(self, rows: NDArray[Any]) -> Spans:
        """Some of them."""
        return Spans(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    @property
    def limit(self) -> U64:
        """Where the pages of each end."""
        return self.base + (self.pages * PAGE).astype(np.uint64)

    def swept_now(self, sweepgen: int) -> Mask:
        """Which ones are just being swept, when the heap's own count is ``sweepgen``.

        Sweeping sets the bits and ``free_from`` one after the other: all objects count as used meanwhile.
        """
        now: Mask = self.sweepgen == np.uint32(sweepgen - 1 & 0xFFFFFFFF)
        return now


def find_heap(runtime: GoRuntime) -> int:
    """The address of ``runtime.mheap_``; 0 where it was not found."""
    best = (0, 0)
    memory = runtime.memory
    at_spans = runtime.o("mheap", "allspans")
    for module in runtime.modules[:1]:
        for low, high in reversed(module.ranges()):
            for start in range(low & -8, high, _STEP):
                size = min(_STEP + 16, high - start) & -8
                places = np.arange(start, start + size, 8, dtype=np.uint64)
                words = memory.load(places)[0]
                if len(words) < 3:
                    continue
                place, count, room = words[:-2], words[1:-1], words[2:]
                likely = (
                    (place > 0x1000) & (place % 8 == 0) & (count > 0) & (count <= room) & (room < _MOST_SPANS)
                )
                at = np.flatnonzero(likely)
                first, there = _words_at(runtime, place[at])
                state, readable = runtime.look(first, "mspan", "state", "u1")
                at = at[there & readable & (first % 8 == 0) & (state <= MANUAL)]
                for i in at.tolist():
                    if count[i] > best[0] and _is_list(runtime, int(place[i]), int(count[i])):
                        best = int(count[i]), int(start + 8 * i - at_spans)
    return best[1]


def _is_list(runtime: GoRuntime, place: int, count: int) -> bool:
    step = max(1, count // _SAMPLE)
    at = np.arange(0, count, step, dtype=np.uint64) * np.uint64(8) + np.uint64(place)
    listed, ok = _words_at(runtime, at)
    base, _ = runtime.look(listed, "mspan", "startAddr")
    pages, _ = runtime.look(listed, "mspan", "npages")
    limit, _ = runtime.look(listed, "mspan", "limit")
    state, there = runtime.look(listed, "mspan", "state", "u1")
    # What was given back is in the list, too, and what was never used: memory that is not there yet.
    live = there & ((state == IN_USE) | (state == MANUAL))
    good = (listed % 8 == 0) & (base > 0) & (base % PAGE == 0) & (pages > 0) & (pages < _MOST_PAGES)
    with np.errstate(over="ignore"):
        good &= (limit >= base) & (limit - base <= pages * np.uint64(PAGE))
    if not (ok & (state <= MANUAL)).all() or not live.any():
        return False
    return bool(good[live].all()) and len(np.unique(base[live])) == int(live.sum())


def _words_at(runtime: GoRuntime, addresses: U64) -> tuple[U64, Mask]:
    return runtime.look(addresses - np.uint64(runtime.o("mspan", "startAddr")), "mspan", "startAddr")


def read_spans(runtime: GoRuntime, heap: int) -> tuple[Spans, int]:
    """(spans that are in use, stacks and the runtime's own too, sorted by address; how many were lost).

    Of spans that overlap, which is damage, the first one stays, and it counts as lost.
    """
    memory = runtime.memory
    where = heap + runtime.o("mheap", "allspans")
    place, count = memory.u64(where), memory.u64(where + 8)
    count = min(count, _MOST_SPANS)
    addresses, ok = memory.load(np.arange(count, dtype=np.uint64) * np.uint64(8) + np.uint64(place))
    lost = int((~ok).sum())
    parts = []
    for first in range(0, len(addresses), _BATCH):
        batch = addresses[first : first + _BATCH][ok[first : first + _BATCH]]
        if runtime.capture.kind == "live":  # nobody has written to what is not there
            batch = batch[memory.mapped(batch, runtime.size("mspan"))]
        block, there = memory.load_block(batch, runtime.size("mspan"))
        lost += int((~there).sum())
        parts.append(_columns(runtime, block[there], batch[there]))
    if not parts:
        return _columns(runtime, np.zeros((0, runtime.size("mspan")), np.uint8), addresses[:0]), lost
    columns = {f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Spans)}
    spans = Spans(**columns)
    sound = (spans.state == IN_USE) & (spans.size > 0) & (spans.objects > 0)
    sound &= (spans.objects <= _MOST_OBJECTS) & (spans.objects * spans.size <= spans.pages * PAGE)
    wrong = (spans.state == IN_USE) & ~sound
    spans = spans.take(np.flatnonzero(sound | (spans.state == MANUAL)))
    spans = spans.take(np.argsort(spans.base, kind="stable"))
    apart = np.ones(len(spans), np.bool_)
    if len(spans):
        apart[1:] = spans.base[1:] >= np.maximum.accumulate(spans.limit)[:-1]
    lost += int(wrong.sum()) + int((~apart).sum())
    return spans.take(np.flatnonzero(apart)), lost


def _columns(runtime: GoRuntime, block: NDArray[np.uint8], addresses: U64) -> Spans:
    wide = "<u8" if runtime.minor < 22 else "<u2"

    def column(name: str, dtype: str = "<u8") -> NDArray[Any]:
        if not runtime.has("mspan", name):
            return np.zeros(len(block), dtype)
        at, kind = runtime.o("mspan", name), np.dtype(dtype)
        return np.ascontiguousarray(block[:, at : at + kind.itemsize]).view(kind).reshape(-1)

    spanclass = column("spanclass", "u1")
    pages = np.minimum(column("npages"), np.uint64(_MOST_PAGES)).astype(np.int64)
    room = np.uint64(_MOST_PAGES * PAGE)
    return Spans(
        address=addresses,
        base=column("startAddr"),
        pages=pages,
        size=np.minimum(column("elemsize"), room).astype(np.int64),
        objects=np.minimum(column("nelems", wide).astype(np.uint64), np.uint64(1 << 20)).astype(np.int64),
        free_from=np.minimum(column("freeindex", wide).astype(np.uint64), np.uint64(1 << 20)).astype(
            np.int64
        ),
        bits=column("allocBits"),
        divisor=column("divMul", "<u4").astype(np.uint64),
        noscan=(spanclass & 1) != 0,
        state=column("state", "u1"),
        sizeclass=(spanclass >> 1).astype(np.uint8),
        used=column("allocCount", "<u2").astype(np.int64),
        sweepgen=column("sweepgen", "<u4"),
        specials=column("specials"),
        large_type=column("largeType"),
        user_arena=column("isUserArenaChunk", "u1") != 0,
    )
