"""The native heap of a captured process: who allocates, what is used, what nobody can reach any more."""

from __future__ import annotations

import numpy as np

from diagtool.capture.model import Capture
from diagtool.capture.plan import is_anonymous
from diagtool.capture.segments import merged, without
from diagtool.runtimes.native.allocators import foreign_allocators
from diagtool.runtimes.native.fetching import Fetched, fetch
from diagtool.runtimes.native.glibc.heap import GlibcHeap
from diagtool.runtimes.native.groups import grouped
from diagtool.runtimes.native.memorymap import (
    Ranges,
    code_made,
    data_of_modules,
    private_memory,
    sealed,
    stacks_of,
    without_stack,
)
from diagtool.runtimes.native.model import (
    FREE,
    LOST,
    MMAPPED,
    Blocks,
    Fragmentation,
    LostBlocks,
    NativeHeap,
    SizeClass,
)
from diagtool.runtimes.native.reach import Targets, edges_between, mark, pointed_to
from diagtool.runtimes.native.walked import walked

__all__ = ["native_heap"]

_MOST_GROUPS = 1000  # of unreachable blocks that are told, the largest ones
# Bytes that a core may lack: the kernel leaves out what is MADV_DONTDUMP, among it the random numbers that
# glibc 2.41 and later keep for each thread (vgetrandom, 144 bytes a thread): no place for pointers.
_LEAST_ABSENT = 64 << 10
_EXACT = 1024  # bytes up to which each chunk size is a class of its own: glibc's small bins


def native_heap(capture: Capture, *, reachability: bool = True) -> NativeHeap:
    """Everything that is known of the native heap of a process or core.

        glibc malloc: 24,310 blocks in use (31.5 MiB), 12.1 MiB free, 3 arenas
        1,000 unreachable blocks of 1,040 bytes, libworker.so: Session

    Only glibc's malloc (2.28 to 2.43, x86-64) is read; others are recognised (``foreign``). ``reachability``:
    also mark what can be reached; a program may have lost whatever is not. That needs all memory of one
    instant: where some is missing, or had to be read after the stop, it is not judged, and the result's
    ``reachability`` says why. Damage to the heap costs what is damaged, and warnings say what and where; no
    memory of a process makes this raise or hang.
    """
    data = data_of_modules(capture)
    private = private_memory(capture.mappings)
    fetched = fetch(capture, private)
    stacks, dead = stacks_of(capture)
    glibc = walked(capture, data, stacks)
    taken = merged([*data, *stacks, *(glibc.heaps if glibc is not None else [])])
    foreign = foreign_allocators(capture, taken)
    if glibc is None:
        nothing = np.zeros(0, dtype=np.uint64)
        blocks = Blocks(nothing, nothing, nothing, nothing.astype(np.uint8), nothing.astype(np.int32))
        heap = NativeHeap(None, blocks, foreign=foreign, reachability="no arena of glibc was found")
        if not foreign:
            heap.warnings.append("no allocator was recognised: the native heap is not read")
        return heap
    heap = _summed(glibc)
    heap.foreign = foreign
    if fetched.missing:
        size = sum(end - start for start, end in fetched.missing)
        heap.warnings.append(
            f"{size >> 20} MiB of memory are not read, for want of room here or of knowing what is in them"
        )
    if reachability:
        heap.reachability = _why_not(capture, fetched)
        if heap.reachability == "judged":
            roots = without(private, merged([*glibc.heaps, *glibc.own, *dead]))
            _judge(capture, glibc, merged([*roots, *fetched.shared]), heap)
    return heap


# Why it would be wrong to say what can't be reached; "judged" where it is not.
def _why_not(capture: Capture, fetched: Fetched) -> str:
    if fetched.missing:
        return "not judged: memory is missing, pointers may be there"
    if fetched.late:
        return (
            f"not judged: {fetched.late:,} bytes of the memory were read after the stop, pointers may have "
            "moved meanwhile"
        )
    if any(not t.registers for t in capture.threads) or not capture.threads:
        return "not judged: a thread has no registers, pointers may be in them"
    hollow = without_stack(capture)
    if hollow:
        return (
            f"not judged: {len(hollow):,} stacks of threads are not in the core, pointers may be there "
            "(gcore leaves out what has guard pages within, as of glibc 2.42 on; `diagtool core` does not)"
        )
    if capture.missing:
        return f"not judged: {capture.missing:,} bytes that the core should hold are missing"
    if capture.kind == "core":
        held = merged((s.start, s.end) for s in capture.memory.segments)
        absent = without(private_memory([m for m in capture.mappings if is_anonymous(m)]), held)
        size = sum(end - start for start, end in absent)
        if size > _LEAST_ABSENT:
            return f"not judged: {size:,} bytes of memory are not in the core, pointers may be there"
    return "judged"


def _judge(capture: Capture, glibc: GlibcHeap, roots: Ranges, heap: NativeHeap) -> None:
    memory, blocks = capture.memory, glibc.blocks
    rows = np.flatnonzero(blocks.used)
    targets = Targets(blocks.address[rows], blocks.usable[rows])
    registers = [value for thread in capture.threads for value in thread.registers.values()]
    for thread in capture.threads:
        vectors: bytes = getattr(thread, "vectors", b"")  # where a capture has them
        registers.extend(np.frombuffer(vectors[: len(vectors) & -8], dtype="<u8").tolist())
    marked = pointed_to(memory, targets, roots, registers, sealed(capture), code_made(capture))
    edges = edges_between(memory, targets, glibc.heaps)
    found = mark(marked, edges)
    if not found.complete:
        heap.reachability = "not judged: the blocks form lists that are too long to follow"
        return
    lost = ~found.reached
    number = np.cumsum(lost) - 1
    among = lost[edges.source] & lost[edges.target]
    links = number[edges.source[among]], number[edges.target[among]]
    mine = rows[lost]
    groups, group = grouped(memory, capture.modules, blocks.address[mine], blocks.size[mine], links)
    if len(groups) > _MOST_GROUPS:
        rest = groups[_MOST_GROUPS:]
        heap.warnings.append(
            f"{len(rest):,} more groups of unreachable blocks are left out: "
            f"{sum(g.count for g in rest):,} blocks, {sum(g.bytes for g in rest):,} bytes"
        )
        del groups[_MOST_GROUPS:]
    heap.unreachable = [g for g in groups if g.known is None]
    heap.known = [g for g in groups if g.known is not None]
    order = sorted(range(len(groups)), key=lambda i: groups[i].known is not None)  # as in to_rows()
    row = np.full(int(group.max(initial=-1)) + 1, -1, dtype=np.int64)
    row[order] = np.arange(len(order))
    capture.found[LOST] = LostBlocks(
        blocks.address[mine], blocks.usable[mine], blocks.arena[mine] == MMAPPED, row[group]
    )


def _summed(glibc: GlibcHeap) -> NativeHeap:
    blocks = glibc.blocks
    mmapped = blocks.arena < 0
    return NativeHeap(
        "glibc malloc",
        blocks,
        arenas=glibc.arenas,
        sizes=_size_classes(blocks),
        mmapped_blocks=int(mmapped.sum()),
        mmapped_bytes=int(blocks.size[mmapped].sum()),
        thread_caches=glibc.thread_caches,
        fragmentation=_fragmentation(glibc),
        damaged=bool(glibc.warnings) or any(arena.unread for arena in glibc.arenas),
        warnings=[*glibc.warnings],
    )


def _size_classes(blocks: Blocks) -> list[SizeClass]:
    small = _EXACT // 16 + 1  # classes of one size each, by number of 16 bytes; then 64 by power of two
    sizes = blocks.size.astype(np.float64)
    row = np.minimum(blocks.size >> np.uint64(4), np.uint64(small)).astype(np.intp)
    large = np.flatnonzero(blocks.size > np.uint64(_EXACT))
    row[large] = small + np.frexp(sizes[large] - 1)[1]
    columns = []
    for some in (blocks.used, ~blocks.used):
        columns.append(np.bincount(row[some], minlength=small + 65))
        columns.append(np.bincount(row[some], weights=sizes[some], minlength=small + 65))
    out = []
    for number in np.flatnonzero(columns[0] + columns[2]).tolist():
        high = number * 16 if number < small else 1 << (number - small)
        low = high if number < small else high // 2 + 1
        out.append(SizeClass(low, high, *(int(column[number]) for column in columns)))
    return out


def _fragmentation(glibc: GlibcHeap) -> Fragmentation:
    blocks = glibc.blocks
    holes = blocks.size[blocks.state == FREE]
    free = sum(a.free for a in glibc.arenas)
    top = sum(a.top for a in glibc.arenas)
    whole = free + top + sum(a.used for a in glibc.arenas)
    return Fragmentation(
        free=free,
        top=top,
        ratio=free / whole if whole else 0.0,
        largest=int(holes.max()) if len(holes) else 0,
        holes=len(holes),
    )
