"""An address space knows which of its pages were read: all of these, and no others."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from diagtool.capture.memory import PAGE, AddressSpace, Segment

BASE = 0x7F0000000000
PAGES = 64


def space() -> AddressSpace:
    """Two halves of one buffer, at addresses far apart, the second one first."""
    memory = AddressSpace()
    number = memory.add_buffer(np.zeros(PAGES * PAGE, np.uint8))
    half = PAGES // 2 * PAGE
    memory.add_segments(
        [Segment(BASE, BASE + half, number, half), Segment(BASE + 4 * half, BASE + 5 * half, number, 0)]
    )
    return memory


def pages(memory: AddressSpace) -> set[int]:
    return {(at - BASE) // PAGE for low, high in memory.touched() for at in range(low, high, PAGE)}


def test_before_anybody_watches_nothing_was_read() -> None:
    memory = space()
    memory.u64(BASE)
    assert memory.touched() == []
    memory.watch()
    assert memory.touched() == []


def test_every_kind_of_read_counts_and_scans_do_not() -> None:
    memory = space()
    memory.watch()
    memory.u64(BASE)
    memory.read(BASE + 2 * PAGE - 4, 8)
    memory.load(np.array([BASE + 5 * PAGE - 2, BASE + 9 * PAGE], np.uint64))
    memory.load_block(np.array([BASE + 20 * PAGE + 1], np.uint64), 2 * PAGE)
    memory.load(np.array([BASE - PAGE, 0], np.uint64))
    for _ in memory.blocks():
        pass
    with memory.unwatched():
        memory.u64(BASE + 30 * PAGE)
        memory.load(np.array([BASE + 31 * PAGE], np.uint64))
    assert pages(memory) == {0, 1, 2, 4, 5, 9, 20, 21, 22}


@given(
    st.lists(
        st.tuples(st.integers(0, PAGES // 2 * PAGE - 9000), st.integers(1, 9000), st.booleans()), max_size=20
    )
)
def test_ranges_are_whole_pages_of_what_was_read(reads: list[tuple[int, int, bool]]) -> None:
    memory = space()
    memory.watch()
    expected = set()
    far = 2 * PAGES * PAGE
    for offset, size, second in reads:
        offset += far if second else 0
        memory.read(BASE + offset, size)
        memory.load_block(np.array([BASE + offset], np.uint64), size)
        expected |= set(range(offset // PAGE, (offset + size - 1) // PAGE + 1))
    assert pages(memory) == expected
    ranges = memory.touched()
    assert ranges == sorted(ranges) and all(low % PAGE == high % PAGE == 0 for low, high in ranges)
