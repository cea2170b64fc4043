"""Walks over graphs of references: the same as plain loops over small random graphs."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from diagtool.runtimes.cpython.graph import walk
from diagtool.runtimes.cpython.graph.garbage import find_garbage, roots_of
from diagtool.runtimes.cpython.graph.nodes import BARE, FREE, Nodes
from diagtool.runtimes.cpython.graph.retained import Candidate, keepers, most_kept, strong_roots, subtree_sums
from diagtool.runtimes.cpython.graph.scan import Graph
from diagtool.runtimes.cpython.graph.walk import Walker, components, parents, reachable

HAVE_GC = 1 << 14
NONE = np.zeros(0, np.uint64)
FLAGS = np.array([HAVE_GC, 0], np.uint64)  # type 0 is tracked by the collector, type 1 is not


def nodes_of(kinds: list[int]) -> Nodes:
    none = np.zeros(0, np.int64)
    rows = np.zeros(0, np.intp)
    return Nodes(
        np.array(kinds, np.int32), 0, np.zeros(0, np.uint64), NONE, rows, none, none, none, 4096, 48, none
    )


class Made:
    """A graph from edges; ``outer`` nodes have a word outside, ``extra`` ones a reference from nowhere."""

    def __init__(
        self, kinds: list[int], edges: list[tuple[int, int]], outer: set[int], extra: set[int]
    ) -> None:
        self.kinds = kinds
        self.edges = [(a, b) for a, b in edges if kinds[a] != FREE and kinds[b] != FREE]
        self.outer, self.extra = outer, extra
        n = len(kinds)
        plain = sorted((a, b) for a, b in self.edges if a != b)
        first = np.zeros(n + 1, np.int64)
        np.cumsum(np.bincount([a for a, _ in plain], minlength=n), out=first[1:])
        inner = np.bincount([b for _, b in self.edges], minlength=n).astype(np.int32)
        beyond = np.array([i in outer for i in range(n)], np.int32)
        lost = np.array([i in extra for i in range(n)], np.int32)
        self.weight = np.arange(n, dtype=np.int64) * 7 % 50 + 1
        self.graph = Graph(
            nodes_of(kinds),
            first,
            np.array([b for _, b in plain], np.int32),
            inner + beyond + lost,
            inner,
            beyond,
            np.zeros(n, np.int32),
            self.weight,
        )

    def reach(self, roots: set[int], without: set[int] = frozenset()) -> set[int]:  # type: ignore[assignment]
        seen: set[int] = set()
        todo = [r for r in roots if r not in without]
        while todo:
            node = todo.pop()
            if node not in seen:
                seen.add(node)
                todo += [b for a, b in self.edges if a == node and b not in without]
        return seen


@st.composite
def graphs(draw: st.DrawFn) -> Made:
    n = draw(st.integers(1, 14))
    kinds = draw(st.lists(st.sampled_from([0, 0, 0, 1, BARE, FREE]), min_size=n, max_size=n))
    node = st.integers(0, n - 1)
    edges = draw(st.lists(st.tuples(node, node), max_size=40))
    some = st.sets(node, max_size=3)
    return Made(kinds, edges, draw(some), draw(some))


def objects(made: Made) -> set[int]:
    return {i for i, kind in enumerate(made.kinds) if kind >= 0}


@settings(max_examples=120, deadline=None)
@given(graphs(), st.sets(st.integers(0, 13)))
def test_a_walk_reaches_what_a_loop_reaches(made: Made, some: set[int]) -> None:
    n = len(made.kinds)
    roots = {r for r in some if r < n}
    start = np.array(sorted(roots), np.intp)
    assert set(np.flatnonzero(reachable(made.graph.first, made.graph.target, start)).tolist()) == made.reach(
        roots
    )
    walker = Walker(made.graph.first, made.graph.target, start)
    for out in ({0}, {0, n // 2}, made.outer):
        kept = walker.reach(without=np.array(sorted(out), np.intp))
        assert set(np.flatnonzero(kept).tolist()) == made.reach(roots, out)
    assert set(np.flatnonzero(walker.reach()).tolist()) == made.reach(roots)  # nothing is left of them


@settings(max_examples=200, deadline=None)
@given(graphs(), st.sets(st.integers(0, 13)), st.booleans())
def test_parents_are_shortest_ways(made: Made, some: set[int], deep: bool) -> None:
    roots = {r for r in some if r < len(made.kinds)}
    levels, walk._LEVELS = walk._LEVELS, 0 if deep else walk._LEVELS
    try:
        found = parents(made.graph.first, made.graph.target, np.array(sorted(roots), np.intp)).tolist()
    finally:
        walk._LEVELS = levels
    distance = dict.fromkeys(roots, 0)
    todo = sorted(roots)
    for node in todo:
        for a, b in made.edges:
            if a == node and b not in distance:
                distance[b] = distance[node] + 1
                todo.append(b)
    for node, parent in enumerate(found):
        assert (parent >= 0) == (node in distance)
        if node in roots:
            assert parent == node
        elif parent >= 0:
            assert distance[parent] == distance[node] - 1
            assert (parent, node) in made.edges


def test_a_list_of_a_million_items_is_walked() -> None:
    n = 1_000_000
    first = np.minimum(np.arange(n + 1), n - 1)
    target = np.arange(1, n, dtype=np.int32)
    assert reachable(first, target, np.array([0])).all()
    order, parent = Walker(first, target, np.array([0])).tree()
    sums = subtree_sums(order, parent, np.ones(n, np.int64))
    assert sums[0] == n
    assert sums[n // 2] == n // 2


def test_a_small_graph_that_is_deep_is_walked_to_its_end() -> None:
    n = 4 * walk._LEVELS
    first = np.minimum(np.arange(n + 1), n - 1)
    assert reachable(first, np.arange(1, n, dtype=np.int32), np.array([0])).all()


@settings(max_examples=120, deadline=None)
@given(graphs())
def test_garbage_is_what_only_its_own_cycles_refer_to(made: Made) -> None:
    graph = made.graph
    held = {i for i in objects(made) if i in made.outer or i in made.extra}
    blocks = {i for i, kind in enumerate(made.kinds) if kind == BARE}
    # Blocks that no object leads to, through blocks alone, are of C.
    led: set[int] = set()
    todo = sorted(objects(made))
    while todo:
        node = todo.pop()
        for a, b in made.edges:
            if a == node and b in blocks and b not in led:
                led.add(b)
                todo.append(b)
    alive = made.reach(held | (blocks & made.outer) | (blocks - led))
    dead = {i for i, kind in enumerate(made.kinds) if kind != FREE} - alive
    reach = {i: made.reach({b for a, b in made.edges if a == i}) for i in dead}
    cyclic = {i for i in dead if i in reach[i]}
    # A cycle without an object that the collector tracks is none that it could free.
    tracked = {
        i for i in cyclic if any(made.kinds[j] == 0 and j in reach[i] and i in reach[j] for j in cyclic)
    }
    expected = made.reach(tracked) & dead
    found = find_garbage(graph, made.weight, FLAGS, roots_of(graph))
    assert set(np.flatnonzero(found.mask).tolist()) == expected
    assert found.objects == len(expected & objects(made))
    assert found.bytes == sum(int(made.weight[i]) for i in expected)
    assert sum(t.count for t in found.types) == found.objects


@settings(max_examples=120, deadline=None)
@given(graphs())
def test_what_is_kept_is_what_cannot_be_reached_without_it(made: Made) -> None:
    graph = made.graph
    none = np.zeros(0, np.intp)
    roots = strong_roots(graph, none)
    start = set(np.flatnonzero(roots).tolist())
    walker = keepers(graph, roots, none)
    candidates = [Candidate(i, np.array([i])) for i in range(len(made.kinds))]
    order, parent = walker.tree()
    most = subtree_sums(order, parent, made.weight)[:-1]
    kept, sure = most_kept(walker, made.weight, graph.nodes.kind >= 0, candidates, most, 100, 60.0)
    assert sure
    everything = made.reach(start)
    told = {k.key: k.bytes for k in kept}
    assert set(told) == everything
    for node in everything:
        gone = everything - made.reach(start, {node})
        assert told[node] == sum(int(made.weight[i]) for i in gone)
        assert told[node] <= most[node]  # or it would not always be asked about


@settings(max_examples=100, deadline=None)
@given(graphs())
def test_the_few_that_keep_most_are_found_without_asking_all(made: Made) -> None:
    graph = made.graph
    none = np.zeros(0, np.intp)
    walker = keepers(graph, strong_roots(graph, none), none)
    candidates = [Candidate(i, np.array([i])) for i in range(len(made.kinds))]
    order, parent = walker.tree()
    most = subtree_sums(order, parent, made.weight)[:-1]
    is_object = graph.nodes.kind >= 0
    every = most_kept(walker, made.weight, is_object, candidates, most, 100, 60.0)[0]
    some = most_kept(walker, made.weight, is_object, candidates, most, 2, 60.0)[0]
    assert [k.bytes for k in some] == [k.bytes for k in every][:2]


def test_components_of_a_ring_and_a_tail() -> None:
    source, target = np.array([0, 1, 2, 2]), np.array([1, 2, 0, 3])
    strong = components(source, target, 5, strong=True)
    assert len(set(strong[:3].tolist())) == 1
    assert strong[3] not in strong[:3]
    weak = components(source, target, 5, strong=False)
    assert len(set(weak[:4].tolist())) == 1
    assert weak[4] != weak[0]
