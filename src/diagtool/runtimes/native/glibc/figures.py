"""The figures of mallinfo2(), arena by arena, without walking all blocks.

An arena keeps what it took from the kernel (system_mem) and its top chunk; all other free memory is in its
bins and fast bins, so what is in use is the rest (int_mallinfo in malloc.c). So only lists of free chunks are
followed: all together first, one chunk of each a step. Where some are longer, stretches of the heap are
looked at, spread over it, or all of a small one. They say how many free chunks there may be: if not too many,
the long lists are followed alone; else the figure is an estimate. Chunks in thread caches count as in use, as
in mallinfo2().
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import PAGE, U64, AddressSpace
from diagtool.capture.peek import Peek
from diagtool.runtimes.native.glibc.arenas import NBINS, Arena, Arenas, Shape
from diagtool.runtimes.native.glibc.chunks import MINSIZE, PREV_INUSE, SIZE_BITS, Region, stretch

__all__ = ["ArenaFigures", "How", "figures"]

#: exact: as mallinfo2() says. estimated: from a part of the heap. unknown: what is free could not be found.
How = Literal["exact", "estimated", "unknown"]

_ROUNDS = 200  # steps of all lists together
_MOST_ALONE = 50_000  # chunks of lists that are followed alone
_WINDOW = 256 << 10  # bytes of a stretch
_WHOLE = 256  # stretches of an arena that is looked at whole
_WINDOWS = 96  # of a larger one
_MOST_WINDOWS = 512  # of all arenas together
_AT_ONCE = 32  # of them
_LEAST_SAMPLE = 16  # stretches without which nothing is said, where there are so many
_SIZE = np.uint64(~SIZE_BITS & (1 << 64) - 1)


@dataclass(frozen=True, slots=True)
class ArenaFigures:
    """One arena. Bytes: ``system`` from the kernel; of these ``free`` (in bins, fast bins and ``top``; None
    where that is not known), the rest is in use. ``fast``: in fast bins. ``chunks``: free ones, less the top.
    """

    address: int
    main: bool
    heaps: int
    system: int
    top: int
    how: How
    free: int | None = None
    fast: int | None = None
    chunks: int | None = None

    @property
    def used(self) -> int | None:
        return None if self.free is None else max(self.system - self.free, 0)


@dataclass(slots=True)
class _Lists:
    """Lists being followed, one row each: where each is now, where it came from, what it had."""

    arena: NDArray[np.intp]
    head: U64  # what a bin's list ends with; 0 for a fast bin
    size: U64  # of the chunks of a fast bin; 0 for a bin
    at: U64
    before: U64
    bytes: U64
    chunks: NDArray[np.int64]
    done: NDArray[np.bool_]
    broken: NDArray[np.bool_]


def figures(memory: AddressSpace, peek: Peek, found: Arenas) -> list[ArenaFigures]:
    """The figures of all arenas that were found, in their order."""
    if found.shape is None or not found.arenas:
        return []
    lists = _lists(memory, found.arenas, found.shape)
    bounds = _bounds(found.arenas, found.regions)
    mangled = _mangled(peek, lists, bounds)
    _together(peek, lists, bounds, mangled)
    room = _Room()
    return [
        _of_arena(peek, lists, found, number, bounds, mangled, room) for number in range(len(found.arenas))
    ]


@dataclass(slots=True)
class _Room:
    """What may still be looked at, of all arenas together: there may be hundreds of them."""

    windows: int = _MOST_WINDOWS
    chunks: int = 2 * _MOST_ALONE


def _of_arena(
    peek: Peek, lists: _Lists, found: Arenas, number: int, bounds: U64, mangled: bool, room: _Room
) -> ArenaFigures:
    arena, mine = found.arenas[number], lists.arena == number
    regions = [r for r in found.regions if r.arena == number]
    inside = max(arena.system - arena.top_size, 0)
    sample: _Sample | None = None
    if not lists.done[mine].all():
        sample = _sampled(peek, regions, arena, room)
        few = sample is None or sample.chunks * inside <= _MOST_ALONE * sample.whole
        if few and (sample is None or not sample.complete):
            _alone(peek, lists, number, bounds, mangled, room)
    fast = mine & (lists.size != 0)
    held, chunks = int(lists.bytes[fast].sum()), int(lists.chunks[fast].sum())
    free = int(lists.bytes[mine].sum())
    facts = (arena.address, arena.main, max(1, len(arena.heaps)), arena.system, arena.top_size)
    if mine.any() and lists.done[mine].all() and free <= inside:
        return ArenaFigures(*facts, "exact", free + arena.top_size, held, int(lists.chunks[mine].sum()))
    sample = sample or _sampled(peek, regions, arena, room)
    if sample is None:
        return ArenaFigures(*facts, "unknown")
    # What fast bins hold looks like in use.
    share = 1.0 if sample.complete else inside / sample.whole
    free = min(max(int(sample.free * share) + held, free), inside)
    how: How = "exact" if sample.complete and not lists.broken[fast].any() else "estimated"
    return ArenaFigures(*facts, how, free + arena.top_size, held, int(sample.chunks * share) + chunks)


# -- lists ----------------------------------------------------------------------------------------------


def _lists(memory: AddressSpace, arenas: Sequence[Arena], shape: Shape) -> _Lists:
    addresses: U64 = np.array([a.address for a in arenas], np.uint64)[:, None]
    heads = (
        addresses + np.uint64(shape.bins - 16) + np.arange(NBINS, dtype=np.uint64)[None, :] * np.uint64(16)
    )
    fast = addresses + np.uint64(shape.fast) + np.arange(shape.fast_bins, dtype=np.uint64) * np.uint64(8)
    first, readable = memory.load(heads.reshape(-1) + np.uint64(16))
    quick, there = memory.load(fast.reshape(-1))
    of = np.arange(len(arenas), dtype=np.intp)
    sizes = np.tile(np.arange(shape.fast_bins, dtype=np.uint64) * np.uint64(16) + np.uint64(MINSIZE), len(of))
    none = np.zeros(len(quick), np.uint64)
    at = np.concatenate([first, quick])
    head = np.concatenate([heads.reshape(-1), none])
    good = np.concatenate([readable, there])
    done = good & (at == head)
    return _Lists(
        np.concatenate([np.repeat(of, NBINS), np.repeat(of, shape.fast_bins)]),
        head,
        np.concatenate([np.zeros(len(first), np.uint64), sizes]),
        at,
        head.copy(),
        np.zeros(len(at), np.uint64),
        np.zeros(len(at), np.int64),
        done,
        ~good,
    )


# The lowest and highest place where a chunk of each arena can be.
def _bounds(arenas: Sequence[Arena], regions: Sequence[Region]) -> U64:
    bounds = np.zeros((len(arenas), 2), np.uint64)
    for number, arena in enumerate(arenas):
        own = [(r.start, r.end) for r in regions if r.arena == number]
        low, high = min((s for s, _ in own), default=0), max((e for _, e in own), default=0)
        # The main arena may have mappings of its own anywhere, where the break could not grow.
        bounds[number] = (PAGE, 1 << 47) if arena.main else (low, high)
    return bounds


# Whether links of fast bins are stored as PROTECT_PTR has them (2.32 and later).
def _mangled(peek: Peek, lists: _Lists, bounds: U64) -> bool:
    rows = np.flatnonzero((lists.size != 0) & (lists.at != 0) & ~lists.broken)
    places = lists.at[rows] + np.uint64(16)
    words, ok = peek.words(places)
    votes = []
    for links in (words ^ places >> np.uint64(12), words):
        near = (links >= bounds[lists.arena[rows], 0]) & (links < bounds[lists.arena[rows], 1])
        votes.append(int((ok & ((links == 0) | (near & (links % np.uint64(16) == 0)))).sum()))
    return votes[0] >= votes[1]


def _together(peek: Peek, lists: _Lists, bounds: U64, mangled: bool) -> None:
    for _ in range(_ROUNDS):
        rows = np.flatnonzero(~lists.done & ~lists.broken)
        if not len(rows):
            return
        at = lists.at[rows]
        data, ok = peek(at + np.uint64(8), 24)
        _step(lists, rows, at, np.ascontiguousarray(data).view("<u8"), ok, bounds, mangled)


# One chunk of each list: ``words`` are its size, fd and bk.
def _step(
    lists: _Lists,
    rows: NDArray[np.intp],
    at: U64,
    words: U64,
    ok: NDArray[np.bool_],
    bounds: U64,
    mangled: bool,
) -> None:
    size, forward, back = words[:, 0] & _SIZE, words[:, 1].copy(), words[:, 2]
    fast = lists.size[rows] != 0
    low, high = bounds[lists.arena[rows]].T
    good = ok & (at % np.uint64(16) == 0) & (at >= low) & (at < high)
    good &= (size >= np.uint64(MINSIZE)) & (size <= high - np.minimum(at, high))
    good &= np.where(fast, size == lists.size[rows], back == lists.before[rows])
    if mangled:
        forward[fast] ^= at[fast] + np.uint64(16) >> np.uint64(12)
    lists.broken[rows[~good]] = True
    rows, at, size, forward = rows[good], at[good], size[good], forward[good]
    lists.bytes[rows] += size
    lists.chunks[rows] += 1
    lists.before[rows], lists.at[rows] = at, forward
    lists.done[rows] = forward == lists.head[rows]


# What is long is followed with as little ado as there can be.
def _alone(peek: Peek, lists: _Lists, number: int, bounds: U64, mangled: bool, room: _Room) -> None:
    for row in np.flatnonzero(~lists.done & ~lists.broken & (lists.arena == number)).tolist():
        at, before, head = int(lists.at[row]), int(lists.before[row]), int(lists.head[row])
        fixed, total, count = int(lists.size[row]), int(lists.bytes[row]), int(lists.chunks[row])
        low, high = bounds[lists.arena[row]].tolist()
        while at != head and room.chunks > 0:
            room.chunks -= 1
            raw = peek.one(at + 8, 24) if low <= at < high and not at % 16 else None
            if raw is None:
                break
            size = int.from_bytes(raw[:8], "little") & ~SIZE_BITS
            forward, back = int.from_bytes(raw[8:16], "little"), int.from_bytes(raw[16:], "little")
            if not MINSIZE <= size <= high - at or (size != fixed if fixed else back != before):
                break
            if fixed and mangled:
                forward ^= at + 16 >> 12
            total, count, before, at = total + size, count + 1, at, forward
        lists.bytes[row], lists.chunks[row], lists.done[row] = total, count, at == head
        lists.broken[row] = at != head


# -- samples --------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Sample:
    """Bytes of chunks that were seen, and of those that are free, and their number; whether that was all."""

    whole: int = 0
    free: int = 0
    chunks: int = 0
    complete: bool = True


# Stretches spread evenly over an arena, all of it where it is small. A chunk is of the stretch in which it
# begins, however far it reaches: so large ones count as often as they should.
def _sampled(peek: Peek, regions: Sequence[Region], arena: Arena, room: _Room) -> _Sample | None:
    spans = [(r.start & -PAGE, (arena.top if r.top else r.end), r.start if r.exact else 0) for r in regions]
    spans = [(low, high, first) for low, high, first in spans if high > low]
    if not spans:
        return None
    sizes = np.array([(high - low + _WINDOW - 1) // _WINDOW for low, high, _ in spans], np.int64)
    total = int(sizes.sum())
    wanted = min(total if total <= _WHOLE else _WINDOWS, room.windows)
    room.windows -= wanted
    if wanted < min(total, _LEAST_SAMPLE):
        return None
    number = np.linspace(0, total - 1, wanted).astype(np.int64)
    before = np.cumsum(sizes) - sizes
    of = np.searchsorted(before, number, side="right") - 1
    out = _Sample(complete=len(number) == total)
    ends: list[tuple[int, int]] = []  # size of the last chunk of a stretch, and where the next one begins
    known = 0  # where a chunk is known to begin
    for i in range(0, len(number), _AT_ONCE):
        own, steps = of[i : i + _AT_ONCE].tolist(), (number - before[of])[i : i + _AT_ONCE].tolist()
        starts = [spans[span][0] + step * _WINDOW for span, step in zip(own, steps, strict=True)]
        for start, span, step, raw in zip(starts, own, steps, _windows(peek, starts), strict=True):
            _, high, first = spans[span]
            known = first if not step else known
            if known >= min(start + _WINDOW, high):
                continue  # nothing begins here: a large chunk goes on beyond it
            words = raw.view("<u8")[1::2][: (high - start) // 16]
            sure = start <= known < high
            place, heads = stretch(start, words, high, known if sure else 0)
            size = heads & _SIZE
            known = place + int(size.sum())
            out.complete &= sure and len(heads) > 0
            if len(heads):
                out.whole += int(size.sum())
                unused = heads[1:] & np.uint64(PREV_INUSE) == 0
                out.free += int(size[:-1][unused].sum())
                out.chunks += int(unused.sum())
                ends.append((int(size[-1]), known))
    words, ok = peek.words(np.array([place + 8 for _, place in ends], np.uint64))
    last = ok & (words & np.uint64(PREV_INUSE) == 0)
    out.free += int(np.array([size for size, _ in ends], np.int64)[last].sum())
    out.chunks += int(last.sum())
    enough = out.complete or len(ends) >= _LEAST_SAMPLE
    return out if enough and out.whole else None


def _windows(peek: Peek, starts: Sequence[int]) -> NDArray[np.uint8]:
    pages: U64 = np.array(starts, np.uint64)[:, None] + np.arange(0, _WINDOW, PAGE).astype(np.uint64)
    return peek(pages.reshape(-1), PAGE)[0].reshape(len(starts), _WINDOW)
