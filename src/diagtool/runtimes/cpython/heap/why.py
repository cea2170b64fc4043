"""Who keeps objects: the shortest ways from a root to them, found backwards, level by level.

Roots are the globals of modules, the locals of threads' frames, and tasks. Where no such root leads to an
object within a dozen steps, the nearest reference from C is told: a thread's native stack, the data of a
library, or memory that nothing we know explains.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64, MemoryFault
from diagtool.capture.segments import without
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.heap.buffers import big_buffers
from diagtool.runtimes.cpython.heap.census import HeapCensus
from diagtool.runtimes.cpython.heap.owners import Owners
from diagtool.runtimes.cpython.heap.places import Places
from diagtool.runtimes.cpython.heap.referrers import Targets, words_that_refer
from diagtool.runtimes.cpython.heap.steps import Step, in_words, name_in_dict, step_to
from diagtool.runtimes.cpython.heap.types import kinds_named
from diagtool.runtimes.cpython.objects.addresssets import contains
from diagtool.runtimes.cpython.threads.interpreters import Interpreter

SAMPLE = 200  # objects of a type that are looked at
_MAX_LEVELS = 12
_MAX_NODES = 200_000
_WIDEST = 20_000  # nodes followed from one level to the next
_FEW_LEVELS = 4  # from a global through an object and its attributes to a container
_LITTLE = 0.01  # of what was asked for: not worth another pass over memory
_MAX_WAYS = 20  # distinct paths told
_WEAK = ("weakref.ReferenceType", "weakref", "weakproxy", "weakcallableproxy", "weakref.ProxyType")


@dataclass(slots=True)
class Way:
    """One way to objects, in words, and how many of the objects looked at it leads to."""

    text: str
    root: str  # module | local | task | native
    count: int
    example: int  # address of one of the objects
    steps: list[Step] = field(default_factory=list)
    rank: int = Places.NATIVE  # how much the root says to a person (Places)


@dataclass(slots=True)
class Answer:
    """``total`` objects asked for, ``looked_at`` of them, and the ways to these, those to most first."""

    wanted: str
    total: int
    looked_at: int
    ways: list[Way]


def ask_why(
    ctx: Context, census: HeapCensus, interpreters: Sequence[Interpreter], tasks: U64, wanted: str
) -> Answer:
    """Who keeps the object at an address ("0x7f…"), or objects of a type ("app.Image", "Image", "app.*")."""
    owners = Owners(ctx, census)
    chosen, total = _chosen(ctx, census, owners, wanted)
    if not len(chosen):
        ctx.warn(f"{wanted} names no object on the heap")
        return Answer(wanted, 0, 0, [])
    places = Places(ctx, interpreters, tasks)
    search = _Search(ctx, census, owners, places, chosen)
    search.run()
    return Answer(wanted, total, len(chosen), search.ways())


def ways_to(
    ctx: Context,
    census: HeapCensus,
    interpreters: Sequence[Interpreter],
    tasks: U64,
    objects: U64,
    weights: NDArray[np.int64],
    levels: int,
) -> dict[int, Way]:
    """For each of ``objects`` (sorted addresses) its way from a root, of at most ``levels`` steps if no root
    in C is nearer. What nothing refers to is left out. ``weights``: what finding each is worth; the search
    ends where little of it is left."""
    if not len(objects):
        return {}
    places = Places(ctx, interpreters, tasks)
    search = _Search(ctx, census, Owners(ctx, census), places, objects)
    search.run_pruned(levels, dict(zip(objects.tolist(), weights.tolist(), strict=True)))
    return search.each()


def _chosen(ctx: Context, census: HeapCensus, owners: Owners, wanted: str) -> tuple[U64, int]:
    if wanted[:2].lower() == "0x":
        try:
            address = owners.block_of(int(wanted, 16) & (1 << 64) - 1)
        except ValueError:
            address = 0
        return np.array([address] if address else [], np.uint64), int(address != 0)
    found = [np.zeros(0, np.uint64)]
    for kind, address in enumerate(census.types.address.tolist()):
        name = ctx.objects.qualified_type(address)
        if any(fnmatch.fnmatchcase(n, wanted) for n in (name, name.rpartition(".")[2])):
            found.append(census.of(kind))
    every = np.sort(np.concatenate(found))
    pick = np.unique(np.linspace(0, len(every) - 1, min(SAMPLE, len(every))).astype(np.intp))
    return every[pick], len(every)


class _Search:
    """A breadth-first walk against the direction of references. Nodes are addresses of objects or blocks."""

    def __init__(self, ctx: Context, census: HeapCensus, owners: Owners, places: Places, chosen: U64) -> None:
        self.ctx = ctx
        self.owners = owners
        self.places = places
        self.chosen = chosen
        self._ranges = without(
            [(s.start, s.end) for s in ctx.capture.memory.segments if s.writable],
            big_buffers(ctx, census.objects, census.types),
        )
        weak = [i for i, a in enumerate(census.types.address.tolist()) if self._is_weak(a)]
        self._weak = np.array(weak, np.int32)
        self._code = np.array(kinds_named(ctx, census.types, "code"), np.int32)
        self.seen = chosen
        #: child: (word that refers to it, holder or 0 for a root)
        self.holders: dict[int, list[tuple[int, int]]] = {}

    def _is_cache(self, words: U64, holder: U64, kind: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Words in the bytecode of code objects: caches of specialized instructions, which keep nothing."""
        first = self.ctx.runtime.layout.get("PyCodeObject.co_code_adaptive")  # 3.11+
        if first is None:
            return np.zeros(len(words), np.bool_)
        cache: NDArray[np.bool_] = np.isin(kind, self._code) & (words >= holder + np.uint64(first))
        return cache

    def _is_weak(self, kind: int) -> bool:
        return any(self.ctx.objects.type_name(t) in _WEAK for t in self.ctx.objects.mro(kind))

    def run(self) -> None:
        """Walk until every object that was chosen has a good root, or there is nowhere to go."""
        frontier, size = self.chosen, np.zeros(len(self.chosen), np.uint64)
        for _ in range(_MAX_LEVELS):
            if not len(frontier) or len(self.seen) > _MAX_NODES:
                break
            frontier, size = self._level(frontier, size)
            if self._all_rooted():
                break

    def run_pruned(self, levels: int, weights: Mapping[int, int]) -> None:
        """The same, but not further from what has a good root: for objects some of which C alone keeps."""
        little = _LITTLE * sum(weights.values())
        frontier, size = self.chosen, np.zeros(len(self.chosen), np.uint64)
        for level in range(levels):
            if not len(frontier) or len(self.seen) > _MAX_NODES:
                break
            frontier, size = self._level(frontier, size)
            best = self._distances(native=False)
            left = sum(weight for child, weight in weights.items() if child not in best)
            if level + 1 >= _FEW_LEVELS and left < little:
                break
            open_ends = {p for child, refs in self.holders.items() if child not in best for _, p in refs}
            keep = np.array([node in open_ends for node in frontier.tolist()], np.bool_)
            frontier, size = frontier[keep], size[keep]

    def _level(self, frontier: U64, size: U64) -> tuple[U64, U64]:
        targets = Targets(frontier, size)
        words, which = words_that_refer(self.ctx, self._ranges, targets, self.owners.objects)
        holder, bare, unused = self.owners.find(words)
        kind = self.owners.kind(holder)
        keep = ~np.isin(kind, self._weak) | (kind < 0)
        # That an instance keeps its type is true, and says nothing.
        keep &= (words != holder + np.uint64(self.ctx.objects.type_offset)) | (bare != 0)
        keep &= (holder != frontier[which]) & ~unused & ~self._is_cache(words, holder, kind)
        words, which, holder, bare = words[keep], which[keep], holder[keep], bare[keep]
        rooted = self.places.is_root(holder)
        for word, child, parent in zip(
            words.tolist(), frontier[which].tolist(), holder.tolist(), strict=True
        ):
            self.holders.setdefault(child, []).append((word, parent))
        follow = (holder != 0) & ~rooted & ~contains(self.seen, holder)
        fresh, first = np.unique(holder[follow], return_index=True)
        fresh, sizes = fresh[:_WIDEST], bare[follow][first][:_WIDEST]
        self.seen = np.union1d(self.seen, fresh)
        return fresh, sizes

    # -- from the roots forward -------------------------------------------------------------------------

    def _distances(self, native: bool) -> dict[int, tuple[int, int, int]]:
        """For each node that a root leads to: (steps from it, the word, the holder)."""
        best: dict[int, tuple[int, int, int]] = {}
        below: dict[int, list[tuple[int, int]]] = {}
        level: list[int] = []
        for child, refs in self.holders.items():
            roots = []
            for word, parent in refs:
                rank = self.places.rank(word, parent)
                if rank is None:
                    below.setdefault(parent, []).append((word, child))
                elif native or rank < Places.NATIVE:
                    roots.append((rank, word, parent))
            if roots:
                rank, word, parent = min(roots)
                best[child] = (rank, word, parent)
                level.append(child)
        level.sort(key=lambda child: best[child][0])
        while level:
            following = []
            for parent in level:
                for word, child in below.get(parent, ()):
                    if child not in best:
                        best[child] = (best[parent][0], word, parent)
                        following.append(child)
            level = following
        return best

    def _all_rooted(self) -> bool:
        best = self._distances(native=False)
        return all(child in best for child in self.chosen.tolist())

    def ways(self) -> list[Way]:
        """The ways to the chosen objects, equal ones counted."""
        good, any_root = self._distances(native=False), self._distances(native=True)
        ways: dict[str, Way] = {}
        for address in self.chosen.tolist():
            best = good if address in good else any_root
            way = (
                self._way(address, best)
                if address in best
                else Way("nothing on the heap or in C refers to it", "none", 1, address)
            )
            alike = in_words(way.root, way.steps) if way.root == "task" else way.text
            known = ways.setdefault(alike, way)
            if known is not way:
                known.count += 1
                if way.text != known.text:
                    known.text = in_words("tasks", way.steps)
        return sorted(ways.values(), key=lambda w: -w.count)[:_MAX_WAYS]

    def each(self) -> dict[int, Way]:
        """The way to each of the chosen objects."""
        good, any_root = self._distances(native=False), self._distances(native=True)
        found = {}
        for address in self.chosen.tolist():
            best = good if address in good else any_root
            if address in best:
                found[address] = self._way(address, best)
        return found

    def _way(self, address: int, best: dict[int, tuple[int, int, int]]) -> Way:
        chain = [address]
        words = []
        while len(chain) <= 2 * _MAX_LEVELS:
            _, word, parent = best[chain[-1]]
            words.append(word)
            rank = self.places.rank(word, parent)
            if rank is not None:
                break
            chain.append(parent)
        root, label, name = self.places.name(word, parent, chain[-1])
        chain.reverse()
        words.reverse()
        # Bare blocks belong to the object before them in the chain.
        kinds = self.owners.kind(np.array(chain, np.uint64)).tolist()
        steps: list[Step] = []
        outer, names = (parent if root == "module" else 0), False
        for node, kind in zip(chain, kinds, strict=True):
            if kind < 0:
                continue
            # In the dict of a module, class or instance the key is the name.
            if name is None and outer and (names or self.places.is_root(np.array([outer], np.uint64))[0]):
                name = name_in_dict(self.ctx, self.places.dict_of(outer), node)
            step = step_to(self.ctx, outer, node, name)
            names, name, outer = step.folded, None, node
            steps.append(step)
        try:
            return Way(in_words(label, steps), root, 1, address, steps, rank=rank or 0)
        except MemoryFault:
            return Way(label, root, 1, address)
