"""Several snapshots of one process: only what stayed at its place or grew is a leak, and it has an age."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from made_stacks import APP, EVENT, QUEUE_GET, SLEEP, T_QUEUE_GET, THREAD, World, frames

from diagtool.leaks import find_leaks
from diagtool.leaks.model import Report
from diagtool.leaks.series import Course, SeriesError, in_order, trace_hashes
from diagtool.snapshot.model import Frame, Snapshot, SnapshotBuilder, Target

Build = Callable[[World], Any]


def taken(*builds: Build, every: float = 60.0) -> list[Snapshot]:
    worlds = [World(at=1_000.0 + i * every) for i in range(len(builds))]
    for world, build in zip(worlds, builds, strict=True):
        build(world)
    return [world.build() for world in worlds]


def report(*builds: Build, every: float = 60.0) -> Report:
    return find_leaks(taken(*builds, every=every))


def starved(count: int, first: int = 0, queue: int = 0x9000) -> Build:
    """Consumers ``first`` to ``first + count`` of a queue that only they have."""

    def build(w: World) -> None:
        w.tasks(3, "asyncio.sleep", f"{SLEEP} app.py:noise:{w.builder.snapshot.target.captured_at:.0f}")
        thing = replace(w.thing(exclusive=True), address=queue)
        names = [f"fetch-{i}" for i in range(first, first + count)]
        w.tasks(count, "asyncio.Queue.get", f"{QUEUE_GET} app.py:fetch:3", thing, names=names,
                address=0x10_0000 + 0x100 * first)  # fmt: skip

    return build


def test_what_stayed_is_reported_with_its_age() -> None:
    (finding,) = report(starved(50), starved(50), starved(50)).findings
    assert (finding.template, finding.verdict, finding.count) == ("asyncio-queue-get-starved", "likely", 50)
    assert finding.age_seconds == pytest.approx(120.0)
    assert finding.trend is not None
    assert (finding.trend.counts, finding.trend.persisted) == ((50, 50, 50), 50)
    assert "50 of 50 have been at this very place for 120 s and more" in finding.evidence


def test_what_grew_is_reported_whole() -> None:
    (finding,) = report(starved(50), starved(80), starved(120)).findings
    assert finding.count == 120
    assert finding.trend is not None
    assert (finding.trend.counts, finding.trend.persisted) == ((50, 80, 120), 50)
    assert "their number grew: 50, 80, 120" in finding.evidence


def test_what_makes_progress_is_no_leak_however_many_there_are() -> None:
    """The same number of stacks at the same place, each time other ones."""
    assert report(starved(50), starved(50, first=50)).findings == ()


def test_of_a_place_with_turnover_only_who_stayed_counts() -> None:
    (finding,) = report(starved(50), starved(50, first=40)).findings
    assert finding.count == 10


def test_a_place_that_is_new_in_the_last_snapshot_is_no_leak_yet() -> None:
    assert report(lambda w: None, starved(50)).findings == ()


def test_what_is_over_is_not_reported() -> None:
    assert report(starved(50), starved(50), lambda w: None).findings == ()


def test_a_reused_address_is_another_task() -> None:
    def build(name: str) -> Build:
        def made(w: World) -> None:
            thing = replace(w.thing(exclusive=True), address=0x9000)
            w.tasks(
                9, "asyncio.Queue.get", f"{QUEUE_GET} app.py:fetch:3", thing, names=[name] * 9, address=0x5000
            )

        return made

    assert report(build("a"), build("b")).findings == ()
    assert len(report(build("a"), build("a")).findings) == 1


def test_a_thread_that_used_the_cpu_in_between_made_progress() -> None:
    def build(cpu: float) -> Build:
        def made(w: World) -> None:
            thing = replace(w.thing("queue.Queue", exclusive=True), address=0x9000)
            text = f"{T_QUEUE_GET} app.py:work:3 {THREAD}"
            w.threads(9, "queue.Queue.get", text, thing, address=0x5000, names=["w"] * 9, cpu=cpu)

        return made

    assert report(build(1.0), build(2.0)).findings == ()
    assert len(report(build(1.0), build(1.0)).findings) == 1


def test_reachable_queues_are_suspects_when_their_crowd_only_grows() -> None:
    def build(count: int) -> Build:
        def made(w: World) -> None:
            queue = replace(w.thing(exclusive=False), address=0x9000)
            names = [f"c-{i}" for i in range(count)]
            text = f"{QUEUE_GET} app.py:fetch:3"
            w.tasks(count, "asyncio.Queue.get", text, queue, names=names, address=0x5000)

        return made

    (finding,) = report(build(20), build(40), build(60)).findings
    assert (finding.template, finding.verdict, finding.count) == ("asyncio-queue-get-starved", "suspect", 60)
    assert report(build(60), build(60)).findings == ()
    assert report(build(60), build(40), build(60)).findings == ()


def test_tables_have_a_course_too() -> None:
    def build(count: int) -> Build:
        return lambda w: w.table(
            "context_values", {"variable": "v", "type": "E", "exception": True, "count": count}
        )

    (finding,) = report(build(60), build(90)).findings
    assert (finding.template, finding.verdict) == ("contextvar-keeps-exception", "likely")
    assert "their number grew: 60, 90" in finding.evidence
    (finding,) = report(build(90), build(90)).findings
    assert finding.verdict == "suspect"
    assert report(lambda w: None, build(90)).findings == ()


def test_snapshots_are_put_in_order_of_their_times() -> None:
    first, second = taken(starved(50), starved(80))
    assert find_leaks([second, first]).findings == find_leaks([first, second]).findings


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"pid": 101}, "different processes: pid 100 and 101"),
        ({"start_time": 99.0}, "pid 100 was started anew"),
        ({"boot_id": "other"}, "different boots"),
    ],
)
def test_snapshots_of_different_processes_are_refused(change: dict[str, Any], what: str) -> None:
    first, second = taken(starved(5), starved(5))
    second.target = replace(second.target, **change)
    with pytest.raises(SeriesError, match=what) as caught:
        find_leaks([first, second])
    assert "one process" in caught.value.hint


def test_unknown_start_times_and_boots_are_no_difference() -> None:
    first, second = taken(starved(5), starved(5))
    second.target = replace(second.target, start_time=None, boot_id=None)
    assert len(in_order([first, second])) == 2


def test_no_snapshot_is_refused() -> None:
    with pytest.raises(SeriesError, match="no snapshot"):
        find_leaks([])


def test_without_times_there_is_no_age_and_all_else() -> None:
    snapshots = taken(starved(50), starved(50))
    for snapshot in snapshots:
        snapshot.target = replace(snapshot.target, captured_at=None)
    (finding,) = find_leaks(snapshots).findings
    assert finding.age_seconds is None
    assert finding.count == 50


def test_trace_hashes_are_of_frames_in_order_not_of_numbers() -> None:
    ours = frames("a.py:f:1 a.py:g:2 a.py:h:3")
    plain, shifted = SnapshotBuilder(Target("live")), SnapshotBuilder(Target("live"))
    shifted.trace([Frame("z", APP, 1), *ours])
    traces = [plain.trace(ours), shifted.trace(ours), plain.trace(ours[::-1]), plain.trace(ours[:2])]
    hashes = [
        trace_hashes(b.finish())[t] for b, t in zip((plain, shifted, plain, plain), traces, strict=True)
    ]
    assert hashes[0] == hashes[1]
    assert len(set(hashes[1:])) == 3


def test_a_trie_with_a_cycle_does_not_hang() -> None:
    builder = SnapshotBuilder(Target("live"))
    builder.trace(frames("a.py:f:1 a.py:g:2"))
    snapshot = builder.finish()
    snapshot.traces.parent[1] = 2
    assert len(trace_hashes(snapshot)) == 3


def test_events_without_a_thing_are_the_same_stacks() -> None:
    def build(w: World) -> None:
        w.tasks(4, "asyncio.Event.wait", f"{EVENT} app.py:f:1", address=0x5000)

    course = Course(taken(build, build))
    assert course.since.tolist() == [0, 0, 0, 0]


def test_a_child_that_is_gone_counts_once_its_task_has_waited_for_seconds() -> None:
    def build(w: World) -> None:
        child = replace(w.thing("asyncio.subprocess.Process", child="gone", pid=7), address=0x9000)
        frames_of_wait = "asyncio/subprocess.py:Process.wait:137 app.py:run:3"
        w.tasks(1, "asyncio.Process.wait", frames_of_wait, child, address=0x5000)

    (finding,) = report(build, build, every=5.0).findings
    assert (finding.template, finding.verdict) == ("subprocess-wait-never-returns", "likely")
    assert not report(build, build, every=1.0).findings
