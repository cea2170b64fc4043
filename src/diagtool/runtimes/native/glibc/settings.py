"""malloc's own settings and totals (struct malloc_par, ``mp_`` in malloc.c), found without symbols.

``mp_`` is static data of the C library. It holds where the first break was, which is where the main arena
begins, behind the totals of mapped blocks; before these are counts with known limits:

    trim_threshold top_pad mmap_threshold arena_test arena_max [thp_pagesize hp_pagesize hp_flags]
    n_mmaps n_mmaps_max max_n_mmaps no_dyn_threshold mmapped_mem max_mmapped_mem sbrk_base

The fields in brackets are there since 2.35.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diagtool.capture.memory import PAGE, AddressSpace

__all__ = ["Settings", "find_settings"]

_BEFORE = 104  # bytes before sbrk_base that are read
_MOST = 1 << 46  # bytes of memory
_MOST_THRESHOLD = 64 << 30
_MOST_ARENAS = 1 << 20
_CANDIDATES = 64


@dataclass(frozen=True, slots=True)
class Settings:
    """``arena_max``: 0 where nobody set it; thresholds and ``mapped_bytes`` in bytes."""

    trim_threshold: int
    mmap_threshold: int
    arena_max: int
    mapped_blocks: int
    mapped_bytes: int


def find_settings(
    memory: AddressSpace, data: Sequence[tuple[int, int]], starts: Sequence[int]
) -> Settings | None:
    """The settings in ``data`` (ranges of the C library's), None where not found.

    ``starts``: where the main arena may begin.
    """
    wanted = {s & -16 for s in starts if s} | {s - 1 & -16 for s in starts if s}
    places: list[int] = []
    for start, words in memory.blocks(list(data)):
        hits = np.isin(words & np.uint64(~15 & (1 << 64) - 1), np.array(sorted(wanted), np.uint64))
        places += [start + 8 * i for i in np.flatnonzero(hits)[:_CANDIDATES].tolist()]
    for place in places[:_CANDIDATES]:
        raw = memory.try_read(place - _BEFORE, _BEFORE)
        for head, counts in ((72, 32), (96, 36)) if raw is not None else ():
            found = _parsed(raw, head, counts) if raw is not None else None
            if found is not None:
                return found
    return None


# ``head`` and ``counts``: bytes from trim_threshold, and from n_mmaps, to sbrk_base.
def _parsed(raw: bytes, head: int, counts: int) -> Settings | None:
    trim, pad, threshold, _, arenas = struct.unpack_from("<5Q", raw, _BEFORE - head)
    blocks, most, highest, fixed = struct.unpack_from("<4i", raw, _BEFORE - counts)
    mapped, peak = struct.unpack_from("<2Q", raw, _BEFORE - 16)
    good = 0 <= blocks <= highest and most >= 0 and fixed in (0, 1)
    good &= mapped % PAGE == 0 and mapped <= peak <= _MOST and blocks * PAGE <= mapped
    good &= (blocks == 0) == (mapped == 0) and arenas <= _MOST_ARENAS and threshold <= _MOST_THRESHOLD
    good &= pad <= _MOST_THRESHOLD and (trim <= _MOST or trim == (1 << 64) - 1) and threshold > 0
    return Settings(trim, threshold, arenas, blocks, mapped) if good else None
