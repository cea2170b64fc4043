"""What malloc has in use, by its own totals and lists: every version, long lists, and all that is broken."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from diagtool.capture.memory import U64, AddressSpace
from diagtool.capture.model import Capture, ProcessInfo
from diagtool.capture.peek import Peek
from diagtool.runtimes.native.glibc import figures as module
from diagtool.runtimes.native.glibc.arenas import Arenas, find_arenas
from diagtool.runtimes.native.glibc.bigblocks import big_blocks
from diagtool.runtimes.native.glibc.figures import ArenaFigures, figures
from diagtool.runtimes.native.glibc.settings import find_settings
from diagtool.runtimes.native.malloc import read_now
from unit.made_heaps import BIG, BREAK, FAST, FREE, LIBC, PAGE, STACK, USED, VERSIONS, Heap, Version
from unit.test_glibc_heap import chunks


def opened(memory: AddressSpace, heap: Heap) -> tuple[Peek, Arenas]:
    capture = Capture("core", ProcessInfo(1), [], heap.mappings(), [], memory)
    return Peek(capture), find_arenas(memory, heap.mappings(), [(LIBC, LIBC + 4 * PAGE)])


def read(heap: Heap) -> list[ArenaFigures]:
    memory = heap.memory()
    peek, found = opened(memory, heap)
    return figures(memory, peek, found)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_data_of_libc_are_read_where_they_were_not_copied(version: Version) -> None:
    """Data of hundreds of libraries fill what a quick look copies; libc's own are what leads to malloc."""
    heap = Heap(version)
    heap.main(chunks(5, 50))
    whole = heap.memory()

    def later(pages: U64) -> tuple[U64, NDArray[np.uint8]]:
        had = [(p, raw) for p in pages.tolist() if (raw := whole.try_read(p, PAGE)) is not None]
        data = np.frombuffer(b"".join(raw for _, raw in had), np.uint8).reshape(-1, PAGE)
        return np.array([p for p, _ in had], np.uint64), data.copy()

    memory, own = AddressSpace(later), [(LIBC, LIBC + 4 * PAGE)]
    assert not list(memory.blocks(own))
    read_now(memory, own)
    assert list(memory.blocks(own))
    assert [a.main for a in find_arenas(memory, heap.mappings(), own).arenas] == [True]


def free_of(heap: Heap, number: int) -> int:
    """What mallinfo2() says of an arena: bins, fast bins and the top."""
    arena = heap.arenas[number]
    return arena.top_size + sum(size for _, size, kind in arena.blocks if kind in (FREE, FAST))


@pytest.mark.parametrize("version", VERSIONS, ids=lambda v: v.name)
def test_figures_are_those_of_mallinfo_in_every_version(version: Version) -> None:
    heap = Heap(version)
    heap.main(chunks(1, 300, version.bins == 0x70))
    heap.other(chunks(2, 200, version.bins == 0x70))
    heap.other([(64, USED)])
    found = read(heap)
    assert [(a.how, a.free) for a in found] == [("exact", free_of(heap, i)) for i in range(3)]
    assert [a.used for a in found] == [a.system - free_of(heap, i) for i, a in enumerate(found)]
    fast = [sum(size for _, size, kind in a.blocks if kind == FAST) for a in heap.arenas]
    assert [a.fast for a in found] == fast


def test_an_arena_in_which_all_is_in_use_has_its_top_free() -> None:
    heap = Heap()
    heap.main([(64, USED)] * 10)
    (arena,) = read(heap)
    assert (arena.how, arena.free, arena.chunks) == ("exact", arena.top, 0)


def holes(count: int, seed: int = 3) -> list[tuple[int, str]]:
    rng = random.Random(seed)
    return [(16 * rng.randint(2, 60), kind) for _ in range(count) for kind in (FREE, USED)]


def test_long_lists_are_followed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ROUNDS", 10)
    heap = Heap()
    heap.main(holes(2000))
    (arena,) = read(heap)
    assert (arena.how, arena.free, arena.chunks) == ("exact", free_of(heap, 0), 2000)


def test_a_small_heap_with_lists_that_are_too_long_is_looked_at_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_ROUNDS", 10)
    monkeypatch.setattr(module, "_MOST_ALONE", 10)
    heap = Heap()
    heap.main([(96, FAST), *holes(2000), (5000 * 16, USED), (400 * 1024, FREE), (64, USED)])
    (arena,) = read(heap)
    assert (arena.how, arena.free) == ("exact", free_of(heap, 0))


def test_a_large_heap_with_lists_that_are_too_long_is_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"_ROUNDS": 10, "_MOST_ALONE": 10, "_WHOLE": 4, "_WINDOWS": 40}.items():
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(module, "_WINDOW", 16 << 10)
    heap = Heap()
    heap.main(holes(4000))
    (arena,) = read(heap)
    assert arena.how == "estimated" and arena.free is not None
    assert arena.free == pytest.approx(free_of(heap, 0), rel=0.05)


def test_a_list_that_leads_astray_is_not_believed() -> None:
    heap = Heap()
    made = heap.main(holes(50))
    first = next(a for a, _, kind in made.blocks if kind == FREE) - 16
    for link in (BREAK + 64, 0, 7, LIBC, 1 << 63, first):
        made.heap.put(first + 16, link)
        (arena,) = read(heap)
        # All of it is looked at then, from block to block.
        assert (arena.how, arena.free) == ("exact", free_of(heap, 0))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 2**64 - 1)), max_size=30), st.integers(0, 5))
def test_no_damage_makes_it_raise_or_claim_more_than_there_is(
    words: list[tuple[int, int]], number: int
) -> None:
    heap = Heap(VERSIONS[number])
    made = heap.main(chunks(number, 100, VERSIONS[number].bins == 0x70))
    heap.other(chunks(9, 50, VERSIONS[number].bins == 0x70))
    for place, word in words:
        target = made.state if place % 2 else made.heap
        target.put(target.start + place * 8 % (len(target.data) - 8), word)
    for arena in read(heap):
        assert arena.how == "unknown" or 0 <= (arena.free or 0) <= max(arena.system, arena.top)


# -- blocks with mappings of their own -------------------------------------------------------------------


@pytest.mark.parametrize("version", [VERSIONS[3], VERSIONS[5]], ids=lambda v: v.name)
def test_blocks_with_mappings_of_their_own_are_followed_from_one_to_the_next(version: Version) -> None:
    heap = Heap(version)
    heap.main([(64, USED)])
    sizes = [200_000, 200_000, 200_000, 1 << 20, 300_000, 300_000]
    starts = [heap.mmapped(size) - 16 for size in sizes]
    starts.append(heap.mmapped(500_000, 48) - 64)
    memory = heap.memory()
    peek, _ = opened(memory, heap)
    end = max(r.end for r in heap.ranges if BIG <= r.start < STACK)
    found = big_blocks(peek, [(BIG, end)])
    assert found[:, 0].tolist() == starts
    assert int((found[:, 1] - found[:, 0]).sum()) == end - BIG
    # Behind pages of somebody else the next one is found, too.
    assert big_blocks(peek, [(BIG + 2 * PAGE, end)])[:, 0].tolist() == starts[1:]
    assert big_blocks(peek, [(BIG, BIG + PAGE)]).size == 0


def test_memory_without_blocks_has_none() -> None:
    heap = Heap()
    heap.main([(64, USED)])
    memory = AddressSpace()
    rng = np.random.default_rng(1)
    from diagtool.capture.memory import Segment

    number = memory.add_buffer(rng.integers(0, 256, 4 << 20, np.uint8))
    memory.add_segments([Segment(BIG, BIG + (4 << 20), number, 0)])
    peek, _ = opened(memory, heap)
    assert len(big_blocks(peek, [(BIG, BIG + (4 << 20))])) == 0


# -- settings -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("late", [False, True], ids=["2.28", "2.35"])
def test_settings_are_found_by_where_the_break_began(late: bool) -> None:
    heap = Heap()
    heap.main([(64, USED)])
    place = LIBC + 2 * PAGE
    words = [131072, 131072, 262144, 8, 4]
    if late:
        words += [0, 2 << 20]
        counts = [0, 3, 65536, 9, 0, 0]  # hp_flags, n_mmaps, its limits, no_dyn_threshold, padding
    else:
        counts = [3, 65536, 9, 0]
    heap.data.put(place, *words)
    at = place + 8 * len(words)
    packed = np.array(counts, "<u4").view("<u8").tolist()
    heap.data.put(at, *packed, 3 * 4096 * 50, 4096 * 1000, BREAK)
    found = find_settings(heap.memory(), [(LIBC, LIBC + 4 * PAGE)], [BREAK])
    assert found is not None
    assert dataclasses.astuple(found) == (131072, 262144, 4, 3, 3 * 4096 * 50)


def test_settings_that_make_no_sense_are_none() -> None:
    heap = Heap()
    heap.main([(64, USED)])
    heap.data.put(LIBC + 2 * PAGE + 200, BREAK)
    heap.data.put(LIBC + 8, BREAK)
    assert find_settings(heap.memory(), [(LIBC, LIBC + 4 * PAGE)], [BREAK]) is None
    assert find_settings(heap.memory(), [], [BREAK]) is None
