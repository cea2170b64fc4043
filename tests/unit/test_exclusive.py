"""What is said to be stuck is what a walk from everything that can act does not reach."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from made_objects import Heap

from diagtool.runtimes.cpython.liveness.exclusive import StuckCandidates, find_exclusive


@dataclass
class World:
    """Objects that hold objects, stacks that hold objects and wait on one, objects held from outside."""

    items: list[list[int]]  # of each object: indices of what it holds
    held: list[list[int]]  # of each stack: indices of what its frames hold
    waits: list[int]  # of each stack: the object it waits on
    timed: list[bool]
    outside: list[int]  # of each object: references from elsewhere


@st.composite
def worlds(draw: st.DrawFn) -> World:
    n = draw(st.integers(1, 12))
    s = draw(st.integers(1, 8))
    some = st.lists(st.integers(0, n - 1), max_size=4)
    return World(
        items=[draw(some) for _ in range(n)],
        held=[draw(some) for _ in range(s)],
        waits=[draw(st.integers(0, n - 1)) for _ in range(s)],
        timed=[draw(st.booleans()) and draw(st.booleans()) for _ in range(s)],
        outside=[draw(st.sampled_from([0, 0, 0, 1, 2])) for _ in range(n)],
    )


def truth(world: World) -> tuple[set[int], set[int]]:
    """(stuck stacks, objects that nothing else reaches), by a walk from all that can act."""
    reached = {i for i, count in enumerate(world.outside) if count}
    acting = {s for s, timed in enumerate(world.timed) if timed}
    while True:
        more = {j for i in reached for j in world.items[i]} | {j for s in acting for j in world.held[s]}
        # who can reach what a stack waits on can wake it, and then it acts itself
        woken = {s for s, thing in enumerate(world.waits) if thing in reached}
        if more <= reached and woken <= acting:
            return set(range(len(world.waits))) - acting, set(range(len(world.items))) - reached
        reached |= more
        acting |= woken


def build(world: World) -> tuple[Heap, list[int]]:
    """The world in memory, with exact reference counts."""
    heap = Heap(1 << 18)
    counts = list(world.outside)
    for row in [*world.items, *world.held]:
        for i in row:
            counts[i] += 1
    addresses = [heap.list([0] * len(row), c) for row, c in zip(world.items, counts, strict=True)]
    for address, row in zip(addresses, world.items, strict=True):
        for at, i in enumerate(row):
            heap.set_item(address, at, addresses[i])
    return heap, addresses


def candidates(world: World, addresses: list[int]) -> StuckCandidates:
    stack = [s for s, row in enumerate(world.held) for _ in row]
    target = [addresses[i] for row in world.held for i in row]
    return StuckCandidates(
        things=np.array([addresses[i] for i in world.waits], np.uint64),
        edges=(np.array(stack, np.intp), np.array(target, np.uint64)),
        timed=np.array(world.timed, np.bool_),
        owners=np.zeros(len(world.waits), np.uint64),
        parts=np.zeros(0, np.uint64),
    )


@given(worlds())
@settings(max_examples=120, deadline=None)
def test_nothing_that_can_be_woken_is_called_stuck(world: World) -> None:
    heap, addresses = build(world)
    stuck, _ = truth(world)
    found = find_exclusive(heap.context(), candidates(world, addresses))
    assert set(np.flatnonzero(found.stuck).tolist()) <= stuck


@given(worlds())
@settings(max_examples=120, deadline=None)
def test_every_stack_that_nobody_can_wake_is_found(world: World) -> None:
    # Objects that nobody refers to do not exist in a real process: whatever they hold, they hold nothing.
    near = {i for row in world.held for i in row}
    while not near >= (more := {j for i in near for j in world.items[i]}):
        near |= more
    world.items = [row if i in near else [] for i, row in enumerate(world.items)]
    assume(all(w in near for w in world.waits))
    heap, addresses = build(world)
    stuck, _ = truth(world)
    found = find_exclusive(heap.context(), candidates(world, addresses))
    assert stuck <= set(np.flatnonzero(found.stuck).tolist())


def test_one_reference_from_elsewhere_makes_a_thing_reachable() -> None:
    world = World(items=[[]], held=[[0], [0]], waits=[0, 0], timed=[False, False], outside=[0])
    heap, addresses = build(world)
    found = find_exclusive(heap.context(), candidates(world, addresses))
    assert found.exclusive.tolist() == [True] and found.stuck.all()
    world.outside = [1]
    heap, addresses = build(world)
    found = find_exclusive(heap.context(), candidates(world, addresses))
    assert found.exclusive.tolist() == [False] and not found.stuck.any()
    assert found.references.tolist() == [3]


def test_a_thing_held_through_an_object_of_a_stuck_stack_is_exclusive() -> None:
    world = World(items=[[1], []], held=[[0]], waits=[1], timed=[False], outside=[0, 0])
    heap, addresses = build(world)
    found = find_exclusive(heap.context(), candidates(world, addresses))
    assert found.stuck.tolist() == [True]


def test_an_unknown_type_that_holds_the_thing_ends_in_silence() -> None:
    heap = Heap(1 << 16)
    thing = heap.list([], references=2)
    holder = heap.object("somebodys.CType", 64)
    heap.put(holder + 16, "Q", thing)
    edges = (np.zeros(2, np.intp), np.array([thing, holder], np.uint64))
    one = np.array([thing], np.uint64)
    none = np.zeros(1, np.uint64)
    found = find_exclusive(heap.context(), StuckCandidates(one, edges, np.zeros(1, np.bool_), none, none[:0]))
    assert not found.stuck.any()
