"""From matches to a report: each stack told once, the worst first, with ids and evidence."""

from __future__ import annotations

from typing import Any

import pytest
from made_stacks import EVENT, HANDLE, LOOP, QUEUE_GET, SLEEP, T_EVENT, THREAD, WORKER, World

from diagtool.leaks import find_leaks
from diagtool.leaks.model import Report
from diagtool.leaks.template_toml import read_text
from diagtool.leaks.verdict import MAX_CLUSTERS, UNKNOWN_COUNT


def report(world: World, **options: Any) -> Report:
    return find_leaks([world.build()], **options)


def starved(w: World, count: int = 300, line: int = 41, **thing: Any) -> list[int]:
    queue = w.thing(exclusive=True, **{"detail": "empty", **thing})
    return w.tasks(count, "asyncio.Queue.get", f"{QUEUE_GET} worker.py:fetch:{line} app.py:serve:7", queue)


def test_a_finding_says_everything_about_its_stacks() -> None:
    w = World()
    rows = starved(w, names=None)
    parent = w.tasks(1, "asyncio.gather", "app.py:main:3")
    w.awaits = [(parent[0], row) for row in rows]
    (f,) = report(w).findings
    assert (f.kind, f.count, f.state, f.wait) == ("task", 300, "waiting", "asyncio.Queue.get")
    assert f.waiting_on is not None
    assert (f.waiting_on.type, f.waiting_on.detail) == ("asyncio.Queue", "empty")
    assert f.waiting_on.address > 0
    assert [x.function for x in f.frames] == ["Queue.get", "fetch", "serve"]
    assert f.held_by == ("app.tasks (set)",)
    assert f.runbook == "docs/runbooks/asyncio-queue-get-starved.md"
    assert len(f.examples) == 5
    assert f.evidence == (
        "all 3 references to the asyncio.Queue come from the waiting tasks themselves",
        "1 task waits for them in asyncio.gather, called by main",
    )


def test_things_of_their_own_are_counted_in_words() -> None:
    w = World()
    events = [w.thing("asyncio.locks.Event", exclusive=True, detail="not set") for _ in range(30)]
    w.tasks(30, "asyncio.Event.wait", f"{EVENT} app.py:f:1", events)
    (f,) = report(w).findings
    assert f.waiting_on is not None
    assert (f.waiting_on.address, f.waiting_on.detail) == (0, "30 objects, each not set")
    assert f.evidence[0] == (
        "wait on 30 different asyncio.Event objects: all 90 references to them come from the waiting tasks "
        "themselves"
    )


def test_the_worst_is_first_and_then_the_largest() -> None:
    w = World()
    w.threads(1, "socket.recv", f"app.py:handler:9 {HANDLE}", main=True)  # suspect
    starved(w, 5)
    starved(w, 9, line=42)
    events = [w.thing("threading.Event", exclusive=True) for _ in range(50)]
    w.threads(50, "threading.Event.wait", f"{T_EVENT} sdk.py:loop:9 {THREAD}", events)  # likely, medium
    found = report(w).findings
    assert [(f.verdict, f.severity, f.count) for f in found] == [
        ("likely", "high", 9),
        ("likely", "high", 5),
        ("likely", "medium", 50),
        ("suspect", "high", 1),
    ]


def test_ids_are_the_same_in_another_run_and_differ_within_a_report() -> None:
    def ids(*lines: int) -> list[str]:
        w = World()
        for line in lines:
            starved(w, 5 + line, line=line)
        return [f.id for f in report(w).findings]

    assert ids(41) == ids(77)
    assert len(set(ids(41, 77))) == 2
    assert ids(41)[0] in ids(41, 77)


def test_a_stack_is_told_once() -> None:
    """Two templates want the same stacks: the more special one gets them."""
    w = World()
    w.tasks(9, "asyncio.Queue.get", f"{QUEUE_GET} app.py:f:1", w.thing(exclusive=True), holder=-1)
    found = report(w).findings
    assert [(f.template, f.count) for f in found] == [("asyncio-task-dropped", 9)]


def test_what_is_left_of_a_match_must_still_be_enough() -> None:
    w = World()
    queue = w.thing(exclusive=True)
    names = ["x"] * 4
    w.tasks(4, "asyncio.Queue.get", f"{QUEUE_GET} app.py:f:1", queue, names=names, holder=-1)
    w.tasks(2, "asyncio.Queue.get", f"{QUEUE_GET} app.py:f:1", queue)
    found = report(w).findings
    assert [(f.template, f.count) for f in found] == [("asyncio-task-dropped", 4)]


def test_min_count_takes_the_place_of_the_templates_own() -> None:
    w = World()
    starved(w, 2)
    starved(w, 20, line=42)
    assert [f.count for f in report(w).findings] == [20]
    assert [f.count for f in report(w, min_count=1).findings] == [20, 2]
    assert report(w, min_count=21).findings == ()


def test_clusters_say_what_they_became() -> None:
    w = World()
    starved(w, 9)
    w.threads(
        4, "queue.SimpleQueue.get", WORKER, w.thing(exclusive=False), names=[f"p_{i}" for i in range(4)]
    )
    w.threads(1, "epoll", f"selectors.py:EpollSelector.select:468 {LOOP}", main=True)
    w.tasks(2, "asyncio.Event.wait", f"{EVENT} app.py:main:1", w.thing(exclusive=False))
    made = report(w)
    seen = {(c.count, c.wait): c for c in made.clusters}
    assert seen[9, "asyncio.Queue.get"].finding == made.findings[0].id
    assert seen[9, "asyncio.Queue.get"].template == "asyncio-queue-get-starved"
    assert seen[4, "queue.SimpleQueue.get"].idle
    assert seen[4, "queue.SimpleQueue.get"].template == "executor-worker-idle"
    assert seen[1, "epoll"].template == "event-loop-idle"
    other = seen[2, "asyncio.Event.wait"]
    assert (other.idle, other.template, other.finding) == (False, None, None)
    assert (made.summary.stacks, made.summary.clusters, made.summary.findings) == (16, 4, 1)


def test_a_crowd_at_a_place_that_no_template_knows_is_a_suspect() -> None:
    w = World()
    w.tasks(UNKNOWN_COUNT, "mylib.Gate.enter", "mylib.py:Gate.enter:9 app.py:f:1", holder=0)
    (f,) = report(w).findings
    assert (f.template, f.verdict, f.severity, f.count) == (None, "suspect", "low", UNKNOWN_COUNT)


@pytest.mark.parametrize(
    ("count", "wait", "text", "state"),
    [
        (UNKNOWN_COUNT - 1, "mylib.Gate.enter", "mylib.py:Gate.enter:9", "waiting"),
        (5_000, "mylib.Gate.enter", "mylib.py:Gate.enter:9", "ready"),
        (5_000, "asyncio.sleep", f"{SLEEP} app.py:f:1", "waiting"),
        (5_000, "asyncio.Event.wait", f"{EVENT} app.py:f:1", "waiting"),
    ],
)
def test_no_crowd_or_a_place_that_is_known_is_none(count: int, wait: str, text: str, state: str) -> None:
    w = World()
    w.tasks(count, wait, text, w.thing(exclusive=False), state=state)
    assert report(w).findings == ()


def test_generators_are_no_crowd() -> None:
    w = World()
    w.stacks("generator", 5_000, "", "app.py:rows:3", state="suspended")
    assert report(w).findings == ()


def test_very_many_clusters_are_counted_and_the_largest_listed() -> None:
    w = World()
    for i in range(MAX_CLUSTERS + 5):
        w.tasks(1, "asyncio.Event.wait", f"{EVENT} app.py:f:{i}")
    made = report(w)
    assert len(made.clusters) == MAX_CLUSTERS
    assert made.summary.clusters == MAX_CLUSTERS + 5
    assert any("5 smaller clusters are not listed" in warning for warning in made.warnings)


def test_a_template_of_ones_own_finds_and_idles() -> None:
    text = """
    [[template]]
    id = "my-gate"
    title = "Tasks at the gate"
    cause = "closed"
    fix = "open"
    match = { frames = "mylib.py:Gate.enter" }
    verdict = [{ level = "suspect", min_count = 4, group = "count >= 4", evidence = "{count} at the gate" }]

    [[template]]
    id = "my-idle"
    title = "Tasks in the lobby"
    idle = true
    match = { frames = "mylib.py:Lobby.sit" }
    """
    templates, problems = read_text(text, "mine.toml")
    assert problems == []
    w = World()
    w.tasks(4, "", "mylib.py:Gate.enter:9")
    w.tasks(400, "", "mylib.py:Lobby.sit:9")
    made = report(w, templates=templates)
    assert [(f.template, f.count, f.evidence) for f in made.findings] == [("my-gate", 4, ("4 at the gate",))]
    assert [c.template for c in made.clusters if c.idle] == ["my-idle"]


def test_the_debug_modes_place_of_creation_is_told() -> None:
    w = World()
    from made_stacks import frames

    created = w.builder.trace(frames("app.py:start:5 app.py:main:2")[::-1])
    queue = w.thing(exclusive=True)
    w.tasks(4, "asyncio.Queue.get", f"{QUEUE_GET} app.py:f:1", queue, created_by=created)
    (f,) = report(w).findings
    assert f.created_by is not None
    assert [x.function for x in f.created_by] == ["start", "main"]


def test_a_callback_of_what_a_task_waits_on_holds_nothing() -> None:
    w = World()
    w.builder.snapshot.holders = ["local fut of wait.… (builtin_function_or_method)"]
    futures = [w.thing("_asyncio.Future", exclusive=True) for _ in range(4)]
    w.tasks(4, "asyncio.Future", "app.py:f:1", futures, holder=0)
    (f,) = report(w).findings
    assert (f.template, f.held_by) == ("asyncio-task-dropped", ())


def test_no_stacks_no_findings() -> None:
    made = report(World())
    assert (made.findings, made.clusters, made.summary.stacks) == ((), (), 0)


@pytest.mark.parametrize(("exact", "verdict"), [(True, "proven"), (False, "likely"), (None, "likely")])
def test_stuck_stacks_in_memory_of_one_instant_are_proven(exact: bool | None, verdict: str) -> None:
    w = World()
    w.tasks(50, "asyncio.Queue.get", f"{QUEUE_GET} app.py:f:1", w.thing(exclusive=True))
    if exact is not None:
        w.builder.snapshot.target.details["exact"] = exact
    found = report(w)
    (finding,) = found.findings
    assert (finding.template, finding.verdict) == ("asyncio-queue-get-starved", verdict)
    assert found.summary.by_verdict[verdict] == 1


@pytest.mark.parametrize(("inferred", "verdict"), [(False, "proven"), (True, "likely")])
def test_a_deadlock_is_proven_where_each_lock_says_who_has_it(inferred: bool, verdict: str) -> None:
    w = World()
    w.builder.snapshot.target.details["exact"] = True
    for own, other in ((0x5000, 0x5100), (0x5100, 0x5000)):  # each has what the other one wants
        lock = w.thing("_thread.RLock", exclusive=False, owner=other, owner_alive=True, inferred=inferred)
        w.threads(1, "threading.RLock.acquire", f"app.py:f:9 {THREAD}", lock, address=own)
    (finding,) = report(w).findings
    assert (finding.template, finding.verdict) == ("lock-order-deadlock", verdict)


def test_a_likely_leak_that_asks_for_no_stuck_stacks_is_not_proven() -> None:
    w = World()
    w.builder.snapshot.target.details["exact"] = True
    lock = w.thing("_thread.RLock", exclusive=False, owner=5, owner_alive=False)
    w.threads(2, "threading.RLock.acquire", f"app.py:f:9 {THREAD}", lock)
    (finding,) = report(w).findings
    assert (finding.template, finding.verdict) == ("lock-owner-gone", "likely")
