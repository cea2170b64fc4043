"""Who keeps how much: of which types, modules and containers it is asked, and the answers by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import MemoryFault
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.graph.nodes import BARE
from diagtool.runtimes.cpython.graph.retained import (
    Candidate,
    Kept,
    keepers,
    most_kept,
    strong_roots,
    subtree_sums,
)
from diagtool.runtimes.cpython.graph.scan import Graph
from diagtool.runtimes.cpython.heap.census import HeapCensus
from diagtool.runtimes.cpython.heap.types import kinds_named
from diagtool.runtimes.cpython.threads.interpreters import Interpreter

__all__ = ["KeptBy", "Retention", "ask_who_keeps"]

_WANTED = 20  # types, modules, containers that are told
_SECONDS = 10.0  # for each of the three
_LEAST_ITEMS = 65  # of a container
_MOST_CONTAINERS = 400  # that are asked about, those that may keep most
_MOST_MODULES = 20_000
#: What the whole program hangs on: that nearly everything goes with these is true, and says nothing.
_FRAMEWORK = frozenset(
    "dict module type function cell code frame method property classmethod staticmethod mappingproxy "
    "getset_descriptor member_descriptor wrapper_descriptor method_descriptor classmethod_descriptor "
    "builtin_function_or_method".split()
)
_LIST, _TUPLE, _DICT, _TYPE = 1 << 25, 1 << 26, 1 << 29, 1 << 31  # Py_TPFLAGS_*_SUBCLASS, Include/object.h
_INTERNED_ENTRIES = 256  # a dict of interned strings has more
_SAMPLE = 512  # entries looked at
_MOST_INTERNED = 1000  # dicts looked at whose first key is its own value


@dataclass(slots=True)
class KeptBy:
    """What would be free without something; ``own`` bytes of it are its nodes' own. ``sure``: nothing that
    was not asked about keeps more. ``address`` and ``items`` are a container's."""

    name: str
    bytes: int
    objects: int
    own: int
    sure: bool
    address: int = 0
    items: int | None = None


@dataclass(slots=True)
class Retention:
    """The answers, most bytes first. ``total``: bytes of all that roots reach."""

    total: int = 0
    types: list[KeptBy] = field(default_factory=list)
    modules: list[KeptBy] = field(default_factory=list)
    containers: list[KeptBy] = field(default_factory=list)


def ask_who_keeps(
    ctx: Context, census: HeapCensus, graph: Graph, interpreters: Sequence[Interpreter]
) -> Retention:
    """The types, the modules and the containers that keep most bytes."""
    return _Questions(ctx, census, graph, interpreters).answers()


class _Questions:
    def __init__(
        self, ctx: Context, census: HeapCensus, graph: Graph, interpreters: Sequence[Interpreter]
    ) -> None:
        self.ctx = ctx
        self.census = census
        self.graph = graph
        interned = interned_dicts(ctx, census, graph)
        self.interned = interned
        self.walker = keepers(graph, strong_roots(graph, interned), interned)
        order, parent = self.walker.tree()
        #: More than each node can keep.
        self.most = subtree_sums(order, parent, graph.weight)[:-1]
        inside = np.zeros(len(graph.nodes), np.bool_)
        inside[order[order < len(graph.nodes)]] = True
        self.inside = inside
        self.total = int(graph.weight[inside].sum())
        self.modules, self._module_names = self._find_modules(interpreters)

    def answers(self) -> Retention:
        found = Retention(self.total)
        found.types = self._types()
        found.modules = self._modules()
        found.containers = self._containers()
        return found

    def _ask(self, candidates: list[Candidate], most: list[int]) -> tuple[list[Kept], bool]:
        is_object = self.graph.nodes.kind >= 0
        bounds = np.minimum(np.array(most, np.int64), self.total)
        return most_kept(self.walker, self.graph.weight, is_object, candidates, bounds, _WANTED, _SECONDS)

    # -- types ------------------------------------------------------------------------------------------

    def _types(self) -> list[KeptBy]:
        names: dict[str, list[int]] = {}
        o = self.ctx.objects
        for kind, address in enumerate(self.census.types.address.tolist()):
            name = o.qualified_type(address)
            if name and name not in _FRAMEWORK and not int(self.census.types.flags[kind]) & _TYPE:
                names.setdefault(name, []).append(kind)
        kind_of = self.graph.nodes.kind
        rows = np.flatnonzero((kind_of >= 0) & self.inside)
        rows = rows[np.argsort(kind_of[rows], kind="stable")]
        bounds = np.searchsorted(kind_of[rows], np.arange(len(self.census.types) + 1))
        degree = np.diff(self.graph.first)
        candidates, most = [], []
        told: list[str] = []
        for name, kinds in names.items():
            parts = [rows[bounds[k] : bounds[k + 1]] for k in kinds]
            nodes = np.concatenate(parts)
            # What refers to nothing keeps itself only.
            if np.count_nonzero(degree[nodes]) * 20 > len(nodes):
                candidates.append(Candidate(len(told), nodes))
                most.append(min(int(self.most[nodes].astype(np.float64).sum()), self.total))
                told.append(name)
        kept, sure = self._ask(candidates, most)
        return [KeptBy(told[k.key], k.bytes, k.objects, k.own, sure) for k in kept]

    # -- modules ----------------------------------------------------------------------------------------

    def _find_modules(self, interpreters: Sequence[Interpreter]) -> tuple[list[NDArray[np.intp]], list[str]]:
        v, nodes, names = self.ctx.vectors, self.graph.nodes, []
        found: list[NDArray[np.intp]] = []
        for interpreter in interpreters:
            try:
                keys, modules = self.ctx.objects.dict_items(interpreter.modules)
            except MemoryFault:
                continue
            keys, modules = keys[:_MOST_MODULES], modules[:_MOST_MODULES]
            dicts = v.field(v.only(modules, "module"), "PyModuleObject.md_dict")
            pair = np.stack([nodes.nodes_of(modules), nodes.nodes_of(dicts)], axis=1)
            for name, both in zip(v.texts(keys), pair, strict=True):
                if (both >= 0).all():
                    found.append(both)
                    names.append(name)
        return found, names

    def _modules(self) -> list[KeptBy]:
        seen: set[int] = set()
        candidates, most = [], []
        for number, both in enumerate(self.modules):
            if int(both[1]) not in seen:  # some modules go by two names
                seen.add(int(both[1]))
                candidates.append(Candidate(number, both))
                most.append(int(self.most[both].sum()))
        kept, sure = self._ask(candidates, most)
        return [KeptBy(self._module_names[k.key], k.bytes, k.objects, k.own, sure) for k in kept]

    # -- containers -------------------------------------------------------------------------------------

    def _containers(self) -> list[KeptBy]:
        """Dicts, lists, sets, tuples and deques with many items: where things pile up."""
        types, kind = self.census.types, self.graph.nodes.kind
        flags = types.flags & np.uint64(_LIST | _TUPLE | _DICT) != 0
        flags[kinds_named(self.ctx, types, "set", "frozenset", "collections.deque")] = True
        rows = np.flatnonzero((kind >= 0) & self.inside)
        rows = rows[flags[kind[rows]]]
        others = np.concatenate([self.interned, *self.modules])
        # Tables of that many items lie outside of pools, and their references are the container's own.
        rows = rows[~np.isin(rows, others) & (np.diff(self.graph.first)[rows] >= _LEAST_ITEMS // 2)]
        rows = rows[np.argsort(-self.most[rows], kind="stable")][: _MOST_CONTAINERS * 4]
        sizes = self.ctx.vectors.sizes(self.graph.nodes.addresses(rows))
        own = np.array([self.ctx.objects.size(int(a)) or 0 for a in self.graph.nodes.addresses(rows)])
        sizes = np.where(sizes < 0, own, sizes)
        big = sizes >= _LEAST_ITEMS
        rows, sizes = rows[big][:_MOST_CONTAINERS], sizes[big][:_MOST_CONTAINERS]
        candidates = [Candidate(i, np.array([row])) for i, row in enumerate(rows.tolist())]
        kept, sure = self._ask(candidates, self.most[rows].tolist())
        addresses = self.graph.nodes.addresses(rows)
        o = self.ctx.objects
        return [
            KeptBy(
                o.qualified_kind(int(addresses[k.key])) or "object",
                k.bytes,
                k.objects,
                k.own,
                sure,
                int(addresses[k.key]),
                int(sizes[k.key]),
            )
            for k in kept
        ]


def interned_dicts(ctx: Context, census: HeapCensus, graph: Graph) -> NDArray[np.intp]:
    """The dicts of interned strings, by what is in them: every key is its own value, and an interned str.

    Their references to the strings are not counted (Objects/unicodeobject.c), so they keep nothing.
    """
    lay, kind = ctx.runtime.layout, graph.nodes.kind
    shift, width = lay["const.unicode_state_interned_shift"], lay["const.unicode_state_interned_width"]
    dicts = np.isin(kind, kinds_named(ctx, census.types, "dict")) & (kind > BARE)
    found = []
    large = np.flatnonzero(dicts & (np.diff(graph.first) >= 2 * _INTERNED_ENTRIES))
    first = graph.first[large]
    large = large[graph.target[first] == graph.target[first + 1]][:_MOST_INTERNED]
    for node in large.tolist():
        low, high = int(graph.first[node]), int(graph.first[node + 1])
        held = graph.target[low : min(high, low + 2 * _SAMPLE)]
        held = held[: len(held) & -2].reshape(-1, 2)
        if not (held[:, 0] == held[:, 1]).all():
            continue
        strings = graph.nodes.addresses(held[:, 0].astype(np.int64))
        state = ctx.vectors.small(strings, "PyASCIIObject.state", "<u4") >> shift & (1 << width) - 1
        if ctx.vectors.are(strings, "str").all() and (state > 0).all():
            found.append(node)
    return np.array(found, np.intp)
