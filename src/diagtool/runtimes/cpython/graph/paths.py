"""Who keeps the objects that take most memory: ways from a root to some of each type, along the graph.

As ``heap --why`` finds them backwards for one type, but for several at once and from the graph that is there
already: a walk from the modules of the program, then from all others and tasks, then from what C or a
thread keeps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import MemoryFault
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.graph.scan import Graph
from diagtool.runtimes.cpython.graph.walk import parents
from diagtool.runtimes.cpython.heap.census import HeapCensus
from diagtool.runtimes.cpython.heap.places import Places
from diagtool.runtimes.cpython.heap.steps import Step, in_words, name_in_dict, step_to

__all__ = ["TypePath", "paths_to_types"]

TYPES = 8  # those with most bytes
SAMPLE = 60  # objects of each, spread over memory
_WAYS = 3  # told of each
_MOST_STEPS = 5_000
_ENDS = 12  # steps at both ends of a long way that may be told
#: Of these a program always has many, and where they are says nothing.
_USUAL = ("type", "function", "code", "module", "builtin_function_or_method", "getset_descriptor")
_OUTSIDE = "C, or a thread"


@dataclass(slots=True)
class TypePath:
    """A way to objects of a type: how many of those looked at it leads to, and an example's address."""

    type: str
    looked_at: int
    count: int
    root: str  # module | task | outside | none
    text: str
    example: int


def paths_to_types(
    ctx: Context, census: HeapCensus, graph: Graph, places: Places, roots: NDArray[np.bool_]
) -> list[TypePath]:
    """The ways to the types with most bytes, those first. ``roots``: nodes that are kept from outside."""
    paths = _Paths(ctx, graph, places, roots)
    names = [ctx.objects.qualified_type(a) for a in census.types.address.tolist()]
    found: list[TypePath] = []
    for row in [r for r in census.rows if r.name not in _USUAL][:TYPES]:
        kinds = [i for i, name in enumerate(names) if name == row.name]
        parts = [census.of(kind) for kind in kinds]
        every = np.sort(np.concatenate(parts)) if parts else np.zeros(0, np.uint64)
        pick = np.unique(np.linspace(0, len(every) - 1, min(SAMPLE, len(every))).astype(np.intp))
        nodes = graph.nodes.nodes_of(every[pick])
        nodes = nodes[nodes >= 0]
        told = [paths.tell(int(node)) for node in nodes.tolist()]
        ways = Counter(way for way in told if way is not None)
        for (root, text), count in ways.most_common(_WAYS):
            example = nodes[told.index((root, text))]
            address = int(graph.nodes.addresses(np.array([example]))[0])
            found.append(TypePath(row.name, len(nodes), count, root, text, address))
    return found


class _Paths:
    def __init__(self, ctx: Context, graph: Graph, places: Places, roots: NDArray[np.bool_]) -> None:
        self.ctx = ctx
        self.graph = graph
        self.places = places
        known = graph.nodes.nodes_of(places.roots)
        rank = np.array([places.rank(0, a) for a in places.roots.tolist()], np.object_)
        own = known[(rank == Places.OWN) & (known >= 0)]
        #: Walked only if need be.
        self._starts = [own, known[known >= 0], np.flatnonzero(roots)]
        self._trees: list[NDArray[np.int32]] = []

    def tell(self, node: int) -> tuple[str, str] | None:
        """(kind of root, the way in words) of a node; None for what nothing leads to."""
        for number, starts in enumerate(self._starts):
            if number == len(self._trees):
                self._trees.append(parents(self.graph.first, self.graph.target, starts))
            chain = self._chain(self._trees[number], node)
            if chain:
                return self._in_words(chain)
        return ("none", f"a way of more than {_MOST_STEPS:,} steps") if self._trees[-1][node] >= 0 else None

    def _chain(self, tree: NDArray[np.int32], node: int) -> list[int]:
        """From the root to the node; empty where the tree does not lead there, or takes too long."""
        if tree[node] < 0:
            return []
        chain = [node]
        while int(tree[chain[-1]]) != chain[-1]:
            if len(chain) > _MOST_STEPS:
                return []
            chain.append(int(tree[chain[-1]]))
        return chain[::-1]

    def _in_words(self, chain: Sequence[int]) -> tuple[str, str]:
        nodes = self.graph.nodes
        if len(chain) > 2 * _ENDS:
            chain = [*chain[:_ENDS], *chain[-_ENDS:]]
        objects = [n for n in chain if nodes.kind[n] >= 0]
        addresses = nodes.addresses(np.array(objects, np.int64)).tolist()
        rank = self.places.rank(0, addresses[0])
        if rank is None:
            root, label, outer, rest = "outside", _OUTSIDE, 0, addresses
        else:
            root, label, _ = self.places.name(0, addresses[0], 0)
            outer, rest = addresses[0], addresses[1:]
        steps: list[Step] = []
        named = rank is not None and root == "module"
        try:
            for address in rest:
                # In the dict of a module, class or instance the key is the name.
                name = (
                    name_in_dict(self.ctx, self.places.dict_of(outer), address) if named and outer else None
                )
                step = step_to(self.ctx, outer, address, name)
                named, outer = step.folded, address
                steps.append(step)
            return root, in_words(label, [s for s in steps if not self._is_module_dict(s)])
        except MemoryFault:
            return root, label

    def _is_module_dict(self, step: Step) -> bool:
        return step.name is None and self.places.rank(0, step.address) in (Places.OWN, Places.LIBRARY)
