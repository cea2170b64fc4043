"""What `diagtool heap --native` shows, and what it makes of tables that somebody has tampered with."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from diagtool.cli import main
from diagtool.report import heap, json, nativeheap
from diagtool.report.terminal import View
from diagtool.report.text import write
from diagtool.runtimes.native.model import (
    ArenaTotals,
    Blocks,
    ForeignAllocator,
    Fragmentation,
    NativeHeap,
    SizeClass,
    UnreachableGroup,
)
from diagtool.snapshot import store
from diagtool.snapshot.model import Snapshot, Target

Say = pytest.CaptureFixture[str]
NONE = np.zeros(0, np.uint64)


def native(**changes: Any) -> NativeHeap:
    fields: dict[str, Any] = {
        "arenas": [
            ArenaTotals(0x7F10, True, 0, 9 << 20, 3_000_000, 400, 1_000_000, 30, 0, 0, 2_000_000, 0),
            ArenaTotals(0x7F20, False, 1, 1 << 20, 50_000, 10, 7_000, 3, 0, 0, 0, 4096),
        ],
        "sizes": [
            SizeClass(1008, 1008, 1000, 1_008_000, 0, 0),
            SizeClass(1025, 2048, 10, 12_000, 3, 4_000),
        ],
        "mmapped_blocks": 2,
        "mmapped_bytes": 600_000,
        "fragmentation": Fragmentation(1_007_000, 2_000_000, 0.25, 9_000, 33),
        "unreachable": [
            UnreachableGroup(
                1008, 1000, 1_008_000, 1000, "/srv/app/libworker.so", "retire", None, None, (16,)
            ),
            UnreachableGroup(48, 20, 960, 0, hangs=20),
        ],
        "known": [UnreachableGroup(32, 3, 96, 3, "/lib/libc.so.6", None, None, "the C library's own", (64,))],
        "reachability": "judged",
    }
    return NativeHeap("glibc malloc", Blocks(NONE, NONE, NONE, NONE, NONE), **{**fields, **changes})


def snapshot(found: NativeHeap | None = None) -> Snapshot:
    snap = Snapshot(Target("live", pid=4242, runtime="cpython 3.12.1"), pause_ms=3.1)
    snap.tables.update((found or native()).to_rows())
    return snap


def shown(snap: Snapshot, limit: int = 10, width: int = 80, verbose: bool = False) -> list[str]:
    out = io.StringIO()
    write(nativeheap.lines(snap, limit, View(width, verbose)), out, color=False)
    return out.getvalue().splitlines()


def checked(snap: Snapshot) -> dict[str, Any]:
    document = json.heap(snap, heap.counts(snap))
    jsonschema.validate(document, json.schema("heap"), cls=jsonschema.Draft202012Validator)
    out: dict[str, Any] = document["native"]
    return out


def test_the_view_goes_from_arenas_to_what_is_lost() -> None:
    assert shown(snapshot()) == [
        "in use  blocks    free  at its end  where",
        "3.0 MB     400  1.0 MB      2.0 MB  main arena",
        " 50 kB      10  7.0 kB           –  arena at 0x7f20, 1 heap, 4.1 kB not read",
        "600 kB       2       –           –  blocks with a mapping of their own",
        "",
        "in use  blocks    free  bytes of a block, header included",
        "1.0 MB   1,000       –  1,008",
        " 12 kB      10  4.0 kB  1,025 to 2,048",
        "",
        "25% of the arenas (1.0 MB) is free between blocks in use, in 33 holes of up to",
        "9.0 kB; 2.0 MB are free at their ends.",
        "unreachable: 1,020 blocks, 1.0 MB: no pointer leads to them any more",
        "  1,000     1.0 MB  1,008 bytes each, first word: retire in libworker.so",
        "     20  960 bytes  48 bytes each, hanging on others",
        "known, and no leak: 3 blocks, 96 bytes",
        "  3  96 bytes  32 bytes each, first word: into libc.so.6 (the C library's own)",
        "",
        "glibc malloc: 412 blocks in use, 3.6 MB; 3.0 MB free"
        " · cpython 3.12.1, pid 4242 · stopped for 3.1 ms",
    ]


def allocated(count: int, function: str, **changes: Any) -> dict[str, Any]:
    row = {"example": 16, "count": count, "bytes": 1008 * count, "source": "memray"}
    row |= {"file": "/srv/app/jobs.py", "line": 41, "function": function, "native": []}
    row["frames"] = [["/srv/app/jobs.py", 41, function], ["/srv/app/main.py", 7, "main"]]
    return {**row, **changes}


def test_groups_say_where_their_blocks_were_allocated() -> None:
    snap = snapshot()
    assert checked(snap)["unreachable"][0]["allocated"] is None
    c = [["decode.c", 88, "decode"], ["<unknown>", 0, "<unknown>"], ["<unknown>", 0, "ffi_call"]]
    numpy = [["/srv/lib/python3.12/site-packages/np.py", 9, "empty"], ["/srv/app/jobs.py", 50, "load"]]
    snap.tables["native_allocated"] = [
        allocated(600, "handle", native=c),
        allocated(300, "load", frames=numpy),
        *(allocated(10 - n, f"f{n}") for n in range(3)),
    ]
    text = shown(snap, width=120)
    at = text.index("  1,000     1.0 MB  1,008 bytes each, first word: retire in libworker.so")
    assert [line.strip() for line in text[at + 1 : at + 6]] == [
        "600 allocated at jobs.py:41 in handle, by decode (decode.c:88)",
        "300 allocated at jobs.py:50 in load, through np.py:9",
        "10 allocated at jobs.py:41 in f0",
        "17 at 2 more places (-v)",
        "73 were not seen: older than the recording, or younger",
    ]
    verbose = [line.strip() for line in shown(snap, width=120, verbose=True)]
    at = verbose.index("600 allocated at /srv/app/jobs.py:41 in handle, by decode (decode.c:88)")
    assert verbose[at + 1 : at + 3] == ["from ffi_call", "from /srv/app/main.py:7 in main"]
    found = checked(snap)["unreachable"]
    assert [s["count"] for s in found[0]["allocated"]] == [600, 300, 10, 9, 8]
    assert found[0]["allocated"][0]["native"][0] == {"function": "decode", "file": "decode.c", "line": 88}
    assert found[1]["allocated"] == found[2]["allocated"] == []


@pytest.mark.parametrize(
    "changes",
    [{"example": "x"}, {"example": None}, {"count": -1}, {"count": "x"}, {"frames": 7}, {"source": None}],
)
def test_places_that_make_no_sense_are_left_out(changes: dict[str, Any]) -> None:
    snap = snapshot()
    snap.tables["native_allocated"] = [{**allocated(600, "handle"), **changes}]
    assert checked(snap)["unreachable"][0]["allocated"] == []
    assert not any("handle" in line for line in shown(snap))


def test_much_free_memory_between_blocks_is_explained() -> None:
    free = Fragmentation(90 << 20, 1 << 20, 0.6, 9 << 20, 33)
    text = " ".join(shown(snapshot(native(fragmentation=free))))
    assert "60% of the arenas" in text
    assert "MALLOC_ARENA_MAX=2" in text


def test_why_nothing_was_judged_is_said() -> None:
    why = "not judged: memory is missing, pointers may be there"
    text = " ".join(shown(snapshot(native(reachability=why, unreachable=[], known=[]))))
    assert "was not judged: memory is missing, pointers may be there." in text
    assert "unreachable: none" not in text


def test_nothing_unreachable_is_said_in_as_many_words() -> None:
    assert any(line.startswith("unreachable: none") for line in shown(snapshot(native(unreachable=[]))))


def test_damage_is_said_where_it_may_be_why_blocks_look_lost() -> None:
    assert any("The heap is damaged" in line for line in shown(snapshot(native(damaged=True))))
    assert not any("damaged" in line for line in shown(snapshot(native(damaged=True, unreachable=[]))))


def test_allocators_that_are_not_read_are_named() -> None:
    other = [
        ForeignAllocator("jemalloc", "/lib/libjemalloc.so.2", 9 << 20, "jemalloc: its blocks are not read")
    ]
    lines = shown(snapshot(native(foreign=other)))
    assert "jemalloc: its blocks are not read. Up to 9.4 MB of memory may be its own." in lines
    alone = NativeHeap(None, Blocks(NONE, NONE, NONE, NONE, NONE), foreign=other)
    assert shown(snapshot(alone))[0].startswith("jemalloc: its blocks are not read")
    assert checked(snapshot(alone))["allocator"] is None


def test_the_document_keeps_its_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(json.schema("heap"))
    document = checked(snapshot())
    assert document["unreachable_blocks"] == 1020
    assert document["fragmentation"]["ratio"] == 0.25
    assert [g["example"] for g in document["unreachable"]] == ["0x10", None, "0x40"]
    assert document["arenas"][1]["address"] == "0x7f20"


def test_a_snapshot_whose_native_heap_was_not_read_has_none_in_its_document() -> None:
    assert json.heap(Snapshot(Target("live", pid=1)), ())["native"] is None


def test_rows_that_make_no_sense_are_left_out() -> None:
    snap = snapshot()
    good = snap.tables["native_unreachable"][0]
    bad: list[Any] = [{}, 3]
    for key, values in (("count", (-1, "1", None, 1.5, True, 1 << 70)), ("known", (7, ["x"]))):
        bad += [{**good, key: value} for value in values]
    snap.tables["native_unreachable"] = [*bad, good]
    snap.tables["native_arenas"] = bad
    snap.tables["native_warnings"] = [*bad, {"text": 3}, {"text": "one"}]
    assert len(checked(snap)["unreachable"]) == 1
    assert "warning: one" in shown(snap)
    snap.tables["native_heap"] = bad
    assert not nativeheap.has_native(snap)


def test_names_can_do_nothing_to_a_terminal() -> None:
    evil = UnreachableGroup(48, 20, 960, 0, "/x/\x1b[31m\n" + "y" * 900, "z\x1b" * 90, "t\r", None, (1,))
    lines = shown(snapshot(native(unreachable=[evil], warnings=["\x1b[2J"])), verbose=True)
    assert "\x1b" not in "".join(lines)


def test_a_snapshot_keeps_its_native_heap(tmp_path: Path, capsys: Say) -> None:
    store.save(snapshot(), tmp_path / "with.diag")
    assert main(["heap", str(tmp_path / "with.diag"), "--native"]) == 0
    assert "412 blocks in use" in capsys.readouterr().out
    assert main(["heap", str(tmp_path / "with.diag"), "--native", "--type", "x"]) == 2


def test_a_snapshot_without_one_says_how_to_get_it(tmp_path: Path, capsys: Say) -> None:
    store.save(Snapshot(Target("live", pid=1)), tmp_path / "without.diag")
    assert main(["heap", str(tmp_path / "without.diag"), "--native"]) == 3
    assert "--heap" in capsys.readouterr().err
