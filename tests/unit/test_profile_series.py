"""Profiles one after the other: who is who nobody knows, only how many there are."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
from made_profiles import MINORS, goroutines, profile, recorded, waiting

from diagtool.cli import main
from diagtool.ingest import read_evidence
from diagtool.leaks import find_leaks
from diagtool.leaks.model import Finding
from diagtool.report import json as documents
from diagtool.snapshot.model import Snapshot


def taken(tmp_path: Path, counts: list[int], seconds: int, *, kind: str = "goroutine") -> list[Snapshot]:
    out = []
    for at, count in enumerate(counts):
        path = tmp_path / f"{at}.pb"
        path.write_bytes(goroutines(waiting(count), kind=kind, time=1_700_000_000 + at * seconds))
        out += read_evidence(path)
    return out


def found(tmp_path: Path, counts: list[int], seconds: int, *, kind: str = "goroutine") -> list[Finding]:
    return list(find_leaks(taken(tmp_path, counts, seconds, kind=kind)).findings)


def test_two_profiles_of_which_the_second_has_more_are_a_suspicion(tmp_path: Path) -> None:
    (finding,) = found(tmp_path, [40, 80], 3600)
    assert (finding.verdict, finding.count, finding.template) == ("suspect", 80, "go-receive-nobody-sends")
    assert finding.trend is not None and finding.trend.persisted is None and finding.age_seconds is None
    assert finding.evidence == (
        "their number grew: 40, 80",
        "a profile does not tell whether those from before are still among them",
    )


def test_more_in_each_of_three_profiles_over_some_time_is_likely(tmp_path: Path) -> None:
    (finding,) = found(tmp_path, [40, 60, 80], 60)
    assert (finding.verdict, finding.count) == ("likely", 80)
    assert not any("from before" in e and "profile" not in e for e in finding.evidence)


@pytest.mark.parametrize(
    "counts, seconds", [([40, 60, 80], 10), ([40, 40, 80], 60), ([40, 40, 40], 60), ([40, 30, 40], 60)]
)
def test_what_grows_for_a_moment_or_not_at_all_is_not_likely(
    tmp_path: Path, counts: list[int], seconds: int
) -> None:
    assert all(f.verdict == "suspect" for f in found(tmp_path, counts, seconds))


def test_as_many_as_ever_are_nothing(tmp_path: Path) -> None:
    assert not found(tmp_path, [40, 40, 40, 40], 600)
    assert not found(tmp_path, [40, 2, 40], 600)


def test_of_those_that_come_and_go_only_as_many_count_as_there_always_were(tmp_path: Path) -> None:
    (finding,) = found(tmp_path, [400, 150, 300], 600)
    assert (finding.verdict, finding.count) == ("suspect", 150)


def test_what_the_runtime_proved_is_proven_in_a_series_too(tmp_path: Path) -> None:
    (finding,) = found(tmp_path, [3, 9], 1, kind="goroutineleak")
    assert (finding.verdict, finding.count) == ("proven", 9)


def test_a_report_of_profiles_fits_its_schema_and_says_nothing_of_the_same(tmp_path: Path) -> None:
    document = json.loads(documents.dumps(documents.leaks(find_leaks(taken(tmp_path, [40, 80], 60)))))
    jsonschema.validate(document, documents.schema("leaks"))
    assert document["findings"][0]["trend"]["persisted"] is None


@pytest.mark.parametrize("minor", MINORS)
def test_a_healthy_service_is_silent_alone_and_in_a_series(minor: str) -> None:
    (one,), (other,) = (read_evidence(recorded(minor, "healthy.pb.gz")) for _ in range(2))
    assert len(one.stacks) > 5
    assert not find_leaks([one]).findings and not find_leaks([one, other, one]).findings


@pytest.mark.parametrize("minor", ["1.19", "1.27"])
def test_two_profiles_are_compared(minor: str, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = (str(recorded(minor, f"goroutine{later}.pb.gz")) for later in ("", "-later"))
    assert main(["leaks", new, old]) == 0  # by their own times
    out = capsys.readouterr().out
    assert "SUSPECT 80 goroutines" in out and "trend    40 → 80, over" in out
    assert main(["diff", old, new]) == 0
    out = capsys.readouterr().out
    assert "+40  goroutine waiting in chan receive  main.go:35 in main.(*broker).listen" in out
    assert "--heap" not in out


MIB = 1 << 20
KINDS = [
    ("alloc_objects", "count"),
    ("alloc_space", "bytes"),
    ("inuse_objects", "count"),
    ("inuse_space", "bytes"),
]


def heaps(tmp_path: Path, sizes: list[int], seconds: int, other: int = 0) -> list[Finding]:
    """Findings of heap profiles in which main.keep, by way of bytes.growSlice, has so much in use."""
    series = []
    for at, size in enumerate(sizes):
        path = tmp_path / f"heap{at}.pb"
        stack = [
            [("runtime.mallocgc", "runtime/malloc.go", 1)],
            [("bytes.growSlice", "bytes/buffer.go", 9)],
            [("main.keep", "/srv/app/keep.go", 12)],
        ]
        rest = [[("main.load", "/srv/app/load.go", 3)]]
        samples = [([size, size, size // 1024, size], stack, {}), ([9, other * at, 9, other * at], rest, {})]
        path.write_bytes(profile(KINDS, samples, time=1_700_000_000 + at * seconds))
        series += read_evidence(path)
    return list(find_leaks(series).findings)


@pytest.mark.parametrize("sizes", [[10, 20, 30], [10, 30]])
def test_a_place_of_the_program_with_ever_more_in_use_is_a_suspicion(
    tmp_path: Path, sizes: list[int]
) -> None:
    (finding,) = heaps(tmp_path, [size * MIB for size in sizes], 600)
    assert (finding.template, finding.verdict, finding.kind) == ("go-heap-site-grows", "suspect", "block")
    assert finding.count == 30 * 1024 and finding.bytes == 30 * MIB and finding.examples == ("main.keep",)
    assert "keep.go:12 in main.keep has 20,971,520 bytes more in use" in finding.evidence[0]


@pytest.mark.parametrize(
    "sizes, other",
    [
        ([10], 0),
        ([30, 30, 30], 0),
        ([30, 20, 10], 0),
        ([10, 28, 30], 0),
        ([10, 12, 13], 0),
        ([10, 15, 20], 900),
    ],
    ids=["single", "flat", "less", "settles", "little", "little of all"],
)
def test_other_courses_are_none(tmp_path: Path, sizes: list[int], other: int) -> None:
    found = heaps(tmp_path, [size * MIB for size in sizes], 600, other * MIB)
    assert "main.keep" not in [example for f in found for example in f.examples]


def test_a_goroutine_profile_and_a_heap_profile_are_no_series_of_heaps(tmp_path: Path) -> None:
    one = read_evidence(recorded("1.27", "heap.pb.gz"))
    two = read_evidence(recorded("1.27", "goroutine-later.pb.gz"))
    assert all(f.kind == "goroutine" for f in find_leaks([*one, *two]).findings)


def waits(tmp_path: Path, count: int, seconds: float) -> Snapshot:
    path = tmp_path / "mutex.pb"
    stack = [
        [("sync.(*Mutex).Unlock", "sync/mutex.go", 5)],
        [("main.(*store).save", "/srv/app/store.go", 40)],
    ]
    kinds = [("contentions", "count"), ("delay", "nanoseconds")]
    path.write_bytes(profile(kinds, [([count, int(seconds * 1e9)], stack, {})]))
    return read_evidence(path)[-1]


def test_a_lock_for_which_others_wait_for_seconds_is_a_suspicion(tmp_path: Path) -> None:
    (finding,) = find_leaks([waits(tmp_path, 20, 40.0)]).findings
    assert (finding.template, finding.verdict, finding.count) == ("go-lock-held-long", "suspect", 20)
    (said,) = finding.evidence
    assert said.startswith("20 times others waited for sync.Mutex.Lock until main.(*store).save let go of it")
    assert said.endswith("2.0 s each on average")


@pytest.mark.parametrize("count, seconds", [(20, 10.0), (5, 40.0), (100_000, 900.0)])
def test_locks_that_are_held_for_moments_are_none(tmp_path: Path, count: int, seconds: float) -> None:
    assert not find_leaks([waits(tmp_path, count, seconds)]).findings


def test_contention_is_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    files = []
    for name, count, seconds in (("old", 20, 1.0), ("new", 120, 3.0)):
        stack = [
            [("sync.(*Mutex).Unlock", "sync/mutex.go", 5)],
            [("main.(*store).save", "/srv/store.go", 40)],
        ]
        kinds = [("contentions", "count"), ("delay", "nanoseconds")]
        files.append(tmp_path / f"{name}.pb")
        time = 1_700_000_000 + count
        files[-1].write_bytes(profile(kinds, [([count, int(seconds * 1e9)], stack, {})], time=time))
    assert main(["diff", *map(str, files)]) == 0
    out = capsys.readouterr().out
    assert "+100  +2 s  store.go:40 in main.(*store).save  let others wait (sync.Mutex.Lock)" in out
    assert "20 ms each" in out
    assert main(["diff", *map(str, files), "--format", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    jsonschema.validate(document, documents.schema("diff"))
    (row,) = document["waits"]
    assert (row["seconds"]["delta"], row["count"]["delta"], row["kind"]) == (2.0, 100, "mutex")


@pytest.mark.parametrize("kind, said", [("mutex", "let others wait"), ("block", "waited")])
def test_places_of_contention_are_shown_with_the_stacks(
    kind: str, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    file = str(recorded("1.27", f"{kind}.pb.gz"))
    assert main(["stacks", file]) == 0
    out = capsys.readouterr().out
    assert out.startswith("CONTENTION") and f"in main.contend.func1  {said}" in out
    assert main(["stacks", file, "--format", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    jsonschema.validate(document, documents.schema("stacks"))
    rows = [r for r in document["contention"] if r["frames"][0]["function"] == "main.contend.func1"]
    assert {(r["kind"], r["wait"]) for r in rows} == {(kind, "sync.Mutex.Lock")}


def test_a_heap_profile_is_shown_with_what_was_ever_allocated(capsys: pytest.CaptureFixture[str]) -> None:
    file = str(recorded("1.27", "heap-last.pb.gz"))
    assert main(["heap", file, "--limit", "3"]) == 0
    out = capsys.readouterr().out
    assert "ever  allocated at" in out.splitlines()[0] and "in main.remember" in out.splitlines()[1]
    assert "is free again" in out and "pprof: in use at the last collection, by a sample of one in" in out
    assert main(["heap", file, "--sites", "--format", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    jsonschema.validate(document, documents.schema("heap"))
    assert document["sites"][0]["allocated_bytes"] >= document["sites"][0]["bytes"] > 1_000_000


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"kind": "cpu"},
        {"kind": "block", "count": -1, "seconds": 1.0},
        {"kind": "block", "count": 1, "seconds": float("nan")},
        {"kind": "block", "count": 1, "seconds": 1.0, "frames": [[1, 2], None, ["a", "b", "c"]], "wait": 5},
        {"kind": "mutex", "count": 1 << 62, "seconds": 1e300, "frames": {}},
    ],
)
def test_odd_rows_of_contention_harm_nothing(row: dict[str, object]) -> None:
    from diagtool.report import contention
    from diagtool.report.terminal import View

    (snapshot,) = read_evidence(recorded("1.27", "goroutine.pb.gz"))
    snapshot.tables["contention"] = [row]
    assert contention.document(snapshot) is not None
    list(contention.lines(snapshot, View(80)))
    find_leaks([snapshot])
