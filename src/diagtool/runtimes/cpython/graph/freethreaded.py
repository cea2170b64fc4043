"""Whose words the memory of a free-threaded build holds: all of it lies in pages of mimalloc.

Every object has a span there, and so have the tables that it owns. What else is in use is memory of C code,
from where references come from outside. The rest of a segment, free blocks and pages that nobody uses now, is
full of what was left: stale, as is what lies behind the last item of a list, on the part of a generator's
evaluation stack that is not in use, in dead objects that are kept for the next one, and in weak references,
which hold their callback only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.frames.generators import CREATED, GENERATOR_KINDS, SUSPENDED, read_generators
from diagtool.runtimes.cpython.graph.free import Stretches, joined
from diagtool.runtimes.cpython.graph.live import weak_kinds
from diagtool.runtimes.cpython.heap.census import HeapCensus
from diagtool.runtimes.cpython.heap.mimalloc import MEMORY, OBJECT, Pages
from diagtool.runtimes.cpython.heap.mimallocobjects import used_blocks
from diagtool.runtimes.cpython.heap.owners import Owners, Spans, spans
from diagtool.runtimes.cpython.heap.types import kinds_named
from diagtool.runtimes.cpython.objects.addresssets import contains

__all__ = ["spans_in_pages", "whole_blocks"]

_0 = np.uint64(0)


def spans_in_pages(ctx: Context, census: HeapCensus, pages: Pages, owners: Owners) -> tuple[Spans, Stretches]:
    """(what belongs to objects, what is stale)."""
    weak = np.flatnonzero(weak_kinds(ctx, census)).astype(np.int32)
    own = owners.large
    start, end, owner = own.start, own.end.copy(), own.owner
    # Of a weak reference the callback alone.
    is_weak = np.isin(owners.kind(owner), weak)
    callback = np.uint64(ctx.runtime.layout["sizeof.PyObject"] + 8)  # PyWeakReference: wr_object, wr_callback
    start = np.where(is_weak, owner + callback, start)
    end[is_weak] = start[is_weak] + np.uint64(8)
    # Of a generator what lies before the end of its evaluation stack.
    locals_end, generators = _ends_of_generators(ctx, census)
    at = np.minimum(np.searchsorted(generators, owner), max(len(generators) - 1, 0))
    if len(generators):
        mine = generators[at] == owner
        end[mine] = np.clip(locals_end[at[mine]], start[mine], end[mine])
    tables = owners.tables
    start = np.concatenate([start, tables.start])
    end = np.concatenate([end, tables.end])
    owner = np.concatenate([owner, tables.owner])
    mine_all = spans(start, (end - start).view(np.int64), owner)
    return mine_all, _stale(ctx, census, pages, mine_all, owners)


def whole_blocks(pages: Pages, parts: Spans) -> Spans:
    """The blocks that parts of them lie in, each once."""
    inside, _, start, end, _ = pages.find(parts.start)
    start, end = np.where(inside, start, parts.start), np.where(inside, end, parts.end)
    start, first = np.unique(start, return_index=True)
    return spans(start, (end[first] - start).view(np.int64), parts.owner[first])


def _ends_of_generators(ctx: Context, census: HeapCensus) -> tuple[U64, U64]:
    """(where the last word that is in use ends, the generator), sorted by generator. Of suspended ones."""
    ends: list[U64] = [np.zeros(0, np.uint64)]
    which: list[U64] = [np.zeros(0, np.uint64)]
    for kind in kinds_named(ctx, census.types, *GENERATOR_KINDS):
        generators = census.of(kind)
        if not len(generators):
            continue
        columns = read_generators(ctx, generators)
        known = np.isin(columns.state, (CREATED, SUSPENDED)) & (columns.locals != 0) & (columns.depth >= 0)
        ends.append(columns.locals[known] + (8 * columns.depth[known].astype(np.int64)).astype(np.uint64))
        which.append(generators[known])
    end, generator = np.concatenate(ends), np.concatenate(which)
    order = np.argsort(generator)
    return end[order], generator[order]


def _stale(ctx: Context, census: HeapCensus, pages: Pages, mine: Spans, owners: Owners) -> Stretches:
    """What is in no live block; and of blocks that hold an object or a table of one, what is not theirs."""
    blocks = np.sort(used_blocks(pages, np.arange(len(pages))))
    _, _, start, end, tag = pages.find(blocks)
    # Whose they are: every block that a span begins in.
    holds = np.zeros(len(blocks), np.bool_)
    if len(blocks) and len(mine.start):
        at = np.maximum(np.searchsorted(start, mine.start, side="right"), 1) - 1
        inside = (start[at] <= mine.start) & (mine.start < end[at])
        holds[at[inside]] = True
    objects = owners.objects
    with_object = np.zeros(len(blocks), np.bool_)
    if len(blocks) and len(objects):
        at = np.maximum(np.searchsorted(start, objects, side="right"), 1) - 1
        with_object[at[objects < end[at]]] = True
    dead = ~with_object & (tag > OBJECT)
    plain = np.flatnonzero(~with_object & (tag == OBJECT))
    kind = ctx.vectors.words(start[plain], ctx.objects.type_offset)
    dead[plain] = contains(np.sort(census.types.address), kind)
    others = ~holds & ~with_object & ~dead & (tag >= MEMORY)
    # All that is alive: spans, and blocks of C code.
    alive = joined(Stretches(mine.start, mine.end), Stretches(start[others], end[others]))
    inside = contains_any(pages, alive.start)
    low, high = alive.start[inside], alive.end[inside]
    gap_start = np.sort(np.concatenate([pages.segments, high]))
    gap_end = np.sort(np.concatenate([low, pages.segment_ends]))
    return Stretches(gap_start, np.maximum(gap_end, gap_start))


def contains_any(pages: Pages, addresses: U64) -> NDArray[np.bool_]:
    """Which addresses lie in a segment."""
    if not len(pages.segments):
        return np.zeros(len(addresses), np.bool_)
    at = np.maximum(np.searchsorted(pages.segments, addresses, side="right"), 1) - 1
    inside: NDArray[np.bool_] = (pages.segments[at] <= addresses) & (addresses < pages.segment_ends[at])
    return inside
