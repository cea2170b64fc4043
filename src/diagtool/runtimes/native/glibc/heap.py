"""All of glibc's malloc in one process: arenas, chunks, free lists and mmapped blocks put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import PAGE, AddressSpace
from diagtool.capture.model import Mapping
from diagtool.capture.segments import merged, without
from diagtool.runtimes.native.glibc.arenas import Arena, Arenas, find_arenas
from diagtool.runtimes.native.glibc.chunks import Chunks, Region, walk
from diagtool.runtimes.native.glibc.freelists import broken_bins, find_free
from diagtool.runtimes.native.glibc.mmapped import mmapped_chunks
from diagtool.runtimes.native.memorymap import Ranges, private_memory
from diagtool.runtimes.native.model import CACHED, FAST, FREE, MMAPPED, USED, ArenaTotals, Blocks

__all__ = ["GlibcHeap", "read_glibc"]

_NAMED_BREAKS = 5  # that warnings name one by one; the rest is counted
_MOST_PIECES = 1000  # mappings that the main arena took because the break could not grow


@dataclass(slots=True)
class GlibcHeap:
    """The blocks of glibc's malloc, and which memory holds them."""

    blocks: Blocks
    arenas: list[ArenaTotals] = field(default_factory=list)
    thread_caches: int = 0
    #: Addresses of the thread caches' own blocks.
    cache_blocks: list[int] = field(default_factory=list)
    #: What is nothing but chunks, free or used. What could not be followed is not among it.
    heaps: Ranges = field(default_factory=list)
    #: The arenas themselves. Their bins lead to headers of free chunks, each of which begins in the last word
    #: that belongs to the block before it: as pointers they would keep that one.
    own: Ranges = field(default_factory=list)
    #: Of each arena the free rest at its end.
    tops: Ranges = field(default_factory=list)
    #: Numbers of the arenas in which something is amiss, or was just being changed.
    unsound: list[int] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def read_glibc(
    memory: AddressSpace,
    mappings: Sequence[Mapping],
    data: Ranges,
    stacks: Ranges,
    threads: Sequence[tuple[int, int]],
) -> GlibcHeap | None:
    """The heap, None where no arena of glibc is found.

    ``data``: writable data of modules, the C library's first; ``stacks``: what is known to be no heap;
    ``threads``: (tid, thread pointer) of each thread.
    """
    found = find_arenas(memory, mappings, data)
    if found.shape is None:
        return None
    warnings = found.warnings
    chunks = walk(memory, found.regions)
    anonymous = without(private_memory([m for m in mappings if not m.path.startswith("/")]), merged(data))
    free_memory = without(anonymous, merged([*found.claimed, *stacks]))
    pieces = _main_pieces(memory, found, chunks, free_memory)
    if pieces:
        found.regions.extend(pieces)
        chunks = walk(memory, found.regions)
        whole_pages = merged((low & -PAGE, high + PAGE - 1 & -PAGE) for low, high in chunks.runs())
        free_memory = without(free_memory, whole_pages)
    lists = find_free(memory, chunks, found.arenas, found.shape, threads)
    big = mmapped_chunks(memory, free_memory)
    # These are not of one arena: where a list of a thread cache breaks, it may have come from any.
    everywhere = bool(warnings or lists.warnings)
    warnings.extend(lists.warnings)
    unsound = _warn(memory, found, chunks, warnings)

    state = np.where(chunks.used, USED, FREE).astype(np.uint8)
    state[lists.fast], state[lists.cached] = FAST, CACHED
    tops = [(a.top, a.top + a.top_size) for a in found.arenas]
    address = np.concatenate([chunks.address, big.chunk]) + np.uint64(16)
    order = np.argsort(address, kind="stable")
    blocks = Blocks(
        address[order],
        np.concatenate([chunks.size, big.size])[order],
        np.concatenate([chunks.size - np.uint64(8), big.usable])[order],
        np.concatenate([state, np.full(len(big.chunk), USED, np.uint8)])[order],
        np.concatenate([chunks.arena, np.full(len(big.chunk), MMAPPED, np.int32)])[order],
    )
    return GlibcHeap(
        blocks,
        [_totals(arena, number, chunks, state) for number, arena in enumerate(found.arenas)],
        len(lists.caches),
        [cache.address for cache in lists.caches],
        merged([*chunks.runs(), *tops, *big.ranges]),
        merged((a.address, a.address + found.shape.size) for a in found.arenas),
        tops,
        list(range(len(found.arenas))) if everywhere else sorted(unsound),
        warnings,
    )


# Where the break can't grow, the main arena lives on in mappings of its own, which nothing lists; but chunks
# that are free in them are in its lists. From any such chunk its mapping is known.
def _main_pieces(memory: AddressSpace, found: Arenas, chunks: Chunks, free_memory: Ranges) -> list[Region]:
    pieces: dict[int, Region] = {}
    if found.shape is None or not free_memory:
        return []
    lows, highs = (np.array(column, dtype=np.uint64) for column in zip(*free_memory, strict=True))
    for number, arena in enumerate(found.arenas):
        if not arena.main:
            continue
        seen = np.arange(arena.address, arena.address + found.shape.next, 8, dtype=np.uint64)
        pointers = memory.load(seen)[0]
        for _ in range(_MOST_PIECES):
            at = np.searchsorted(lows, pointers, side="right") - 1
            good = (at >= 0) & (pointers < highs[np.maximum(at, 0)]) & (pointers % np.uint64(16) == 0)
            fresh = set(np.flatnonzero(np.bincount(at[good], minlength=1)).tolist()) - set(pieces)
            if not fresh:
                break
            new = [Region(free_memory[i][0], free_memory[i][1], number, exact=False) for i in sorted(fresh)]
            pieces.update(zip(sorted(fresh), new, strict=True))
            inside = walk(memory, new)
            free = inside.address[~inside.used]
            pointers = memory.load((free[:, None] + np.array([16, 24], np.uint64)).reshape(-1))[0]
    return list(pieces.values())


def _warn(memory: AddressSpace, found: Arenas, chunks: Chunks, warnings: list[str]) -> set[int]:
    """Say what is amiss; the numbers of the arenas where something is."""
    for b in chunks.breaks[:_NAMED_BREAKS]:
        arena = found.arenas[b.arena]
        why = "memory is missing" if b.header is None else f"{b.header:#x} stands where a block's size should"
        warnings.append(
            f"the heap of the arena at {arena.address:#x} is broken at {b.address:#x}: {why}; "
            f"{b.size:,} bytes are not read"
        )
    if len(chunks.breaks) > _NAMED_BREAKS:
        rest = chunks.breaks[_NAMED_BREAKS:]
        warnings.append(
            f"heaps are broken in {len(rest):,} more places: {sum(b.size for b in rest):,} bytes are not read"
        )
    for number in chunks.changing:
        warnings.append(
            f"the arena at {found.arenas[number].address:#x} was just being changed: its top was split"
        )
    damaged = broken_bins(memory, chunks, ~chunks.used)
    for number in np.unique(chunks.arena[damaged]).tolist():
        arena, own = found.arenas[number], damaged[chunks.arena[damaged] == number]
        why = "somebody was just changing it" if arena.locked else "something wrote to free memory"
        warnings.append(
            f"{len(own):,} free blocks of the arena at {arena.address:#x} are not rightly linked, "
            f"the first one at {int(chunks.address[own[0]]) + 16:#x}: {why}"
        )
    return {*(b.arena for b in chunks.breaks), *chunks.changing, *chunks.arena[damaged].tolist()}


def _totals(arena: Arena, number: int, chunks: Chunks, state: NDArray[np.uint8]) -> ArenaTotals:
    mine = chunks.arena == number
    size, kind = chunks.size[mine], state[mine]
    by_state = np.bincount(kind, weights=size.astype(np.float64), minlength=4).astype(np.int64).tolist()
    counts = np.bincount(kind, minlength=4).tolist()
    return ArenaTotals(
        address=arena.address,
        main=arena.main,
        heaps=max(1, len(arena.heaps)),
        system=arena.system,
        used=by_state[USED],
        used_blocks=counts[USED],
        free=by_state[FREE] + by_state[FAST] + by_state[CACHED],
        free_blocks=counts[FREE] + counts[FAST] + counts[CACHED],
        fast=by_state[FAST],
        cached=by_state[CACHED],
        top=arena.top_size,
        unread=sum(b.size for b in chunks.breaks if b.arena == number),
    )
