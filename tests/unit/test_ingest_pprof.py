"""Profiles in pprof's format become stacks and tables: what Go of several versions wrote, and made ones."""

from __future__ import annotations

import gzip
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from made_profiles import MINORS, PARK, RECEIVE, goroutines, profile, recorded, waiting

from diagtool.capture.errors import BadEvidence, NotSupported
from diagtool.ingest import read_evidence, reader_of
from diagtool.ingest.pprof import goroutines as module
from diagtool.snapshot.model import Snapshot


def read(path: Path) -> Snapshot:
    (snapshot,) = read_evidence(path)
    return snapshot


def made(tmp_path: Path, data: bytes, *, packed: bool = False) -> Snapshot:
    path = tmp_path / "made.pb"
    path.write_bytes(gzip.compress(data) if packed else data)
    return read(path)


def places(snapshot: Snapshot) -> Counter[tuple[str, str, str | None]]:
    """Goroutines by their innermost function, state and wait."""
    return Counter((s.frames[0].function if s.frames else "", s.state, s.wait) for s in snapshot)


LEAKS = {
    ("main.(*broker).listen", "waiting", "chan receive"): 40,
    ("main.fetch.func1", "waiting", "chan send"): 25,
    ("main.(*queue[...]).pop", "waiting", "select"): 15,
    ("main.(*account).deposit", "waiting", "sync.Mutex.Lock"): 12,
    ("main.upload", "waiting", "sync.WaitGroup.Wait"): 10,
    ("main.descend", "waiting", "chan receive"): 5,
    ("main.pool.func1", "waiting", "chan receive"): 4,
}


@pytest.mark.parametrize("minor", MINORS)
def test_a_goroutine_profile_becomes_goroutines_with_their_waits(minor: str) -> None:
    snapshot = read(recorded(minor, "goroutine.pb.gz"))
    found = places(snapshot)
    assert {place: found[place] for place in LEAKS} == LEAKS
    assert {s.kind for s in snapshot} == {"goroutine"} and {s.stuck for s in snapshot} == {False}
    assert snapshot.target.kind == "evidence" and snapshot.target.runtime.startswith("go")
    assert snapshot.target.captured_at is not None and snapshot.target.captured_at > 1.7e9
    assert snapshot.target.details == {"evidence": "goroutine profile (pprof)"}
    one = next(s for s in snapshot if s.frames and s.frames[0].function == "main.fetch.func1")
    assert [f.function for f in one.merged][-4:-1] == [
        "runtime.gopark",
        "runtime.chansend",
        "runtime.chansend1",
    ]
    assert one.frames[0].language == "go" and one.frames[0].module == "main"
    assert ("net/http/pprof.handler.ServeHTTP", "running", None) in {
        (s.frames[0].function if s.frames[0].function.startswith("net") else "", s.state, s.wait)
        for s in snapshot
        if s.frames and s.state == "running"
    }


@pytest.mark.parametrize("minor", ["1.19", "1.27"])
def test_labels_of_goroutines_are_kept(minor: str) -> None:
    snapshot = read(recorded(minor, "goroutine.pb.gz"))
    assert Counter((key, value) for _, key, value in snapshot.labels) == {
        ("service", "orders"): 25,
        **{("trace_id", f"t0{i}"): 5 for i in range(5)},
    }
    labelled = {row for row, _, _ in snapshot.labels}
    assert {snapshot.stack(row).frames[0].function for row in labelled} == {"main.fetch.func1"}


def test_stacks_as_deep_as_the_runtime_keeps_are_told() -> None:
    old, new = (read(recorded(minor, "goroutine.pb.gz")) for minor in ("1.19", "1.27"))
    assert [w for w in old.warnings if w.startswith("5 stacks of the profile have 32 or 128 frames")]
    assert not new.warnings
    deep = next(s for s in new if s.frames and s.frames[0].function == "main.descend")
    assert len(deep.frames) == 61


@pytest.mark.parametrize("minor", ["1.26", "1.27"])
def test_what_the_runtime_proved_is_stuck_for_certain(minor: str) -> None:
    snapshot = read(recorded(minor, "goroutineleak.pb.gz"))
    found = places(snapshot)
    proved = {p: n for p, n in LEAKS.items() if "pool" not in p[0] and "deposit" not in p[0]}
    assert found == proved  # a lock in a global may be given back, as far as the runtime knows
    assert snapshot.stacks.stuck.all() and snapshot.target.details["exact"] is True


@pytest.mark.parametrize("minor", MINORS)
def test_a_heap_profile_becomes_allocation_sites(minor: str) -> None:
    snapshot = read(recorded(minor, "heap.pb.gz"))
    row = snapshot.tables["allocation_sites"][0]
    assert (row["source"], row["function"], row["language"]) == ("pprof", "main.remember", "go")
    assert row["file"].endswith("main.go") and row["line"] > 0 and row["types"] == []
    assert 300 <= row["count"] <= 500 and row["bytes"] > 4_900_000  # sampled
    assert row["allocated_count"] >= row["count"] and row["allocated_bytes"] >= row["bytes"]
    functions = [f[2] for f in row["frames"]]
    assert functions[:2] == ["main.remember", "main.leak"] and functions[-1] == "main.main"
    (summary,) = snapshot.tables["profiles"]
    assert summary["kind"] == "heap" and summary["rate"] == 16 << 10
    assert summary["bytes"] >= row["bytes"] and not len(snapshot.stacks)


@pytest.mark.parametrize("minor", MINORS)
@pytest.mark.parametrize("kind", ["block", "mutex"])
def test_profiles_of_waits_become_the_table_of_contention(minor: str, kind: str) -> None:
    snapshot = read(recorded(minor, f"{kind}.pb.gz"))
    rows = snapshot.tables["contention"]
    assert {row["kind"] for row in rows} == {kind}
    row = next(r for r in rows if r["function"] == "main.contend.func1")
    assert row["wait"] == "sync.Mutex.Lock" and row["count"] > 0 and row["seconds"] > 0.005
    assert row["mean_seconds"] == pytest.approx(row["seconds"] / row["count"])
    assert [r["seconds"] for r in rows] == sorted((r["seconds"] for r in rows), reverse=True)
    if kind == "block":
        waits = {r["function"]: r["wait"] for r in rows}
        assert waits["main.pool.func1"] == "chan receive"
        assert waits["main.contend"] == "sync.WaitGroup.Wait"


@pytest.mark.parametrize(
    "name, said",
    [("cpu", "profile of processor time"), ("threadcreate", "profile of threads that were made")],
)
@pytest.mark.parametrize("minor", ["1.19", "1.27"])
def test_profiles_that_tell_nothing_of_leaks_are_refused_by_name(minor: str, name: str, said: str) -> None:
    with pytest.raises(NotSupported, match=said):
        read(recorded(minor, f"{name}.pb.gz"))


def test_plain_and_packed_profiles_are_recognised_by_content(tmp_path: Path) -> None:
    for data in (goroutines(waiting(3)), gzip.compress(goroutines(waiting(3)))):
        path = tmp_path / "some.txt"
        path.write_bytes(data)
        assert places(read(path)) == {("main.wait", "waiting", "chan receive"): 3}
    for minor in MINORS:
        for file in recorded(minor, "x").parent.glob("profiles-*.pb.gz"):
            reader = reader_of(file)
            assert reader is not None and "pprof" in reader.name, file


def test_a_profile_that_is_cut_off_is_one_sentence(tmp_path: Path) -> None:
    whole = gzip.decompress(recorded("1.27", "goroutine.pb.gz").read_bytes())
    for data in (whole[: len(whole) // 2], whole[:-1], gzip.compress(whole)[:-400]):
        path = tmp_path / "cut.pb.gz"
        path.write_bytes(data)
        with pytest.raises(BadEvidence, match=r"cut\.pb\.gz is no profile that can be read"):
            read(path)


def test_counts_that_no_machine_has_are_cut_and_the_small_ones_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_GOROUTINES", 1000)
    samples = (waiting(1 << 62, "main.huge"), waiting(900, "main.large"), waiting(7), waiting(-5, "main.odd"))
    snapshot = made(tmp_path, goroutines(*samples))
    found = Counter(s.frames[0].function for s in snapshot)
    assert found["main.wait"] == 7 and found["main.odd"] == 0 and sum(found.values()) <= 1000
    assert found["main.huge"] == found["main.large"] > 400
    assert any("are not counted" in w for w in snapshot.warnings)


def test_what_a_goroutine_does_is_told_by_its_innermost_frame(tmp_path: Path) -> None:
    own = [("main.f", "/srv/main.go", 3)]
    once = [("sync.(*Once).doSlow", "sync/once.go", 4)]
    samples = [
        ([1], [own, once], {}),  # computes, in what a Once runs
        ([2], [[("runtime.cgocall", "runtime/cgocall.go", 1)], own], {}),
        ([3], [[("syscall.Syscall", "syscall/s.go", 1)], [("syscall.read", "syscall/r.go", 1)], own], {}),
        ([4], [PARK, [("time.Sleep", "runtime/time.go", 1)], own], {}),
        ([5], [PARK, own], {}),
        ([6], [], {}),
        ([7], [[("runtime.goparkunlock", "p.go", 1), *RECEIVE[1]], own], {}),
    ]
    snapshot = made(tmp_path, goroutines(*samples))
    assert Counter((s.state, s.wait) for s in snapshot) == {
        ("ready", None): 7,
        ("waiting", "cgo call"): 2,
        ("waiting", "syscall"): 3,
        ("waiting", "sleep"): 4,
        ("waiting", None): 5,
        ("waiting", "chan receive"): 7,
    }


def test_inlined_functions_are_frames(tmp_path: Path) -> None:
    inlined = [("main.get", "/srv/a.go", 2), ("main.poll", "/srv/b.go", 9)]
    snapshot = made(tmp_path, goroutines(([1], [*RECEIVE, inlined], {})))
    assert [(f.function, f.line) for f in snapshot.stack(0).frames] == [("main.get", 2), ("main.poll", 9)]


def test_numbers_as_labels_are_no_labels_of_the_program(tmp_path: Path) -> None:
    snapshot = made(tmp_path, goroutines(waiting(2, labels={"bytes": 512, "team": "billing"})))
    assert snapshot.labels == [(0, "team", "billing"), (1, "team", "billing")]


def test_the_heap_of_another_allocator_is_read(tmp_path: Path) -> None:
    stack = [[("operator new", "", 0)], [("load(Image const&)", "/srv/load.cc", 12)]]
    snapshot = made(tmp_path, profile([("objects", "count"), ("space", "bytes")], [([3, 4096], stack, {})]))
    (row,) = snapshot.tables["allocation_sites"]
    assert (row["count"], row["bytes"], row["language"]) == (3, 4096, "native")
    assert "allocated_bytes" not in row and snapshot.target.runtime == ""


def test_a_profile_of_something_else_is_refused_by_its_types(tmp_path: Path) -> None:
    with pytest.raises(NotSupported, match=r"is a profile of cats, dogs, of which diagtool knows nothing"):
        made(tmp_path, profile([("cats", "count"), ("dogs", "count")], [([1, 2], [], {})]))


def test_nonsense_in_samples_is_left_out_and_said(tmp_path: Path) -> None:
    good = goroutines(waiting(3))
    snapshot = made(tmp_path, good + b"\x12\x02\x08\x01" + b"\x12\x04\x08\x63\x10\x05")
    assert Counter(len(s.frames) for s in snapshot) == {1: 8}
    assert [w for w in snapshot.warnings if w == "1 samples make no sense and were left out"]


def test_many_goroutines_are_made_in_columns(tmp_path: Path) -> None:
    snapshot = made(tmp_path, goroutines(*(waiting(1000, f"main.f{i}") for i in range(300))))
    assert len(snapshot.stacks) == 300_000
    assert np.unique(snapshot.stacks.trace).size == 300
