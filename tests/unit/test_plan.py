"""What is copied in the stop: the most needed first, each byte once, no more than there is room for."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest

from diagtool.capture import plan
from diagtool.capture.memory import PAGE
from diagtool.capture.model import Mapping
from diagtool.capture.plan import MappingOrder, choose, chunked, joined, without
from diagtool.capture.residency import Ranges, Residency, runs
from diagtool.capture.vmread import IOV_MAX

MIB = 1 << 20


class Everything(Residency):
    """A process whose pages are all in memory."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def find(self, spans: Sequence[tuple[int, int]], limit: int) -> tuple[Ranges, list[tuple[int, int]]]:
        self.asked.extend(spans)
        got, rest = [], []
        for start, end in spans:
            cut = min(end, start + limit)
            limit -= cut - start
            if cut > start:
                got.append((start, cut))
            if cut < end:
                rest.append((cut, end))
        return np.array(got, dtype=np.uint64).reshape(-1, 2), rest


def mapping(start: int, size: int, path: str = "", permissions: str = "rw-p") -> Mapping:
    return Mapping(start, start + size, permissions, 0, 1 if path.startswith("/") else 0, path)


def laid_out(
    mappings: list[Mapping], pointers: Sequence[int] = (), capacity: int = 1 << 40, **more: object
) -> plan.Layout:
    return choose(MappingOrder(mappings), Everything(), pointers, capacity, **more)  # type: ignore[arg-type]


def starts(layout: plan.Layout) -> list[int]:
    return [int(r[0]) for r in layout.ranges]


ARENA, SMALL, HEAP, DATA, BSS, CODE, SHARED, STACK, GUARD = (
    mapping(0x7000_0000_0000, 8 * MIB),
    mapping(0x7100_0000_0000, 1 * MIB),
    mapping(0x5600_0000_0000, 2 * MIB, "[heap]"),
    mapping(0x5500_0000_0000, MIB, "/bin/x"),
    mapping(0x5500_0000_0000 + MIB, MIB),
    mapping(0x5400_0000_0000, MIB, "/bin/x", "r-xp"),
    mapping(0x7200_0000_0000, MIB, "/dev/shm/x", "rw-s"),
    mapping(0x7300_0000_1000, 8 * MIB),
    mapping(0x7300_0000_0000, 0x1000, "", "---p"),
)


def test_data_segments_then_heap_then_anonymous_memory_by_size() -> None:
    found = laid_out([ARENA, SMALL, HEAP, DATA, BSS, CODE, SHARED])
    assert starts(found) == [DATA.start, BSS.start, HEAP.start, SMALL.start, ARENA.start]
    assert found.size == 13 * MIB
    assert found.offsets.tolist() == [0, MIB, 2 * MIB, 4 * MIB, 5 * MIB]
    assert found.left_out == []


def test_no_more_than_there_is_room_for_and_the_rest_is_said() -> None:
    found = laid_out([ARENA, SMALL, HEAP, DATA, BSS], capacity=6 * MIB + 100)
    assert found.size == 6 * MIB
    assert starts(found) == [DATA.start, BSS.start, HEAP.start, SMALL.start, ARENA.start]
    assert found.left_out == [(ARENA.start + MIB, ARENA.end)]


@pytest.mark.parametrize("capacity", [0, 1, PAGE - 1])
def test_no_room_at_all(capacity: int) -> None:
    found = laid_out([SMALL, DATA], [SMALL.start + 100], capacity=capacity)
    assert found.size == 0
    assert len(chunked(found)) == 0
    assert sum(b - a for a, b in found.left_out) >= MIB


def test_a_stack_is_copied_from_its_pointer_up_to_a_bound() -> None:
    main = mapping(0x7FFE_0000_0000, 8 * MIB, "[stack]")
    pointer, main_pointer = STACK.start + 4 * MIB + 8, main.start + 5 * MIB
    found = laid_out([GUARD, STACK, main], [main_pointer, pointer])
    low = pointer & -PAGE
    assert [(int(a), int(b)) for a, b in found.ranges] == [
        (low - PAGE, low + plan.STACK_COPY + PAGE),  # the red zone reaches into the page before
        (main_pointer - PAGE, main_pointer + plan.MAIN_STACK_COPY),
    ]


def test_a_stack_pointer_near_the_ends_of_its_mapping() -> None:
    for pointer in (STACK.start, STACK.start + 1, STACK.end - 1, STACK.end - 8):
        found = laid_out([GUARD, STACK], [0, pointer])
        assert len(found.ranges) == 1
        assert STACK.start <= found.ranges[0, 0] <= pointer < found.ranges[0, 1] <= STACK.end


def test_a_stack_pointer_in_nothing_is_ignored() -> None:
    assert laid_out([SMALL], [0, 1, SMALL.end, (1 << 64) - 1]).size == MIB


@pytest.mark.parametrize("below", [None, mapping(0xC0_0000_0000 - 32 * MIB, 32 * MIB, "", "---p")])
@pytest.mark.parametrize("size", [4 * MIB, 64 * MIB])
def test_stacks_in_a_heap_do_not_hide_the_heap(below: Mapping | None, size: int) -> None:
    """Go and coroutines from malloc: the stack comes first, the rest of the heap later, no byte twice."""
    heap = mapping(0xC0_0000_0000, size)
    mappings = [heap] if below is None else [below, heap]
    pointers = [heap.start + MIB * i for i in (3, 1, 1)]
    found = laid_out(mappings, pointers)
    assert found.size == size
    assert starts(found)[:2] == [heap.start + MIB - PAGE, heap.start + 3 * MIB - PAGE]
    small = laid_out(mappings, pointers, capacity=2 * MIB)
    assert starts(small)[:2] == starts(found)[:2]


def test_the_main_heap_is_never_taken_for_a_stack() -> None:
    assert laid_out([HEAP], [HEAP.start + 100]).size == 2 * MIB


def test_large_file_mappings_are_copied_in_part_and_said_so() -> None:
    data_set = mapping(0x7400_0000_0000, 100 * MIB, "/data/set.npy")
    found = laid_out([data_set])
    assert found.size == plan.FILE_DATA_LIMIT
    assert found.left_out == [(data_set.start + plan.FILE_DATA_LIMIT, data_set.end)]


def test_ranges_asked_for_come_first_rounded_to_pages() -> None:
    asked = [(ARENA.start + MIB + 5, ARENA.start + MIB + 6), (CODE.start, CODE.start + 1), (9, 3), (-8, 8)]
    found = laid_out([ARENA, CODE], capacity=2 * PAGE, asked=asked)
    assert starts(found) == [CODE.start, ARENA.start + MIB]
    assert found.size == 2 * PAGE


def test_what_is_taken_is_cut_out() -> None:
    """Against the same in sets of pages."""
    choice = random.Random(3)
    for _ in range(300):
        cuts = sorted(choice.sample(range(60), 2 * choice.randint(0, 8)))
        taken = np.array(cuts, dtype=np.uint64).reshape(-1, 2)
        ends = [sorted(choice.sample(range(60), 2)) for _ in range(choice.randint(0, 6))]
        ranges = np.array(ends, dtype=np.uint64).reshape(-1, 2)
        gone = {p for a, b in taken.tolist() for p in range(a, b)}
        expected = [p for a, b in ranges.tolist() for p in range(a, b) if p not in gone]
        found = without(ranges, taken)
        assert [p for a, b in found.tolist() for p in range(a, b)] == expected
        assert (found[:, 0] < found[:, 1]).all()


def test_joined() -> None:
    assert joined([(5, 7), (1, 3), (3, 4), (6, 9), (6, 7)]) == [(1, 4), (5, 9)]
    assert joined([]) == []


@pytest.mark.parametrize("size", [PAGE, MIB, MIB + PAGE, 3 * MIB, 700 * PAGE])
def test_chunks_hold_every_byte_once_and_keep_to_the_limits(size: int) -> None:
    mappings = [mapping(0x7000_0000_0000 + i * 2 * size, size) for i in range(7)]
    scattered = [mapping(0x6000_0000_0000 + i * 2 * PAGE, PAGE) for i in range(3000)]
    found = laid_out(mappings + scattered)
    chunks = chunked(found)
    assert found.size == 7 * size + 3000 * PAGE
    at = 0
    for i in range(len(chunks)):
        vectors = chunks.vectors[chunks.first[i] : chunks.first[i + 1]]
        assert 0 < len(vectors) <= IOV_MAX
        assert int(vectors[:, 1].sum()) <= plan.CHUNK
        assert chunks.offset[i] == at
        for address, length in vectors.tolist():
            owner = int(np.searchsorted(found.offsets, np.uint64(at), side="right")) - 1
            assert address == int(found.ranges[owner, 0]) + at - int(found.offsets[owner])
            at += length
    assert at == found.size


def test_runs_of_pages() -> None:
    present = np.array([1, 1, 0, 1, 0, 0, 1], dtype=np.bool_)
    assert runs(present, 0x1000).tolist() == [[0x1000, 0x3000], [0x4000, 0x5000], [0x7000, 0x8000]]
    assert runs(np.zeros(5, dtype=np.bool_), 0x1000).tolist() == []
    assert runs(np.zeros(0, dtype=np.bool_), 0x1000).tolist() == []
    assert runs(np.ones(5, dtype=np.bool_), 0).tolist() == [[0, 5 * PAGE]]
