"""Objects outside of pools: larger than 512 bytes, or of an interpreter that uses no pools at all.

They lie in blocks of malloc, or of mimalloc in free-threaded builds, of which we need not know where they
begin: every word that is the address of a type, with a living reference count before it, is looked at. What
has been freed has a count of 0; what was moved has not, so an object must also

- be larger than what pools take, where the interpreter has pools;
- be in the collector's list (its neighbour points back), if its type is tracked;
- fill its block of malloc, if it is not: the size before the block fits the object (malloc.c, struct
  malloc_chunk). Asked only where tracked objects show that the process uses glibc's malloc.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import PAGE, U64
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.heap.found import Found, by_value, counts_of_living, together
from diagtool.runtimes.cpython.heap.sizes import Sizer
from diagtool.runtimes.cpython.heap.types import HAVE_GC, TypeTable
from diagtool.runtimes.cpython.objects.addresssets import Ranges
from diagtool.runtimes.cpython.objects.census import alive, tracked

SMALL = 512  # SMALL_REQUEST_THRESHOLD
_MAX_FOUND = 1 << 26
_ROUNDING = 48  # bytes by which a block of malloc may exceed what was asked for
_PREVIOUS_IN_USE, _IS_MMAPPED = np.uint64(1), np.uint64(2)  # PREV_INUSE, IS_MMAPPED in malloc.c
_IMMORTAL = np.uint64(1 << 30)  # and above (3.12+), Include/refcount.h
_MAX_BLOCK = np.uint64(1 << 40)
_MANY = np.uint64(1 << 24)  # references: low addresses look like more
_CHUNK_FLAGS = np.uint64(7)
_MIN_SAMPLE = 16
DEBUG_BYTES = 32  # that PYTHONMALLOC=debug adds


def objects_outside(ctx: Context, ranges: Ranges, types: TypeTable, sizer: Sizer, least: int) -> Found:
    """Objects in ``ranges``, which hold no pools, of at least ``least`` bytes."""
    parts: list[Found] = []
    total = 0
    for start, words in ctx.capture.memory.blocks(ranges):
        part = _candidates(ctx, start, words, types)
        total += len(part)
        if total > _MAX_FOUND:
            ctx.warn("memory is full of what looks like objects: they were not counted to the end")
            break
        parts.append(part)
    found = together(parts)
    if ctx.runtime.free_threaded:
        found = _sorted(found)
        return found.only(np.isin(found.address, alive(ctx, found.address)))
    return _confirmed(ctx, found, types, sizer, least)


def _candidates(ctx: Context, start: int, words: U64, types: TypeTable) -> Found:
    at = ctx.objects.type_offset // 8
    skip = -start // 8 % 2  # objects are at multiples of 16
    kinds = words[skip + at :: 2]
    counts = words[skip::2][: len(kinds)]
    if ctx.runtime.free_threaded:
        rows = np.flatnonzero((kinds & _CHUNK_FLAGS == 0) & (kinds > np.uint64(1 << 20)))
    else:
        low = counts & np.uint64(0xFFFFFFFF)
        living = counts_of_living(ctx, counts) & ((low < _MANY) | (low >= _IMMORTAL))
        rows = np.flatnonzero(living)
    kind = types.index(kinds[rows])
    good = kind >= 0
    address = np.uint64(start + 8 * skip) + rows[good].astype(np.uint64) * np.uint64(16)
    return Found(address, kind[good])


def _sorted(found: Found) -> Found:
    return found.only(np.argsort(found.address, kind="stable"))


def _confirmed(ctx: Context, found: Found, types: TypeTable, sizer: Sizer, least: int) -> Found:
    own = own_sizes(found, types, sizer)
    large = own >= least
    found, own = found.only(large), own[large]
    collected = types.flags[found.kind] & np.uint64(HAVE_GC) != 0
    listed = np.zeros(len(found), np.bool_)
    listed[collected] = np.isin(found.address[collected], tracked(ctx, found.address[collected]))
    fits = _fills_block(ctx, found, types, own)
    known = int(listed.sum())
    glibc = known < _MIN_SAMPLE or int((fits & listed).sum()) * 4 > known * 3
    return found.only(listed | (fits if glibc else ~collected))


def own_sizes(found: Found, types: TypeTable, sizer: Sizer) -> NDArray[np.int64]:
    """Bytes of each object's own block, with what is before the object."""
    own = np.zeros(len(found), np.int64)
    for kind, rows in by_value(found.kind):
        own[rows] = sizer.of(kind, found.address[rows])[0]
    return own


def _fills_block(ctx: Context, found: Found, types: TypeTable, own: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether the word before the block is the size of a block of malloc that the object fills."""
    block = found.address - types.before[found.kind].astype(np.uint64)
    good = np.zeros(len(found), np.bool_)
    for layers in range(3):  # PYTHONMALLOC=debug: of objects, and of the malloc below it
        size = ctx.vectors.words(block - np.uint64(8 + 16 * layers))
        bytes_ = (size & ~_CHUNK_FLAGS).astype(np.int64)
        room = own + 8 + DEBUG_BYTES * layers
        mapped = size & _IS_MMAPPED != 0
        fits = (bytes_ >= room - 8 - 16 * layers) & (bytes_ % 16 == 0)
        fits &= bytes_ <= room + np.where(mapped, PAGE + _ROUNDING, _ROUNDING)
        # The block after it says that the one before it is in use.
        after = block - np.uint64(8 + 16 * layers) + np.where(fits, bytes_, 0).astype(np.uint64)
        following = ctx.vectors.words(after)
        linked = (following & _PREVIOUS_IN_USE != 0) & (following < _MAX_BLOCK) & (following >= 16)
        good |= fits & (mapped | linked)
    return good
