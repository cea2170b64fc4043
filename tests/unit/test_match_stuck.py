"""Who is stuck: what the decoder says, less whom a timer ends. Who owns what, and circles of owners."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from made_stacks import EVENT, World

from diagtool.leaks.facts import Facts
from diagtool.leaks.owners import cycles, owners


def stuck(world: World) -> list[int]:
    return np.flatnonzero(Facts(world.build()).stuck).tolist()


def waiter(w: World, count: int = 1, **thing: Any) -> list[int]:
    return w.tasks(count, "asyncio.Event.wait", f"{EVENT} app.py:f:1", w.thing(**thing))


def test_who_has_a_timer_is_not_stuck_nor_whom_it_awaits() -> None:
    w = World()
    (parent,) = w.tasks(1, "asyncio.wait_for", "app.py:p:1", w.thing(exclusive=True))
    (child,) = waiter(w, exclusive=True)
    (other,) = waiter(w, exclusive=True)
    w.awaits = [(parent, child)]
    w.table("timeouts", {"stack": parent, "left": 3.0})
    assert stuck(w) == [other]


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
