"""Goroutines that nobody can wake are proven to be stuck, those that anybody may wake never are."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

import diagtool
from diagtool.snapshot.model import Snapshot
from go_programs import ALL, GoProgram, started, toolchains

ALL_OF_THEM = os.environ.get("DIAGTOOL_TEST_GO") == "all"
#: Versions whose runtime can say itself what leaked.
KNOWS = {"1.26": "goroutineleakprofile", "1.27": ""}


def look(target: int | Path, clone: str = "never") -> Snapshot:
    name = target if isinstance(target, int) else str(target)
    return diagtool.snapshot(name, inventory=[], frames=False, clone=clone)  # type: ignore[arg-type]


def stuck(snapshot: Snapshot) -> dict[int, tuple[str | None, str]]:
    """goid -> (what it waits on, its outermost function), of those that are proven."""
    return {s.address: (s.wait, s.frames[-1].function) for s in snapshot if s.kind == "goroutine" and s.stuck}


def looked(program: GoProgram, folder: Path | None = None) -> Snapshot:
    """A look (at a core in ``folder``) in which no thread was at work by chance, in a few tries.

    Such a thread would hold on to what it has in hand.
    """
    for _ in range(6):
        snapshot = look(program.pid if folder is None else program.gcore(folder))
        if not snapshot.tables["go_judgement"][0]["why_not"] and len(stuck(snapshot)) >= 30:
            break
    return snapshot


def marked_by_runtime(program: GoProgram, folder: Path) -> set[int]:
    """Numbers of goroutines of which the runtime says that they leaked, asked twice: a collection beside a
    program that runs keeps what it touches."""
    found: set[int] = set()
    for _ in range(2):
        program.profile("goroutineleak", folder / "profile")
        found |= {
            int(n) for n in re.findall(r"goroutine (\d+) \[[^\]]*\(leaked\)", program.debug2(folder / "all"))
        }
    return found


STUCK = {
    ("chan receive", "main.stuck.func1"),
    ("chan send (nil chan)", "main.stuck.func2"),
    ("select (no cases)", "main.stuck.func3"),
    ("select", "main.chooses"),
    ("sync.Mutex.Lock", "main.locksTwice"),
    ("sync.RWMutex.RLock", "main.readsTwice"),
    ("sync.WaitGroup.Wait", "main.waitsFor"),
    ("sync.Cond.Wait", "main.waitsUnsignalled"),
    ("chan receive", "main.passesOn"),
}


@pytest.mark.parametrize("minor", toolchains())
def test_each_kind_of_wait_is_proven_as_the_runtime_proves_it(minor: str, tmp_path: Path) -> None:
    with started("proof", minor, "stuck", "3", experiment=KNOWS.get(minor, "")) as program:
        snapshot = looked(program)
        core = looked(program, tmp_path)
        theirs = marked_by_runtime(program, tmp_path) if minor in KNOWS else None
    for seen in (snapshot, core):
        found = stuck(seen)
        assert not seen.tables["go_judgement"][0]["why_not"]
        assert seen.target.details["exact"]
        assert set(found.values()) >= STUCK and len(found) >= 30
        if theirs is not None:
            assert set(found) <= theirs


@pytest.mark.parametrize("minor", toolchains())
def test_nothing_is_proven_of_programs_in_which_all_can_be_woken(minor: str) -> None:
    with started("proof", minor, "healthy", "all", "3") as program:
        for _ in range(6):
            snapshot = look(program.pid)
            judged = snapshot.tables["go_judgement"][0]
            assert stuck(snapshot) == {}
            if not judged["why_not"]:
                break
    assert judged["judged"] > 100 and not judged["why_not"]


@pytest.mark.parametrize("minor", toolchains() if ALL_OF_THEM else ["1.27"])
def test_nothing_is_proven_of_a_service_under_load(minor: str) -> None:
    with started("proof", minor, "busy", "4") as program:
        for number in range(4):
            assert stuck(look(program.pid, "auto" if number % 2 else "never")) == {}
        assert program.process.poll() is None


@pytest.mark.parametrize("minor", toolchains() if ALL_OF_THEM else ["1.27"])
def test_a_heap_that_was_not_copied_is_no_ground_for_a_proof(minor: str) -> None:
    from diagtool.capture.live import capture_live

    with (
        started("proof", minor, "heap", "24") as program,
        capture_live(program.pid, max_copy=4 << 20) as capture,
    ):
        snapshot = diagtool.api.snapshot_of(capture, inventory=[], frames=False)
    assert stuck(snapshot) == {}
    assert "--clone always" in snapshot.tables["go_judgement"][0]["why_not"]
    assert any("was not found out" in w for w in snapshot.warnings)


@pytest.mark.parametrize("minor", toolchains() if ALL_OF_THEM else ["1.19"])
def test_a_heap_of_lists_trees_and_maps_is_marked(minor: str) -> None:
    with started("proof", minor, "heap", "24") as program:
        for _ in range(6):
            snapshot = look(program.pid, "auto")
            if stuck(snapshot):
                break
    assert [wait for wait, _ in stuck(snapshot).values()] == ["chan receive"]
    assert snapshot.tables["go_judgement"][0]["pointers"] > 100_000


def thing_of(snapshot: Snapshot, function: str) -> tuple[str, str, dict[str, object]]:
    for s in snapshot:
        if s.kind == "goroutine" and s.frames and s.frames[-1].function == function and s.thing is not None:
            return s.thing.type, s.thing.detail, s.thing.state
    raise AssertionError(f"nothing is known of what {function} waits on")


@pytest.mark.parametrize("minor", toolchains())
def test_the_thing_that_each_one_waits_on_is_told(minor: str) -> None:
    with started("proof", minor, "stuck", "1") as program:
        snapshot = look(program.pid)
    kind, detail, state = thing_of(snapshot, "main.passesOn")
    assert kind == "chan int" and detail == "unbuffered, 1 receiver waiting"
    assert state["cap"] == 0 and state["receivers"] == 1 and state["closed"] is False
    kind, _, state = thing_of(snapshot, "main.chooses")
    assert kind == "select"
    cases = state["cases"]
    assert isinstance(cases, list)
    assert sorted((c["op"], c["type"]) for c in cases) == [("receive", "chan int"), ("send", "chan string")]
    assert thing_of(snapshot, "main.locksTwice")[2] == {"locked": True, "waiters": 1, "starving": False}
    assert thing_of(snapshot, "main.waitsFor")[2] == {"counter": 1, "waiters": 1}
    assert thing_of(snapshot, "main.waitsUnsignalled")[0] == "sync.Cond"
    kind, detail, _ = thing_of(snapshot, "main.readsTwice")
    assert kind == "sync.RWMutex" and "a writer has it" in detail


@pytest.mark.parametrize("minor", toolchains() if ALL_OF_THEM else ["1.27"])
def test_timers_and_sockets_are_told(minor: str) -> None:
    with started("proof", minor, "healthy", "all", "2") as program:
        snapshot = diagtool.snapshot(program.pid, frames=False)
    things = [(s.wait, s.thing) for s in snapshot if s.kind == "goroutine" and s.thing is not None]
    sleeps = [t for wait, t in things if wait == "sleep"]
    assert sleeps and all(0 < t.state["time_left"] < 101 * 3600 for t in sleeps)
    polled = [t for wait, t in things if wait == "IO wait"]
    assert any(t.state.get("local", "").startswith("127.0.0.1:") for t in polled)
    assert {t.state["op"] for t in polled} == {"read"}


def test_versions_are_all_known() -> None:
    assert set(KNOWS) <= set(ALL)
