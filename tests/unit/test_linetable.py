"""Line tables from bytes: the corners of the three formats, and garbage."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from diagtool.runtimes.cpython.frames.linetable import OPEN_END, all_lines, find_line, line_at

VERSIONS = [(3, 9), (3, 10), (3, 11), (3, 12), (3, 13), (3, 14), (3, 15)]


def pairs(*deltas: tuple[int, int]) -> bytes:
    return b"".join(bytes([code, line & 0xFF]) for code, line in deltas)


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 64:
        out.append(64 | value & 63)
        value >>= 6
    out.append(value)
    return bytes(out)


def signed_varint(value: int) -> bytes:
    return varint(-value << 1 | 1) if value < 0 else varint(value << 1)


def head(code: int, units: int) -> bytes:
    return bytes([128 | code << 3 | units - 1])


def test_a_39_pair_moves_the_address_first_and_adds_up_deltas_beyond_a_byte() -> None:
    # lnotab_notes.txt: 300 bytes of code and then 200 lines further take four pairs
    table = pairs((6, 1), (255, 0), (45, 127), (0, 73), (4, -10))
    assert all_lines((3, 9), table, 10) == [(0, 6, 10), (6, 306, 11), (306, 310, 211), (310, OPEN_END, 201)]
    assert line_at((3, 9), table, 10, 5) == 10
    assert line_at((3, 9), table, 10, 6) == 11
    assert line_at((3, 9), table, 10, 310) == 201


def test_a_310_pair_holds_for_its_own_code_and_minus_128_means_no_line() -> None:
    table = pairs((4, 1), (6, -128), (2, 0), (4, -3), (0, 127), (0, 100), (2, 1))
    assert all_lines((3, 10), table, 10) == [
        (0, 4, 11),
        (4, 10, None),
        (10, 12, 11),
        (12, 16, 8),
        (16, 18, 236),
    ]
    assert line_at((3, 10), table, 10, 4) is None
    assert line_at((3, 10), table, 10, 17) == 236
    assert line_at((3, 10), table, 10, 18) is None


def test_every_form_of_a_location_entry() -> None:
    table = b"".join(
        [
            head(14, 1) + signed_varint(0) + varint(1) + varint(2) + varint(3),  # long
            head(3, 2) + b"\x45",  # short: same line
            head(10, 1) + b"\x01\x02",  # one line, +0
            head(11, 1) + b"\x01\x02",  # one line, +1
            head(12, 8) + b"\x01\x02",  # one line, +2
            head(13, 1) + signed_varint(-7),  # no columns
            head(15, 3),  # no location
            head(13, 1) + signed_varint(100_000),
            head(14, 1) + signed_varint(-99_999) + varint(70) + varint(5000) + varint(6000),
        ]
    )
    expected = [
        (0, 8, 100),
        (8, 10, 101),
        (10, 26, 103),
        (26, 28, 96),
        (28, 34, None),
        (34, 36, 100_096),
        (36, 38, 97),
    ]
    for version in VERSIONS[2:]:
        assert all_lines(version, table, 100) == expected


def test_a_frame_that_has_not_begun_is_on_the_first_line() -> None:
    for version in VERSIONS:
        assert line_at(version, b"", 42, -2) == 42
        assert find_line([], 42, -2) == 42


def test_impossible_lines_are_unknown_not_shown() -> None:
    assert line_at((3, 9), pairs((2, -100)), 3, 2) is None
    assert line_at((3, 10), pairs((2, -100)), 3, 0) is None
    assert line_at((3, 12), head(13, 1) + signed_varint(-100), 3, 0) is None
    assert line_at((3, 12), head(13, 1) + b"\x7f" * 1000, 3, 0) is None
    assert line_at((3, 12), b"", -5, -1) is None


@given(
    st.sampled_from(VERSIONS),
    st.binary(max_size=400),
    st.integers(-(1 << 31), (1 << 31) - 1),
    st.lists(st.integers(-10, 1 << 32), max_size=20),
)
def test_garbage_never_raises_and_both_ways_agree(
    version: tuple[int, int], table: bytes, first_line: int, offsets: list[int]
) -> None:
    lines = all_lines(version, table, first_line)
    assert len(lines) <= len(table) // 2 + 1 or version >= (3, 11)
    assert len(lines) <= len(table) + 1
    ends = [end for _, end, _ in lines]
    assert [start for start, _, _ in lines] == [0, *ends[:-1]][: len(lines)]
    assert all(start < end for start, end, _ in lines)
    for offset in [*offsets, *range(0, 60, 2)]:
        line = line_at(version, table, first_line, offset)
        assert line == find_line(lines, first_line, offset)
        assert line is None or 0 <= line < 1 << 31
