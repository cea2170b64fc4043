"""Mapped files are counted by the pattern of their names, whatever the names hold."""

from __future__ import annotations

from diagtool.capture.memory import AddressSpace
from diagtool.capture.model import Capture, Mapping, ProcessInfo
from diagtool.runtimes.memory import add_process_memory, mapped_files


def capture(*paths: str, permissions: str = "rw-s") -> Capture:
    mappings = [
        Mapping(0x1000 * i, 0x1000 * (i + 1), permissions, 0, 0, path) for i, path in enumerate(paths, 1)
    ]
    return Capture("live", ProcessInfo(1), [], mappings, [], AddressSpace([]))


def rows(taken: Capture) -> dict[str, tuple[int, int, int, int]]:
    return {r["pattern"]: (r["count"], r["files"], r["bytes"], r["deleted"]) for r in mapped_files(taken)}


def test_numbers_make_no_difference() -> None:
    taken = capture(
        "/run/m/counter_1.db", "/run/m/counter_22.db", "/run/m/counter_22.db", "/run/m/gauge_1.db"
    )
    assert rows(taken) == {"/run/m/counter_#.db": (3, 2, 0x3000, 0), "/run/m/gauge_#.db": (1, 1, 0x1000, 0)}


def test_many_names_of_one_ending_are_one_row() -> None:
    taken = capture(*(f"/tmp/{c}xy.bin" for c in "abcdefghijk"), "/tmp/other")
    assert rows(taken) == {"/tmp/*.bin": (11, 11, 0xB000, 0), "/tmp/other": (1, 1, 0x1000, 0)}


def test_files_without_a_name_are_counted() -> None:
    assert rows(capture("/dev/zero (deleted)", "/dev/zero (deleted)")) == {"/dev/zero": (2, 1, 0x2000, 2)}


def test_programs_and_memory_are_no_data() -> None:
    assert rows(capture("", "[heap]", "[stack]")) == {}
    assert rows(capture("/usr/bin/python3", permissions="r-xp")) == {}


def test_a_core_does_not_tell_what_is_resident() -> None:
    tables: dict[str, list[dict[str, object]]] = {}
    add_process_memory(capture("/tmp/a"), tables)
    assert tables["heaps"][0]["rss"] is None
    assert tables["heaps"][0]["mappings"] == 1
