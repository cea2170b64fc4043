"""Objects in the pages of mimalloc: every block in use of a page for objects, if it begins as one.

CPython's own collector finds them in the same way (gc_visit_heaps, Python/gc_free_threading.c).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64, Bytes, Mask
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.heap.found import Found, together
from diagtool.runtimes.cpython.heap.mimalloc import COLLECTED_WITH_WORDS, MEMORY, Pages
from diagtool.runtimes.cpython.heap.types import TypeTable
from diagtool.runtimes.cpython.objects.census import living_without_gil

_BATCH = 1 << 20  # blocks looked at together
_WORDS = 16  # bytes before an object that has a dict or weak references of its own
_HOOKS = 16  # bytes before everything with PYTHONMALLOC=debug
_FORBIDDEN = np.uint64(0xFDFDFDFDFDFDFD)  # PYMEM_FORBIDDENBYTE, seven times, behind the API's letter


def objects_in_pages(ctx: Context, pages: Pages, types: TypeTable) -> Found:
    """All objects in blocks that are in use, sorted by address within each heap's share of a batch."""
    rows = np.flatnonzero((pages.tag > MEMORY) & (pages.tag <= COLLECTED_WITH_WORDS))
    hooks = _HOOKS if is_debug(ctx, pages) else 0
    found: list[Found] = []
    ends = np.cumsum(pages.handed_out[rows])
    total = int(ends[-1]) if len(ends) else 0
    cuts = np.searchsorted(ends, np.arange(_BATCH, total + _BATCH, _BATCH))
    for part in np.split(rows, np.unique(cuts)):
        for words in (False, True):
            some = part[(pages.tag[part] == COLLECTED_WITH_WORDS) == words]
            if len(some):
                found.append(_objects(ctx, types, used_blocks(pages, some), _WORDS * words, hooks))
    return together(found)


def used_blocks(pages: Pages, rows: NDArray[np.intp]) -> U64:
    """Addresses of all blocks of these pages that are in use."""
    count = pages.handed_out[rows]
    row = np.repeat(rows, count)
    number = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
    used = pages.in_use[pages.first[row] + number]
    row, number = row[used], number[used]
    addresses: U64 = pages.address[row] + (number * pages.block[row]).astype(np.uint64)
    return addresses


def is_debug(ctx: Context, pages: Pages) -> bool:
    """Whether blocks begin as PYTHONMALLOC=debug has them."""
    rows = np.flatnonzero(pages.tag > MEMORY)
    rows = rows[np.linspace(0, max(len(rows) - 1, 0), min(64, len(rows))).astype(np.intp)]
    sample = used_blocks(pages, rows)
    second = ctx.vectors.words(sample, 8)
    return int(np.count_nonzero(second >> np.uint64(8) == _FORBIDDEN)) * 2 > len(sample)


def _objects(ctx: Context, types: TypeTable, blocks: U64, before: int, hooks: int) -> Found:
    """The objects in blocks that have ``before`` bytes before each, and ``hooks`` bytes of hooks."""
    blocks = blocks + np.uint64(before + hooks)
    heads = ctx.capture.memory.load_block(blocks, ctx.objects.type_offset + 8)[0]
    living = np.flatnonzero(_living(ctx, heads))
    words = np.ascontiguousarray(heads[living, ctx.objects.type_offset :]).view("<u8")[:, 0]
    kind = types.index(words)
    good = kind >= 0
    good[good] = types.before[kind[good]] == before
    return Found(blocks[living[good]], kind[good])


def _living(ctx: Context, heads: Bytes) -> Mask:
    """Which heads of objects have counts that an object that is alive may have."""
    lay = ctx.runtime.layout

    def field(name: str, kind: str) -> NDArray[np.int64]:
        at = lay[f"PyObject.{name}"]
        column = np.ascontiguousarray(heads[:, at : at + np.dtype(kind).itemsize]).view(kind)[:, 0]
        return column.astype(np.int64)

    return living_without_gil(
        field("ob_tid", "<u8"),
        field("ob_ref_local", "<u4"),
        field("ob_ref_shared", "<i8"),
        field("ob_mutex", "u1"),
        field("ob_gc_bits", "u1"),
    )
