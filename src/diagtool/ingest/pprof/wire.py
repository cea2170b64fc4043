"""Protobuf's wire format, as far as profiles need it: fields of a message, and packed numbers.

https://protobuf.dev/programming-guides/encoding/. There is no dependency on a library for it: what takes time
is a million numbers, which numpy reads at once, and what is left of the format is what stands here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

__all__ = ["BYTES", "NUMBER", "WireError", "fields", "inner", "number", "numbers", "signed"]

#: Wire types. Others are of fixed length (1, 5), or of groups, which nobody writes any more.
NUMBER, BYTES = 0, 2
_FIXED = {1: 8, 5: 4}
_MOST_BYTES = 10  # of a number


class WireError(ValueError):
    """Bytes that are no message; ``str()`` says why, as part of a sentence."""


def number(data: bytes, at: int) -> tuple[int, int]:
    """The number (64 bits, unsigned) at ``at``, and where it ends. Raises WireError."""
    value = shift = 0
    for end in range(at, min(at + _MOST_BYTES, len(data))):
        byte = data[end]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, end + 1
        shift += 7
    raise WireError("a number has no end")


def signed(value: int) -> int:
    """A number of 64 bits as one with a sign."""
    return value - (1 << 64) if value >> 63 else value


def fields(data: bytes, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, int, int, int]]:
    """The fields of the message ``data[start:stop]``: (field, wire type, value, end).

    Of a NUMBER ``value`` is what it says; of any other field ``data[value:end]`` is what it holds.
    Raises WireError where the message is damaged; fields before that were given.
    """
    at, stop = start, len(data) if stop is None else stop
    while at < stop:
        key = data[at]
        at += 1
        if key >= 0x80:
            key, at = number(data, at - 1)
        field, wire = key >> 3, key & 7
        if wire == BYTES:
            length, at = (data[at], at + 1) if at < stop and data[at] < 0x80 else number(data, at)
            end = at + length
            value = at
        elif wire == NUMBER:
            value, end = (data[at], at + 1) if at < stop and data[at] < 0x80 else number(data, at)
        elif wire in _FIXED:
            value, end = at, at + _FIXED[wire]
        else:
            raise WireError(f"a field of wire type {wire}")
        if not field:
            raise WireError("a field without a number")
        if end > stop:
            raise WireError("a field goes on behind the end")
        yield field, wire, value, end
        at = end


def inner(data: bytes, start: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
    """:func:`fields` of a message within another; of a damaged one those before the damage."""
    with suppress(WireError):
        yield from fields(data, start, stop)


def numbers(pieces: Sequence[bytes]) -> tuple[NDArray[np.uint64], NDArray[np.intp]]:
    """All numbers of packed fields, one after the other, and where those of each piece begin.

    The second array has one entry more than there are pieces: where the last one's end. Raises WireError.
    """
    sizes = np.fromiter(map(len, pieces), np.intp, len(pieces))
    ends = np.cumsum(sizes)
    data = np.frombuffer(b"".join(pieces), np.uint8)
    last = np.flatnonzero(data < 0x80)  # of each number
    if (data[ends[sizes > 0] - 1] >= 0x80).any():
        raise WireError("a number has no end")
    begin = np.concatenate([np.zeros(min(1, len(last)), np.intp), last[:-1] + 1])
    length = last - begin + 1
    if length.max(initial=0) > _MOST_BYTES:
        raise WireError("a number has no end")
    values = np.zeros(len(last), np.uint64)
    for step in range(int(length.max(initial=0))):
        longer = np.flatnonzero(length > step)
        part = (data[begin[longer] + step] & 0x7F).astype(np.uint64)
        values[longer] |= part << np.uint64(7 * step)
    starts = np.concatenate([[0], np.searchsorted(last, ends, side="left")]).astype(np.intp)
    return values, starts
