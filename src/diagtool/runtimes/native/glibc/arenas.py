"""Arenas (struct malloc_state) found without symbols, and the memory that each of them manages.

The main arena is in the data of the C library: 127 bins, each an empty list that points to itself or a list
of chunks that point back, with the top chunk two words before them. The others stand at the start of heaps,
64 MiB aligned, right behind a ``heap_info`` (arena.c). All of them form a ring. Where ``next``, ``top`` and
the fast bins are in the structure follows from that ring and the bins, not from a version: 2.28 to 2.42 have
ten fast bins before ``top``, 2.43 none; heap_info grew from 32 to 48 bytes with 2.35.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from diagtool.capture.memory import PAGE, U64, AddressSpace
from diagtool.capture.model import Mapping
from diagtool.runtimes.native.glibc.chunks import MINSIZE, SIZE_BITS, Region

__all__ = ["Arena", "Arenas", "HeapInfo", "Shape", "find_arenas"]

HEAP_MAX = 64 << 20  # HEAP_MAX_SIZE in arena.c: twice DEFAULT_MMAP_THRESHOLD_MAX
NBINS = 127
_BIN_BYTES = 16 * NBINS
_BINMAP = 16  # bytes
_INFO_SIZES = (32, 48)  # of heap_info
_USUAL = (0x70, 0x18)  # bytes of malloc_state before its bins: up to 2.42, since 2.43
_LEAST_EMPTY = 20  # bins that must point to themselves: large ones mostly do
_MOST_BEFORE = 0x100  # bytes of malloc_state before its bins, at most
_MAX_ARENAS = 1 << 14
_MAX_TRIES = 64  # places that look like bins; there is one arena a namespace of the dynamic linker (16)
_SHORT_RING = 256  # arenas that a ring of an unusual shape may have
_NONCONTIGUOUS = 2
_WORD = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Shape:
    """Where things are in struct malloc_state, in bytes from its start."""

    bins: int
    next: int

    @property
    def top(self) -> int:
        return self.bins - 16

    @property
    def fast(self) -> int:
        """The first fast bin."""
        return 16

    @property
    def fast_bins(self) -> int:
        """How many fast bins there are: 10, from 2.43 on 0."""
        return max(0, (self.top - self.fast) // 8)

    @property
    def system(self) -> int:
        """system_mem, behind next, next_free and attached_threads."""
        return self.next + 24

    @property
    def size(self) -> int:
        return self.next + 40


@dataclass(frozen=True, slots=True)
class HeapInfo:
    """One heap of an arena that is not the main one: its header, and the bytes that are in use of it."""

    address: int
    arena: int
    prev: int
    size: int


@dataclass(slots=True)
class Arena:
    """One struct malloc_state. ``top_size`` is 0 where its header can't be read or can't be right."""

    address: int
    main: bool
    top: int = 0
    top_size: int = 0
    system: int = 0  # bytes it took from the kernel
    locked: bool = False  # somebody is changing it
    contiguous: bool = True
    heaps: list[HeapInfo] = field(default_factory=list)


@dataclass(slots=True)
class Arenas:
    """All arenas, the main one first, and the regions of memory that they manage."""

    shape: Shape | None
    arenas: list[Arena] = field(default_factory=list)
    regions: list[Region] = field(default_factory=list)
    #: Ranges that belong to malloc: its heaps as a whole, the arenas in them as well.
    claimed: list[tuple[int, int]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def find_arenas(memory: AddressSpace, mappings: Sequence[Mapping], data: Sequence[tuple[int, int]]) -> Arenas:
    """The arenas of a process. ``data``: ranges of the writable data of modules, the C library's first."""
    spans = _Spans(mappings)
    infos = list(_heap_infos(memory, spans))
    found = Arenas(None)
    mains: list[tuple[int, Shape]] = []
    for bins in _bins(memory, data):
        main = _main(memory, bins)
        if main is not None and all(main[0] != address for address, _ in mains):
            mains.append(main)
    if mains:
        found.shape = mains[0][1]
    elif infos:
        found.shape = _shape_of(memory, infos)
        found.warnings.append(
            "glibc's main arena was not found in the data of the C library: only the heaps of the other "
            "arenas are read"
        )
    if found.shape is None:
        return found
    shape = found.shape
    members = dict.fromkeys((address for address, _ in mains), True)
    for address, own in mains:
        for other in _ring(memory, address, own, found.warnings):
            members.setdefault(other, False)
    for info in infos:
        if info.arena not in members:
            members[info.arena] = False
            if mains:
                found.warnings.append(
                    f"the arena at {info.arena:#x} has a heap but is not in the ring of arenas: it is "
                    "being made, or the ring is broken"
                )
    for address, is_main in members.items():
        arena = _read(memory, address, shape, is_main)
        if arena is None:
            found.warnings.append(f"the arena at {address:#x} can't be read")
            continue
        arena.heaps = sorted((i for i in infos if i.arena == address), key=lambda i: i.address)
        number = len(found.arenas)
        found.arenas.append(arena)
        if is_main:
            _main_regions(memory, arena, number, spans, data, found)
        else:
            _heap_regions(memory, arena, number, shape, found)
    return found


class _Spans:
    """Private writable memory, neighbouring mappings joined; what belongs to a file stays apart."""

    def __init__(self, mappings: Sequence[Mapping]) -> None:
        self.spans: list[tuple[int, int]] = []
        before = False
        for m in sorted(mappings, key=lambda m: m.start):
            if not m.permissions.startswith("rw") or not m.permissions.endswith("p"):
                continue
            mine = m.path.startswith("/") and not m.path.startswith("/anon_hugepage")
            if self.spans and not mine and not before and self.spans[-1][1] == m.start:
                self.spans[-1] = (self.spans[-1][0], m.end)
            else:
                self.spans.append((m.start, m.end))
            before = mine
        self.starts = [start for start, _ in self.spans]

    def holding(self, address: int) -> tuple[int, int] | None:
        i = bisect_right(self.starts, address) - 1
        return self.spans[i] if i >= 0 and address < self.spans[i][1] else None


# -- heaps of other arenas ------------------------------------------------------------------------------


# Heaps begin where an address is 64 MiB aligned; their arena is in the first heap, right behind its header.
def _heap_infos(memory: AddressSpace, spans: _Spans) -> Iterator[HeapInfo]:
    places = [
        np.arange((start + HEAP_MAX - 1) & -HEAP_MAX, end, HEAP_MAX, dtype=np.uint64)
        for start, end in spans.spans
        if end - start <= _MAX_ARENAS * HEAP_MAX  # more are the shadow of a sanitizer, or somebody's cage
    ]
    at: U64 = np.concatenate([np.zeros(0, dtype=np.uint64), *places])
    fields: U64 = np.array([0, 8, 16, 24], dtype=np.uint64)
    words, ok = memory.load(at[:, None] + fields)
    arena, prev, size, committed = words.T if len(at) else np.zeros((4, 0), np.uint64)
    good = ok.all(axis=1) & (size >= 64) & (size <= committed) & (committed <= HEAP_MAX)
    good &= committed % PAGE == 0
    first = arena & np.uint64(-HEAP_MAX & _WORD)
    good &= np.isin(arena - first, np.array(_INFO_SIZES, dtype=np.uint64)) & np.isin(first, at)
    good &= (prev == 0) == (first == at)
    good &= (prev == 0) | np.isin(prev, at)
    for i in np.flatnonzero(good).tolist():
        yield HeapInfo(int(at[i]), int(arena[i]), int(prev[i]), int(size[i]))


def _heap_regions(memory: AddressSpace, arena: Arena, number: int, shape: Shape, found: Arenas) -> None:
    for info in arena.heaps:
        end = info.address + info.size
        header = arena.address & HEAP_MAX - 1
        first = info.address + header
        if info.prev == 0:
            first = (arena.address + shape.size + 15) & -16
        has_top = info.address <= arena.top < end
        found.regions.append(Region(first, end, number, arena.top if has_top else 0))
        found.claimed.append((info.address, min(info.address + HEAP_MAX, max(end, info.address + PAGE))))
    if not arena.heaps:
        found.warnings.append(
            f"the arena at {arena.address:#x} has no heap that can be recognised: its blocks are not read"
        )


# -- the main arena -------------------------------------------------------------------------------------


# Addresses of ``bins`` in the given ranges, the likeliest first.
def _bins(memory: AddressSpace, data: Sequence[tuple[int, int]]) -> Iterator[int]:
    tries = 0
    for span in data:
        selves = []
        for start, words in memory.blocks([span], step=64 << 20):
            own = np.arange(len(words), dtype=np.uint64) * np.uint64(8) + np.uint64(start - 16)
            same = words[:-1] == own[:-1]
            same &= words[1:] == own[:-1]
            selves.append(own[:-1][same] + np.uint64(16))
        at: U64 = np.concatenate([np.zeros(0, np.uint64), *selves])
        # Self-pointing pairs at distances that are multiples of 16, within the length of ``bins``.
        for part in (at[at % np.uint64(16) == 0], at[at % np.uint64(16) == 8]):
            ends = np.searchsorted(part, part + np.uint64(_BIN_BYTES))
            many = np.flatnonzero(ends - np.arange(len(part)) >= _LEAST_EMPTY)
            i = 0
            while i < len(many) and tries < _MAX_TRIES:
                tries += 1
                near = part[many[i] : ends[many[i]]]
                base = _first_bin(memory, near)
                beyond = near[-1] if base is None else np.uint64(base + _BIN_BYTES - 1)
                if base is not None:
                    yield base
                i = int(np.searchsorted(part[many], beyond, side="right"))


# The first bins may hold chunks, so where they begin is tried: all must be lists that point back, before them
# is the top chunk, behind them a map with a bit for each of them and the next arena.
def _first_bin(memory: AddressSpace, selves: U64) -> int | None:
    first, last = int(selves[0]), int(selves[-1])
    best, chosen = 0, None
    for base in range(first, last + 16 - _BIN_BYTES - 16, -16):
        words, ok = memory.load(np.arange(base, base + _BIN_BYTES, 8, dtype=np.uint64))
        if not ok.all():
            break
        head = np.arange(base - 16, base - 16 + _BIN_BYTES, 16, dtype=np.uint64)
        forward, back = words[0::2], words[1::2]
        empty = (forward == head) & (back == head)
        pointing = (forward % np.uint64(16) == 0) & (back % np.uint64(16) == 0) & ~empty
        there = memory.load(forward + np.uint64(24))[0] == head
        there |= memory.load(back + np.uint64(16))[0] == head
        score = int(empty.sum()) + int((pointing & there).sum())
        top = memory.try_read(base - 16, 8)
        if top is None or score < NBINS - 8:
            continue
        place = int.from_bytes(top, "little")
        score += 4 * (place % 16 == 0 and memory.try_read(place, 16) is not None)
        following = _word(memory, base + _BIN_BYTES + _BINMAP) or 0
        score += 8 * (base - following in _USUAL or following % HEAP_MAX in _INFO_SIZES)
        if score > best:
            best, chosen = score, base
    return chosen


# (address, shape) of the arena that has these bins: ``next`` leads back to its start, through others or not.
def _main(memory: AddressSpace, bins: int) -> tuple[int, Shape] | None:
    after = bins + _BIN_BYTES
    for slot in range(after, after + 0x40, 8):
        target = _word(memory, slot)
        if not target or target % 8:
            continue
        if bins - _MOST_BEFORE <= target < bins - 16:
            return target, Shape(bins - target, slot - target)
    # Others in between: the offset of ``next`` is what brings all of them together.
    for slot in range(after, after + 0x40, 8):
        for start in (*(bins - before for before in _USUAL), *range(bins - 24, bins - _MOST_BEFORE, -8)):
            shape = Shape(bins - start, slot - start)
            most = _MAX_ARENAS if bins - start in _USUAL else _SHORT_RING
            ring = list(_ring(memory, start, shape, [], most))
            if ring and (_word(memory, ring[-1] + shape.next) or 0) == start:
                return start, shape
    # A ring that is broken: the place that it has in all versions known.
    for before in _USUAL:
        at, shape = bins - before, Shape(before, before + _BIN_BYTES + _BINMAP)
        other = _word(memory, at + shape.next)
        if other and other % HEAP_MAX in _INFO_SIZES:
            return at, shape
    return None


# The arenas that follow ``address`` in its ring. All but a main one stand behind the header of a heap.
def _ring(
    memory: AddressSpace, address: int, shape: Shape, warnings: list[str], most: int = _MAX_ARENAS
) -> Iterator[int]:
    seen = {address}
    here = address
    for _ in range(most):
        following = _word(memory, here + shape.next)
        if following == address:
            return
        if following is None or following in seen or following % HEAP_MAX not in _INFO_SIZES:
            warnings.append(f"the ring of arenas is broken behind the arena at {here:#x}")
            return
        if _word(memory, following - following % HEAP_MAX) != following:
            warnings.append(f"the ring of arenas leads to {following:#x}, where there is none")
            return
        seen.add(following)
        yield following
        here = following


# Without a main arena: an arena in a heap has its bins where 20 of them point to themselves.
def _shape_of(memory: AddressSpace, infos: Sequence[HeapInfo]) -> Shape | None:
    for before in _USUAL:
        for info in infos:
            bins = info.arena + before
            head = np.arange(bins - 16, bins - 16 + _BIN_BYTES, 16, dtype=np.uint64)
            words, ok = memory.load(head + np.uint64(16))
            if int((ok & (words == head)).sum()) >= _LEAST_EMPTY:
                return Shape(before, before + _BIN_BYTES + _BINMAP)
    return None


def _read(memory: AddressSpace, address: int, shape: Shape, main: bool) -> Arena | None:
    raw = memory.try_read(address, shape.size)
    if raw is None:
        return None
    words = np.frombuffer(raw[: len(raw) & -8], dtype="<u8")
    arena = Arena(address, main)
    lock, flags = (int(v) for v in np.frombuffer(raw[:8], dtype="<u4"))
    arena.locked, arena.contiguous = lock != 0, not flags & _NONCONTIGUOUS
    arena.top, arena.system = int(words[shape.top // 8]), int(words[shape.system // 8])
    size = _word(memory, arena.top + 8)
    if size is not None and arena.top % 16 == 0 and size & ~SIZE_BITS >= MINSIZE and size & 10 == 0:
        arena.top_size = size & ~SIZE_BITS
    return arena


# The break grows upwards, so its heap ends with the top; it begins ``system_mem`` bytes before that end, or,
# where the kernel gave mappings instead, each of these is a region of its own.
def _main_regions(
    memory: AddressSpace,
    arena: Arena,
    number: int,
    spans: _Spans,
    data: Sequence[tuple[int, int]],
    found: Arenas,
) -> None:
    span = spans.holding(arena.top)
    if span is None:
        found.warnings.append(f"the main arena's top chunk, at {arena.top:#x}, is not in writable memory")
        return
    low = max([span[0], *(end for start, end in data if start <= span[0] < end)])
    end = arena.top + arena.top_size
    if not arena.top_size or end > span[1] or end % 16:
        found.warnings.append(
            f"the size of the main arena's top chunk, at {arena.top:#x}, can't be right: "
            f"{_hex(_word(memory, arena.top + 8))}"
        )
        arena.top_size = span[1] - arena.top
        end = span[1]
    start, exact = low, False
    for guess in (end - arena.system, low, low + 8):
        if low <= guess < arena.top and guess % 8 == 0:
            head = _word(memory, (guess + 15 & -16) + 8)
            size = (head or 0) & ~SIZE_BITS
            if head and head & 1 and head & 10 == 0 and MINSIZE <= size <= arena.top - guess:
                start, exact = guess + 15 & -16, True
                break
    if start == arena.top:
        exact = True
    found.regions.append(Region(start, end, number, arena.top, exact))
    found.claimed.append((start, end))


def _word(memory: AddressSpace, address: int) -> int | None:
    raw = memory.try_read(address, 8) if 0 < address < _WORD - 8 else None
    return None if raw is None else int.from_bytes(raw, "little")


def _hex(value: int | None) -> str:
    return "not readable" if value is None else f"{value:#x}"
