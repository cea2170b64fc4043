"""/proc/PID/smaps becomes arrays, whatever stands in it."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diagtool.capture import smaps as module
from diagtool.capture.smaps import FIELDS, parse_smaps, read_smaps

ONE = b"""7f12a000-7f12c000 r-xp 00001000 fe:00 1234                       /usr/lib/libc.so.6
Size:                  8 kB
Rss:                   4 kB
Pss:                   1 kB
Anonymous:             0 kB
AnonHugePages:         0 kB
Shared_Hugetlb:        0 kB
Private_Hugetlb:       0 kB
Swap:                  0 kB
SwapPss:               0 kB
VmFlags: rd ex mr mw me sd
"""
TWO = ONE.replace(b"7f12a000-7f12c000 r-xp", b"7f12c000-7f12e000 rw-p").replace(
    b"Rss:                   4 kB", b"Rss:           123456789 kB"
)


def rows(text: bytes) -> list[tuple[int, int, int]]:
    found = parse_smaps(text)
    columns = (found.fields["rss"].tolist(), found.fields["pss"].tolist())
    return [(m.start, *numbers) for m, *numbers in zip(found.mappings, *columns, strict=True)]


def test_every_field_is_that_of_its_mapping() -> None:
    assert rows(ONE + TWO) == [(0x7F12A000, 4096, 1024), (0x7F12C000, 123456789 << 10, 1024)]
    assert parse_smaps(ONE + TWO).mappings[1].permissions == "rw-p"


def test_mappings_with_different_fields_are_read_one_by_one() -> None:
    other = TWO.replace(b"VmFlags", b"ProtectionKey:         0 kB\nVmFlags").replace(
        b"Swap:                  0 kB", b"Swap:                 16 kB"
    )
    found = parse_smaps(ONE + other + ONE)
    assert found.fields["swap"].tolist() == [0, 16 << 10, 0]
    assert len(found) == 3


def test_fields_that_a_kernel_lacks_are_zero() -> None:
    old = b"\n".join(line for line in (ONE + TWO).split(b"\n") if not line.startswith(b"AnonHuge"))
    found = parse_smaps(old)
    assert found.fields["huge"].tolist() == [0, 0]
    assert set(found.fields) == set(FIELDS)


def test_a_file_that_is_cut_off_loses_its_last_mapping_at_most() -> None:
    for end in range(len(ONE), len(ONE + TWO)):
        assert rows((ONE + TWO)[:end])[0] == (0x7F12A000, 4096, 1024)


def test_names_may_hold_anything() -> None:
    strange = ONE.replace(b"/usr/lib/libc.so.6", b"/tmp/Rss: 7 kB - \\012Size: x")
    assert rows(strange) == [(0x7F12A000, 4096, 1024)]


@given(
    st.lists(
        st.sampled_from([*ONE.split(b"\n"), b"", b"x", b"Rss:", b"Rss: kB", b"Rss: -1 kB", b"1-"]),
        max_size=40,
    )
)
def test_garbage_never_raises(lines: list[bytes]) -> None:
    found = parse_smaps(b"\n".join(lines))
    assert all(len(column) == len(found) for column in found.fields.values())


def test_our_own_smaps_is_read_both_ways_alike() -> None:
    found = read_smaps(os.getpid())
    assert found.fields["rss"].sum() > 1 << 20
    assert (found.fields["pss"] <= found.fields["rss"]).all()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_regular", _refuse)
        again = read_smaps(os.getpid())
    assert abs(int(again.fields["rss"].sum() - found.fields["rss"].sum())) < 16 << 20


def _refuse(lines: list[bytes], period: int) -> module.Smaps:
    raise ValueError


def test_a_process_that_is_gone_is_an_error_of_the_system() -> None:
    with pytest.raises(OSError):
        read_smaps(1 << 22)
