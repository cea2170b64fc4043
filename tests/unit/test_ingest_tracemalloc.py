"""Dumps of tracemalloc are read; what a pickle could do besides is not done."""

from __future__ import annotations

import json
import os
import pickle
import pickletools
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

import diagtool
from diagtool.api import kind_of
from diagtool.capture.errors import BadEvidence
from diagtool.cli import main
from diagtool.ingest import HEAD, is_evidence

Say = pytest.CaptureFixture[str]


def dumped(path: Path, *traces: Any, limit: Any = 3, protocol: int = pickle.HIGHEST_PROTOCOL) -> Path:
    """A file as ``Snapshot.dump()`` writes it."""
    snapshot = tracemalloc.Snapshot(list(traces), limit)  # type: ignore[arg-type]
    path.write_bytes(pickle.dumps(snapshot, protocol))
    return path


FRAMES = (("/srv/cache.py", 41), ("/srv/app.py", 7))
GOOD = [(0, 100, FRAMES, 2), (0, 50, FRAMES, 9), (389047, 7000, (("/srv/cache.py", 42),), 1)]


def test_a_dump_of_this_python_is_read(tmp_path: Path) -> None:
    path = tmp_path / "taken"
    tracemalloc.start(5)
    try:
        kept = [bytearray(1000) for _ in range(70)]
        taken = tracemalloc.take_snapshot()
    finally:
        tracemalloc.stop()
    taken.dump(str(path))
    assert kind_of(path) == "evidence" and len(kept) == 70
    snap = diagtool.snapshot(path)
    assert snap.target.kind == "evidence" and not len(snap.stacks)
    rows = [r for r in snap.tables["allocation_sites"] if r["file"] == __file__]
    assert max(r["count"] for r in rows) >= 70
    assert snap.tables["tracemalloc"][0]["bytes"] == sum(t.size for t in taken.traces)
    assert snap.tables["tracemalloc"][0]["blocks"] == len(taken.traces)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_sites_are_added_up(protocol: int, tmp_path: Path) -> None:
    snap = diagtool.snapshot(dumped(tmp_path / "dump", *GOOD, protocol=protocol))
    rows = [
        (r["bytes"], r["count"], r["frames"], r.get("domain", 0)) for r in snap.tables["allocation_sites"]
    ]
    assert rows == [(7000, 1, [["/srv/cache.py", 42]], 389047), (150, 2, [list(f) for f in FRAMES], 0)]
    assert snap.tables["allocation_sites"][1]["depth"] == 9


def test_heap_shows_it_and_keeps_it(tmp_path: Path, capsys: Say) -> None:
    path = str(dumped(tmp_path / "any name", *GOOD))
    assert main(["heap", path]) == 0
    plain = capsys.readouterr().out
    assert "cache.py:42  (domain 389047)" in plain and "3 blocks, 7.2 kB" in plain
    assert main(["heap", path, "--sites", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["sites"][0]["bytes"] == 7000
    assert main(["snapshot", path, "-o", str(tmp_path / "one.diag")]) == 0
    capsys.readouterr()
    assert main(["heap", str(tmp_path / "one.diag")]) == 0
    assert capsys.readouterr().out == plain
    assert main(["leaks", path]) == 0


def test_traces_of_before_3_9_have_no_depth(tmp_path: Path) -> None:
    snap = diagtool.snapshot(dumped(tmp_path / "dump", (0, 100, FRAMES)))
    assert snap.tables["allocation_sites"][0]["bytes"] == 100


class Evil:
    """Pickled as a call of ``os.system``."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def test_nothing_in_it_is_called(tmp_path: Path) -> None:
    path = dumped(tmp_path / "dump", (0, 1, Evil(f"touch {tmp_path}/called"), 1))
    assert is_evidence(path.read_bytes()[:HEAD])
    with pytest.raises(BadEvidence, match=r"names posix\.system"):
        diagtool.snapshot(path)
    assert not (tmp_path / "called").exists()


@pytest.mark.parametrize(
    "trace",
    [
        (0, -1, FRAMES, 1),
        (0, 1 << 80, FRAMES, 1),
        (0, 1, (), 1),
        (0, 1, ((1, 2),), 1),
        (0, 1, (("a", 2, 3),), 1),
        (0, 1, None, 1),
        (0, 1),
        "trace",
        [0, 1, FRAMES, 1],
        (True, 1, FRAMES, 1),
    ],
    ids=str,
)
def test_what_is_no_trace_is_said(trace: Any, tmp_path: Path) -> None:
    with pytest.raises(BadEvidence, match="no dump of tracemalloc that makes sense"):
        diagtool.snapshot(dumped(tmp_path / "dump", *GOOD, trace))


def test_a_file_that_is_cut_off_or_damaged_is_said(tmp_path: Path) -> None:
    whole = dumped(tmp_path / "dump", *GOOD).read_bytes()
    cut = tmp_path / "cut"
    for size in range(60, len(whole), 37):
        cut.write_bytes(whole[:size])
        with pytest.raises(BadEvidence):
            diagtool.snapshot(cut)


def test_a_bomb_hits_its_reader_only(tmp_path: Path, capsys: Say) -> None:
    """A million tuples in each other as the key of a dict: hashing that overflows the stack of CPython."""
    start = dumped(tmp_path / "dump", *GOOD).read_bytes()
    (at,) = (p for op, _, p in pickletools.genops(start) if op.name == "EMPTY_LIST")
    bomb = start[:at] + b"}" + b")" + b"\x85" * 2_000_000 + b"K\x01s" + start[at:]
    path = tmp_path / "bomb"
    path.write_bytes(bomb)
    assert main(["heap", str(path)]) == 3
    assert "no dump of tracemalloc that makes sense" in capsys.readouterr().err


def test_memory_is_bounded(tmp_path: Path) -> None:
    """A length of 2 GiB that is not there."""
    start = dumped(tmp_path / "dump", *GOOD).read_bytes()
    (at,) = (p for op, _, p in pickletools.genops(start) if op.name == "EMPTY_LIST")
    path = tmp_path / "bomb"
    path.write_bytes(start[:at] + b"\x8e" + (1 << 46).to_bytes(8, "little") + b"x" * 99)
    with pytest.raises(BadEvidence):
        diagtool.snapshot(path)


def test_other_pickles_are_no_evidence(tmp_path: Path, capsys: Say) -> None:
    path = tmp_path / "p"
    path.write_bytes(pickle.dumps({"a": 1}))
    assert kind_of(path) == "core"
    assert main(["heap", str(path)]) == 3
