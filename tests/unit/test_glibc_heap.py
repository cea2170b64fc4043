"""glibc's heap read from bytes: every version, every kind of free block, and all the ways to be broken."""

from __future__ import annotations

import random
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diagtool.capture.memory import AddressSpace, Segment
from diagtool.runtimes.native.glibc.chunks import Region, walk
from diagtool.runtimes.native.glibc.heap import GlibcHeap, read_glibc
from diagtool.runtimes.native.model import CACHED, FAST, FREE, MMAPPED, USED
from unit import made_heaps as made
from unit.made_heaps import BREAK, LIBC, PAGE, VERSIONS, Heap, Version

STATES = {made.USED: USED, made.FREE: FREE, made.FAST: FAST, made.CACHED: CACHED}


def read(heap: Heap) -> GlibcHeap:
    data = [(LIBC, LIBC + 4 * PAGE)]
    stacks = [(made.STACK, made.STACK + 2 * PAGE)]
    found = read_glibc(heap.memory(), heap.mappings(), data, stacks, [(1, heap.thread)])
    assert found is not None
    return found


def blocks_of(found: GlibcHeap) -> dict[int, tuple[int, int]]:
    b = found.blocks
    own = b.arena != MMAPPED
    columns = (b.address[own].tolist(), b.size[own].tolist(), b.state[own].tolist())
    return {address: (size, state) for address, size, state in zip(*columns, strict=True)}


def expected(heap: Heap) -> dict[int, tuple[int, int]]:
    return {a: (size, STATES[kind]) for a, (size, kind) in heap.expected().items()}


def mentions(found: GlibcHeap, *words: str) -> bool:
    return any(all(w in warning for w in words) for warning in found.warnings)


# No two free chunks are neighbours: malloc would have joined them.
def chunks(seed: int, count: int, fast: bool = True) -> list[tuple[int, str]]:
    rng = random.Random(seed)
    out: list[tuple[int, str]] = []
    for _ in range(count):
        kind = rng.choice([made.USED, made.USED, made.USED, made.FREE, made.FAST, made.CACHED])
        if (kind == made.FREE and (not out or out[-1][1] == made.FREE)) or (kind == made.FAST and not fast):
            kind = made.USED
        size = 16 * rng.randint(2, 8 if kind == made.FAST else 40)
        out.append((size, kind))
    if out and out[-1][1] == made.FREE:
        out.append((64, made.USED))
    return out


def whole(version: Version, seed: int = 1, count: int = 300) -> Heap:
    heap = Heap(version)
    fast = version.bins == 0x70
    heap.main(chunks(seed, count, fast))
    heap.other(chunks(seed + 1, count, fast))
    second = heap.other(chunks(seed + 2, count // 2, fast))
    heap.more(second, [(48, made.USED), (4096, made.USED)])
    return heap


@pytest.mark.parametrize("version", VERSIONS, ids=lambda v: v.name)
def test_every_version_is_read_block_by_block(version: Version) -> None:
    heap = whole(version)
    found = read(heap)
    assert found.warnings == []
    assert blocks_of(found) == expected(heap)
    assert [a.main for a in found.arenas] == [True, False, False]
    assert [a.top for a in found.arenas] == [a.top_size for a in heap.arenas]
    assert [a.heaps for a in found.arenas] == [1, 1, 2]
    assert found.thread_caches == 1


@pytest.mark.parametrize("version", VERSIONS, ids=lambda v: v.name)
def test_blocks_with_a_mapping_of_their_own(version: Version) -> None:
    heap = whole(version)
    wanted = [heap.mmapped(200_000), heap.mmapped(135_168), heap.mmapped(400_000, moved=48)]
    wanted += [heap.mmapped(300_000, moved=0xFF0), heap.mmapped(140_000)]
    found = read(heap).blocks
    own = found.arena == MMAPPED
    assert found.address[own].tolist() == wanted
    areas = [heap.at(address) for address in wanted]
    assert found.size[own].tolist() == [len(area.data) for area in areas]
    spare = 8 if version.short else 0  # the last word, so that it is as in other chunks
    assert (found.address[own] + found.usable[own]).tolist() == [area.end - spare for area in areas]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 32), st.integers(0, 400), st.sampled_from(VERSIONS))
def test_any_heap_is_read_exactly(seed: int, count: int, version: Version) -> None:
    heap = whole(version, seed, count)
    found = read(heap)
    assert blocks_of(found) == expected(heap)
    assert found.warnings == []


def test_an_arena_is_found_where_its_first_and_last_bins_are_in_use() -> None:
    heap = whole(VERSIONS[3])
    (arena, *_) = heap.arenas
    free = [a - 16 for a, _, kind in arena.blocks if kind == made.FREE]
    bins = arena.address + 0x70
    for number, chunk in zip([0, 1, 2, 125, 126], free, strict=False):
        head = bins + 16 * number - 16
        heap.data.put(head + 16, chunk, chunk)
        heap.at(chunk).put(chunk + 16, head, head)
    assert blocks_of(read(heap)) == expected(heap)


def test_without_the_c_library_the_other_arenas_are_read() -> None:
    heap = whole(VERSIONS[3])
    heap.data.data[:] = bytes(len(heap.data.data))
    found = read(heap)
    assert mentions(found, "main arena was not found")
    assert sum(a.used_blocks for a in found.arenas) > 100


def test_no_arena_is_no_heap() -> None:
    heap = Heap()
    assert read_glibc(heap.memory(), heap.mappings(), [(LIBC, LIBC + PAGE)], [], []) is None


# -- broken heaps ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", [0, 8, 0x4141414141414141, 1 << 63, 0x12, 0xFFFFFFFFFFFFFFF1])
def test_a_header_that_was_overwritten_costs_that_block(word: int) -> None:
    heap = whole(VERSIONS[3])
    arena = heap.arenas[0]
    victim, size, _ = arena.blocks[100]
    arena.heap.put(victim - 8, word)
    found = read(heap)
    assert mentions(found, "is broken at", f"{victim - 16:#x}")
    wanted = {a for a in expected(heap) if a not in (victim, arena.blocks[99][0])}
    assert len(wanted - set(blocks_of(found))) <= 2  # its neighbours may go with it
    assert found.arenas[0].unread >= size


def test_an_overflow_of_text_over_many_blocks_is_skipped() -> None:
    heap = whole(VERSIONS[3], count=2000)
    arena = heap.arenas[0]
    low, high = arena.blocks[500][0], arena.blocks[700][0]
    arena.heap.data[low - BREAK : high - BREAK] = b"overflow" * ((high - low) // 8)
    found = read(heap)
    there = blocks_of(found)
    assert mentions(found, "is broken at")
    assert all(a in there for a, _, _ in [*arena.blocks[:500], *arena.blocks[702:]])
    assert high - low - 64 <= found.arenas[0].unread <= high - low + 2000


def test_a_size_that_leads_too_far_is_noticed() -> None:
    heap = whole(VERSIONS[3])
    arena = heap.arenas[0]
    arena.heap.put(arena.blocks[10][0] - 8, 0x10000001)
    assert mentions(read(heap), "is broken at", "0x10000001")


def test_a_top_caught_while_it_is_split() -> None:
    heap = whole(VERSIONS[3])
    arena = heap.arenas[0]
    arena.state.put(arena.address + 0x60, arena.top + 0x100)
    arena.heap.put(arena.top + 0x100 + 8, (arena.top_size - 0x100) | 1)
    found = read(heap)
    assert mentions(found, "just being changed")
    assert blocks_of(found) == {**expected(heap), arena.top + 16: (0x100, USED)}


@pytest.mark.parametrize("top", [0, 8, 0x4141414141414141, LIBC])
def test_a_wild_top_pointer(top: int) -> None:
    heap = whole(VERSIONS[3])
    heap.data.put(heap.arenas[0].address + 0x60, top)
    found = read(heap)
    assert found.warnings
    assert found.arenas[1].used_blocks > 50


@pytest.mark.parametrize("size", [0, 1, 0x41414141, 1 << 62])
def test_a_wild_top_size(size: int) -> None:
    heap = whole(VERSIONS[3])
    heap.arenas[0].heap.put(heap.arenas[0].top + 8, size)
    found = read(heap)
    assert mentions(found, "top chunk", "can't be right")
    last = heap.arenas[0].blocks[-1][0]  # whether it is in use was said in what is lost
    assert {**blocks_of(found), last: 0} == {**expected(heap), last: 0}


@pytest.mark.parametrize("target", [0, 8, LIBC + 16, 0x4141414141414141, "itself", "first"])
def test_a_ring_that_is_broken_is_not_followed_for_ever(target: int | str) -> None:
    heap = whole(VERSIONS[3])
    second = heap.arenas[1]
    address = {"itself": second.address, "first": heap.arenas[0].address}.get(str(target), target)
    second.state.put(second.address + VERSIONS[3].next, int(address))
    found = read(heap)
    assert len(found.arenas) == 3
    assert found.warnings
    assert blocks_of(found) == expected(heap)


@pytest.mark.parametrize("kind", [made.FAST, made.CACHED])
@pytest.mark.parametrize("link", ["cycle", "wild", "inside"])
def test_a_broken_free_list_ends_where_it_breaks(kind: str, link: str) -> None:
    heap = whole(VERSIONS[3], count=1000)
    size = 64
    chain = [a for arena in heap.arenas for a, s, k in arena.blocks if k == kind and s == size]
    if kind == made.FAST:
        chain = [a for a in chain if a < made.HEAPS]
    offset = 16 if kind == made.FAST else 0
    target = {"cycle": chain[0] - offset, "wild": 0x414141414140, "inside": chain[3] + 16 - offset}[link]
    heap.link(chain[1], target)
    found = read(heap)
    there = blocks_of(found)
    wanted = {**expected(heap), **dict.fromkeys(chain[2:], (size, USED))}
    assert there == wanted
    assert mentions(found, "are broken") == (link != "cycle" or kind == made.CACHED)


def test_free_blocks_that_somebody_wrote_to_are_said() -> None:
    heap = whole(VERSIONS[3])
    free = next(a for a, _, kind in heap.arenas[0].blocks if kind == made.FREE)
    heap.arenas[0].heap.put(free, 0x4242424242424242)
    assert mentions(read(heap), "not rightly linked", "something wrote")
    heap.data.data[heap.arenas[0].address - LIBC] = 1  # the mutex is held
    assert mentions(read(heap), "not rightly linked", "just changing it")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 1 << 32), st.integers(1, 60), st.sampled_from(VERSIONS), st.booleans())
def test_whatever_is_damaged_the_reader_ends_and_stays_within_memory(
    seed: int, hits: int, version: Version, wide: bool
) -> None:
    heap = whole(version, seed % 7, 120)
    heap.mmapped(200_000)
    rng = random.Random(seed)
    places = [a for arena in heap.arenas for a in range(arena.address, arena.address + version.next + 40, 8)]
    places += [b - 8 for arena in heap.arenas for b, _, _ in arena.blocks]
    places += [b for arena in heap.arenas for b, _, _ in arena.blocks]
    for _ in range(hits):
        if wide:
            area = rng.choice(heap.ranges)
            place = area.start + rng.randrange(len(area.data) // 8) * 8
        else:
            place = rng.choice(places)
        known = [rng.choice(places), rng.getrandbits(64), rng.getrandbits(20) & -16 | 1, 0, place, place - 16]
        heap.at(place).put(place, rng.choice(known))
    data = [(LIBC, LIBC + 4 * PAGE)]
    found = read_glibc(heap.memory(), heap.mappings(), data, [], [(1, heap.thread)])
    if found is None:
        return
    b = found.blocks
    ends = b.address + b.usable
    assert (b.address[1:] >= b.address[:-1]).all()
    assert int(b.size.sum()) <= sum(len(r.data) for r in heap.ranges)
    for r in heap.ranges:
        inside = (b.address >= r.start) & (b.address < r.end)
        assert (ends[inside] <= r.end + 8).all()


def test_data_full_of_lists_that_point_to_themselves_hides_no_arena() -> None:
    heap = whole(VERSIONS[3])
    other = made.Bytes(0x7F44_0000_0000, 256 * PAGE, "/lib/other.so")
    for place in range(other.start, other.end, 64):
        other.put(place, place - 16, place - 16)
    heap.ranges.append(other)
    data = [(LIBC, LIBC + 4 * PAGE), (other.start, other.end)]
    found = read_glibc(heap.memory(), heap.mappings(), data, [], [(1, heap.thread)])
    assert found is not None
    assert blocks_of(found) == expected(heap)
    other.data[:] = b"".join(
        struct.pack("<Q", place - 16 & -16) for place in range(other.start, other.end, 8)
    )
    found = read_glibc(heap.memory(), heap.mappings(), data, [], [(1, heap.thread)])
    assert found is not None
    assert blocks_of(found) == expected(heap)


# -- runs of chunks -------------------------------------------------------------------------------------


def space(start: int, data: bytes) -> AddressSpace:
    memory = AddressSpace()
    memory.add_segments(
        [Segment(start, start + len(data), memory.add_buffer(np.frombuffer(data, np.uint8)), 0)]
    )
    return memory


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1 << 32), st.sampled_from([40, 400, 70_000]))
def test_runs_are_what_one_finds_step_by_step(seed: int, largest: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, largest // 16 + 2, 3000) * 16
    at = np.concatenate([[0], np.cumsum(sizes)])
    data = rng.integers(0, 1 << 63, int(at[-1]) // 8, dtype=np.uint64)  # noise everywhere …
    data[at[:-1] // 8 + 1] = sizes.astype(np.uint64) | 1  # … but in the headers
    memory = space(0x10000, data.tobytes())
    found = walk(memory, [Region(0x10000, 0x10000 + int(at[-1]), 0)])
    assert found.address.tolist() == (at[:-1] + 0x10000).tolist()
    assert found.breaks == []


def test_memory_that_is_missing_in_the_middle_costs_no_more_than_that() -> None:
    sizes = np.full(4000, 64)
    data = np.zeros(4000 * 8, dtype="<u8")
    data[1::8] = 65
    raw = data.tobytes()
    memory = AddressSpace()
    number = memory.add_buffer(np.frombuffer(raw, np.uint8))
    hole = (20 * PAGE, 22 * PAGE)
    memory.add_segments([Segment(PAGE, PAGE + hole[0], number, 0)])
    memory.add_segments([Segment(PAGE + hole[1], PAGE + len(raw), number, hole[1])])
    found = walk(memory, [Region(PAGE, PAGE + len(raw), 0)])
    assert len(found) == 4000 - (hole[1] - hole[0]) // 64
    (gap,) = found.breaks
    assert (gap.address, gap.size, gap.header) == (PAGE + hole[0], hole[1] - hole[0], None)
    assert sizes.sum() == int(found.size.sum()) + gap.size


def test_random_bytes_are_no_heap() -> None:
    data = np.random.default_rng(3).integers(0, 1 << 63, 1 << 17, dtype=np.uint64).tobytes()
    found = walk(space(PAGE, data), [Region(PAGE, PAGE + len(data), 0)])
    assert len(found) < 100
    assert sum(b.size for b in found.breaks) > 0.9 * len(data)


def test_text_of_small_sizes_ends_in_time() -> None:
    data = struct.pack("<2Q", 33, 33) * (1 << 15)
    found = walk(space(PAGE, data), [Region(PAGE, PAGE + len(data), 0)])
    assert len(found) == 1 << 14
