"""Patterns of frames and stacks, over the frames that the versions of CPython show."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_stacks import World

from diagtool.leaks.pattern import FrameIndex, FramePattern, StackPattern
from diagtool.snapshot.model import Frame, Snapshot, SnapshotBuilder, Target


@pytest.mark.parametrize(
    ("pattern", "function", "file", "expected"),
    [
        ("asyncio/queues.py:Queue.get", "Queue.get", "/usr/lib/python3.12/asyncio/queues.py", True),
        (
            "asyncio/queues.py:Queue.get",
            "get",
            "/usr/lib/python3.9/asyncio/queues.py",
            True,
        ),  # no co_qualname
        ("asyncio/queues.py:Queue.get", "Queue.put", "/usr/lib/python3.12/asyncio/queues.py", False),
        ("asyncio/queues.py:Queue.get", "PriorityQueue.get", "/x/asyncio/queues.py", False),
        ("asyncio/queues.py:Queue.get", "Queue.get", "/x/myasyncio/queues.py", False),
        ("queue.py:Queue.get", "Queue.get", "/x/my_queue.py", False),
        ("queue.py:Queue.get", "Queue.get", "queue.py", True),
        ("asyncio/tasks.py:wait", "wait", "/x/asyncio/tasks.py", True),
        ("asyncio/tasks.py:wait", "_wait", "/x/asyncio/tasks.py", False),
        ("threading.py:=Timer.run", "Timer.run", "/usr/lib/python3.12/threading.py", True),
        ("threading.py:=Timer.run", "run", "/usr/lib/python3.9/threading.py", False),  # may be Thread.run
        ("a/b.py:coro", "Middleware.__call__.<locals>.coro", "/x/a/b.py", True),
        ("a/b.py:*coro", "Middleware.__call__.<locals>.coro", "/x/a/b.py", True),
        ("sentry_sdk/*:*", "anything", "/x/site-packages/sentry_sdk/deep/worker.py", True),
        ("sentry_sdk/*:*", "anything", "/x/my_sentry_sdk/worker.py", False),
        ("trio/_core/_io_*.py:*", "get_events", "/x/trio/_core/_io_epoll.py", True),
    ],
)
def test_a_frame_pattern_is_the_end_of_a_path_and_a_function(
    pattern: str, function: str, file: str, expected: bool
) -> None:
    assert FramePattern.parse(pattern).matches(Frame(function, file, 1)) is expected


@pytest.mark.parametrize("text", ["", "queue.py", ":get", "queue.py:"])
def test_what_is_no_frame_pattern_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a frame pattern"):
        FramePattern.parse(text)


def one_stack(*functions: str) -> tuple[Snapshot, np.ndarray]:
    builder = SnapshotBuilder(Target("live"))
    trace = builder.trace([Frame(f, "/srv/app.py", i) for i, f in enumerate(reversed(functions))])
    builder.add(["t"], trace=trace)
    return builder.finish(), np.array([trace], np.int32)


def patterns(*functions: str) -> tuple[FramePattern, ...]:
    return tuple(FramePattern("app.py", f) for f in functions)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (StackPattern(frames=patterns("a", "c")), True),
        (StackPattern(frames=patterns("c", "a")), False),  # innermost first
        (StackPattern(frames=patterns("b", "b")), False),  # two frames are asked for
        (StackPattern(frames=patterns("a", "x")), False),
        (StackPattern(top=patterns("a", "b")), True),
        (StackPattern(top=patterns("b", "c")), False),
        (StackPattern(bottom=patterns("b", "c")), True),
        (StackPattern(bottom=patterns("a", "b")), False),
        (StackPattern(any_frames=patterns("x", "b")), True),
        (StackPattern(any_frames=patterns("x", "y")), False),
        (StackPattern(not_frames=patterns("x")), True),
        (StackPattern(not_frames=patterns("x", "b")), False),
        (StackPattern(top=patterns("a", "b", "c", "d")), False),
    ],
)
def test_a_stack_pattern_asks_for_frames_in_their_places(pattern: StackPattern, expected: bool) -> None:
    snapshot, traces = one_stack("a", "b", "c")
    assert FrameIndex(snapshot).traces(pattern, traces).tolist() == [expected]


def test_native_frames_do_not_count() -> None:
    builder = SnapshotBuilder(Target("live"))
    outer, native, inner = (
        Frame("b", "/app.py", 1),
        Frame("poll", "", None, library="libc"),
        Frame("a", "/app.py", 2),
    )
    traces = np.array([builder.trace([outer, native, inner])], np.int32)
    pattern = StackPattern(top=patterns("a", "b"))
    assert FrameIndex(builder.finish()).traces(pattern, traces).tolist() == [True]


@given(
    st.lists(st.lists(st.sampled_from("abcd"), max_size=12), min_size=1, max_size=8), st.sampled_from("abcd")
)
def test_containing_is_what_a_walk_over_the_frames_finds(stacks: list[list[str]], name: str) -> None:
    builder = SnapshotBuilder(Target("live"))
    traces = [builder.trace([Frame(f, "/app.py", 1) for f in stack]) for stack in stacks]
    snapshot = builder.finish()
    found = FrameIndex(snapshot).containing(FramePattern("app.py", name))[traces]
    assert found.tolist() == [name in stack for stack in stacks]


def test_a_trie_with_a_cycle_or_wild_parents_does_not_hang() -> None:
    snapshot, traces = one_stack("a", "b", "c")
    snapshot.traces.parent[1] = 3
    snapshot.traces.parent[2] = 10**6
    index = FrameIndex(snapshot)
    index.traces(StackPattern(frames=patterns("x", "y")), traces)
    assert not index.containing(FramePattern("app.py", "x")).any()


def test_waits_are_globs() -> None:
    world = World()
    world.tasks(1, "asyncio.PriorityQueue.get", "app.py:f:1")
    world.tasks(1, "asyncio.Queue.put", "app.py:f:1")
    snapshot = world.build()
    mask = FrameIndex(snapshot).waits(["asyncio.*Queue.get"])
    assert [w for w, ok in zip(snapshot.waits, mask, strict=True) if ok] == ["asyncio.PriorityQueue.get"]
