"""All pointers between objects of Go's heap, in one scan of the pages whose objects have any."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64, AddressSpace, Mask
from diagtool.runtimes.golang.heap.objects import Objects
from diagtool.runtimes.golang.heap.pointers import Masks
from diagtool.runtimes.golang.heap.spans import PAGE
from diagtool.runtimes.native.reach import Edges

__all__ = ["Scan", "scan"]

_Index = NDArray[np.int64]

_AT_ONCE = 512  # pages of 8 KiB
_PAGE = 4096  # of the processor: where memory is and is not
_WORDS = PAGE // 8
_WORD_BITS = 10
_FARTHEST = (1 << 31) - 1


@dataclass(slots=True)
class Scan:
    """``edges``: by source. ``missing``: bytes of the heap that are not in the capture. ``complete``: false
    where there were more pointers than allowed."""

    edges: Edges
    missing: int = 0
    complete: bool = True


def scan(memory: AddressSpace, objects: Objects, masks: Masks, hidden: U64, most: int) -> Scan:
    """The pointers from allocated objects to allocated objects, at most ``most``.

    ``hidden``: sorted addresses of words that are passed over.
    """
    spans = objects.spans
    rows = np.flatnonzero(~spans.noscan)
    owner = np.repeat(rows, spans.pages[rows])
    before = np.cumsum(spans.pages[rows]) - spans.pages[rows]
    number = np.arange(len(owner)) - np.repeat(before, spans.pages[rows])
    pages = spans.base[owner] + (number * PAGE).astype(np.uint64)
    sources, targets, offsets = [np.zeros(0, np.int32)], [np.zeros(0, np.int32)], [np.zeros(0, np.int32)]
    missing, found = 0, 0
    for first in range(0, len(pages), _AT_ONCE):
        part = slice(first, first + _AT_ONCE)
        data, ok = _read(memory, pages[part])
        missing += int((~ok).sum()) * _PAGE
        source, target, offset = _edges(objects, masks, data, pages[part], owner[part], number[part], hidden)
        found += len(source)
        if found > most:
            return Scan(Edges(sources[0], targets[0], offsets[0]), missing, False)
        sources.append(source)
        targets.append(target)
        offsets.append(offset)
    # One after the other, so that what was joined goes before the next one comes.
    columns = []
    for parts in (sources, targets, offsets):
        columns.append(np.concatenate(parts))
        parts.clear()
    return Scan(Edges(*columns), missing)


# What is not there is zero: of a live process, nobody has written to it.
def _read(memory: AddressSpace, pages: U64) -> tuple[NDArray[np.uint8], Mask]:
    halves = np.stack([pages, pages + np.uint64(_PAGE)], axis=1).reshape(-1)
    ok = memory.mapped(halves, _PAGE)
    if ok.all():
        block, ok = memory.load_block(halves, _PAGE)
    else:
        block = np.zeros((len(halves), _PAGE), np.uint8)
        block[ok], fine = memory.load_block(halves[ok], _PAGE)
        ok[ok] = fine
    return block.reshape(-1, PAGE), ok


def _edges(
    objects: Objects,
    masks: Masks,
    data: NDArray[np.uint8],
    pages: U64,
    owner: _Index,
    number: _Index,
    hidden: U64,
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    spans = objects.spans
    words = data.view("<u8").reshape(-1)
    places = np.flatnonzero(objects.near(words))
    row, word = places >> _WORD_BITS, places & _WORDS - 1
    span = owner[row]
    inside = (number[row] << 13) + (word << 3)  # bytes from the start of the span
    slot = (inside.astype(np.uint64) * spans.divisor[span] >> np.uint64(32)).astype(np.int64)
    source = objects.first[span] + slot
    good = slot < spans.objects[span]
    good &= objects.allocated[np.where(good, source, 0)]
    if len(hidden):
        own = pages[row] + (word * 8).astype(np.uint64)
        close = np.flatnonzero((own >= hidden[0]) & (own <= hidden[-1]))
        at = np.searchsorted(hidden, own[close])
        good[close[hidden[at] == own[close]]] = False
    keep = np.flatnonzero(good)
    keep = keep[masks.pointers(span[keep], pages, data, row[keep], word[keep], slot[keep])]
    target, there = objects.nodes(words[places[keep]])
    keep, target = keep[there], target[there]
    apart = target != source[keep]
    keep, target = keep[apart], target[apart]
    offset = inside[keep] - slot[keep] * spans.size[span[keep]]
    offset = np.minimum(offset, _FARTHEST)
    return source[keep].astype(np.int32), target.astype(np.int32), offset.astype(np.int32)
