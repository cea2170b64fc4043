"""Execution traces of Go: both wires, real ones of six versions, made ones, damaged ones."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import numpy as np
import pytest
from go_traces import batch, leb, stacks, strings, sync, trace
from hypothesis import given, settings
from hypothesis import strategies as st

from diagtool.capture.errors import BadEvidence, NotSupported, TargetError
from diagtool.ingest import is_evidence, read_evidence
from diagtool.ingest.gotrace.decode import decode
from diagtool.ingest.gotrace.model import Batch
from diagtool.ingest.gotrace.newwire import NewWire
from diagtool.ingest.gotrace.read import read_data
from diagtool.ingest.gotrace.varints import Numbers, walk
from diagtool.leaks import find_leaks
from diagtool.leaks.model import Finding
from diagtool.leaks.traced import TRACE_FACTS, traced
from diagtool.report.export.chrome import chrome
from diagtool.report.html.timeline import timeline
from diagtool.snapshot.model import STATE, Snapshot, Stack, Target

DATA = Path(__file__).parents[1] / "data" / "go"
MINORS = ("1.19", "1.21", "1.22", "1.24", "1.26", "1.27")

STRINGS = {1: "main.wait", 2: "/src/main.go", 3: "chan receive", 4: "main.main", 5: "main.other", 6: "sync"}
STACKS = {1: [(1, 2, 10)], 2: [(4, 2, 20)], 3: [(5, 2, 30)], 4: [(1, 2, 9)]}
#: Goroutine 1 runs on thread 1 from the beginning.
MAIN = ("GoStatus", (0, 1, 1, 2))


def _read(data: bytes) -> list[Snapshot]:
    return read_data(np.frombuffer(data, np.uint8), "trace", 1e9)


def _made(*batches: bytes, version: int = 26) -> Snapshot:
    return _read(trace(*batches, strings(STRINGS), stacks(STACKS), sync(), version=version))[-1]


def _by_number(snapshot: Snapshot) -> dict[int, Stack]:
    return {s.address: s for s in snapshot if s.kind == "goroutine"}


def _real(minor: str, name: str) -> bytes:
    return gzip.decompress((DATA / minor / f"{name}.gz").read_bytes())


def _findings(snapshots: list[Snapshot]) -> list[Finding]:
    return [f for f in find_leaks(snapshots).findings if f.verdict in ("proven", "likely")]


# --- real ones ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("minor", MINORS)
def test_a_leak_has_the_id_that_it_has_in_a_dump(minor: str) -> None:
    traced = read_evidence(DATA / minor / "trace-leak.gz")
    dumped = read_evidence(DATA / minor / "trace-leak.txt")
    (found,) = _findings(traced)
    (same,) = [f for f in find_leaks(dumped).findings if f.id == found.id]
    assert found.template == same.template == "go-send-nobody-receives"
    assert abs(found.count - same.count) <= 2  # the dump was taken just before the end
    assert found.created_by is not None and found.created_by[0].function == "main.ask"
    assert found.trend is not None and found.trend.counts[0] < found.trend.counts[-1]


@pytest.mark.parametrize("minor", MINORS)
def test_goroutines_that_come_and_go_and_a_pool_that_idles_are_no_leak(minor: str) -> None:
    snapshots = read_evidence(DATA / minor / "trace-healthy.gz")
    assert len(snapshots) == 3
    assert find_leaks(snapshots).findings == ()
    assert find_leaks(snapshots[-1:]).findings == ()


@pytest.mark.parametrize("minor", MINORS)
def test_goroutines_are_what_a_dump_says_that_they_are(minor: str) -> None:
    """State, wait, frames with lines, creator."""

    def told(snapshot: Snapshot) -> set[tuple[str | None, tuple[object, ...], tuple[str, ...]]]:
        return {
            (s.wait, tuple((f.function, f.line) for f in s.frames), tuple(f.function for f in s.created_by))
            for s in snapshot
            if s.frames and s.frames[0].function.startswith("main.backend") and s.wait == "chan send"
        }

    traced = told(read_evidence(DATA / minor / "trace-leak.gz")[-1])
    dumped = told(read_evidence(DATA / minor / "trace-leak.txt")[-1])
    made_before = {(wait, frames, ()) for wait, frames, _ in dumped}
    assert len(dumped) == 1 and dumped <= traced <= dumped | made_before


@pytest.mark.parametrize("minor", MINORS)
def test_the_table_says_what_was_created_and_what_ended(minor: str) -> None:
    rows = read_evidence(DATA / minor / "trace-leak.gz")[-1].tables["go_trace_clusters"]
    (leak,) = [r for r in rows if r["function"] == "main.backend" and r["wait"] == "chan send" and r["count"]]
    assert leak["fresh"] == leak["created"] - leak["ended"]
    assert leak["count"] - leak["fresh"] in (0, 1)  # the first may have been made before the trace
    assert leak["left"] <= leak["arrived"] - leak["fresh"]
    assert leak["created_by"] == "main.ask" and leak["created_per_second"] > 0
    assert leak["waiting"][-1] == leak["count"] and leak["waiting"][0] < leak["count"]
    assert 0 <= leak["first_seen"] < leak["last_seen"] <= leak["seconds"]
    (gone,) = [r for r in rows if r["function"] == "main.handle.func1" and r["wait"] == "sleep"]
    assert gone["count"] <= 2 and gone["left"] >= gone["arrived"] - 2


def test_traces_are_recognised_by_their_head() -> None:
    assert is_evidence(b"go 1.26 trace\0\0\0\1")
    assert is_evidence(b"go 1.5 trace\0\0\0\0\1")
    assert not is_evidence(b"go 1.26 trace of ours")


# --- made ones ----------------------------------------------------------------------------------------------


def test_a_goroutine_that_was_blocked_and_not_unblocked_waits() -> None:
    snapshot = _made(
        batch([MAIN, ("GoCreate", (5, 7, 4, 2)), ("GoStop", (1, 3, 2)), ("GoStart", (1, 7, 1)),
               ("GoBlock", (3, 3, 1)), ("GoStart", (990, 1, 1))])
    )  # fmt: skip
    waits = _by_number(snapshot)[7]
    assert (waits.state, waits.wait, waits.parent) == ("waiting", "chan receive", 1)
    assert [(f.function, f.file, f.line) for f in waits.frames] == [("main.wait", "/src/main.go", 10)]
    assert [(f.function, f.line) for f in waits.created_by] == [("main.main", 20)]
    assert waits.wait_seconds == pytest.approx(0.99) and waits.age_seconds == pytest.approx(0.995)


def test_the_order_of_steps_is_told_by_their_numbers_whatever_the_clocks_say() -> None:
    """Threads on processors whose clocks differ: the goroutine blocks before it is unblocked."""
    snapshot = _made(
        batch([MAIN, ("GoCreate", (5, 7, 4, 2)), ("GoUnblock", (5, 7, 2, 2))]),
        batch([("GoStart", (0, 7, 1)), ("GoBlock", (5, 3, 1))], thread=2, at=5000),
    )
    assert _by_number(snapshot)[7].state == "ready"


def test_what_was_there_before_the_trace_has_no_age_and_waits_as_long_as_it_is_at_least() -> None:
    snapshot = _made(batch([MAIN, ("GoStatusStack", (0, 9, 0, 4, 1)), ("GoStop", (800, 3, 2))]))
    before = _by_number(snapshot)[9]
    assert before.age_seconds is None and before.created_by == []
    assert before.wait_seconds == pytest.approx(0.8)
    assert snapshot.tables["go_trace_clusters"][0]["standing"] == 1


def test_a_switch_of_coroutines_is_a_wait_and_a_start() -> None:
    snapshot = _made(
        batch([MAIN, ("GoCreateBlocked", (5, 7, 4, 2)), ("GoSwitch", (5, 7, 1)), ("GoBlock", (5, 3, 1))])
    )
    by_number = _by_number(snapshot)
    assert by_number[7].state == "waiting" and by_number[7].wait == "chan receive"
    assert 1 not in by_number  # where the other one waits is not told


def test_goroutines_that_ended_are_not_there() -> None:
    snapshot = _made(batch([MAIN, ("GoCreate", (5, 7, 4, 2)), ("GoStop", (1, 3, 2)), ("GoStart", (1, 7, 1)),
                            ("GoDestroy", (1,))]))  # fmt: skip
    assert 7 not in _by_number(snapshot)


def test_a_system_call_that_does_not_return_is_a_wait() -> None:
    begun = [MAIN, ("GoSyscallBegin", (5, 1, 3))]
    there = _by_number(_made(batch(begun)))[1]
    assert (there.state, there.wait) == ("waiting", "syscall")
    back = _made(batch([*begun, ("GoSyscallEnd", (3,)), ("GoCreate", (5, 7, 4, 2))]))
    assert [s.state for s in back] == ["ready"]  # of the first one no stack is told


def test_who_waits_over_several_generations_waits_since_the_first() -> None:
    first = [
        MAIN,
        ("GoCreate", (5, 7, 4, 2)),
        ("GoStop", (1, 3, 2)),
        ("GoStart", (1, 7, 1)),
        ("GoBlock", (3, 3, 1)),
    ]
    second = [("GoStatusStack", (0, 7, 0, 4, 1)), ("GoStatus", (0, 1, 1, 2)), ("GoStop", (1000, 3, 2))]
    data = trace(
        *(f for g in (1, 2) for f in (
            batch(first if g == 1 else second, at=1000 * g, generation=g),
            strings(STRINGS, g), stacks(STACKS, g), sync(generation=g), b"\x34",
        ))
    )  # fmt: skip
    looks = _read(data)
    assert len(looks) == 3
    assert [7 in _by_number(s) for s in looks] == [True, True, True]
    assert _by_number(looks[-1])[7].wait_seconds == pytest.approx(1.99)


def test_a_lock_has_the_name_that_dumps_give_it() -> None:
    table = {**STRINGS, 7: "sync.(*Mutex).Lock", 8: "runtime.gopark"}
    data = trace(
        batch([MAIN, ("GoBlock", (5, 6, 9))]),
        strings(table), stacks({9: [(8, 2, 1), (7, 2, 2), (1, 2, 10)]}), sync(),
    )  # fmt: skip
    (one,) = _read(data)[-1]
    assert one.wait == "sync.Mutex.Lock" and [f.function for f in one.frames] == ["main.wait"]


# --- bad ones -----------------------------------------------------------------------------------------------


def test_a_wire_that_is_not_known_is_refused_with_what_is_missing() -> None:
    with pytest.raises(NotSupported, match=r"Go 1\.31"):
        _made(batch([MAIN]), version=31)
    with pytest.raises(NotSupported, match=r"Go 1\.5"):
        _read(b"go 1.5 trace\0\0\0\0")


@pytest.mark.parametrize(
    "data", [b"", b"go 1.26 trace\0\0", b"\x7fELF" + bytes(60)], ids=["none", "cut", "other"]
)
def test_what_is_no_trace_is_refused(data: bytes) -> None:
    with pytest.raises(BadEvidence):
        _read(data)


def test_a_part_that_was_cut_off_before_its_stacks_is_left_out_and_said() -> None:
    whole = [batch([MAIN, ("GoStop", (5, 3, 2))]), strings(STRINGS), stacks(STACKS), sync(), b"\x34"]
    snapshot = _read(trace(*whole, batch([("GoStatus", (0, 1, 1, 2))], at=3000, generation=2)))[-1]
    assert _by_number(snapshot)[1].state == "ready"
    assert any("part 2" in w for w in snapshot.warnings)


def test_batches_behind_damaged_bytes_are_read() -> None:
    made = [
        MAIN,
        ("GoCreate", (5, 7, 4, 2)),
        ("GoStop", (1, 3, 2)),
        ("GoStart", (1, 7, 1)),
        ("GoBlock", (3, 3, 1)),
    ]
    snapshot = _made(batch([MAIN], thread=2), b"\xff" * 40, batch(made))
    assert _by_number(snapshot)[7].wait == "chan receive"
    assert any("40 bytes are left out" in w for w in snapshot.warnings)


def test_events_behind_one_that_is_not_known_are_left_out_of_their_batch() -> None:
    good = batch([MAIN, ("GoCreate", (5, 7, 4, 2))])
    bad = b"\x01\x01\x02" + leb(2000) + b"\x05" + b"\x77" + b"\x01" * 4
    snapshot = _made(good, bad)
    assert 7 in _by_number(snapshot)
    assert any("damaged" in w for w in snapshot.warnings)


@pytest.mark.parametrize("minor", ["1.19", "1.27"])
def test_traces_cut_and_changed_anywhere_end_in_a_snapshot_or_a_sentence(minor: str) -> None:
    whole = _real(minor, "trace-leak")
    for seed in range(40):
        rng = random.Random(f"{minor} {seed}")
        data = bytearray(whole)
        if seed % 3 == 0:
            del data[rng.randrange(len(data)) :]
        elif seed % 3 == 1:
            for _ in range(rng.choice((1, 10, 100))):
                data[rng.randrange(16, len(data))] = rng.randrange(256)
        else:
            at, other, size = rng.randrange(16, len(data)), rng.randrange(16, len(data)), rng.randrange(3000)
            data[at : at + size] = data[other : other + size]
        try:
            snapshots = _read(bytes(data))
        except TargetError as error:
            assert str(error)
        else:
            assert len(snapshots[-1].stacks) < 10_000


@given(st.binary(max_size=2000), st.sampled_from([19, 21, 22, 23, 25, 26]))
@settings(max_examples=60, deadline=None)
def test_any_bytes_behind_a_head_end_in_a_snapshot_or_a_sentence(body: bytes, version: int) -> None:
    try:
        _read(trace(body, version=version))
    except TargetError as error:
        assert str(error)


# --- numbers and events -------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=50))
@settings(max_examples=60, deadline=None)
def test_numbers_are_read_as_they_were_written(values: list[int]) -> None:
    data = np.frombuffer(b"".join(map(leb, values)), np.uint8)
    numbers = Numbers.of(data)
    starts = np.zeros(1, np.int32)
    assert [int(numbers.value(starts, i)[0]) for i in range(len(values))] == values
    assert int(numbers.end(starts, len(values))[0]) == len(data)


@given(st.lists(st.integers(1, 9), min_size=0, max_size=200))
@settings(max_examples=60, deadline=None)
def test_a_walk_comes_to_every_event_in_order(lengths: list[int]) -> None:
    end = sum(lengths)
    starts = np.cumsum([0, *lengths])[:-1].tolist()
    following = np.arange(1, end + 1, dtype=np.int32)
    for start, length in zip(starts, lengths, strict=True):
        following[start] = start + length
    assert walk(following, 0, end).tolist() == starts


_EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("GoStart"), st.tuples(*[st.integers(0, 2**40)] * 3)),
        st.tuples(st.just("GoBlock"), st.tuples(*[st.integers(0, 2**20)] * 3)),
        st.tuples(st.just("GoDestroy"), st.tuples(st.integers(0, 300))),
        st.tuples(st.just("GoStatusStack"), st.tuples(*[st.integers(0, 2**31)] * 5)),
    ),
    min_size=1,
    max_size=60,
)


@given(st.lists(_EVENTS, min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_events_are_decoded_as_they_were_written(batches: list[list[tuple[str, tuple[int, ...]]]]) -> None:
    data, placed = b"", []
    for number, events in enumerate(batches):
        whole = batch(events, thread=number % 2)
        body = batch(events, thread=number % 2)[-sum(1 + sum(len(leb(a)) for a in e[1]) for e in events) :]
        placed.append(Batch(len(data) + len(whole) - len(body), len(body), number % 2, 1000))
        data += whole
    found, damaged = decode(np.frombuffer(data, np.uint8), placed, NewWire(26))
    wanted = [e for thread in (0, 1) for i, b in enumerate(batches) if i % 2 == thread for e in b]
    times = [t for thread in (0, 1) for i, b in enumerate(batches) if i % 2 == thread
             for t in np.cumsum([e[1][0] for e in b]).tolist()]  # fmt: skip
    assert damaged == 0 and len(found.type) == len(wanted)
    assert (found.at - 1000).tolist() == times
    for row, (_, arguments) in enumerate(wanted):
        told = [int(found.argument(np.array([row]), i)[0]) for i in range(len(arguments) - 1)]
        assert told == list(arguments[1:])


# --- the picture --------------------------------------------------------------------------------------------


def _row(**columns: object) -> dict[str, object]:
    return {
        "wait": "chan send",
        "function": "main.backend",
        "file": "/src/main.go",
        "line": 9,
        "created_by": "main.ask",
        "created_file": "/src/main.go",
        "created_line": 4,
        "seconds": 2.0,
        "waiting": [0, 1, 2, 3],
        "alive": [1, 2, 3, 4],
        **columns,
    }


def test_the_picture_over_time_has_a_line_for_each_place_and_each_maker() -> None:
    snapshot = Snapshot(Target("evidence"))
    snapshot.tables["go_trace_clusters"] = [
        _row(),
        _row(function="runtime.gopark", created_by="runtime.gcStart", waiting=[9] * 4),
        _row(function="main.</script>\x1b[31m", waiting=[5, 0, 0, 0]),
    ]
    told = timeline(snapshot, 12)
    assert told is not None and told["seconds"] == 2.0
    places, makers = told["pictures"]
    assert [line["name"] for line in places["lines"]] == [
        "chan send in main.backend (main.go:9)",
        "chan send in main.</script>\\x1b[31m (main.go:9)",
    ]
    assert places["lines"][0]["points"] == [[0.5, 0], [1.0, 1], [1.5, 2], [2.0, 3]]
    assert [line["name"] for line in makers["lines"]] == ["made by main.ask (main.go:4)"]
    one = timeline(snapshot, 1)
    assert one is not None and one["pictures"][0]["left_out"] == 1
    assert timeline(Snapshot(Target("evidence")), 12) is None


@pytest.mark.parametrize(
    "bad", [None, -1, True, "x", float("nan"), float("inf"), 1 << 70, [], [None], [1] * 5000]
)
def test_tables_that_anybody_wrote_make_no_picture_and_no_harm(bad: object) -> None:
    for column in (
        "wait",
        "function",
        "file",
        "line",
        "created_by",
        "created_file",
        "seconds",
        "waiting",
        "alive",
    ):
        snapshot = Snapshot(Target("evidence"))
        snapshot.tables["go_trace_clusters"] = [_row(**{column: bad}), bad]  # type: ignore[list-item]
        timeline(snapshot, 12)


# --- the template of traces ---------------------------------------------------------------------------------


def _service(
    *, leave: int = 0, standing: int = 2, old_leave: bool = False, seconds: int = 3
) -> list[Snapshot]:
    """A goroutine is made every 50 ms and waits for something unheard of; of ``leave`` one goes on.

    ``standing``: that waited there before; with ``old_leave`` these go on, as long requests do.
    """
    events: list[tuple[str, tuple[int, ...]]] = [MAIN]
    events += [("GoStatusStack", (0, 1000 + i, 0, 4, 1)) for i in range(standing)]
    for number in range(seconds * 20):
        goid = 2 + number
        events += [("GoCreate", (50, goid, 4, 3)), ("GoStop", (0, 7, 2)), ("GoStart", (0, goid, 1))]
        events += [("GoBlock", (0, 7, 1)), ("GoStart", (0, 1, number + 1))]
        if leave and number % leave == 0:
            events += [("GoUnblock", (0, goid, 2, 2))]
        if old_leave and number < standing:
            events += [("GoUnblock", (0, 1000 + number, 1, 2))]
    data = trace(batch(events), strings({**STRINGS, 7: "unheard of"}), stacks(STACKS), sync())
    return _read(data)


def test_goroutines_that_come_and_never_go_on_are_a_leak() -> None:
    (found,) = find_leaks(_service()).findings
    assert (found.template, found.verdict, found.count) == ("go-created-never-ended", "likely", 62)
    assert any("60 were made in the trace" in said for said in found.evidence)
    (alone,) = find_leaks(_service()[-1:]).findings
    assert alone.id == found.id and alone.verdict == "likely"


@pytest.mark.parametrize(
    "healthy",
    [{"leave": 3}, {"standing": 40, "old_leave": True}, {"standing": 0, "seconds": 1}],
    ids=["some go on", "long requests", "just begun"],
)
def test_goroutines_that_go_on_after_all_are_no_leak(healthy: dict[str, int]) -> None:
    snapshots = _service(**healthy)  # type: ignore[arg-type]
    for looked_at in (snapshots, snapshots[-1:]):
        assert all(f.verdict == "suspect" for f in find_leaks(looked_at).findings)
    if not healthy.get("seconds"):
        assert all(f.template != "go-created-never-ended" for f in find_leaks(snapshots).findings)


def test_facts_of_traces_are_there_where_a_trace_was() -> None:
    (*_, last) = _service()
    rows = np.flatnonzero(last.stacks.state == STATE["waiting"])
    told = {name: traced(last, rows, name.partition(".")[2]) for name in TRACE_FACTS}
    assert told["trace.fresh"] == told["trace.created"] == told["trace.arrived"] == 60
    assert told["trace.standing"] == 2 and told["trace.left_share"] == told["trace.ended_share"] == 0
    assert told["trace.steady"] is True and told["trace.seconds"] == pytest.approx(3)
    last.tables.clear()
    assert all(traced(last, rows, name.partition(".")[2]) is None for name in TRACE_FACTS)


def test_an_export_over_time_has_a_counter_for_each_place() -> None:
    document = json.loads(b"".join(chrome(_service())))
    told = {e["name"] for e in document["traceEvents"] if e["ph"] == "C"}
    assert {"unheard of in main.wait (main.go:10)", "made by main.other (main.go:30)"} <= told
    at = [e for e in document["traceEvents"] if e["ph"] == "C" and e["name"].startswith("unheard of")]
    assert [e["args"]["goroutines"] for e in at[::20]] == [3, 23, 43]
    assert any(e["ph"] == "M" and e["args"]["name"] == "goroutine 1000" for e in document["traceEvents"])
