"""Heaps of glibc's malloc written byte by byte, as one of its versions would, for tests of their reader."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import numpy as np

from diagtool.capture.memory import AddressSpace, Segment
from diagtool.capture.model import Mapping

PAGE = 4096
LIBC, BREAK, HEAPS, STACK, BIG = (
    0x7F11_0000_0000,
    0x5555_0000_0000,
    0x7F00_0000_0000,
    0x7FFF_0000_0000,
    0x7F22_0000_0000,
)
HEAP_MAX = 64 << 20
USED, FREE, FAST, CACHED = "used", "free", "fast", "cached"


@dataclass(frozen=True)
class Version:
    """What differs between versions of glibc."""

    name: str
    bins: int  # offset in malloc_state
    info: int  # bytes of heap_info
    count: int  # bytes of a count in the thread cache
    lists: int
    mangled: bool
    short: int = 0  # bytes that are missing from the size of an mmapped chunk

    @property
    def next(self) -> int:
        return self.bins + 254 * 8 + 16

    @property
    def cache_chunk(self) -> int:
        return ((self.count + 8) * self.lists + 8 + 15) & -16


VERSIONS = [
    Version("2.28", 0x70, 32, 1, 64, False),
    Version("2.31", 0x70, 32, 2, 64, False),
    Version("2.32", 0x70, 32, 2, 64, True),
    Version("2.36", 0x70, 48, 2, 64, True),
    Version("2.42", 0x70, 48, 2, 76, True),
    Version("2.43", 0x18, 48, 2, 76, True, 16),
]


class Bytes:
    """One mapping that is being written."""

    def __init__(self, start: int, size: int, path: str = "") -> None:
        self.start, self.path = start, path
        self.data = bytearray(size)

    @property
    def end(self) -> int:
        return self.start + len(self.data)

    def put(self, address: int, *words: int) -> None:
        data = struct.pack(f"<{len(words)}Q", *(w & (1 << 64) - 1 for w in words))
        self.data[address - self.start : address - self.start + len(data)] = data

    def get(self, address: int) -> int:
        return int.from_bytes(self.data[address - self.start : address - self.start + 8], "little")


@dataclass
class MadeArena:
    """One arena: its structure, its heap, and what was put where: (address of the block, size, state)."""

    address: int
    state: Bytes
    heap: Bytes
    first: int
    blocks: list[tuple[int, int, str]] = field(default_factory=list)
    top: int = 0
    top_size: int = 0


class Heap:
    """A process with a heap. Add arenas, then ask for ``memory()`` and ``mappings()``."""

    def __init__(self, version: Version = VERSIONS[3]) -> None:
        self.version = version
        self.data = Bytes(LIBC, 4 * PAGE, "/lib/libc.so.6")
        self.stack = Bytes(STACK, 2 * PAGE, "[stack]")
        self.ranges = [self.data, self.stack]
        self.arenas: list[MadeArena] = []
        self.thread = STACK + 0x1800  # the thread pointer
        self.cache = 0
        self.stack.put(self.thread, self.thread)  # tcbhead_t.tcb

    def main(self, chunks: list[tuple[int, str]], top: int = 0x800, address: int = LIBC + 0xC60) -> MadeArena:
        """The main arena with chunks of these (size, state) on the break, a thread cache before them."""
        size = sum(s for s, _ in chunks) + self.version.cache_chunk + top
        heap = Bytes(BREAK, (size + PAGE - 1) & -PAGE, "[heap]")
        self.ranges.append(heap)
        return self._arena(MadeArena(address, self.data, heap, BREAK), chunks, True)

    def other(self, chunks: list[tuple[int, str]], top: int = 0x800) -> MadeArena:
        """Another arena in a heap of its own."""
        start = HEAPS + len(self.arenas) * HEAP_MAX
        address = start + self.version.info
        first = (address + self.version.next + 40 + 15) & -16
        size = (first - start + sum(s for s, _ in chunks) + top + PAGE - 1) & -PAGE
        heap = Bytes(start, size)
        heap.put(start, address, 0, size, size)
        self.ranges.append(heap)
        return self._arena(MadeArena(address, heap, heap, first), chunks, False)

    def more(self, arena: MadeArena, chunks: list[tuple[int, str]], number: int = 7) -> Bytes:
        """A further heap of an arena, which was left for another one: fences at its end, no top."""
        start = HEAPS + (100 + number) * HEAP_MAX
        size = (self.version.info + sum(s for s, _ in chunks) + 32 + PAGE - 1) & -PAGE
        heap = Bytes(start, size)
        heap.put(start, arena.address, arena.heap.start, size, size)
        self.ranges.append(heap)
        at = start + self.version.info
        rest = start + size - 32 - at - sum(s for s, _ in chunks)
        at = self._chunks(arena, heap, at, [*chunks, *([(rest, USED)] if rest >= 32 else [])], 4)
        heap.put(at + 8, 16 | 1, 0, 0 | 1)
        return heap

    def mmapped(self, size: int, moved: int = 0) -> int:
        """A block with a mapping of its own; returns its address."""
        before = max([BIG, *(r.end for r in self.ranges if r.start >= BIG and r.start < STACK)])
        big = Bytes(before, (size + moved + PAGE - 1) & -PAGE)
        self.ranges.append(big)
        whole = len(big.data)
        big.put(before, 0, (whole - self.version.short) | 2)
        if moved:
            big.put(before + moved, moved, (whole - moved - self.version.short) | 2)
        return before + moved + 16

    def _arena(self, arena: MadeArena, chunks: list[tuple[int, str]], main: bool) -> MadeArena:
        version, state = self.version, arena.state
        if main:
            chunks = [(version.cache_chunk, USED), *chunks]
        arena.top = self._chunks(arena, arena.heap, arena.first, chunks, 0 if main else 4)
        arena.top_size = arena.heap.end - arena.top
        last = chunks[-1][1] if chunks else USED
        arena.heap.put(arena.top + 8, arena.top_size | (last != FREE))
        bins = arena.address + version.bins
        state.put(bins - 16, arena.top, 0)
        for number in range(127):
            head = bins + 16 * number - 16
            state.put(head + 16, head, head)
        free = [a - 16 for a, _, s in arena.blocks if s == FREE]
        self._linked(bins - 16, free, arena)
        system = len(arena.heap.data)
        state.put(arena.address + version.next, arena.address, 0, 1, system, system)
        self.arenas.append(arena)
        for number, here in enumerate(self.arenas):
            here.state.put(here.address + version.next, self.arenas[(number + 1) % len(self.arenas)].address)
        self._fast(arena)
        if main:
            self.cache = arena.first + 16
            self.stack.put(self.thread - 0x48, self.cache)
        self._cached()
        return arena

    # Chunks one behind the other; returns where the next one would be.
    def _chunks(
        self, arena: MadeArena, heap: Bytes, at: int, chunks: list[tuple[int, str]], flag: int
    ) -> int:
        before, size_before = USED, 0
        for size, kind in chunks:
            if before == FREE:
                heap.put(at, size_before)
            heap.put(at + 8, size | flag | (before != FREE))
            arena.blocks.append((at + 16, size, kind))
            at, before, size_before = at + size, kind, size
        if before == FREE:
            heap.put(at, size_before)
        return at

    def _linked(self, head: int, free: list[int], arena: MadeArena) -> None:
        ring = [head, *free]
        for here, following in zip(ring, [*ring[1:], head], strict=True):
            (arena.state if here == head else self.at(here)).put(here + 16, following)
            (arena.state if following == head else self.at(following)).put(following + 24, here)

    def _fast(self, arena: MadeArena) -> None:
        for size in {s for _, s, kind in arena.blocks if kind == FAST}:
            chunks = [a - 16 for a, s, kind in arena.blocks if kind == FAST and s == size]
            arena.state.put(arena.address + 16 + (size // 16 - 2) * 8, chunks[0])
            for chunk, following in zip(chunks, [*chunks[1:], 0], strict=True):
                self.link(chunk + 16, following)

    # All chunks that are to be in the one thread cache.
    def _cached(self) -> None:
        entries = self.cache + self.version.count * self.version.lists
        sizes = {s for arena in self.arenas for _, s, kind in arena.blocks if kind == CACHED}
        for size in sizes:
            number = size // 16 - 2
            found = [a for arena in self.arenas for a, s, k in arena.blocks if k == CACHED and s == size]
            self.at(entries).put(entries + 8 * number, found[0])
            for block, following in zip(found, [*found[1:], 0], strict=True):
                self.link(block, following)

    def link(self, place: int, target: int) -> None:
        """Write a link of a singly linked list."""
        self.at(place).put(place, target ^ (place >> 12) if self.version.mangled else target)

    def at(self, address: int) -> Bytes:
        """The mapping that holds an address."""
        return next(r for r in self.ranges if r.start <= address < r.end)

    def expected(self) -> dict[int, tuple[int, str]]:
        """Address -> (size, state) of all blocks in arenas."""
        return {a: (size, kind) for arena in self.arenas for a, size, kind in arena.blocks}

    def memory(self) -> AddressSpace:
        space = AddressSpace()
        for r in self.ranges:
            number = space.add_buffer(np.frombuffer(bytes(r.data), dtype=np.uint8))
            space.add_segments([Segment(r.start, r.end, number, 0)])
        return space

    def mappings(self) -> list[Mapping]:
        found = [Mapping(r.start, r.end, "rw-p", 0, 0, r.path) for r in self.ranges]
        return sorted(found, key=lambda m: m.start)
