"""Evidence from files, compressed files and the standard input, through every command; labels."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import lz4.frame
import pytest
import zstandard
from made_dumps import DATA, goroutine

import diagtool
from diagtool import api
from diagtool.capture.errors import BadEvidence, TargetError
from diagtool.cli import main
from diagtool.ingest import files
from diagtool.leaks.labelled import labelled, names_of
from diagtool.snapshot.model import KIND, STATE, Frame, SnapshotBuilder, Target

Say = pytest.CaptureFixture[str]
DUMP = (DATA / "1.27" / "debug2.txt").read_bytes()
SERIES = DATA / "1.27" / "debug2-series.txt"

COMPRESSED: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "two streams of gzip": lambda data: gzip.compress(data[:5000]) + gzip.compress(data[5000:]),
    "xz": lzma.compress,
    "zstd": zstandard.ZstdCompressor().compress,
    "lz4": lz4.frame.compress,
}


def document(say: Say, *arguments: str, status: int | None = None) -> dict[str, object]:
    done = main([*arguments, "--format", "json"])
    assert done in (0, 1) if status is None else done == status
    found: dict[str, object] = json.loads(say.readouterr().out)
    return found


def given(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))


@pytest.mark.parametrize("how", COMPRESSED)
def test_compressed_text_is_read_as_plain_text_is(how: str, tmp_path: Path, capsys: Say) -> None:
    path = tmp_path / "dump"
    path.write_bytes(COMPRESSED[how](DUMP))
    assert api.kind_of(path) == "evidence"
    plain = tmp_path / "plain"
    plain.write_bytes(DUMP)
    assert document(capsys, "leaks", str(path)) == document(capsys, "leaks", str(plain))


def test_the_standard_input_is_read_and_nothing_is_left(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Say
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    given(monkeypatch, gzip.compress(DUMP))
    told = document(capsys, "leaks", "-")
    assert told["summary"]["stacks"] == 79  # type: ignore[index]
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "the standard input is empty"),
        (b"no dump at all\n", "the standard input is no"),
        (bytes(300), "the standard input is no"),
        (b"goroutine 1 [", "the standard input is no"),
        (b"SQLite format 3\0" + bytes(200), "the standard input holds a .diag file"),
        (bz2.compress(DUMP), "the standard input is no"),
    ],
)
def test_what_can_not_be_read_is_one_sentence(
    data: bytes, said: str, monkeypatch: pytest.MonkeyPatch, capsys: Say
) -> None:
    given(monkeypatch, data)
    assert main(["leaks", "-"]) == 3
    assert capsys.readouterr().err.startswith(f"diagtool: {said}")


def test_a_stream_that_ends_early_gives_what_came_before(tmp_path: Path) -> None:
    path = tmp_path / "dump.gz"
    path.write_bytes(gzip.compress(DUMP)[:1500])
    snap = diagtool.snapshot(path)
    assert 1 < len(snap.stacks) < 79 and "ends early" in snap.warnings[0]


def test_what_unpacks_to_more_than_there_is_room_for_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(files, "MOST", 100_000)
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(DUMP + b"x" * 10_000_000))
    with pytest.raises(BadEvidence, match="unpacks to more than"):
        diagtool.snapshot(path)
    given(monkeypatch, b"x" * 200_000)
    assert main(["leaks", "-"]) == 3


def test_a_dump_deep_in_a_log_is_found(tmp_path: Path) -> None:
    path = tmp_path / "service.log"
    path.write_bytes(b"2026-05-01 nothing of interest happened\n" * 200_000 + DUMP)
    assert api.kind_of(path) == "evidence"
    assert len(diagtool.snapshot(path).stacks) == 79


def test_several_dumps_in_a_file_are_several_snapshots(tmp_path: Path, capsys: Say) -> None:
    series = diagtool.load_series(SERIES)
    assert len(series) == 2
    assert len(diagtool.snapshot(SERIES).stacks) == len(series[-1].stacks)
    found = document(capsys, "leaks", str(SERIES))["findings"]
    assert all(len(f["trend"]["counts"]) == 2 for f in found)  # type: ignore[attr-defined]
    assert main(["diff", str(SERIES)]) == 0
    assert main(["diff", str(DATA / "1.27" / "debug2.txt")]) == 2
    kept = tmp_path / "kept.diag"
    diagtool.save(series[0], kept)
    assert len(diagtool.load_series(kept)) == 1


def test_every_command_takes_a_dump(tmp_path: Path, capsys: Say) -> None:
    dump, diag = str(DATA / "1.27" / "debug2.txt"), str(tmp_path / "x.diag")
    assert main(["snapshot", dump, "-o", diag]) == 0
    assert document(capsys, "stacks", diag)["clusters"] if capsys.readouterr() else None
    assert main(["stacks", dump]) == 0
    assert main(["sql", dump, "select count(*) from stack where kind = 'goroutine'"]) == 0
    assert "79" in capsys.readouterr().out
    assert main(["leaks", dump, "--format", f"html={tmp_path / 'x.html'}", "--fail-on", "never"]) == 0
    assert main(["leaks", dump, "--format", "sarif", "--fail-on", "never"]) == 0
    assert main(["export", dump, "--to", "collapsed", "-o", str(tmp_path / "x.txt")]) == 0
    assert main(["export", str(SERIES), "--to", "speedscope", "-o", str(tmp_path / "x.json")]) == 0
    assert (tmp_path / "x.html").stat().st_size > 10_000


def test_a_tool_that_names_what_is_no_file_is_told_so() -> None:
    with pytest.raises(TargetError):
        diagtool.load_series("/no/such/file")


# --- labels -----------------------------------------------------------------------------------------------


def labels_dump(count: int = 120) -> str:
    return goroutine(1, "running") + "".join(
        goroutine(i, "chan receive] {service: search, shard: " + str(i % 4)).replace("]:", "}:", 1)
        for i in range(2, count + 2)
    )


def test_only_goroutines_with_all_labels_are_told_of(
    tmp_path: Path, capsys: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    path = tmp_path / "dump.txt"
    path.write_text(labels_dump())

    def stacks(*labels: str, command: str = "leaks") -> int:
        asked = [part for label in labels for part in ("--label", label)]
        told = document(capsys, command, str(path), *asked)
        return sum(c["count"] for c in told["clusters"])  # type: ignore[attr-defined]

    assert stacks() == 121
    assert stacks("service=search") == stacks("service=s*", command="stacks") == 120
    assert stacks("shard=1") == 30
    assert stacks("shard=1", "shard=2", "service=search") == 60
    assert stacks("shard=1", "service=other") == 0
    assert main(["leaks", str(path), "--label", "tenant=x"]) == 0
    assert "there are labels service, shard" in capsys.readouterr().out
    assert main(["leaks", str(path), "--label", "nothing"]) == 2
    assert main(["stacks", str(path), "--label", "a=b", "--tree"]) == 2


def test_a_finding_of_some_labels_is_the_same_finding_with_fewer_stacks(tmp_path: Path) -> None:
    path = tmp_path / "dump.txt"
    path.write_text(labels_dump())
    snap = diagtool.snapshot(path)
    (every,) = diagtool.find_leaks(snap, sources=[]).findings
    (some,) = diagtool.find_leaks(snap, sources=[], labels={"shard": "3"}).findings
    assert (every.id, every.count, some.id, some.count) == (every.id, 120, every.id, 30)


def test_context_variables_of_tasks_are_labels_too() -> None:
    builder = SnapshotBuilder(Target("live", pid=42, runtime="cpython 3.12.1"))
    trace = builder.trace([Frame("main", "/srv/app.py", 3), Frame("work", "/srv/app.py", 9)])
    wait = builder.wait("somewhere")
    builder.add(
        [f"t{i}" for i in range(300)], kind=KIND["task"], state=STATE["waiting"], trace=trace, wait=wait
    )
    snap = builder.finish()
    snap.labels = [(i, "trace_id", f"t{i % 2}") for i in range(300)]
    (every,) = diagtool.find_leaks(snap, sources=[]).findings
    (some,) = diagtool.find_leaks(snap, sources=[], labels={"trace_id": "t0"}).findings
    assert (every.count, some.count, some.id) == (300, 150, every.id)
    assert labelled(snap, [("trace_id", "t?")]).all() and names_of(snap) == ["trace_id"]
