"""Every object of a heap is counted once, dead ones are not, and damaged memory gives a partial result."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_objects import BASE, LAYOUT, Heap

from diagtool.capture.segments import without
from diagtool.runtimes.cpython.heap.census import HeapCensus, take_census
from diagtool.runtimes.cpython.heap.owners import Owners, spans
from diagtool.runtimes.cpython.heap.pools import find_pools
from diagtool.runtimes.cpython.heap.ranges import joined_ranges
from diagtool.runtimes.cpython.heap.referrers import Targets, words_that_refer
from diagtool.runtimes.cpython.heap.why import ask_why

POOL = LAYOUT["const.POOL_SIZE"]
HEADER = LAYOUT["const.POOL_OVERHEAD"]
GC, HEAPTYPE, UNICODE = 1 << 14, 1 << 9, 1 << 28


class PooledHeap(Heap):
    """A heap with pools of the small object allocator."""

    def made_type(self, name: str, size: int, item: int = 0, flags: int = 0) -> int:
        """A type whose instances have ``size`` bytes."""
        kind = self.type("type")
        self.field(kind, "PyTypeObject.tp_basicsize", 900)
        address = self.type(name)
        self.field(address, "PyTypeObject.tp_basicsize", size)
        self.field(address, "PyTypeObject.tp_itemsize", item)
        self.field(address, "PyTypeObject.tp_flags", flags)
        return address

    def pool(self, block: int, handed_out: int, free: list[int]) -> int:
        """A pool with its first blocks handed out, and those in ``free`` given back, the last one first."""
        self.used = (self.used + POOL - 1) & -POOL
        address = self.room(POOL)
        at = {
            "ref.count": handed_out - len(free),
            "szidx": block // 16 - 1,
            "nextoffset": HEADER + handed_out * block,
            "maxnextoffset": POOL - block,
        }
        for name, value in at.items():
            self.field(address, f"pool_header.{name}", value, "I")
        link = 0
        for number in free:
            self.put(self.block(address, block, number), "Q", link)
            link = self.block(address, block, number)
        self.field(address, "pool_header.freeblock", link)
        return address

    @staticmethod
    def block(pool: int, size: int, number: int) -> int:
        return pool + HEADER + number * size

    def fill(self, pool: int, block: int, numbers: list[int], kind: int, before: int = 0) -> None:
        """Objects at the beginning of blocks, or ``before`` bytes behind it."""
        for number in numbers:
            at = self.block(pool, block, number) + before
            self.put(at, "QQ", 1, kind)

    def census(self) -> HeapCensus:
        return take_census(self.context())


def counted(census: HeapCensus) -> dict[str, int]:
    return {row.name: row.count for row in census.rows}


def test_used_blocks_count_and_free_ones_do_not_whatever_is_left_in_them() -> None:
    heap = PooledHeap()
    point, node = heap.made_type("Point", 32), heap.made_type("Node", 32, flags=GC)
    pool = heap.pool(32, 100, free=[3, 7, 50])
    heap.fill(pool, 32, list(range(120)), point)  # those from 100 on were never handed out
    for number, following in ((3, 0), (7, 3), (50, 7)):  # what is left of an object that was freed
        heap.put(
            heap.block(pool, 32, number), "QQ", heap.block(pool, 32, following) if following else 0, point
        )
    other = heap.pool(48, 10, free=[])
    heap.fill(other, 48, list(range(10)), node, before=16)
    census = heap.census()
    assert counted(census) == {"Point": 97, "Node": 10}
    assert int(census.pools.used.sum()) == 107
    assert {row.name: row.bytes for row in census.rows} == {"Point": 97 * 32, "Node": 10 * 48}


def test_an_object_is_where_its_type_has_it_and_nowhere_else() -> None:
    heap = PooledHeap()
    plain, collected = heap.made_type("Plain", 32), heap.made_type("Collected", 16, flags=GC)
    pool = heap.pool(48, 2, free=[])
    heap.fill(pool, 48, [0], plain, before=16)  # words of something else that look like an object
    heap.fill(pool, 48, [1], collected)
    assert counted(heap.census()) == {}


@pytest.mark.parametrize("references", [0, 0x7F0000001000, 1 << 40])
def test_a_dead_object_is_none(references: int) -> None:
    heap = PooledHeap()
    kind = heap.made_type("Point", 32)
    pool = heap.pool(32, 2, free=[])
    heap.fill(pool, 32, [0, 1], kind)
    heap.put(heap.block(pool, 32, 1), "Q", references)
    assert counted(heap.census()) == {"Point": 1}


def test_a_free_list_that_is_a_ring_ends() -> None:
    heap = PooledHeap()
    kind = heap.made_type("Point", 32)
    pool = heap.pool(32, 10, free=[1, 2])
    heap.fill(pool, 32, [0, 3, 4, 5, 6, 7, 8, 9], kind)
    heap.put(heap.block(pool, 32, 1), "Q", heap.block(pool, 32, 2))
    heap.put(heap.block(pool, 32, 2), "Q", heap.block(pool, 32, 1))
    assert counted(heap.census()) == {"Point": 8}


def test_a_damaged_free_list_gives_what_can_be_had_and_a_warning_where() -> None:
    heap = PooledHeap()
    kind = heap.made_type("Point", 32)
    good, bad = heap.pool(32, 10, free=[1, 2]), heap.pool(32, 10, free=[1, 2])
    for pool in (good, bad):
        heap.fill(pool, 32, [0, 3, 4, 5, 6, 7, 8, 9], kind)
    heap.put(heap.block(bad, 32, 2), "Q", 0xDEADBEEF)
    context = heap.context()
    assert counted(take_census(context)) == {"Point": 16}
    warnings = context.builder.snapshot.warnings
    assert len(warnings) == 1
    assert hex(bad) in warnings[0]
    assert "damaged" in warnings[0]


def test_what_claims_more_than_its_block_is_no_object() -> None:
    heap = PooledHeap()
    kind = heap.made_type("Array", 32, item=8)
    pool = heap.pool(64, 2, free=[])
    heap.fill(pool, 64, [0, 1], kind)
    heap.field(heap.block(pool, 64, 0), "PyVarObject.ob_size", 2)
    heap.field(heap.block(pool, 64, 1), "PyVarObject.ob_size", 1 << 60)
    census = heap.census()
    assert [(row.name, row.count, row.bytes) for row in census.rows] == [("Array", 1, 48)]


def test_large_objects_are_found_outside_of_pools_by_their_block_of_malloc() -> None:
    heap = PooledHeap()
    kind = heap.made_type("Big", 1000)
    heap.fill(heap.pool(16, 1, free=[]), 16, [0], heap.made_type("Small", 16))
    heap.used = (heap.used + 4095) & -4096
    for size in (1000 + 8 + 15 & -16, 16):  # the second is no block that it would fill
        block = heap.room(16) + 16
        heap.room(1024)
        heap.put(block - 8, "Q", size | 1)
        heap.put(block - 8 + size, "Q", 0x21)
        heap.put(block, "QQ", 1, kind)
    assert counted(heap.census()) == {"Small": 1, "Big": 1}


@given(st.integers(0, 2**32 - 1), st.floats(0.001, 0.5))
def test_any_damage_ends_in_a_census(seed: int, share: float) -> None:
    heap = PooledHeap(1 << 19)
    kind, node = heap.made_type("Point", 32), heap.made_type("Node", 32, item=8, flags=GC)
    for block, made, before in ((32, kind, 0), (64, node, 16)):
        pool = heap.pool(block, 200, free=[5, 9])
        heap.fill(pool, block, list(range(5)), made, before)
    random = np.random.default_rng(seed)
    words = np.frombuffer(heap.data, dtype="<u8")
    at = random.integers(0, len(words), int(len(words) * share))
    kinds = random.integers(0, 3, len(at))
    values = np.where(kinds == 0, words[random.permutation(at)], random.integers(0, 1 << 63, len(at)))
    words[at] = np.where(kinds == 1, np.uint64(BASE) + values.astype(np.uint64) % (1 << 19), values)
    census = heap.census()
    assert all(row.count >= 0 and row.bytes >= 0 for row in census.rows)
    assert len(census.objects) == sum(row.count for row in census.rows)


@given(st.binary(min_size=0, max_size=64))
def test_a_header_that_contradicts_itself_is_no_pool(data: bytes) -> None:
    heap = PooledHeap(1 << 17)
    heap.data[POOL : POOL + len(data)] = data
    pools = find_pools(heap.context(), [(BASE, BASE + len(heap.data))])
    assert bool((pools.used <= pools.handed_out).all())


RANGES = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), max_size=6)


@given(RANGES, RANGES)
def test_what_is_left_of_ranges_is_what_no_hole_has(
    ranges: list[tuple[int, int]], holes: list[tuple[int, int]]
) -> None:
    def join(pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
        starts = np.array([p[0] for p in pairs], np.uint64)
        return joined_ranges(starts, np.array([p[1] for p in pairs], np.int64))

    def members(pairs: list[tuple[int, int]]) -> set[int]:
        return {n for low, high in pairs for n in range(low, high)}

    left = without(join(ranges), join(holes))
    expected = {n for a, s in ranges for n in range(a, a + s)} - {
        n for a, s in holes for n in range(a, a + s)
    }
    assert members(left) == expected
    assert left == sorted(left)


def test_a_word_has_the_owner_that_its_block_has() -> None:
    heap = PooledHeap()
    kind, node = heap.made_type("Point", 32), heap.made_type("Node", 32, flags=GC)
    pool = heap.pool(64, 10, free=[4])
    heap.fill(pool, 64, [0, 4], kind)
    heap.fill(pool, 64, [1, 2], node, before=16)
    heap.put(heap.block(pool, 64, 2) + 16, "Q", 0)  # dead, and kept for the next one
    context = heap.context()
    owners = Owners(context, take_census(context))
    block = [heap.block(pool, 64, n) for n in range(10)]
    words = np.array(
        [block[0] + 40, block[1] + 8, block[2] + 40, block[3] + 8, block[4], pool + 8], np.uint64
    )
    holder, bare, unused = owners.find(words)
    assert holder[[0, 1, 3]].tolist() == [block[0], block[1] + 16, block[3]]
    assert bare.tolist()[:2] == [0, 0]
    assert bare[3] == 64
    assert unused.tolist() == [False, False, True, False, True, True]
    assert owners.block_of(block[1] + 40) == block[1] + 16
    assert owners.block_of(block[3]) == 0


def test_references_are_words_that_are_the_address_or_point_into_a_bare_block() -> None:
    heap = PooledHeap()
    target, bare = heap.room(64), heap.room(64)
    words = heap.room(64)
    heap.put(words, "6Q", target, target + 8, bare, bare + 24, bare + 64, target - 8)
    context = heap.context()
    targets = Targets(np.array([target, bare], np.uint64), np.array([0, 64], np.uint64))
    where, which = words_that_refer(context, [(BASE, BASE + len(heap.data))], targets)
    assert sorted(zip(where.tolist(), which.tolist(), strict=True)) == [
        (words, 0),
        (words + 16, 1),
        (words + 24, 1),
    ]


def test_who_keeps_a_type_is_found_behind_its_instances() -> None:
    heap = PooledHeap()
    node = heap.made_type("Node", 32, flags=GC)
    pools = [heap.pool(64, 200, free=[]) for _ in range(2)]
    for pool in pools:
        heap.fill(pool, 64, list(range(200)), node, before=16)
    word = heap.room(64)
    heap.put(word, "Q", node)
    context = heap.context()
    ranges, targets = (
        [(BASE, BASE + len(heap.data))],
        Targets(np.array([node], np.uint64), np.zeros(1, np.uint64)),
    )
    objects = np.sort(take_census(context).objects.address)
    where = words_that_refer(context, ranges, targets, objects)[0]
    assert word in where.tolist()
    assert not np.isin(where - np.uint64(8), objects).any()
    assert word not in words_that_refer(context, ranges, targets)[0].tolist()  # too many others


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(-5, 40)), max_size=10), st.integers(0, 600))
def test_spans_hold_what_lies_in_them(made: list[tuple[int, int]], address: int) -> None:
    start = np.array([low for low, _ in made], np.uint64)
    size = np.array([length for _, length in made], np.int64)
    owner = int(spans(start, size, start).find(np.array([address], np.uint64))[0])
    holders = [low for low, length in made if low and low <= address < low + length]
    assert owner == 0 or owner in holders


@given(st.integers(0, 2**32 - 1), st.floats(0.001, 0.3))
def test_who_keeps_something_in_damaged_memory_ends(seed: int, share: float) -> None:
    heap = PooledHeap(1 << 19)
    node = heap.made_type("Node", 32, flags=GC)
    pool = heap.pool(64, 200, free=[5, 9])
    heap.fill(pool, 64, list(range(50)), node, before=16)
    random = np.random.default_rng(seed)
    words = np.frombuffer(heap.data, dtype="<u8")
    at = random.integers(0, len(words), int(len(words) * share))
    at = at[(at * 8 < pool - BASE) | (at * 8 > pool - BASE + 6000)] if seed % 2 else at
    objects = pool + HEADER + 16 + random.integers(0, 50, len(at)) * 64
    words[at] = np.where(random.integers(0, 2, len(at)) == 0, objects, random.integers(0, 1 << 63, len(at)))
    context = heap.context()
    answer = ask_why(context, take_census(context), [], np.zeros(0, np.uint64), "Node")
    assert sum(way.count for way in answer.ways) <= answer.looked_at <= 200
