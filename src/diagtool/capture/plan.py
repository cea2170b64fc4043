"""What to copy in the stop: which pages, in which order of need, and where each goes in the buffer.

Copied are the pages that are in memory of writable private mappings (data segments, [heap], anonymous
memory), and each stack from its stack pointer upwards. Shared memory, read-only memory and the dead part of
stacks are not: they are read after the stop, when somebody asks for them.

:func:`choose` and :func:`chunked` run in the stop: numpy over ranges, and Python over mappings and threads
only. Ranges are arrays of shape (n, 2) of uint64: start and end address, page aligned.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import PAGE
from diagtool.capture.model import Mapping
from diagtool.capture.residency import Ranges, Residency

RED_ZONE = 128  # bytes below the stack pointer that a leaf function may use (System V ABI, x86-64)
STACK_COPY = 256 << 10  # bytes of a thread's stack, at most
MAIN_STACK_COPY = 1 << 20  # bytes of the main thread's stack, at most
FILE_DATA_LIMIT = 64 << 20  # bytes of one writable file mapping: a data segment is smaller, a data set is not
CHUNK = 1 << 20  # bytes of one call of process_vm_readv

_GUARD = 1 << 20  # bytes of the guard below a stack, at most: one page by default
_STACK = 64 << 20  # bytes of a mapping that is nothing but a stack, at most

# Order of need when not all of it can be copied; before these come the ranges asked for and the stacks.
_DATA, _HEAP, _ANONYMOUS = range(3)


def is_anonymous(mapping: Mapping) -> bool:
    """Memory without a file behind it: arenas, stacks, .bss, [heap], named anonymous memory, huge pages."""
    return not mapping.path.startswith("/") or mapping.path.startswith("/anon_hugepage")


def is_writable_private(mapping: Mapping) -> bool:
    """Whether a mapping belongs to this process alone and may change once it runs on."""
    return mapping.permissions.startswith("rw") and mapping.permissions.endswith("p")


@dataclass(frozen=True, slots=True)
class Layout:
    """Ranges to copy, in the order in which they lie in the buffer, and what did not fit."""

    ranges: Ranges
    offsets: NDArray[np.uint64]  # of each range in the buffer, in bytes
    size: int  # bytes in all
    left_out: list[tuple[int, int]]  # sorted; where nobody looked, whole mappings


class MappingOrder:
    """The mappings of a process, put in order of need. Made before the stop; most often still right in it."""

    def __init__(self, mappings: Sequence[Mapping]) -> None:
        self.mappings = sorted(mappings, key=lambda m: m.start)
        self.starts = [m.start for m in self.mappings]
        #: (start, end, place in ``mappings``) of what is worth copying, the most needed first.
        self.spans: list[tuple[int, int, int]] = []
        #: What is never copied of large file mappings.
        self.beyond: list[tuple[int, int]] = []
        ranked = []
        for place, mapping in enumerate(self.mappings):
            if not is_writable_private(mapping):
                continue
            end = mapping.end
            if not is_anonymous(mapping):
                end = min(end, mapping.start + FILE_DATA_LIMIT)
                if end < mapping.end:
                    self.beyond.append((end, mapping.end))
                rank = (_DATA, 0)
            elif mapping.path == "[heap]":
                rank = (_HEAP, 0)
            elif self._is_bss(place):
                rank = (_DATA, 0)
            else:
                rank = (_ANONYMOUS, end - mapping.start)
            ranked.append((rank, mapping.start, end, place))
        self.spans = [(start, end, place) for _, start, end, place in sorted(ranked)]

    # .bss: the anonymous rest of a data segment follows its file-backed part.
    def _is_bss(self, place: int) -> bool:
        before = self.mappings[place - 1] if place else None
        return before is not None and before.end == self.starts[place] and before.path.startswith("/")

    def is_data(self, place: int) -> bool:
        """Whether a mapping is the data segment of a mapped file, or the .bss behind it."""
        return self.mappings[place].path.startswith("/") or self._is_bss(place)

    def outside_heap(self) -> list[tuple[int, int]]:
        """The spans worth copying, less [heap]: malloc's big blocks are never there."""
        return [(s, e) for s, e, place in self.spans if self.mappings[place].path != "[heap]"]

    def holding(self, address: int) -> int | None:
        """The place of the mapping that holds an address."""
        place = bisect_right(self.starts, address) - 1
        return place if place >= 0 and address < self.mappings[place].end else None

    def is_stack(self, place: int) -> bool:
        """Whether a mapping that holds a stack pointer is nothing but a stack: then most of it is dead.

        Where a runtime keeps stacks in its heap (Go, coroutines with stacks from malloc) it is not. Stacks
        with no guard mapping below (glibc 2.42 uses MADV_GUARD_INSTALL) are not told from that: they are
        copied as anonymous memory, which costs time but loses nothing.
        """
        mapping = self.mappings[place]
        if mapping.path.startswith("[stack"):
            return True
        if mapping.path == "[heap]" or not place or not is_anonymous(mapping):
            return False
        guard = self.mappings[place - 1]
        return (
            guard.end == mapping.start
            and guard.permissions.startswith("---")
            and guard.end - guard.start <= _GUARD
            and mapping.end - mapping.start <= _STACK
        )


def choose(
    order: MappingOrder,
    residency: Residency,
    stack_pointers: Sequence[int],
    capacity: int,
    asked: Sequence[tuple[int, int]] = (),
    skipped: Sequence[tuple[int, int]] = (),
) -> Layout:
    """What to copy of the memory of a process, at most ``capacity`` bytes.

    ``stack_pointers`` are those of the threads, the main thread's first; ``asked`` are further ranges, which
    come before all else; ``skipped`` (sorted, disjoint) are the insides of big buffers.
    """
    wanted = [(low & -PAGE, (high + PAGE - 1) & -PAGE) for low, high in asked if 0 < low < high]
    stacks = set()
    for number, pointer in enumerate(stack_pointers):
        place = order.holding(pointer)
        if place is None:
            continue
        mapping = order.mappings[place]
        bound = STACK_COPY if number else MAIN_STACK_COPY
        low = max((pointer - RED_ZONE) & -PAGE, mapping.start)
        wanted.append((low, min(mapping.end, (pointer + bound + PAGE - 1) & -PAGE)))
        if order.is_stack(place):
            stacks.add(place)

    capacity &= -PAGE
    first, missed = residency.find(joined(wanted), capacity)
    used = int((first[:, 1] - first[:, 0]).sum())
    spans = [(start, end) for start, end, place in order.spans if place not in stacks]
    if skipped:
        spans = _pairs(without(_ranges(spans), _ranges(skipped)))
    rest, unseen = residency.find(spans, capacity - used)
    ranges = np.concatenate([first, without(rest, first)])
    sizes = ranges[:, 1] - ranges[:, 0]
    ends = np.cumsum(sizes, dtype=np.uint64)
    size = int(ends[-1]) if len(ends) else 0
    return Layout(ranges, ends - sizes, size, joined([*missed, *unseen, *order.beyond]))


def nothing() -> Layout:
    """Nothing to copy."""
    return Layout(np.zeros((0, 2), np.uint64), np.zeros(0, np.uint64), 0, [])


def _ranges(pairs: Sequence[tuple[int, int]]) -> Ranges:
    return np.array(pairs, dtype=np.uint64).reshape(-1, 2)


def _pairs(ranges: Ranges) -> list[tuple[int, int]]:
    return [(start, end) for start, end in ranges.tolist()]


def without(ranges: Ranges, taken: Ranges) -> Ranges:
    """``ranges`` less ``taken`` (sorted, disjoint), in the order of ``ranges``."""
    if not len(taken) or not len(ranges):
        return ranges
    cuts = taken.reshape(-1)
    low = np.searchsorted(cuts, ranges[:, 0], side="right")  # the first cut inside each range …
    pieces = np.maximum(np.searchsorted(cuts, ranges[:, 1], side="left") - low, 0) + 1  # … and how many
    owner = np.repeat(np.arange(len(ranges)), pieces)
    number = np.arange(len(owner)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    cut = low[owner] + number
    padded = np.append(cuts, np.uint64(0))  # the 0 is never used: behind a last piece no cut is looked up
    start = np.where(number == 0, ranges[owner, 0], padded[np.maximum(cut - 1, 0)])
    end = np.where(number == pieces[owner] - 1, ranges[owner, 1], padded[np.minimum(cut, len(cuts))])
    free = (cut % 2 == 0) & (end > start)  # behind an odd number of cuts one is inside what is taken
    return np.stack([start[free], end[free]], axis=1)


def joined(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sorted, those that touch or overlap joined."""
    out: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if out and start <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], end))
        else:
            out.append((start, end))
    return out


@dataclass(frozen=True, slots=True)
class Chunks:
    """A copy as calls: call i reads ``vectors[first[i]:first[i + 1]]`` to ``offset[i]`` of the buffer."""

    vectors: NDArray[np.uint64]  # n x (address, bytes)
    first: list[int]
    offset: list[int]

    def __len__(self) -> int:
        return len(self.offset)


def chunked(layout: Layout, chunk: int = CHUNK) -> Chunks:
    """Cut a layout into calls of at most ``chunk`` bytes, so that several threads can share the work.

    No call has more than chunk / PAGE vectors, which is below IOV_MAX.
    """
    if not layout.size:
        return Chunks(np.zeros((0, 2), dtype=np.uint64), [0], [])
    # Cut points: every start of a range, and every multiple of ``chunk`` in the buffer.
    cuts = np.sort(np.concatenate([layout.offsets, np.arange(0, layout.size, chunk, dtype=np.uint64)]))
    cuts = cuts[np.append(True, cuts[1:] != cuts[:-1])]
    lengths = np.diff(np.append(cuts, np.uint64(layout.size)))
    owner = np.searchsorted(layout.offsets, cuts, side="right") - 1
    address = layout.ranges[owner, 0] + cuts - layout.offsets[owner]
    vectors = np.ascontiguousarray(np.stack([address, lengths], axis=1))
    first = np.searchsorted(cuts, np.arange(0, layout.size, chunk, dtype=np.uint64))
    return Chunks(vectors, [*first.tolist(), len(vectors)], cuts[first].tolist())
