"""What is told of a native heap: plain data and arrays, no bytes of the process."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "CACHED",
    "FAST",
    "FREE",
    "LOST",
    "MMAPPED",
    "USED",
    "ArenaTotals",
    "Blocks",
    "ForeignAllocator",
    "Fragmentation",
    "LostBlocks",
    "NativeHeap",
    "SizeClass",
    "UnreachableGroup",
]

#: States of a block: in use, free in a bin, free in a fast bin, free in a thread's cache.
USED, FREE, FAST, CACHED = range(4)
#: The "arena" of a block that has a mapping of its own.
MMAPPED = -1
#: Where LostBlocks are, among what a capture has found (``Capture.found``).
LOST = "lost blocks"


@dataclass(frozen=True, slots=True)
class Blocks:
    """All blocks, sorted by address; parallel arrays.

    ``address``: what malloc returned. ``size``: bytes taken from the heap, 16 more than ``usable`` begins
    with: header included; a whole mapping for an mmapped block. ``usable``: bytes from ``address`` that the
    program may use. ``state``: USED, FREE, FAST or CACHED. ``arena``: number in ``NativeHeap.arenas``, or
    MMAPPED. The top chunk of an arena is no block.
    """

    address: NDArray[np.uint64]
    size: NDArray[np.uint64]
    usable: NDArray[np.uint64]
    state: NDArray[np.uint8]
    arena: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.address)

    @property
    def used(self) -> NDArray[np.bool_]:
        used: NDArray[np.bool_] = self.state == USED
        return used


@dataclass(frozen=True, slots=True)
class ArenaTotals:
    """One arena. Bytes; ``top`` is the free rest at its end, ``system`` what it took from the kernel.

    ``free`` includes ``fast`` and ``cached``, not ``top``. ``unread``: bytes that could not be followed.
    """

    address: int
    main: bool
    heaps: int
    system: int
    used: int
    used_blocks: int
    free: int
    free_blocks: int
    fast: int
    cached: int
    top: int
    unread: int


@dataclass(frozen=True, slots=True)
class SizeClass:
    """Blocks of ``low`` to ``high`` bytes (chunk sizes): one size up to 1 KiB, then powers of two."""

    low: int
    high: int
    used: int
    used_bytes: int
    free: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Fragmentation:
    """Free memory that stays with the process. Bytes.

    ``ratio``: free bytes between used blocks (tops left out) of all bytes of the arenas, 0 to 1.
    ``largest``: the largest free block; ``holes``: number of free blocks in bins.
    """

    free: int
    top: int
    ratio: float
    largest: int
    holes: int


@dataclass(frozen=True, slots=True)
class UnreachableGroup:
    """Used blocks of one size and kind that no pointer of the process leads to.

    ``size``: chunk bytes of each; ``bytes`` of all. ``heads``: those that no other unreachable block points
    to. ``hangs``: those that only were in reach of a lost block of another group; the others were lost
    themselves. ``hanging``: blocks of other groups, of ``hanging_bytes``, that hang on these. What the first
    word points into: ``library`` (path), ``symbol`` (function, "+offset" behind it) and ``type`` (of a C++
    object, by its vtable's type_info), None where it points nowhere; there ``holds`` is the library (path) of
    a block that they point to. ``known``: why this is no leak, None for a leak. ``examples``: some addresses.
    """

    size: int
    count: int
    bytes: int
    heads: int
    library: str | None = None
    symbol: str | None = None
    type: str | None = None
    known: str | None = None
    examples: tuple[int, ...] = ()
    hangs: int = 0
    hanging: int = 0
    hanging_bytes: int = 0
    holds: str | None = None

    @property
    def lost(self) -> int:
        """How many were lost themselves."""
        return self.count - self.hangs

    @property
    def kind(self) -> str:
        """What they are, in words: "blocks of 1,008 bytes (retire in libworker.so)"."""
        library = (self.library or "").rpartition("/")[2]
        begins = " in ".join(part for part in (self.type or self.symbol, library) if part)
        if not begins and self.holds:
            begins = f"with data of {self.holds.rpartition('/')[2]}"
        return f"blocks of {self.size:,} bytes" + (f" ({begins})" if begins else "")


@dataclass(frozen=True, slots=True)
class LostBlocks:
    """All unreachable blocks, sorted by address; parallel arrays.

    ``address``, ``usable``: see Blocks. ``mapped``: it has a mapping of its own. ``group``: index of the row
    of ``native_unreachable`` that it is in, -1 where that was left out.
    """

    address: NDArray[np.uint64]
    usable: NDArray[np.uint64]
    mapped: NDArray[np.bool_]
    group: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ForeignAllocator:
    """An allocator that was recognised and is not read. ``mapped``: bytes of anonymous memory that are
    nobody else's, as far as is known."""

    name: str
    library: str
    mapped: int
    note: str


@dataclass(slots=True)
class NativeHeap:
    """The native heap of a process. See :meth:`to_rows` for what of it is worth storing.

    ``reachability``: "judged", or why it was not; only if judged does ``unreachable`` mean anything.
    ``damaged``: a part could not be followed: what hangs on that may look unreachable, and not be lost.
    """

    allocator: str | None
    blocks: Blocks
    arenas: list[ArenaTotals] = field(default_factory=list)
    sizes: list[SizeClass] = field(default_factory=list)
    mmapped_blocks: int = 0
    mmapped_bytes: int = 0
    thread_caches: int = 0
    fragmentation: Fragmentation | None = None
    unreachable: list[UnreachableGroup] = field(default_factory=list)
    known: list[UnreachableGroup] = field(default_factory=list)
    reachability: str = "not asked for"
    damaged: bool = False
    foreign: list[ForeignAllocator] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def used_bytes(self) -> int:
        """Bytes of used blocks, headers and mmapped ones included."""
        return sum(a.used for a in self.arenas) + self.mmapped_bytes

    @property
    def free_bytes(self) -> int:
        """Bytes that malloc holds and the program does not use, tops included."""
        return sum(a.free + a.top for a in self.arenas)

    def to_rows(self) -> dict[str, list[dict[str, object]]]:
        """Tables by name, of rows of plain values (int, float, str, bool, None); addresses are ints.

        ``native_heap``: one row: allocator, used, free, mmapped_blocks, mmapped_bytes, thread_caches,
        unreachable_blocks, unreachable_bytes, known_blocks, known_bytes, reachability, damaged, and the
        fields of Fragmentation as fragmentation_*. ``native_arenas``, ``native_sizes``, ``native_foreign``:
        the fields of ArenaTotals, SizeClass, ForeignAllocator. ``native_unreachable``: the fields of
        UnreachableGroup with ``example`` (the first address) in place of ``examples``, known groups included.
        ``native_lost``: what was lost itself, without known groups: ``kind`` (in words), ``count``, ``bytes``
        (of these and what hangs on them), ``size`` of one, ``library``, ``hanging`` blocks, ``damaged`` (the
        heap is), ``example`` (an address in hex), ``text`` (a sentence). ``native_warnings``: text.
        """
        totals: dict[str, object] = {
            "allocator": self.allocator,
            "used": self.used_bytes,
            "free": self.free_bytes,
            "mmapped_blocks": self.mmapped_blocks,
            "mmapped_bytes": self.mmapped_bytes,
            "thread_caches": self.thread_caches,
            "unreachable_blocks": sum(g.count for g in self.unreachable),
            "unreachable_bytes": sum(g.bytes for g in self.unreachable),
            "known_blocks": sum(g.count for g in self.known),
            "known_bytes": sum(g.bytes for g in self.known),
            "reachability": self.reachability,
            "damaged": self.damaged,
        }
        for name in Fragmentation.__dataclass_fields__:
            value = getattr(self.fragmentation, name) if self.fragmentation is not None else None
            totals[f"fragmentation_{name}"] = value
        groups = []
        for row in _rows([*self.unreachable, *self.known]):
            examples = row.pop("examples")
            groups.append(
                {**row, "example": examples[0] if isinstance(examples, tuple) and examples else None}
            )
        return {
            "native_heap": [totals],
            "native_arenas": _rows(self.arenas),
            "native_sizes": _rows(self.sizes),
            "native_unreachable": groups,
            "native_lost": [_lost(group, self.damaged) for group in self.unreachable if group.lost],
            "native_foreign": _rows(self.foreign),
            "native_warnings": [{"text": text} for text in self.warnings],
        }


def _lost(group: UnreachableGroup, damaged: bool) -> dict[str, object]:
    begins = group.type or group.symbol or (group.library or "").rpartition("/")[2]
    text = f"each begins with a pointer to {begins}" if begins else "they begin with data, or nothing"
    if group.hanging:
        text += f"; {group.hanging:,} more blocks hang on them"
    return {
        "kind": group.kind,
        "count": group.lost,
        "bytes": group.lost * group.size + group.hanging_bytes,
        "size": group.size,
        "library": group.library,
        "hanging": group.hanging,
        "damaged": damaged,
        "example": hex(group.examples[0]) if group.examples else None,
        "text": text,
    }


def _rows(
    items: Iterable[ArenaTotals | SizeClass | UnreachableGroup | ForeignAllocator],
) -> list[dict[str, object]]:
    return [asdict(item) for item in items]
