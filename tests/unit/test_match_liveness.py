"""Who is stuck: every doubt makes a stack not stuck."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from made_stacks import EVENT, QUEUE_GET, SLEEP, World

from diagtool.leaks.facts import Facts
from diagtool.leaks.liveness import cycles, owners, stuck_stacks


def stuck(world: World) -> list[int]:
    return np.flatnonzero(Facts(world.build()).stuck).tolist()


def waiter(w: World, count: int = 1, **thing: Any) -> list[int]:
    return w.tasks(count, "asyncio.Event.wait", f"{EVENT} app.py:f:1", w.thing(**thing))


def test_only_an_exclusive_thing_makes_its_waiters_stuck() -> None:
    w = World()
    dead = waiter(w, 2, exclusive=True)
    waiter(w, 2, exclusive=False)
    waiter(w, 2)
    w.tasks(1, "asyncio.sleep", f"{SLEEP} app.py:f:1")
    assert stuck(w) == dead


@pytest.mark.parametrize("state", ["ready", "running", "done", "created", "unknown"])
def test_who_does_not_wait_is_not_stuck(state: str) -> None:
    w = World()
    w.tasks(1, "", f"{EVENT} app.py:f:1", w.thing(exclusive=True), state=state)
    assert stuck(w) == []


def test_who_has_a_timer_is_not_stuck_nor_whom_it_awaits() -> None:
    w = World()
    (parent,) = w.tasks(1, "asyncio.wait_for", "app.py:p:1", w.thing(exclusive=True))
    (child,) = waiter(w, exclusive=True)
    (other,) = waiter(w, exclusive=True)
    w.awaits = [(parent, child)]
    w.table("timeouts", {"stack": parent, "left": 3.0})
    assert stuck(w) == [other]


def test_a_parent_is_stuck_with_all_its_children_and_not_with_some() -> None:
    w = World()
    parents = w.tasks(3, "asyncio.gather", "app.py:p:1")
    dead = waiter(w, 3, exclusive=True)
    (live,) = waiter(w, 1, exclusive=False)
    (done,) = w.tasks(1, "", "", state="done")
    w.awaits = [(parents[0], dead[0]), (parents[0], dead[1]), (parents[0], done)]
    w.awaits += [(parents[1], dead[2]), (parents[1], live), (parents[2], done)]
    assert stuck(w) == sorted([*dead, parents[0]])


def test_stuck_goes_up_a_chain_of_tasks() -> None:
    w = World()
    chain = [w.tasks(1, "asyncio.Task", "app.py:p:1")[0] for _ in range(50)]
    (leaf,) = waiter(w, exclusive=True)
    w.awaits = list(zip(chain, [*chain[1:], leaf], strict=True))
    assert len(stuck(w)) == 51


def test_a_thing_that_a_stuck_stack_holds_is_out_of_reach_too() -> None:
    """A lock whose owner waits for an event that nobody can set."""
    w = World()
    (owner,) = waiter(w, exclusive=True)
    queue = w.thing(exclusive=False, holders=[owner], unaccounted=0)
    waiting = w.tasks(3, "asyncio.Queue.get", f"{QUEUE_GET} app.py:f:1", queue)
    assert stuck(w) == [owner, *waiting]


@pytest.mark.parametrize("unaccounted", [1, None])
def test_a_thing_that_a_live_stack_or_an_unknown_place_holds_is_in_reach(unaccounted: int | None) -> None:
    w = World()
    (live,) = waiter(w, exclusive=False)
    holders = [live] if unaccounted is None else []
    queue = w.thing(exclusive=False, holders=holders, unaccounted=unaccounted or 0)
    if unaccounted:
        queue.state["unaccounted"] = unaccounted
    w.tasks(3, "asyncio.Queue.get", f"{QUEUE_GET} app.py:f:1", queue)
    assert stuck(w) == []


def test_what_the_decoder_says_stays() -> None:
    w = World()
    rows = w.tasks(2, "asyncio.gather", "app.py:p:1", stuck=1)
    (live,) = waiter(w, exclusive=False)
    w.awaits = [(rows[0], live)]
    assert stuck(w) == rows


def test_edges_out_of_range_are_ignored() -> None:
    w = World()
    rows = waiter(w, 2, exclusive=True)
    w.awaits = [(rows[0], 99), (-5, rows[1])]
    assert stuck(w) == rows


def test_very_long_chains_end() -> None:
    w = World()
    chain = w.tasks(12_000, "asyncio.Task", "app.py:p:1", w.thing(exclusive=True))
    (live,) = waiter(w, exclusive=False)
    w.awaits = list(zip(chain, [*chain[1:], live], strict=True))
    snapshot = w.build()
    assert not stuck_stacks(snapshot, np.zeros(len(snapshot.stacks), np.bool_)).any()


@pytest.mark.parametrize(
    ("graph", "expected"),
    [
        ({}, set()),
        ({1: 2, 2: 3}, set()),
        ({1: 2, 2: 1}, {1, 2}),
        ({1: 1}, {1}),
        ({1: 2, 2: 3, 3: 2, 9: 1}, {2, 3}),
        ({1: 2, 2: 1, 3: 4, 4: 3}, {1, 2, 3, 4}),
    ],
)
def test_cycles_are_the_nodes_on_them(graph: dict[int, int], expected: set[int]) -> None:
    assert cycles(graph) == expected


def test_owners_are_known_by_tid_ident_and_address() -> None:
    w = World()
    (thread,) = w.threads(1, "time.sleep", "app.py:f:1", address=0x5000)
    w.builder.snapshot.threads[0].ident = 0x7777
    (task,) = w.tasks(1, "asyncio.sleep", "app.py:f:1", address=0x8000)
    rows = [waiter(w, owner=o)[0] for o in (0x5000, 0x7777, 0x8000, 0xDEAD, True, "x", -1)]
    assert owners(w.build()) == {rows[0]: thread, rows[1]: thread, rows[2]: task}
