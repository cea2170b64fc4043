"""Memory in which no word is a reference: all that is free for sure, and nothing of what is in use."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diagtool.runtimes.cpython.graph.free import Stretches, free_of_malloc, joined, unused_by_malloc
from diagtool.runtimes.native.glibc.heap import GlibcHeap, read_glibc
from unit import made_heaps as made
from unit.made_heaps import LIBC, PAGE, VERSIONS, Heap, MadeArena, Version

ranges = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)).map(lambda r: (r[0], r[0] + r[1])))


def filled(version: Version = VERSIONS[3]) -> Heap:
    heap = Heap(version)
    kinds = [made.USED, made.FREE, made.USED, made.CACHED, made.USED]
    if version.bins == 0x70:
        kinds.append(made.FAST)
    chunks = [(16 * (2 + i % 7), kinds[i % len(kinds)]) for i in range(120)]
    heap.main([*chunks, (64, made.USED)])
    heap.other([*chunks, (64, made.USED)])
    return heap


def read(heap: Heap) -> GlibcHeap:
    data, stacks = [(LIBC, LIBC + 4 * PAGE)], [(made.STACK, made.STACK + 2 * PAGE)]
    found = read_glibc(heap.memory(), heap.mappings(), data, stacks, [(1, heap.thread)])
    assert found is not None
    return found


def words_of(arena: MadeArena, used: bool) -> np.ndarray:
    """All words of blocks that are in use, or of those that are not."""
    parts = [
        np.arange(a, a + size - 8, 8, dtype=np.uint64)
        for a, size, kind in arena.blocks
        if (kind == made.USED) == used
    ]
    return np.concatenate(parts)


@given(st.lists(ranges, max_size=4), ranges)
def test_stretches_are_joined_and_hold_what_any_of_them_holds(
    parts: list[list[tuple[int, int]]], more: list[tuple[int, int]]
) -> None:
    every = [r for part in parts for r in part] + more
    arrays = [np.array(part, np.uint64).reshape(-1, 2) for part in parts]
    found = joined(*(Stretches(a[:, 0], a[:, 1]) for a in arrays), ranges=more)
    places = np.arange(80, dtype=np.uint64)
    wanted = [any(low <= p < high for low, high in every) for p in range(80)]
    assert found.hold(places).tolist() == wanted
    assert (found.start[1:] > found.end[:-1]).all()


@pytest.mark.parametrize("version", VERSIONS, ids=lambda v: v.name)
def test_what_malloc_has_free_is_free_and_what_is_used_is_not(version: Version) -> None:
    heap = filled(version)
    found = read(heap)
    free = free_of_malloc(found)
    for arena in heap.arenas:
        assert free.hold(words_of(arena, used=False)).all()
        assert not free.hold(words_of(arena, used=True)).any()
        top = np.arange(arena.top + 16, arena.top + arena.top_size, 8, dtype=np.uint64)
        assert free.hold(top).all()
    every = joined(free, unused_by_malloc(found))
    assert not every.hold(words_of(heap.arenas[0], used=True)).any()


@pytest.mark.parametrize("damage", ["header", "bin", "changing"])
def test_of_an_arena_where_something_is_amiss_nothing_is_sure(damage: str) -> None:
    heap = filled()
    arena, other = heap.arenas
    if damage == "header":
        arena.heap.put(arena.blocks[50][0] - 8, 0x4141414141414141)
    elif damage == "bin":
        arena.heap.put(next(a for a, _, kind in arena.blocks if kind == made.FREE), 0x4242424242424242)
    else:  # its top is just being split
        arena.state.put(arena.address + 0x60, arena.top + 0x100)
        arena.heap.put(arena.top + 0x100 + 8, (arena.top_size - 0x100) | 1)
    found = read(heap)
    assert found.unsound == [0]
    free = free_of_malloc(found)
    assert not free.hold(words_of(arena, used=False)).any()
    assert free.hold(words_of(other, used=False)).all()


def test_where_a_thread_cache_is_broken_no_arena_is_sure() -> None:
    heap = filled()
    cached = [a for a, size, kind in heap.arenas[0].blocks if kind == made.CACHED and size == 64]
    heap.link(cached[0], 0x414141414140)
    found = read(heap)
    assert found.unsound == [0, 1]
    assert not len(free_of_malloc(found).start)
