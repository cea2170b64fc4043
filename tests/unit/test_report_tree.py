"""The await tree: alike subtrees once, cycles marked, no depth or width too large."""

from __future__ import annotations

import io

import numpy as np
import pytest
from made_snapshots import report

from diagtool.report import stacks
from diagtool.report.terminal import View
from diagtool.report.text import write
from diagtool.report.tree import Node, await_tree
from diagtool.snapshot.model import KIND, STATE, Frame, Snapshot, SnapshotBuilder, Target


def tasks(places: list[str], edges: list[tuple[int, int]]) -> Snapshot:
    """A task a place (the name of the function that it waits in), and who awaits whom."""
    build = SnapshotBuilder(Target("live"))
    for i, place in enumerate(places):
        trace = build.trace([Frame(place, "/srv/a.py", 1)])
        build.add([f"t{i}"], kind=KIND["task"], state=STATE["waiting"], address=i + 1, trace=trace)
    snap = build.finish()
    snap.awaits = np.array(edges, np.int32).reshape(-1, 2)
    return snap


def nodes(snap: Snapshot) -> list[tuple[int, int, int, str]]:
    return [(n.depth, n.count, n.stack, n.mark) for n in await_tree(snap)]


def test_alike_subtrees_are_counted_once() -> None:
    """Three handlers that each await a read and a write are one handler, times three."""
    snap = tasks(
        ["handler", "read", "write"] * 3 + ["other"], [(i, i + j) for i in (0, 3, 6) for j in (1, 2)]
    )
    assert nodes(snap) == [(0, 3, 0, ""), (1, 1, 1, ""), (1, 1, 2, ""), (0, 1, 9, "")]


def test_a_subtree_that_was_shown_is_not_shown_again() -> None:
    snap = tasks(["a", "b", "shared", "leaf"], [(0, 2), (1, 2), (2, 3)])
    assert nodes(snap) == [(0, 1, 0, ""), (1, 1, 2, ""), (2, 1, 3, ""), (0, 1, 1, ""), (1, 1, 2, "shown")]


@pytest.mark.parametrize(
    ("edges", "expected"),
    [
        ([(0, 0)], [(0, 1, 0, ""), (1, 1, 0, "cycle")]),
        ([(0, 1), (1, 0)], [(0, 1, 0, ""), (1, 1, 1, ""), (2, 1, 0, "cycle")]),
        ([(2, 0), (0, 1), (1, 0)], [(0, 1, 2, ""), (1, 1, 0, ""), (2, 1, 1, ""), (3, 1, 0, "cycle")]),
    ],
)
def test_cycles_are_marked(edges: list[tuple[int, int]], expected: list[tuple[int, int, int, str]]) -> None:
    snap = tasks(["a", "b", "c"], edges)
    got = nodes(snap)
    assert [n for n in got if n in expected] == expected
    assert sum(mark == "cycle" for *_, mark in got) == 1


def test_two_cycles_that_share_a_task_end() -> None:
    snap = tasks(["a", "b", "c", "d"], [(0, 1), (1, 2), (2, 0), (2, 1), (3, 2), (0, 3)])
    got = nodes(snap)
    assert len(got) < 20 and {n[2] for n in got} == {0, 1, 2, 3}


def test_every_task_is_in_the_tree() -> None:
    snap = tasks(["a", "b", "c", "d", "e"], [(0, 1), (1, 0), (2, 3), (3, 2), (4, 3)])
    assert {n[2] for n in nodes(snap)} == {0, 1, 2, 3, 4}


def test_a_chain_of_fifty_thousand_tasks_needs_no_recursion() -> None:
    size = 50_000
    snap = tasks(["f"] * size, [(i, i + 1) for i in range(size - 1)])
    got = nodes(snap)
    assert len(got) == size and got[-1][0] == size - 1


def test_ten_thousand_children_are_one_line() -> None:
    snap = tasks(["gather", *["leaf"] * 10_000], [(0, i) for i in range(1, 10_001)])
    assert nodes(snap) == [(0, 1, 0, ""), (1, 10_000, 1, "")]


def test_lines_are_capped_and_the_rest_counted() -> None:
    snap = tasks([f"f{i}" for i in range(2000)], [(i, i + 1) for i in range(1999)])
    out = io.StringIO()
    write(stacks.tree(snap, report(), await_tree(snap), View()), out, color=False)
    lines = out.getvalue().splitlines()
    assert lines[stacks.MAX_NODES] == "… 1,500 lines more (--all)"
    assert max(map(len, lines)) < 160
    out = io.StringIO()
    write(stacks.tree(snap, report(), await_tree(snap), View(idle=True)), out, color=False)
    assert len(out.getvalue().splitlines()) > 2000


def test_the_tree_reads_as_a_tree() -> None:
    snap = tasks(["main", "leaf", "leaf"], [(0, 1), (0, 2), (1, 0)])
    out = io.StringIO()
    write(stacks.tree(snap, report(), await_tree(snap), View()), out, color=False)
    assert out.getvalue().splitlines()[:4] == [
        "task t0  waiting  a.py:1 in main",
        "  └ task t1  waiting  a.py:1 in leaf",
        "    └ task t0  cycle: awaits itself, see above",
        "  └ task t2  waiting  a.py:1 in leaf",
    ]
    out = io.StringIO()
    nothing: list[Node] = []
    write(stacks.tree(snap, report(), nothing, View()), out, color=False)
    assert out.getvalue().startswith("No task awaits anything.\n")
