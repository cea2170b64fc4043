"""From batches to events, as columns: both wires, a group of batches at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from diagtool.ingest.gotrace.model import Batch, Decoded, Wire
from diagtool.ingest.gotrace.varints import Numbers, Places, walk

__all__ = ["GROUP", "decode", "groups"]

#: Bytes of events that are decoded together: about twenty times as many are needed meanwhile.
GROUP = 1 << 20

_NO_PLACES = np.zeros(0, np.int32)


def groups(batches: Iterable[Batch], limit: int = GROUP) -> Iterator[list[Batch]]:
    """``batches`` in groups of about ``limit`` bytes."""
    group: list[Batch] = []
    size = 0
    for batch in batches:
        if group and size + batch.length > limit:
            yield group
            group, size = [], 0
        group.append(batch)
        size += batch.length
    if group:
        yield group


def decode(data: NDArray[np.uint8], batches: Sequence[Batch], wire: Wire) -> tuple[Decoded, int]:
    """The events of ``batches``, by stream, and how many batches are damaged.

    Of a damaged batch what stands before the damage is there.
    """
    ordered = sorted(batches, key=lambda b: b.stream)  # stable: in each stream as in the file
    joined = np.concatenate([data[b.offset : b.offset + b.length] for b in ordered])
    lengths = np.array([b.length for b in ordered], np.int64)
    starts = np.cumsum(lengths) - lengths
    numbers = Numbers.of(joined)
    places, damaged = _places(numbers, starts, lengths, wire)
    types = joined[places]
    first = wire.first(numbers, places)
    timed = wire.timed(types)
    # The first argument of most events is the time since the one before.
    delta = np.zeros(len(places), np.int64)
    at_time = np.flatnonzero(timed)
    delta[at_time] = (numbers.value(first[at_time]) & np.uint64((1 << 48) - 1)).astype(np.int64)
    arguments = first.copy()
    arguments[at_time] = numbers.end(first[at_time], 0) + 1
    batch = np.searchsorted(starts, places, side="right") - 1
    # Of batches that begin at the same place all but the last are empty.
    total = np.cumsum(delta)
    opening = np.searchsorted(batch, np.arange(len(ordered)), side="left")
    before = np.concatenate([[0], total])[opening]
    base = np.array([b.base & ((1 << 62) - 1) for b in ordered], np.int64)
    stream = np.array([b.stream & ((1 << 62) - 1) for b in ordered], np.int64)
    at = base[batch] + (total - before[batch])
    return Decoded(numbers, wire.kinds(types), arguments, at, stream[batch]), damaged


def _places(
    numbers: Numbers, starts: NDArray[np.int64], lengths: NDArray[np.int64], wire: Wire
) -> tuple[Places, int]:
    """Where events begin. Where a batch is not as it should be, each batch is walked on its own."""
    end = len(numbers.data)
    following = wire.following(numbers)
    places = walk(following, 0, end)
    if len(places):
        hit = np.zeros(end + 1, np.bool_)
        hit[places] = True
        hit[end] = following[places[-1]] == end
        if hit[starts[lengths > 0]].all() and hit[end] and wire.known(numbers.data[places]).all():
            return places, 0
    found, damaged = [_NO_PLACES], 0
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        if not length:
            continue
        one = walk(following, start, start + length)
        good = wire.known(numbers.data[one]) & (following[one] <= start + length)
        if not good.all():
            one = one[: int(np.argmin(good))]
            damaged += 1
        found.append(one)
    return np.concatenate(found), damaged
