"""Chunks that are free though their neighbours think they are in use: fast bins and thread caches.

Both are singly linked lists through the chunks themselves. Since 2.32 the links are mangled (safe-linking,
``PROTECT_PTR`` in malloc.c): the pointer xor the address where it is stored, shifted by 12 bits; whether they
are is found by trying both. A list is followed only through chunks that were found by walking, so a broken
one ends where it breaks, and what was followed before it is bounded by the number of chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64, AddressSpace, Mask
from diagtool.runtimes.native.glibc.arenas import Arena, Shape
from diagtool.runtimes.native.glibc.chunks import MINSIZE, Chunks

__all__ = ["FreeLists", "ThreadCache", "broken_bins", "find_free"]

_Index = NDArray[np.int64]

_HEADER = np.uint64(16)  # bytes between a chunk and what malloc returns


@dataclass(frozen=True, slots=True)
class _CacheShape:
    usable: int  # bytes of tcache_perthread_struct
    entries: int  # bytes before its lists
    small: int  # lists of one size each; the others hold larger chunks of several sizes


# tcache_perthread_struct: counts were bytes up to 2.29, are uint16_t since 2.30; 12 more lists since 2.42.
_CACHE_SHAPES = (_CacheShape(760, 152, 64), _CacheShape(640, 128, 64), _CacheShape(576, 64, 64))
_MOST_TLS = 64 << 10  # bytes below the thread pointer where the variable ``tcache`` is looked for
_VOTERS = 32  # threads that are asked for that distance
_MOST_LOOKED_AT = 10_000  # blocks that may be a thread cache by their size
_MOST_STEPS = 1 << 16  # of one list of a thread cache: glibc.malloc.tcache_count is a uint16_t


@dataclass(frozen=True, slots=True)
class ThreadCache:
    """A tcache_perthread_struct: where it is, whose it is (None where unknown), how many chunks it holds."""

    address: int
    tid: int | None
    chunks: int


@dataclass(slots=True)
class FreeLists:
    """Numbers of chunks (rows of Chunks) in fast bins and thread caches."""

    fast: _Index
    cached: _Index
    caches: list[ThreadCache] = field(default_factory=list)
    #: Rows of the thread caches' own chunks.
    holders: _Index = field(default_factory=lambda: np.zeros(0, np.int64))
    mangled: bool = True
    warnings: list[str] = field(default_factory=list)


def find_free(
    memory: AddressSpace,
    chunks: Chunks,
    arenas: Sequence[Arena],
    shape: Shape,
    threads: Sequence[tuple[int, int]],
) -> FreeLists:
    """What fast bins and thread caches hold. ``threads``: (tid, thread pointer) of each, 0 where unknown."""
    caches = _thread_caches(memory, chunks, threads)
    heads = [_fast_heads(memory, arena, shape) for arena in arenas]
    fast_heads: U64 = np.concatenate([np.zeros(0, np.uint64), *heads])
    starts: U64 = np.concatenate([np.zeros(0, np.uint64), *(c.heads for c in caches)])
    out = FreeLists(np.zeros(0, np.int64), np.zeros(0, np.int64))
    out.mangled = _are_mangled(memory, chunks, np.concatenate([fast_heads + _HEADER, starts]))
    out.fast = _follow_fast(memory, chunks, fast_heads, out)
    out.cached, counts = _follow_caches(memory, chunks, caches, out)
    rows = chunks_at(chunks, np.array([c.address for c in caches], dtype=np.uint64) - _HEADER)
    out.holders = rows
    out.caches = [ThreadCache(c.address, c.tid, n) for c, n in zip(caches, counts, strict=True)]
    return out


def chunks_at(chunks: Chunks, addresses: U64) -> _Index:
    """The rows of the chunks that begin at the addresses, -1 where none does."""
    if not len(chunks):
        return np.full(len(addresses), -1, dtype=np.int64)
    at = np.searchsorted(chunks.address, addresses)
    at[at == len(chunks)] = 0
    rows: _Index = np.where(chunks.address[at] == addresses, at, -1).astype(np.int64)
    return rows


def broken_bins(memory: AddressSpace, chunks: Chunks, free: Mask) -> _Index:
    """Rows of free chunks whose neighbours in their list do not point back: damaged, or being moved."""
    rows = np.flatnonzero(free)
    links, ok = memory.load(chunks.address[rows][:, None] + np.array([16, 24], dtype=np.uint64))
    back, there = memory.load(links + np.array([24, 16], dtype=np.uint64))
    sound = ok & there & (back == chunks.address[rows][:, None])
    broken: _Index = rows[~sound.all(axis=1)]
    return broken


# -- links ----------------------------------------------------------------------------------------------


def _links(memory: AddressSpace, places: U64, mangled: bool) -> tuple[U64, Mask]:
    words, ok = memory.load(places)
    return (words ^ (places >> np.uint64(12)) if mangled else words), ok


# Which reading of the links of the lists' first chunks makes sense: an end, or an aligned place in a heap.
def _are_mangled(memory: AddressSpace, chunks: Chunks, places: U64) -> bool:
    if not len(chunks):
        return True
    low, high = chunks.address[0], chunks.address[-1]
    votes = []
    for mangled in (True, False):
        links, ok = _links(memory, places, mangled)
        sound = (links == 0) | ((links % np.uint64(16) == 0) & (links >= low) & (links <= high + _HEADER))
        votes.append(int((ok & sound).sum()))
    return votes[0] >= votes[1]


# -- fast bins ------------------------------------------------------------------------------------------


def _fast_heads(memory: AddressSpace, arena: Arena, shape: Shape) -> U64:
    places = np.arange(shape.fast_bins, dtype=np.uint64) * np.uint64(8) + np.uint64(
        arena.address + shape.fast
    )
    heads, ok = memory.load(places)
    some: U64 = heads[ok & (heads != 0)]
    return some


# Lists may hold a million chunks, so they are followed by doubling: all that is reached in 1, 2, 4 … steps.
def _follow_fast(memory: AddressSpace, chunks: Chunks, heads: U64, out: FreeLists) -> _Index:
    first = chunks_at(chunks, heads)
    lost = int((first < 0).sum())
    first = np.unique(first[first >= 0])
    if not len(first):
        if lost:
            out.warnings.append(
                f"{lost} fast bins lead to where there is no chunk: what they hold counts as used"
            )
        return first
    rows = np.flatnonzero(chunks.used & np.isin(chunks.size, np.unique(chunks.size[first])))
    links, _ = _links(memory, chunks.address[rows] + _HEADER, out.mangled)
    following = chunks_at(chunks, links)
    same = (following >= 0) & (chunks.size[following] == chunks.size[rows])
    end = len(rows)
    jump = np.full(end + 1, end, dtype=np.int64)
    at = np.searchsorted(rows, following[same])
    at[at == end] = 0
    jump[:end][same] = np.where(rows[at] == following[same], at, end)
    in_list = np.zeros(end + 1, dtype=np.bool_)
    in_list[np.searchsorted(rows, first[chunks.used[first]])] = True
    in_list[end] = False
    last = jump[:end] == end
    for _ in range(end.bit_length()):
        in_list[jump[in_list]] = True
        in_list[end] = False
        jump = jump.take(jump)
    ends = in_list[:end] & last & (links != 0)
    if ends.any() or lost:
        where = int(chunks.address[rows[ends]][0]) if ends.any() else int(heads[0])
        out.warnings.append(
            f"{int(ends.sum()) + lost} fast bins are broken, the first one at {where:#x}: "
            "what they hold beyond counts as used"
        )
    return rows[in_list[:end]]


# -- thread caches --------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Cache:
    address: int  # of tcache_perthread_struct
    tid: int | None
    shape: _CacheShape
    heads: U64  # of lists that are not empty: what malloc would return
    sizes: U64  # of the chunks of each; 0: several


# The variable ``tcache`` is in static TLS, at the same distance from each thread pointer: the distance where
# most threads have a pointer to what can be a cache. Where no thread pointer is known, by looks alone.
def _thread_caches(memory: AddressSpace, chunks: Chunks, threads: Sequence[tuple[int, int]]) -> list[_Cache]:
    steps = np.arange(8, _MOST_TLS, 8, dtype=np.uint64)
    known = [(tid, pointer) for tid, pointer in threads if pointer > _MOST_TLS and pointer % 8 == 0]
    places: U64 = np.array([pointer for _, pointer in known[:_VOTERS]], dtype=np.uint64)[:, None] - steps
    words = np.zeros(places.shape, dtype=np.uint64)
    there = memory.mapped(places.reshape(-1), 8).reshape(places.shape)  # dead stack needs no reading
    words[there] = memory.load(places[there])[0]
    by_place: dict[int, _Cache] = {}
    for shape in _CACHE_SHAPES:
        size = (shape.usable + 8 + 15) & -16
        fits = chunks.used & ((chunks.size == np.uint64(size)) | (chunks.size == np.uint64(size + 16)))
        rows = np.flatnonzero(fits)
        if len(rows) > _MOST_LOOKED_AT:  # blocks of the program that are as large: only what threads point to
            rows = rows[np.isin(chunks.address[rows] + _HEADER, words)]
        for cache in _looking_like(memory, chunks, rows[:_MOST_LOOKED_AT], shape):
            by_place.setdefault(cache.address, cache)
    if not by_place:
        return []
    lists = {address: len(cache.heads) for address, cache in by_place.items()}
    hits = np.isin(words, np.array(sorted(by_place), dtype=np.uint64))
    if not hits.any():
        return [c for c in by_place.values() if len(c.heads)]
    # Of several distances the one that most threads share; of these the one with most lists.
    columns = np.flatnonzero(hits.any(axis=0)).tolist()
    best = max(columns, key=lambda i: (hits[:, i].sum(), sum(lists.get(a, 0) for a in words[:, i].tolist())))
    pointers = np.array([pointer for _, pointer in known], dtype=np.uint64)
    for (tid, _), address in zip(known, memory.load(pointers - steps[best])[0].tolist(), strict=True):
        if address in by_place:
            by_place[address].tid = tid
    return [c for c in by_place.values() if c.tid is not None or len(c.heads) > 1]


# Those of the chunks that may be a cache: each list is empty, or its first chunk is one of the right size.
def _looking_like(memory: AddressSpace, chunks: Chunks, rows: _Index, shape: _CacheShape) -> list[_Cache]:
    if not len(rows):
        return []
    lists = (shape.usable - shape.entries) // 8
    sizes = np.arange(lists, dtype=np.uint64) * np.uint64(16) + np.uint64(MINSIZE)
    sizes[shape.small :] = 0
    places = chunks.address[rows] + _HEADER
    heads, ok = memory.load(places[:, None] + np.arange(shape.entries, shape.usable, 8, dtype=np.uint64))
    aligned = (heads % np.uint64(16) == 0).all(axis=1) & ok.all(axis=1)
    rows, places, heads = rows[aligned], places[aligned], heads[aligned]
    first = chunks_at(chunks, (heads - _HEADER).reshape(-1)).reshape(heads.shape)
    right = (first >= 0) & chunks.used[first]
    right &= (chunks.size[first] == sizes) | ((sizes == 0) & (chunks.size[first] > np.uint64(1040)))
    good = ((heads == 0) | right).all(axis=1)
    out = []
    for i in np.flatnonzero(good).tolist():
        some = heads[i] != 0
        out.append(_Cache(int(places[i]), None, shape, heads[i][some], sizes[some]))
    return out


# (rows in the caches, how many of each cache). All lists at once, one chunk of each a step.
def _follow_caches(
    memory: AddressSpace, chunks: Chunks, caches: list[_Cache], out: FreeLists
) -> tuple[_Index, list[int]]:
    counts = [0] * len(caches)
    if not caches:
        return np.zeros(0, np.int64), counts
    here: U64 = np.concatenate([c.heads for c in caches])
    sizes: U64 = np.concatenate([c.sizes for c in caches])
    owner = np.repeat(np.arange(len(caches)), [len(c.heads) for c in caches])
    taken = np.zeros(len(chunks), dtype=np.bool_)
    broken: list[int] = []
    for _ in range(_MOST_STEPS):
        if not len(here):
            break
        rows = chunks_at(chunks, here - _HEADER)
        good = (rows >= 0) & ((chunks.size[rows] == sizes) | (sizes == 0)) & chunks.used[rows]
        good &= ~taken[rows]
        # One chunk in two lists at the same time is taken once.
        good[good] = np.isin(np.arange(int(good.sum())), np.unique(rows[good], return_index=True)[1])
        broken.extend(here[~good].tolist())
        taken[rows[good]] = True
        for number, n in zip(*np.unique(owner[good], return_counts=True), strict=True):
            counts[int(number)] += int(n)
        links, ok = _links(memory, here[good], out.mangled)
        on = ok & (links != 0)
        here, sizes, owner = links[on], sizes[good][on], owner[good][on]
    if broken:
        out.warnings.append(
            f"{len(broken)} lists of thread caches are broken, the first one at {broken[0]:#x}: "
            "what they hold beyond counts as used"
        )
    return np.flatnonzero(taken), counts
