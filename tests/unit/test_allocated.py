"""Where unreachable blocks were allocated: what of the records is still there, and what is blamed for it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diagtool.ingest import memray, memray_records
from diagtool.leaks import find_leaks
from diagtool.leaks.places import recorded_at
from diagtool.runtimes.native.allocated import add_allocated, site_of_blocks
from diagtool.runtimes.native.model import Blocks, LostBlocks, NativeHeap, UnreachableGroup
from diagtool.snapshot.model import Snapshot, Target

GIVES, FREES, MAPS = 1, 2, 10  # as memray numbers malloc, free and mmap
ALLOCATES, SKIPPED = np.zeros(256, np.bool_), np.zeros(256, np.bool_)
ALLOCATES[GIVES], SKIPPED[MAPS] = True, True


@dataclass(frozen=True)
class Record:
    address: int
    size: int
    allocator: int
    stack_id: int
    native_stack_id: int = 0


def live(records: list[Record], native: bool = False) -> tuple[list[tuple[int, int, int]], dict[Any, Any]]:
    samples: dict[int, Any] = {}
    address, size, stack = memray_records.live_blocks(iter(records), ALLOCATES, SKIPPED, samples, native)
    return list(zip(address.tolist(), size.tolist(), stack.tolist(), strict=True)), samples


def test_what_was_freed_is_not_there_and_what_took_its_place_is() -> None:
    records = [
        Record(0x100, 50, GIVES, 1),
        Record(0x200, 60, GIVES, 2),
        Record(0x100, 0, FREES, 0),
        Record(0x300, 70, GIVES, 3),
        Record(0x300, 0, FREES, 0),
        Record(0x300, 80, GIVES, 4),
        Record(0x400, 0, FREES, 0),  # of before the recording
        Record(0x500, 4096, MAPS, 5),
    ]
    found, samples = live(records)
    assert found == [(0x200, 60, 2), (0x300, 80, 4)]
    assert samples[4] is records[5]


def test_stacks_of_c_tell_places_apart() -> None:
    found, samples = live([Record(0x100, 50, GIVES, 1, 7), Record(0x200, 50, GIVES, 1, 8)], native=True)
    assert [stack for _, _, stack in found] == [1 << 32 | 7, 1 << 32 | 8]
    assert len(samples) == 2


def test_many_records_in_parts_are_as_a_dict_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memray_records, "_CHUNK", 100)
    monkeypatch.setattr(memray_records, "_GATHER", 300)
    chance, expected = random.Random(1), dict[int, tuple[int, int]]()

    def records() -> Iterator[Record]:
        for _ in range(20_000):
            address = chance.randrange(1, 500) * 16
            if chance.random() < 0.5:
                expected.pop(address, None)
                yield Record(address, 0, FREES, 0)
            else:
                expected[address] = (chance.randrange(1, 1000), chance.randrange(50))
                yield Record(address, expected[address][0], GIVES, expected[address][1])

    found, samples = live(list(records()))
    assert found == [(a, *expected[a]) for a in sorted(expected)]
    assert {stack for _, _, stack in found} <= set(samples)


def test_nothing_recorded_is_nothing_there() -> None:
    assert live([]) == ([], {})


def test_too_many_blocks_are_told_of_and_not_some_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memray_records, "_MAX_BLOCKS", 9)
    with pytest.raises(memray_records.TooMuch):
        live([Record(16 * i, 8, GIVES, 1) for i in range(1, 11)])


def lost(*blocks: tuple[int, int], mapped: bool = False) -> LostBlocks:
    address, usable = zip(*blocks, strict=True)
    return LostBlocks(
        np.array(address, np.uint64),
        np.array(usable, np.uint64),
        np.full(len(blocks), mapped),
        np.zeros(len(blocks), np.int64),
    )


def blamed(blocks: LostBlocks, *recorded: tuple[int, int, int]) -> list[int]:
    address, size, site = (np.array([r[i] for r in recorded], np.int64) for i in range(3))
    return site_of_blocks(blocks, address.astype(np.uint64), size.astype(np.uint64), site).tolist()


@pytest.mark.parametrize(
    ("usable", "asked", "same"),
    [
        (24, 0, True),
        (24, 24, True),
        (1000, 1000, True),
        (1000, 985, True),  # rounded up to 16
        (1016, 985, True),  # and a rest that is too small for a block of its own
        (1000, 1001, False),  # more than there is
        (1000, 900, False),  # another block has its place
        (1000, 0, False),
    ],
)
def test_only_a_block_of_the_size_that_was_asked_for_is_blamed(usable: int, asked: int, same: bool) -> None:
    assert blamed(lost((0x1000, usable)), (0x1000, asked, 5)) == [5 if same else -1]


def test_blocks_with_a_mapping_of_their_own_have_whole_pages() -> None:
    one = lost((0x10010, 204_784), mapped=True)
    assert blamed(one, (0x10010, 200_800, 5)) == [5]
    assert blamed(one, (0x10010, 150_000, 5)) == [-1]


def test_blocks_that_were_not_recorded_are_blamed_on_nobody() -> None:
    three = lost((0x1000, 40), (0x2000, 40), (0x3000, 40))
    assert blamed(three, (0x800, 40, 1), (0x1008, 40, 2), (0x2000, 40, 3), (0x9000, 40, 4)) == [-1, 3, -1]
    assert blamed(three) == [-1, -1, -1]


SITES = [
    {"source": "memray", "file": f"/srv/{n}.py", "line": 7, "function": n, "native": []}
    | {"frames": [[f"/srv/{n}.py", 7, n], ["/srv/main.py", 1, "main"]]}
    for n in ("handle", "other")
]


def joined(recorded: int, count: int = 1000, others: int = 0) -> Snapshot:
    """A group of so many lost blocks, some of them recorded; a known group, and one that only hangs."""
    nothing = np.zeros(0, np.uint64)
    heap = NativeHeap(
        "glibc malloc",
        Blocks(nothing, nothing, nothing, nothing.astype(np.uint8), nothing.astype(np.int32)),
        unreachable=[
            UnreachableGroup(64, 5, 320, 0, hangs=5, examples=(0x50,)),
            UnreachableGroup(1008, count, 1008 * count, count, "/srv/lib.so", examples=(0x1000,)),
        ],
        known=[UnreachableGroup(32, 1, 32, 1, known="libc's", examples=(0x70,))],
        reachability="judged",
    )
    snap = Snapshot(Target("live", pid=7, start_time=1.0, boot_id="b", captured_at=100.0))
    snap.tables.update(heap.to_rows())
    address = np.arange(count, dtype=np.uint64) * np.uint64(1008) + np.uint64(0x1000)
    blocks = LostBlocks(
        address, np.full(count, 1000, np.uint64), np.zeros(count, np.bool_), np.ones(count, np.int64)
    )
    site = np.where(np.arange(recorded) < others, 1, 0)
    add_allocated(blocks, snap.tables, address[:recorded], np.full(recorded, 1000, np.uint64), site, SITES)
    return snap


def test_a_group_says_where_its_blocks_were_allocated() -> None:
    snap = joined(900, others=100)
    rows = snap.tables["native_allocated"]
    assert [(r["example"], r["count"], r["bytes"], r["function"]) for r in rows] == [
        (0x1000, 800, 806_400, "handle"),
        (0x1000, 100, 100_800, "other"),
    ]
    (finding,) = snap.tables["native_lost"]
    assert finding["recorded"] == 900 and [s["count"] for s in finding["allocated"]] == [800, 100]


def test_a_finding_says_where_its_blocks_were_allocated() -> None:
    (finding,) = find_leaks([joined(900, others=100)]).findings
    assert finding.template == "native-blocks-lost" and finding.count == 1000
    assert finding.created_by is not None
    assert [(f.function, f.line) for f in finding.created_by] == [("handle", 7), ("main", 1)]
    said = "memray saw 900 of them being allocated, 800 at handle.py:7 in handle, 100 at other.py:7 in other"
    assert said in finding.evidence
    (finding,) = find_leaks([joined(50)]).findings
    assert "memray saw 50 of them being allocated, all at handle.py:7 in handle" in finding.evidence


@pytest.mark.parametrize("recorded", [0, 9])
def test_a_few_recorded_blocks_say_nothing_of_all(recorded: int) -> None:
    (finding,) = find_leaks([joined(recorded)]).findings
    assert finding.created_by is None and not any("memray" in text for text in finding.evidence)


def test_where_no_place_has_half_of_them_none_made_them() -> None:
    rows = {"recorded": 100, "allocated": [{"count": 40, "frames": [["/a.py", 1, "f"]], "native": []}]}
    frames, text = recorded_at(rows, 100)
    assert frames is None and text is not None and "60 elsewhere" in text


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"recorded": 50},
        {"recorded": True, "allocated": []},
        {"recorded": 50, "allocated": "x"},
        {"recorded": 50, "allocated": [1, {}, {"count": "x"}]},
    ],
)
def test_rows_that_make_no_sense_say_nothing(row: dict[str, Any]) -> None:
    assert recorded_at(row, 50) == (None, None)


def test_frames_that_make_no_sense_are_left_out() -> None:
    row = {"recorded": 50, "allocated": [{"count": 50, "frames": [1, ["a"], ["/a.py", None, "f"]]}]}
    frames, text = recorded_at(row, 50)
    assert frames == () and text is not None and "without a name" in text


READER = """
import sys, struct
sys.stdout.buffer.write({head!r} + b"\\n" + {rest!r})
"""


@pytest.mark.parametrize(
    ("head", "rest", "why"),
    [
        (b"", b"", "can't be read"),
        (b"[1]", b"", "can't be read"),
        (b'{"error": "it is damaged"}', b"", "it is damaged"),
        (b"{}", b"", "makes no sense"),
        (b'{"blocks":1,"bytes":1,"sites":1,"rows":[],"seconds":1,"live":3,"places":[]}', b"x", "no sense"),
        (b'{"blocks":1,"bytes":1,"sites":1,"rows":[],"seconds":1,"live":0,"places":[[1]]}', b"", "no sense"),
    ],
)
def test_what_a_reader_says_is_not_believed(
    head: bytes, rest: bytes, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = tmp_path / "reader.py"
    reader.write_text(READER.format(head=head, rest=rest))
    monkeypatch.setattr(memray, "_READER", reader)
    folder = tmp_path / "folder"
    folder.mkdir()
    recording = memray.Recording(1 << 23, folder / "record", 1.0, each=True)  # no Linux has such a pid
    with pytest.raises(memray.NoRecord, match=why if "read" not in why else "ended meanwhile"):
        recording.wait()
    recording.close()
    assert not folder.exists()


def test_what_a_reader_leaves_out_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = tmp_path / "reader.py"
    head = b'{"blocks":1,"bytes":1,"sites":1,"rows":[],"seconds":1,"unread":"TooMuch: records"}'
    reader.write_text(READER.format(head=head, rest=b""))
    monkeypatch.setattr(memray, "_READER", reader)
    recording = memray.Recording(1 << 23, tmp_path / "record", 1.0, each=True)
    recording.wait()
    assert recording.blocks is None and recording.tables["memray"][0]["blocks"] == 1
    assert recording.notes == ["where single blocks were allocated is not known: TooMuch: records"]
