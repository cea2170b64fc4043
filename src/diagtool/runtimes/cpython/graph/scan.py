"""The graph itself: one pass over all memory finds every word that refers to a node, and whose word it is.

Words of objects and of the blocks and tables that they own are edges. Words anywhere else, on stacks, in
registers, in the data of libraries, in blocks of malloc, are references from outside. Words that nobody
will read any more (what lies behind the last item of a list, weak references, text that looks like an
address) are stale: they count only where it matters that *no* word at all refers to an object. Words in
memory that is free for sure (free.py, free blocks of pools) are nothing at all.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.graph.free import Stretches
from diagtool.runtimes.cpython.graph.live import Extents, live_extents
from diagtool.runtimes.cpython.graph.nodes import BARE, FREE, Nodes, number_nodes
from diagtool.runtimes.cpython.graph.outside import Outside, memory_outside
from diagtool.runtimes.cpython.graph.walk import edges_of
from diagtool.runtimes.cpython.graph.weights import weights_of
from diagtool.runtimes.cpython.heap.blocks import read_blocks
from diagtool.runtimes.cpython.heap.census import HeapCensus
from diagtool.runtimes.cpython.heap.found import by_value
from diagtool.runtimes.cpython.heap.owners import Owners

__all__ = ["Graph", "build_graph"]

_BATCH_BYTES = 16 << 20  # of pools read together
_IMMORTAL = 1 << 30  # and above: a reference count that is none (3.12+), Include/refcount.h
_NO_POOLS = (
    "the objects lie in blocks of malloc (PYTHONMALLOC=malloc), where leftovers of freed ones look alive"
)

Ints = NDArray[np.int32]


@dataclass(slots=True)
class Graph:
    """References by node. ``target[first[i]:first[i + 1]]`` are the nodes that node ``i`` refers to, one
    for each word; what refers to itself has no edge for it.

    Counts, one element a node: ``references`` (its reference count; -1: none, or immortal), ``inner`` (words
    of other nodes and its own), ``outer`` (words outside of nodes), ``stale``. ``weight``: bytes. ``free``:
    memory outside of pools that is in no use. ``exact``: all of it is of one instant, and no memory is
    missing; else ``why_not`` says why it is not.
    """

    nodes: Nodes
    first: NDArray[np.int64]
    target: Ints
    references: Ints
    inner: Ints
    outer: Ints
    stale: Ints
    weight: NDArray[np.int64]
    free: Stretches = field(default_factory=Stretches)
    why_not: str = ""

    @property
    def exact(self) -> bool:
        return not self.why_not

    def is_free(self, places: U64) -> NDArray[np.bool_]:
        """Which words lie in memory that is in no use."""
        node = self.nodes.blocks_of(places)[0]
        free: NDArray[np.bool_] = self.free.hold(places)
        free |= (node >= 0) & (self.nodes.kind[np.maximum(node, 0)] == FREE)
        return free

    def sources(self) -> Ints:
        """The node that each edge leaves."""
        return np.repeat(np.arange(len(self.nodes), dtype=np.int32), np.diff(self.first))


def build_graph(ctx: Context, census: HeapCensus) -> Graph:
    """All references between the objects of a census, and to them from everywhere else."""
    owners = Owners(ctx, census)
    nodes = number_nodes(census)
    outside = memory_outside(ctx, census, owners, nodes)
    extents = live_extents(ctx, census, nodes)
    graph = _Scan(ctx, census, nodes, outside, extents).run()
    if not nodes.slots and not census.pages:
        graph.why_not = graph.why_not or _NO_POOLS
    return graph


def _flag(of_kind: NDArray[np.bool_], kind: Ints) -> NDArray[np.bool_]:
    """What is said of each node's type; false for what is no object."""
    if not len(of_kind):
        return np.zeros(len(kind), np.bool_)
    flags: NDArray[np.bool_] = of_kind[np.maximum(kind, 0)] & (kind >= 0)
    return flags


class _Scan:
    def __init__(
        self, ctx: Context, census: HeapCensus, nodes: Nodes, outside: Outside, extents: Extents
    ) -> None:
        self.ctx = ctx
        self.census = census
        self.nodes = nodes
        self.outside = outside
        self.extents = extents
        self.degree = np.zeros(len(nodes) + 1, np.int64)
        self.references = np.full(len(nodes), -1, np.int32)
        self.targets: list[Ints] = [np.zeros(0, np.int32)]
        self.selves: list[Ints] = [np.zeros(0, np.int32)]
        self.stale: list[Ints] = [np.zeros(0, np.int32)]
        self.roots: list[Ints] = [np.zeros(0, np.int32)]
        self.copies: list[Ints] = [np.zeros(0, np.int32)]  # blocks with text
        self._collected = np.sort(census.types.address[census.types.before == 16])

    def run(self) -> Graph:
        for block, rows in by_value(self.nodes.block):
            step = max(1, _BATCH_BYTES // self.nodes.pool_size)
            for at in range(0, len(rows), step):
                self._pools(rows[at : at + step], block)
        source, target = self._outside()
        self._registers()
        n = len(self.nodes)
        order = np.argsort(source, kind="stable")
        self.degree[:n] += np.bincount(source, minlength=n)
        first = np.zeros(n + 1, np.int64)
        np.cumsum(self.degree[:n], out=first[1:])
        joined = np.concatenate(self.targets)
        self.targets.clear()
        targets = self._merged(joined, source[order], target[order], first)
        # What lies in a block with text beside it was left by others: as if it referred to itself.
        copies = np.unique(np.concatenate(self.copies)).astype(np.intp)
        left = edges_of(first, copies)
        self.stale.append(targets[left])
        targets[left] = np.repeat(copies, first[copies + 1] - first[copies])
        inner = np.bincount(targets, minlength=n).astype(np.int32)
        inner += np.bincount(np.concatenate(self.selves), minlength=n).astype(np.int32)
        return Graph(
            self.nodes,
            first,
            targets,
            self.references,
            inner,
            np.bincount(np.concatenate(self.roots), minlength=n).astype(np.int32),
            np.bincount(np.concatenate(self.stale), minlength=n).astype(np.int32),
            weights_of(self.ctx, self.census, self.nodes, self.outside.takes),
            self.outside.free,
            why_not=self.outside.why_not,
        )

    def _merged(self, inside: Ints, source: Ints, target: Ints, first: NDArray[np.int64]) -> Ints:
        """Edges from words in pools (in the order of their nodes) with those from tables elsewhere."""
        if not len(source):
            return inside
        out = np.empty(len(inside) + len(target), np.int32)
        # Of each node the edges from tables come last.
        end = first[source.astype(np.int64) + 1]
        _, count = np.unique(source, return_counts=True)
        ranks = np.arange(len(source)) - np.repeat(np.cumsum(count) - count, count)
        place = end - np.repeat(count, count) + ranks
        mine = np.zeros(len(out), np.bool_)
        mine[place] = True
        out[place] = target
        out[~mine] = inside
        return out

    def _add(self, source: NDArray[np.int64], target: NDArray[np.int64], live: NDArray[np.bool_]) -> None:
        """References found in pools, in the order of their sources."""
        own = source == target
        keep = live & ~own
        self.targets.append(target[keep].astype(np.int32))
        self.selves.append(target[live & own].astype(np.int32))
        self.stale.append(target[~live].astype(np.int32))

    def _pools(self, rows: NDArray[np.intp], block: int) -> None:
        nodes, words = self.nodes, block // 8
        per_pool = int(nodes.per_pool[rows[0]])
        blocks = read_blocks(self.ctx, self.census.pools, nodes.rows[rows], words, per_pool)
        low, high = int(nodes.first[rows[0]]), int(nodes.first[rows[-1]]) + per_pool
        kind = nodes.kind[low:high]
        self._count_references(blocks, kind, low)
        flat = blocks.reshape(-1)
        near = blocks - np.uint64(nodes.low) < np.uint64(nodes.high - nodes.low)
        near[kind == FREE] = False
        at = np.flatnonzero(near)
        target = nodes.find(flat[at])
        hit = target >= 0
        at, target = at[hit], target[hit]
        row = at // words
        column = 8 * (at - row * words)
        live = ~self._dead(blocks, kind)
        live &= ~_flag(self.extents.plain, kind)
        good = live[row] & (column < self._ends(blocks, kind, low)[row])
        good &= column >= self.extents.begin[low:high][row]
        good &= ~self._links(flat[at], row, column, target, kind, block)
        text = _flag(self.extents.text, kind)[row]
        copies = np.flatnonzero(text & good)
        copies = copies[nodes.kind[target[copies]] == BARE]
        self.copies.append(target[copies].astype(np.int32))
        text[copies] = False
        good &= ~text
        weak = _flag(self.extents.weak, kind)
        good &= ~weak[row] | (column - nodes.before[np.maximum(kind[row], 0)] == self.extents.callback)
        kept = good & (target != row + low)
        self.degree[low:high] += np.bincount(row[kept], minlength=high - low)
        self._add(row + low, target, good)

    def _links(
        self,
        words: U64,
        row: NDArray[np.intp],
        column: NDArray[np.intp],
        target: NDArray[np.int64],
        kind: Ints,
        block: int,
    ) -> NDArray[np.bool_]:
        """First words of bare blocks that are left from the time when these were in a list of free blocks."""
        links: NDArray[np.bool_] = (column == 0) & (kind[row] == BARE) & (self.nodes.kind[target] == BARE)
        rows = np.flatnonzero(links)
        place, within = self.nodes.blocks_of(words[rows])
        pool = np.searchsorted(self.nodes.first, place, side="right") - 1
        links[rows] = (within == 0) & (self.nodes.block[pool] == block) if len(rows) else False
        return links

    def _ends(self, blocks: U64, kind: Ints, low: int) -> NDArray[np.int64]:
        """Bytes of each block in which words are references."""
        extents = self.extents
        ends = extents.end[low : low + len(kind)].astype(np.int64)
        if not len(extents.of_kind):
            return ends
        known = np.maximum(kind, 0)
        ends = np.where(kind >= 0, np.minimum(ends, extents.of_kind[known]), ends)
        rows = np.flatnonzero(_flag(extents.tuples, kind))
        if len(rows):
            lay = self.ctx.runtime.layout
            column = (self.nodes.before[kind[rows]] + lay["PyVarObject.ob_size"]) // 8
            rows, column = rows[column < blocks.shape[1]], column[column < blocks.shape[1]]
            items = np.minimum(blocks[rows, column], np.uint64(1 << 20)).astype(np.int64)
            # Classes derived from tuple may have attributes behind the items.
            spare = np.maximum(self.census.types.basic[kind[rows]] - lay["PyTupleObject.ob_item"], 0)
            ends[rows] = self.nodes.before[kind[rows]] + lay["PyTupleObject.ob_item"] + 8 * items + spare
        return ends

    def _count_references(self, blocks: U64, kind: Ints, low: int) -> None:
        rows = np.flatnonzero(kind >= 0)
        column = self.nodes.before[kind[rows]] // 8
        fits = column < blocks.shape[1]
        rows, column = rows[fits], column[fits]
        self.references[low + rows] = self._counted(blocks[rows, column])

    def _counted(self, words: U64) -> Ints:
        if self.ctx.runtime.version >= (3, 12):
            words = words & np.uint64(0xFFFFFFFF)
        good = (words > 0) & (words < _IMMORTAL)
        counted: Ints = np.where(good, words, np.uint64(0xFFFFFFFF)).astype(np.uint32).view(np.int32)
        return counted

    def _dead(self, blocks: U64, kind: Ints) -> NDArray[np.bool_]:
        """Bare blocks that hold an object without references, kept for the next one (heap.owners._dead)."""
        out: NDArray[np.bool_] = kind == BARE
        shift = 2 if self.census.pools.debug else 0
        if blocks.shape[1] < shift + 5 or not len(self._collected):
            return np.zeros(len(kind), np.bool_)
        out &= (blocks[:, shift] == 0) & (blocks[:, shift + 2] == 0)
        rows = np.flatnonzero(out)
        types = blocks[rows, shift + 3]
        near = np.minimum(np.searchsorted(self._collected, types), len(self._collected) - 1)
        out[rows] = self._collected[near] == types
        return out

    # -- everything else --------------------------------------------------------------------------------

    def _outside(self) -> tuple[Ints, Ints]:
        """Edges from objects and tables outside of pools: (sources, targets)."""
        nodes, spans = self.nodes, self.outside.spans
        owner = nodes.nodes_of(spans.owner)
        sources: list[Ints] = [np.zeros(0, np.int32)]
        targets: list[Ints] = [np.zeros(0, np.int32)]
        if self.ctx.runtime.free_threaded:
            counts = self.ctx.vectors.references(nodes.large)
            self.references[nodes.slots :] = np.minimum(counts, _IMMORTAL)
        else:
            self.references[nodes.slots :] = self._counted(self.ctx.vectors.words(nodes.large))
        for start, words in self.ctx.capture.memory.blocks(self.outside.ranges):
            at = np.flatnonzero(words - np.uint64(nodes.low) < np.uint64(nodes.high - nodes.low))
            target = nodes.find(words[at])
            hit = target >= 0
            self._sort_out(start, at[hit], target[hit], owner, sources, targets)
        self._constant()
        return np.concatenate(sources), np.concatenate(targets)

    def _sort_out(
        self,
        start: int,
        at: NDArray[np.intp],
        target: NDArray[np.int64],
        owner: NDArray[np.int64],
        sources: list[Ints],
        targets: list[Ints],
    ) -> None:
        place = np.uint64(start) + at.astype(np.uint64) * np.uint64(8)
        spans = self.outside.spans
        if len(spans.start):
            span = np.maximum(np.searchsorted(spans.start, place, side="right"), 1) - 1
            inside = (spans.start[span] <= place) & (place < spans.end[span])
            source = np.where(inside, owner[span], -1)
        else:
            source = np.full(len(place), -1, np.int64)
        # Text and numbers refer to nothing, whatever they look like.
        kind = self.nodes.kind[np.maximum(source, 0)]
        plain = (source >= 0) & _flag(self.extents.plain | self.extents.text, kind)
        self.stale.append(target[plain].astype(np.int32))
        place, target, source = place[~plain], target[~plain], source[~plain]
        edge = (source >= 0) & (source != target)
        sources.append(source[edge].astype(np.int32))
        targets.append(target[edge].astype(np.int32))
        self.selves.append(target[source == target].astype(np.int32))
        rest = np.flatnonzero(source < 0)
        stale = self.outside.stale.hold(place[rest])
        doubtful = stale & ~self.outside.free.hold(place[rest])
        self.stale.append(target[rest[doubtful]].astype(np.int32))
        self.roots.append(target[rest[~stale]].astype(np.int32))

    def _constant(self) -> None:
        """Memory that was protected after it was written, which segments don't have as writable."""
        for low, high in self.outside.sealed:
            for start in range(low, high, _BATCH_BYTES):
                places = np.arange(start, min(high, start + _BATCH_BYTES), 8, dtype=np.uint64)
                words = self.ctx.capture.memory.load(places)[0]
                target = self.nodes.find(words)
                self.roots.append(target[target >= 0].astype(np.int32))

    def _registers(self) -> None:
        found: list[int] = []
        for thread in self.ctx.capture.threads:
            found += [value for value in thread.registers.values() if 0 <= value < 1 << 64]
            found += np.frombuffer(thread.vectors[: len(thread.vectors) & -8], "<u8").tolist()
        target = self.nodes.find(np.array(found, np.uint64))
        self.roots.append(target[target >= 0].astype(np.int32))
