"""The reader of protobuf's wire format: what was written comes back, nothing but WireError comes out."""

from __future__ import annotations

import contextlib
import gzip
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_profiles import field, goroutines, recorded, varint, waiting

from diagtool.ingest.pprof.profile import ProfileError, looks_like_profile, parse
from diagtool.ingest.pprof.wire import BYTES, NUMBER, WireError, fields, number, numbers, signed

U64 = st.integers(0, (1 << 64) - 1)


@given(U64, st.binary(max_size=5))
def test_a_number_comes_back(value: int, behind: bytes) -> None:
    data = varint(value)
    assert number(data + behind, 0) == (value, len(data))


@given(st.integers(-(1 << 63), (1 << 63) - 1))
def test_a_number_with_a_sign_comes_back(value: int) -> None:
    assert signed(number(varint(value), 0)[0]) == value


@given(st.lists(st.tuples(st.integers(1, 5000), st.one_of(U64, st.binary(max_size=300))), max_size=20))
def test_fields_come_back(made: list[tuple[int, int | bytes]]) -> None:
    data = b"".join(field(n, value) for n, value in made)
    got = [(n, value if wire == NUMBER else data[value:end]) for n, wire, value, end in fields(data)]
    assert got == made


@given(st.lists(st.lists(U64, max_size=8), max_size=12))
def test_packed_numbers_come_back_piece_by_piece(made: list[list[int]]) -> None:
    values, starts = numbers([b"".join(map(varint, one)) for one in made])
    assert [values[a:b].tolist() for a, b in itertools.pairwise(starts)] == made
    assert values.dtype == np.uint64 and len(starts) == len(made) + 1


@given(st.binary(max_size=400))
def test_any_bytes_are_fields_or_an_error(data: bytes) -> None:
    try:
        for n, wire, value, end in fields(data):
            assert n > 0 and (wire == NUMBER or 0 <= value <= end <= len(data))
    except WireError:
        pass
    with contextlib.suppress(WireError):
        numbers([data])


@pytest.mark.parametrize("data", [b"\x80", b"\xff" * 11, b"\x0a\x05abc", b"\x0b", b"\x00\x01", b"\x09abc"])
def test_what_is_no_message_is_said_so(data: bytes) -> None:
    with pytest.raises(WireError):
        list(fields(data))


def test_fixed_fields_are_passed_over() -> None:
    data = b"\x09" + bytes(8) + b"\x15" + bytes(4) + field(3, 5)
    assert [(n, wire) for n, wire, _, _ in fields(data)] == [(1, 1), (2, 5), (3, NUMBER)]
    assert BYTES == 2


REAL = gzip.decompress(recorded("1.27", "goroutine.pb.gz").read_bytes())


@settings(max_examples=100, deadline=None)
@given(st.integers(0, len(REAL) - 1), st.binary(min_size=1, max_size=8))
def test_a_damaged_profile_is_read_or_refused(at: int, bytes_: bytes) -> None:
    data = REAL[:at] + bytes_ + REAL[at + len(bytes_) :]
    try:
        profile = parse(data)
    except ProfileError:
        return
    for stack in range(len(profile.stacks)):
        profile.places(stack)
    for sample in range(len(profile.values)):
        profile.labels_of(sample)


@settings(deadline=None)
@given(st.integers(0, len(REAL) - 1))
def test_a_profile_that_is_cut_off_is_read_or_refused(size: int) -> None:
    try:
        parse(REAL[:size])
    except ProfileError as error:
        assert str(error)


def test_profiles_are_told_from_other_files() -> None:
    assert looks_like_profile(REAL) and looks_like_profile(REAL[:300])
    assert looks_like_profile(goroutines(waiting(3)))
    for other in (
        b"",
        b"goroutine 1 [running]:\n",
        b"\x7fELF\x02\x01\x01",
        b"\x80\x04\x95tracemalloc",
        b"\x1f\x8b",
    ):
        assert not looks_like_profile(other)
    for other in (b"\n\n\n\ngoroutine 1 [running]:", b"go 1.22 trace\0\0\0", b"SQLite format 3\0", bytes(64)):
        assert not looks_like_profile(other)


def test_a_number_of_a_sample_is_read_packed_or_not() -> None:
    a, b = (parse(goroutines(waiting(3), waiting(70_000, "main.f"), packed=p)) for p in (True, False))
    assert a.values.tolist() == b.values.tolist() == [[3], [70_000]]
    assert [a.places(i) for i in range(2)] == [b.places(i) for i in range(2)]
