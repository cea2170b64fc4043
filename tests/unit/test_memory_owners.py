"""Whose each page is: by name, by neighbours, by what runtimes say; and the sum stays what it was."""

from __future__ import annotations

import io
import json as std
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diagtool.capture.claims import claim
from diagtool.capture.memory import PAGE, AddressSpace, Segment
from diagtool.capture.model import Capture, Mapping, ProcessInfo
from diagtool.cli import main
from diagtool.inventory import memory
from diagtool.inventory.memoryowners import Owners
from diagtool.report import json
from diagtool.report import memory as report
from diagtool.report.terminal import View
from diagtool.report.text import write
from diagtool.snapshot import store
from diagtool.snapshot.model import Snapshot, Target

LOW = 0x7F00_0000_0000
MIB = 1 << 20


def mapping(path: str, permissions: str = "rw-p", start: int = LOW, size: int = MIB) -> Mapping:
    return Mapping(start, start + size, permissions, 0, 1 if path.startswith("/") else 0, path)


@pytest.mark.parametrize(
    ("path", "permissions", "owner"),
    [
        ("", "rw-p", "unknown anonymous memory"),
        ("[anon:jemalloc]", "rw-p", "unknown anonymous memory"),
        ("", "---p", "reserved, not accessible"),
        ("", "rwxp", "code made at run time"),
        ("", "r-xp", "code made at run time"),
        ("", "r--p", "read-only anonymous memory"),
        ("[heap]", "rw-p", "break heap, not malloc's"),
        ("[stack]", "rw-p", "main stack"),
        ("[vdso]", "r-xp", "kernel pages"),
        ("[vvar]", "r--p", "kernel pages"),
        ("/srv/data.bin", "rw-s", "files"),
        ("/srv/data.bin (deleted)", "rw-s", "deleted files"),
        ("/srv/libx.so", "r-xp", "programs and libraries"),
        ("/dev/shm/psm_1", "rw-s", "shared memory"),
        ("/dev/shm/psm_1 (deleted)", "rw-s", "shared memory"),
        ("/run/cache/x", "rw-s", "shared memory"),
        ("/runner/x", "rw-s", "files"),
        ("/SYSV00000000 (deleted)", "rw-s", "SysV shared memory"),
        ("/dev/zero (deleted)", "rw-s", "shared anonymous memory"),
        ("/memfd:pool (deleted)", "rw-s", "memfd"),
        ("/memfd:jit (deleted)", "r-xs", "memfd"),
        ("/dev/nvidia-uvm", "rw-s", "CUDA"),
        ("/dev/nvidia0", "rw-s", "CUDA"),
        ("/dev/dri/renderD128", "rw-s", "DRM"),
        ("/i915 (deleted)", "rw-s", "DRM"),
        ("anon_inode:i915.gem", "rw-s", "DRM"),
        ("/dev/kfd", "rw-s", "ROCm"),
        ("/anon_hugepage (deleted)", "rw-p", "hugetlb pages"),
        ("anon_inode:[io_uring]", "rw-s", "io_uring"),
        ("anon_inode:[perf_event]", "rw-s", "kernel objects"),
        ("/dev/mem", "rw-s", "devices"),
    ],
)
def test_owners_go_by_names_and_permissions(path: str, permissions: str, owner: str) -> None:
    assert Owners([], tmpfs=["/run"]).of([mapping(path, permissions)]) == [owner]


def test_a_stack_of_an_ended_thread_has_a_guard_and_the_size_of_stacks() -> None:
    guard, stack = mapping("", "---p", LOW, PAGE), mapping("", "rw-p", LOW + PAGE, 8 * MIB - PAGE)
    assert Owners([]).of([guard, stack])[1] == "stacks of ended threads"
    small = mapping("", "rw-p", LOW + PAGE, 64 * MIB)
    assert Owners([]).of([guard, small])[1] == "unknown anonymous memory"
    assert Owners([], frozenset([64 * MIB])).of([guard, small])[1] == "stacks of ended threads"
    assert Owners([]).of([mapping("", "r--p", LOW, PAGE), stack])[1] == "unknown anonymous memory"


def core(mappings: list[Mapping], pages: set[int]) -> Capture:
    """A core in which these pages (numbers, from LOW on) are not empty."""
    size = max(m.end for m in mappings) - LOW
    data = np.zeros(size, np.uint8)
    for page in pages:
        data[page * PAGE] = 1
    space = AddressSpace()
    number = space.add_buffer(data)
    space.add_segments([Segment(m.start, m.end, number, m.start - LOW) for m in mappings])
    return Capture("core", ProcessInfo(7), [], mappings, [], space)


def taken(capture: Capture, **tables: list[dict[str, Any]]) -> Snapshot:
    snapshot = Snapshot(Target("core", pid=7), tables=dict(tables))
    memory.add(capture, snapshot)
    return snapshot


def by_owner(snapshot: Snapshot) -> dict[str, tuple[int, int]]:
    rows = snapshot.tables["memory_owners"]
    assert sum(r["rss"] for r in rows) == snapshot.tables["memory"][0]["rss"]
    assert sum(r["size"] for r in rows) == snapshot.tables["memory"][0]["size"]
    return {r["owner"]: (r["rss"] // PAGE, r["size"] // PAGE) for r in rows}


def test_a_mapping_is_cut_up_among_those_who_claim_parts_of_it() -> None:
    capture = core([mapping("", size=100 * PAGE)], {0, 1, 10, 11, 12, 50, 99})
    claim(capture, "arenas", [(LOW + 10 * PAGE, LOW + 40 * PAGE)])
    claim(capture, "heap", [(LOW + 30 * PAGE, LOW + 60 * PAGE)])  # its beginning is arenas'
    claim(capture, "elsewhere", [(LOW + 200 * PAGE, LOW + 300 * PAGE)])
    assert by_owner(taken(capture)) == {
        "arenas": (3, 30),
        "heap": (1, 20),
        "unknown anonymous memory": (3, 50),
    }


def test_files_and_stacks_are_claimed_by_nobody() -> None:
    mappings = [mapping("/srv/data"), mapping("[stack]", start=LOW + MIB)]
    capture = core(mappings, {0, 256})
    claim(capture, "heap", [(LOW, LOW + 2 * MIB)])
    assert by_owner(taken(capture)) == {"files": (1, 256), "main stack": (1, 256)}


def test_claims_that_begin_within_pages_have_them_whole() -> None:
    capture = core([mapping("", size=4 * PAGE)], {0, 1, 2, 3})
    claim(capture, "heap", [(LOW + PAGE + 16, LOW + 2 * PAGE + 16)])
    assert by_owner(taken(capture)) == {"heap": (2, 2), "unknown anonymous memory": (2, 2)}


def test_large_unknown_pieces_are_those_of_an_allocator_that_took_the_place_of_malloc() -> None:
    mappings = [mapping("", size=2 * MIB), mapping("", start=LOW + 4 * MIB, size=PAGE)]
    mappings.append(mapping("[heap]", start=LOW + 8 * MIB))
    known = [{"name": "jemalloc", "library": "/usr/lib/libjemalloc.so.2"}]
    small = {"unknown anonymous memory": (1, 1)}
    capture = core(mappings, {0, 1024, 2048})
    assert by_owner(taken(capture, allocators=known)) == {"jemalloc": (2, 768), **small}
    used = [malloc(system=100 * MIB)]
    assert "jemalloc" not in by_owner(taken(core(mappings, {0}), allocators=known, malloc=used))
    assert "jemalloc" not in by_owner(taken(core(mappings, {0}), allocators=known * 2))


_PAIRS = st.lists(st.tuples(st.integers(0, 70), st.integers(1, 40)), max_size=12)


@given(_PAIRS, _PAIRS, st.sets(st.integers(0, 63)))
def test_whatever_is_claimed_every_page_has_one_owner(
    first: list[tuple[int, int]], second: list[tuple[int, int]], pages: set[int]
) -> None:
    mappings = [mapping("", size=32 * PAGE), mapping("[heap]", start=LOW + 32 * PAGE, size=32 * PAGE)]
    capture = core(mappings, pages)
    for name, pairs in (("a", first), ("b", second)):
        claim(capture, name, [(LOW + low * PAGE, LOW + (low + size) * PAGE) for low, size in pairs])
    found = by_owner(taken(capture))
    assert sum(rss for rss, _ in found.values()) == len(pages)
    mine = {page for low, size in first for page in range(low, low + size)} & set(range(64))
    assert found.get("a", (0, 0)) == (len(mine & pages), len(mine))


def test_shares_of_a_mapping_add_up_to_what_the_kernel_says_of_it() -> None:
    rng = np.random.default_rng(2)
    for _ in range(50):
        mapping_of = np.sort(rng.integers(0, 5, 20))
        weight = rng.integers(0, 9, 20) * rng.integers(0, 2)
        amount = rng.integers(0, 1 << 40, 5) * (np.bincount(mapping_of, minlength=5) > 0)
        shares = memory._shares(mapping_of, weight, amount)
        assert (
            np.bincount(mapping_of, weights=shares, minlength=5).astype(np.int64).tolist() == amount.tolist()
        )


# -- the view -------------------------------------------------------------------------------------------


def malloc(**changes: Any) -> dict[str, Any]:
    numbers = ("arenas", "system", "used", "free", "fast", "top", "holes", "mapped_blocks", "mapped_bytes")
    row: dict[str, Any] = dict.fromkeys(numbers, 3 * MIB)
    nothing = dict.fromkeys(("arena_max", "cores", "arena_limit", "trim_threshold", "mmap_threshold"))
    return {**row, **nothing, "arenas": 1, "how": "exact", **changes}


def shown(snapshot: Snapshot, verbose: bool = False) -> list[str]:
    out = io.StringIO()
    write(report.lines(snapshot, 5, View(80, verbose)), out, color=False)
    lines = out.getvalue().splitlines()
    assert all(len(line) <= 80 and line.isprintable() for line in lines)
    return lines


def snapshot() -> Snapshot:
    capture = core(
        [mapping("", size=8 * MIB), mapping("/srv/a b\x1b[31m" + "x" * 200, start=LOW + 8 * MIB)], {0}
    )
    return taken(capture, malloc=[malloc()])


def test_the_view_fits_into_its_width_whatever_names_are() -> None:
    text = "\n".join(shown(snapshot(), verbose=True))
    assert "unknown anonymous memory" in text
    assert "A core tells which bytes it holds" in text
    assert "\x1b" not in text


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (malloc(cores=4, arena_limit=32), "1 arena of at most 32 (8 for each of 4 processors)"),
        (malloc(arenas=2, arena_max=2, arena_limit=2), "2 arenas of at most 2 (MALLOC_ARENA_MAX)"),
        (malloc(how="estimated"), "about 3.1 MB of it free (about 3.1 MB among blocks in use)"),
        (
            malloc(how="unknown", used=None, free=None, holes=None),
            "how much of it is free could not be found out",
        ),
    ],
)
def test_malloc_is_told_in_a_sentence(row: dict[str, Any], said: str) -> None:
    found = snapshot()
    found.tables["malloc"] = [row]
    assert said in " ".join(shown(found))


def test_the_document_is_what_its_schema_says() -> None:
    document = std.loads(json.dumps(json.memory(snapshot())))
    jsonschema.validate(document, json.schema("memory"), cls=jsonschema.Draft202012Validator)
    assert document["malloc"]["mallinfo2"]["arena"] == 3 * MIB
    assert document["rss"] == sum(owner["rss"] for owner in document["owners"]) == PAGE


def test_rows_that_make_no_sense_are_left_out() -> None:
    found = snapshot()
    found.tables["memory_owners"] += [{"owner": 3}, 7, {**found.tables["memory_owners"][0], "rss": -1}]  # type: ignore[list-item]
    found.tables["malloc"] = [{"arenas": "many"}]
    found.tables["memory_stacks"] = [{"tid": None}]
    document = json.memory(found)
    assert len(document["owners"]) == 2 and document["malloc"] is None and document["stacks"] == []
    shown(found, verbose=True)


def test_a_snapshot_that_knows_nothing_of_it_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "old.diag"
    store.save(Snapshot(Target("live", pid=7)), path)
    assert main(["memory", str(path)]) == 3
    said = capsys.readouterr().err
    assert "was not looked at when" in said and "Take another one" in said


def test_a_snapshot_from_a_file_is_shown_as_the_process_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new.diag"
    store.save(snapshot(), path)
    assert main(["memory", str(path), "--format", "json"]) == 0
    assert std.loads(capsys.readouterr().out)["owners"] == json.memory(snapshot())["owners"]
