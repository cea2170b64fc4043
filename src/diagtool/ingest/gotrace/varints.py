"""LEB128 numbers in bulk, and the chain of events that are made of them.

An event is a byte for its type and some numbers; how many bytes it has is known only by walking over it. So
for every byte it is computed, with numpy, where the next event would begin if one began there, and then where
the second one would, the fourth … Then 16 events are skipped at a time from the first one on.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Numbers", "number", "walk"]

Bytes = NDArray[np.uint8]
Places = NDArray[np.int32]

#: So many times the skip is doubled: 2**LEVELS events are skipped at once.
LEVELS = 4
#: Bytes of the longest number: 64 bits in sevens.
LONGEST = 10


@dataclass(slots=True)
class Numbers:
    """Where numbers end in ``data``, of at most 1 GiB.

    ``ends``: places of all bytes that end a number, then ``len(data)`` for "there is none". ``before[p]``:
    how many of these are below ``p``; it has ``len(data) + 1`` entries.
    """

    data: Bytes
    ends: Places
    before: Places

    @classmethod
    def of(cls, data: Bytes) -> Numbers:
        last = data < 0x80
        ends = np.append(np.flatnonzero(last), len(data)).astype(np.int32)
        before = np.zeros(len(data) + 1, np.int32)
        np.cumsum(last, out=before[1:], dtype=np.int32)
        return cls(data, ends, before)

    def end(self, starts: NDArray[np.integer], which: int | NDArray[np.integer]) -> Places:
        """The last byte of the number ``which`` (from 0) at or behind ``starts``; ``len(data)``: none."""
        at = self.before[np.minimum(starts, len(self.data))] + which
        return np.asarray(self.ends[np.minimum(at, len(self.ends) - 1)], np.int32)

    def value(self, starts: NDArray[np.integer], which: int = 0) -> NDArray[np.uint64]:
        """The number ``which`` behind each of ``starts``, modulo 2**64; 0 where the data is at its end."""
        last = self.end(starts, which)
        first = starts.astype(np.int32) if which == 0 else self.end(starts, which - 1) + 1
        length = np.minimum(last - first + 1, LONGEST)
        length[last >= len(self.data)] = 0
        out = np.zeros(len(first), np.uint64)
        for place in range(int(length.max(initial=0))):
            rows = np.flatnonzero(length > place)
            part = self.data[first[rows] + place].astype(np.uint64) & np.uint64(0x7F)
            out[rows] |= part << np.uint64(7 * place)
        return out


def walk(following: Places, start: int, end: int) -> Places:
    """From event to event in the bytes from ``start`` to ``end``: where each begins.

    ``following``: for every byte the place behind the event that begins there; larger than it.
    """
    span = np.minimum(following[start:end] - np.int32(start), np.int32(end - start))
    return np.asarray(_chain(np.append(span, np.int32(end - start)), 0) + np.int32(start), np.int32)


def _chain(following: Places, first: int) -> Places:
    """All places that one comes to from ``first`` by ``following``, up to its last entry (not included).

    ``following[p] > p``, and the last entry is itself: there it ends.
    """
    end = len(following) - 1
    jumps = [following]  # one event on, two, four …
    while len(jumps) < LEVELS:
        jumps.append(jumps[-1][jumps[-1]])
    far = array("i", jumps[-1][jumps[-1]].tobytes())
    at, steps = first, array("i")
    add = steps.append
    while at < end:
        add(at)
        at = far[at]
    out: Places = (np.frombuffer(steps, np.int32) if steps else np.zeros(0, np.int32))[:, np.newaxis]
    for jump in reversed(jumps):
        out = np.stack([out, jump[out]], axis=2).reshape(len(out), 2 * out.shape[1])
    out = out.reshape(-1)
    return np.asarray(out[out < end], np.int32)


def number(data: bytes | memoryview, at: int) -> tuple[int, int]:
    """The number at ``at`` and the place behind it. Raises ValueError where it goes on past the end, or is
    longer than any number."""
    value = shift = 0
    for place in range(at, min(at + LONGEST, len(data))):
        byte = data[place]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, place + 1
        shift += 7
    raise ValueError(f"no number at {at}")
