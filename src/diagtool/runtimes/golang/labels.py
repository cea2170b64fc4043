"""The profiler's labels of goroutines (``pprof.Do``), those of all goroutines together.

Up to Go 1.23 they are a ``map[string]string``, from 1.24 on a slice of pairs of strings
(runtime/pprof/label.go). ``g.labels`` points to it.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64
from diagtool.runtimes.golang.model import GoRuntime

__all__ = ["read_labels"]

Labels = tuple[tuple[str, str], ...]

_FIRST_WITH_SLICES = 24
_MOST = 64  # labels of one goroutine
_MOST_SETS = 200_000
_LONGEST = 256  # bytes of a key or value
_SLOTS = 8  # of a bucket of a map, runtime/map.go
_TOPHASHES = 5  # the first that says that a slot is in use
_PAIR = 32  # bytes of two strings
_BUCKET = _SLOTS + _SLOTS * _PAIR + 8
_MOST_BUCKETS = 64  # of one map


def read_labels(runtime: GoRuntime, addresses: U64) -> dict[int, Labels]:
    """The labels at each address that has some; what can't be read is left out."""
    distinct = np.unique(addresses[addresses != 0])[:_MOST_SETS]
    if not len(distinct):
        return {}
    if runtime.minor >= _FIRST_WITH_SLICES:
        owner, pairs = _of_slices(runtime, distinct)
    else:
        owner, pairs = _of_maps(runtime, distinct)
    if not len(pairs):
        return {}
    texts = _texts(runtime, pairs.reshape(-1, 2))
    out: dict[int, list[tuple[str, str]]] = {}
    for i, address in enumerate(distinct[owner].tolist()):
        key, value = texts[2 * i], texts[2 * i + 1]
        if key:
            out.setdefault(address, []).append((key, value))
    return {address: tuple(sorted(found)) for address, found in out.items()}


def _of_slices(runtime: GoRuntime, sets: U64) -> tuple[NDArray[np.int64], U64]:
    """(which set, four words: key, its length, value, its length) of each pair."""
    heads, ok = runtime.memory.load_block(sets, 16)
    words = heads.view("<u8").reshape(-1, 2)
    count = np.where(ok & (words[:, 1] <= _MOST), words[:, 1], 0).astype(np.int64)
    owner = np.repeat(np.arange(len(sets)), count)
    number = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
    return _pairs(runtime, words[owner, 0] + (number * _PAIR).astype(np.uint64), owner)


def _of_maps(runtime: GoRuntime, sets: U64) -> tuple[NDArray[np.int64], U64]:
    headers, ok = runtime.memory.load(sets)
    counts, fine = runtime.load(headers, "hmap", "count")
    shift, _ = runtime.load(headers, "hmap", "B", "u1")
    buckets, there = runtime.load(headers, "hmap", "buckets")
    sound = np.flatnonzero(ok & fine & there & (counts > 0) & (counts <= _MOST) & (shift <= 6))
    count = np.int64(1) << shift[sound].astype(np.int64)
    owner = np.repeat(sound, count)
    number = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
    at = buckets[owner] + (number * _BUCKET).astype(np.uint64)
    owners: list[NDArray[np.int64]] = []
    places: list[U64] = []
    for _ in range(_MOST_BUCKETS):  # buckets that are full go on in others
        if not len(at):
            break
        block, whole = runtime.memory.load_block(at, _BUCKET)
        used = (block[:, :_SLOTS] >= _TOPHASHES) & whole[:, None]
        row, slot = np.nonzero(used)
        owners.append(owner[row])
        offset = np.uint64(_SLOTS) + slot.astype(np.uint64) * np.uint64(_PAIR // 2)
        places.append(at[row] + offset)
        following = np.ascontiguousarray(block[:, -8:]).view("<u8").reshape(-1)
        more = whole & (following != 0)
        at, owner = following[more], owner[more]
    every = np.concatenate(places) if places else np.zeros(0, np.uint64)
    whose = np.concatenate(owners) if owners else np.zeros(0, np.int64)
    keys, ok = runtime.memory.load_block(every, 16)
    values, fine = runtime.memory.load_block(every + np.uint64(_SLOTS * _PAIR // 2), 16)
    good = ok & fine
    both = np.concatenate([keys, values], axis=1)[good]
    return whose[good], np.ascontiguousarray(both).view("<u8").reshape(-1, 4)


def _pairs(runtime: GoRuntime, at: U64, owner: NDArray[np.int64]) -> tuple[NDArray[np.int64], U64]:
    block, ok = runtime.memory.load_block(at, _PAIR)
    return owner[ok], np.ascontiguousarray(block[ok]).view("<u8").reshape(-1, 4)


def _texts(runtime: GoRuntime, strings: U64) -> list[str]:
    """The text of each string (address, length), cut; "" where it can't be read."""
    distinct, inverse = np.unique(strings, axis=0, return_inverse=True)
    place, size = distinct[:, 0], np.minimum(distinct[:, 1], _LONGEST).astype(np.int64)
    texts = [""] * len(distinct)
    for least, width in ((0, 16), (16, 64), (64, _LONGEST)):
        rows = np.flatnonzero((size > least) & (size <= width))
        _fill(runtime, texts, rows, place[rows], size[rows], width)
    return [texts[i] for i in inverse.reshape(-1).tolist()]


def _fill(
    runtime: GoRuntime,
    texts: list[str],
    rows: NDArray[np.int64],
    place: U64,
    size: NDArray[np.int64],
    width: int,
) -> None:
    block, ok = runtime.memory.load_block(place, width)
    for row, data, length, whole, at in _zipped(rows, block, size, ok, place):
        if not whole:  # the memory behind a short text need not be there
            data = runtime.memory.try_read(at, length) or b""
        texts[row] = data[:length].decode("utf-8", "replace")


def _zipped(
    rows: NDArray[np.int64],
    block: NDArray[np.uint8],
    size: NDArray[np.int64],
    ok: NDArray[np.bool_],
    place: U64,
) -> Iterable[tuple[int, bytes, int, bool, int]]:
    raw = block.tobytes()
    width = block.shape[1]
    for i, row in enumerate(rows.tolist()):
        yield row, raw[i * width : (i + 1) * width], int(size[i]), bool(ok[i]), int(place[i])
