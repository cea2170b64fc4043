"""What goes into a slim core, and what a core that says it is one makes of it."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diagtool.capture.corenotes import left_out_note
from diagtool.capture.elf import EM_X86_64, parse_notes
from diagtool.capture.memory import PAGE
from diagtool.capture.model import Mapping
from diagtool.capture.notes import read_notes
from diagtool.capture.segments import both
from diagtool.capture.slimcore import _close_together, _Slim

RANGES = st.lists(st.integers(0, 400), max_size=30, unique=True).map(
    lambda cuts: [(a * PAGE, b * PAGE) for a, b in zip(sorted(cuts)[::2], sorted(cuts)[1::2], strict=False)]
)


def pages(ranges: list[tuple[int, int]]) -> set[int]:
    return {at // PAGE for low, high in ranges for at in range(low, high, PAGE)}


@given(RANGES, RANGES)
def test_what_is_in_both(some: list[tuple[int, int]], others: list[tuple[int, int]]) -> None:
    assert pages(both(some, others)) == pages(some) & pages(others)


@given(RANGES)
def test_little_gaps_are_closed(ranges: list[tuple[int, int]]) -> None:
    closed = _close_together(ranges)
    assert pages(ranges) <= pages(closed)
    assert all(b[0] - a[1] > 64 << 10 for a, b in pairwise(closed))


@given(RANGES, st.integers(0, 400), st.integers(1, 50))
def test_of_a_mapping_what_is_wanted_of_it(wanted: list[tuple[int, int]], start: int, size: int) -> None:
    slim = _Slim.__new__(_Slim)
    slim._wanted, slim._files = wanted, set()
    mapping = Mapping(start * PAGE, (start + size) * PAGE, "rw-p", 0, 0, "")
    assert pages(slim.present(mapping)) == pages(wanted) & set(range(start, start + size))


def notes(raw: bytes) -> int:
    return read_notes(raw, parse_notes(raw, 0, len(raw))[0], EM_X86_64, []).left_out


def test_the_note_says_how_much_was_left_out() -> None:
    assert notes(left_out_note(5 << 30)) == 5 << 30


@pytest.mark.parametrize("size", [0, 4, 8, 100])
def test_a_note_of_another_size_does_no_harm(size: int) -> None:
    raw = struct.pack("<III", 9, size, 1) + b"DIAGTOOL\0\0\0\0" + b"\xff" * size
    assert 0 <= notes(raw) <= 1 << 62
