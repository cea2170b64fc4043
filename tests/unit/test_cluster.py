"""Clusters: the same stacks together, different ones apart, in one pass of numpy."""

from __future__ import annotations

import numpy as np
import pytest
from made_stacks import EVENT, QUEUE_GET, World
from numpy.typing import NDArray

from diagtool.leaks import cluster
from diagtool.leaks.cluster import MAX_FRAMES, Clusters, examples, frames_of, kind_name, stable_id, state_name
from diagtool.snapshot.model import KIND, STATE, Frame, SnapshotBuilder, Target


def clusters_of(world: World) -> list[tuple[int, str]]:
    snapshot = world.build()
    clusters = Clusters(snapshot)
    groups = [clusters.group(i) for i in clusters.largest_first()]
    return [(g.count, snapshot.waits[g.wait]) for g in groups]


def test_equal_stacks_are_one_cluster_whatever_they_wait_on() -> None:
    world = World()
    world.tasks(3, "asyncio.Queue.get", f"{QUEUE_GET} app.py:run:5", world.thing())
    world.tasks(4, "asyncio.Queue.get", f"{QUEUE_GET} app.py:run:5", world.thing())
    assert clusters_of(world) == [(7, "asyncio.Queue.get")]


@pytest.mark.parametrize(
    "other",
    [
        {"wait": "asyncio.Queue.put"},
        {"text": f"{QUEUE_GET} app.py:run:6"},
        {"text": f"{QUEUE_GET} app.py:other:5"},
        {"state": "cancelling"},
        {"kind": "coroutine"},
    ],
)
def test_stacks_that_differ_in_one_thing_are_apart(other: dict[str, str]) -> None:
    world = World()
    same = {
        "kind": "task",
        "wait": "asyncio.Queue.get",
        "text": f"{QUEUE_GET} app.py:run:5",
        "state": "waiting",
    }
    for case in (same, same | other):
        world.stacks(case["kind"], 2, case["wait"], case["text"], state=case["state"])
    assert [count for count, _ in clusters_of(world)] == [2, 2]


def test_every_row_is_in_exactly_one_cluster() -> None:
    rng = np.random.default_rng(7)
    builder = SnapshotBuilder(Target("live"))
    traces = np.array([builder.trace([Frame(f"f{i}", "/a.py", i)]) for i in range(20)], np.int32)
    waits = np.array([builder.wait(f"w{i}") for i in range(5)], np.int32)
    n = 5_000
    builder.add(
        [""] * n,
        kind=rng.integers(0, 3, n),
        state=rng.integers(0, 4, n),
        trace=traces[rng.integers(0, 20, n)],
        wait=waits[rng.integers(0, 5, n)],
    )
    snapshot = builder.finish()
    clusters = Clusters(snapshot)
    rows: list[NDArray[np.intp]] = [clusters.rows(i) for i in range(len(clusters))]
    assert np.array_equal(np.sort(np.concatenate(rows)), np.arange(n))
    for i, own in enumerate(rows):
        group = clusters.group(i)
        assert len(own) == group.count == clusters.count[i]
        s = snapshot.stacks
        assert set(s.kind[own]) == {group.kind}
        assert set(s.state[own]) == {group.state}
        assert set(s.wait[own]) == {group.wait}
        assert set(s.trace[own]) == {group.trace}


def test_numpy_does_the_work_and_no_loop_over_stacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """100,000 stacks are clustered with a constant number of calls of numpy, so in time that it sets."""
    calls = 0
    real = np.unique

    def counted(*args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        return real(*args, **kwargs)  # type: ignore[call-overload]

    monkeypatch.setattr(cluster.np, "unique", counted)
    builder = SnapshotBuilder(Target("live"))
    builder.add([""] * 100_000, kind=KIND["task"], state=STATE["waiting"], wait=builder.wait("w"))
    clusters = Clusters(builder.finish())
    assert (len(clusters), int(clusters.count[0]), calls) == (1, 100_000, 1)


def test_no_stacks_no_clusters() -> None:
    assert len(Clusters(World().build())) == 0


def test_a_very_deep_stack_is_shortened_in_the_middle_and_says_so() -> None:
    builder = SnapshotBuilder(Target("live"))
    trace = builder.trace([Frame("f", "/a.py", i) for i in range(20_000)])
    builder.add(["t"], trace=trace)
    frames = frames_of(builder.finish(), trace)
    assert len(frames) == MAX_FRAMES + 1
    assert (frames[0].line, frames[-1].line) == (19_999, 0)
    assert frames[MAX_FRAMES // 2].function == "[19,600 frames left out]"


def test_a_hash_is_of_functions_not_of_lines_paths_or_classes() -> None:
    new = [Frame("Queue.get", "/usr/lib/python3.12/asyncio/queues.py", 158), Frame("App.run", "/a/app.py", 3)]
    old = [Frame("get", "/opt/python3.9/asyncio/queues.py", 166), Frame("run", "/b/app.py", 7)]
    other = [Frame("get", "/opt/python3.9/asyncio/queues.py", 166), Frame("walk", "/b/app.py", 7)]
    assert stable_id("t", 1, 3, "w", new) == stable_id("t", 1, 3, "w", old)
    assert stable_id("t", 1, 3, "w", new) != stable_id("t", 1, 3, "w", other)
    assert stable_id("t", 1, 3, "w", new) != stable_id("u", 1, 3, "w", new)


def test_names_of_stacks_are_given_once_and_a_few_only() -> None:
    world = World()
    world.tasks(9, "asyncio.Event.wait", EVENT, names=["", "a", "a", "b", "c", "d", "e", "f", "g"])
    snapshot = world.build()
    assert examples(snapshot, range(9)) == ("a", "b", "c", "d", "e")


def test_codes_out_of_range_have_a_name_too() -> None:
    assert kind_name(200) == state_name(200) == "unknown"
