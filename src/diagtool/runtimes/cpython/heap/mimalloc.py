"""The pages of mimalloc, from which free-threaded builds take all objects and what these own.

mimalloc cuts memory into segments at multiples of 32 MiB, a segment into slices of 64 KiB, and gives pages of
one or more slices to blocks of one size. The head of a segment has an entry for each slice; the first slice
of a page has the page's (struct mi_page_s): block size, blocks ever handed out (``capacity``), how many are
in use, and three lists of free ones: ``free``, ``local_free``, and ``xthread_free``, where other threads put
what they free. What other threads free in a full page waits in a list of the heap (``thread_delayed_free``).

CPython has four heaps a thread, and a page bears the number of its heap (``tag``): 0 is memory that is no
object (PyMem_Malloc), 1 objects that the collector does not know, 2 those that it does, 3 those that have two
words before them. So a block of a page with a tag of 1 to 3 is an object, and it is known where it begins.

Segments are found by what their heads say, not by the lists of threads: these leave out the pages of threads
that have ended (abandoned ones), and a pointer that was overwritten would lose many. Every head has the
address of its segment, masked with a number that is the same in all (``cookie``).

Sources: Include/internal/mimalloc/mimalloc/types.h and pycore_mimalloc.h, the same in CPython 3.13 to 3.15
(mimalloc 2.1.2); Objects/mimalloc/segment.c (start of a page), page.c (free lists).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import PAGE, U64, Bytes, Mask
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.objects.addresssets import Ranges

MEMORY, OBJECT, COLLECTED, COLLECTED_WITH_WORDS = range(4)  # _Py_mimalloc_heap_id

_SLICE, _SEGMENT = 64 << 10, 32 << 20  # MI_SEGMENT_SLICE_SIZE, MI_SEGMENT_SIZE; bytes
_SLICES = _SEGMENT // _SLICE
_HEAD = 264  # bytes before mi_segment_t.slices
_ENTRY = 96  # sizeof(mi_page_t); a debug build has two keys for its lists more
_ENTRY_DEBUG = 112
#: Fields of mi_segment_t and mi_page_t: offset, type.
_SEGMENT_FIELDS = {
    "segment_size": (32, "<u8"),
    "used": (208, "<u8"),
    "cookie": (216, "<u8"),
    "segment_slices": (224, "<u8"),
    "segment_info_slices": (232, "<u8"),
    "kind": (240, "<u4"),
    "slice_entries": (248, "<u8"),
}
_PAGE_FIELDS = {
    "slice_count": (0, "<u4"),
    "slice_offset": (4, "<u4"),
    "flags": (8, "u1"),  # is_committed, is_zero_init, use_qsbr: a bit each; then four bits of tag
    "capacity": (10, "<u2"),
    "reserved": (12, "<u2"),
    "free": (16, "<u8"),
    "used": (24, "<u4"),
    "xblock_size": (28, "<u4"),
    "local_free": (32, "<u8"),
    "xthread_free": (40, "<u8"),
    "xheap": (48, "<u8"),
}
_KEYS = 40  # of a debug build: two words, and what follows lies 16 bytes further on
#: mi_heap_t.thread_delayed_free: tld, MI_PAGES_DIRECT pointers, MI_BIN_FULL + 1 queues of three words.
_DELAYED = 8 + 129 * 8 + 75 * 24
_DELAYED_DEBUG = _DELAYED + 8  # MI_PADDING makes one direct page more
_HUGE = 1 << 31  # MI_HUGE_BLOCK_SIZE: the size is that of the segment
_MAX_SEGMENTS = 1 << 17  # 4 TiB
_MAX_HEAPS = 1 << 16
_BATCH = 256  # segments read together: 15 MiB of heads
_LIST_FLAGS = np.uint64(3)  # mi_delayed_t in xthread_free
_0 = np.uint64(0)


@dataclass(slots=True)
class Pages:
    """Pages with at least one block in use, sorted by address: one array element a page.

    ``address`` is that of the first block, ``block`` the size of its blocks in bytes, ``handed_out`` how many
    (the first ones) were ever in use, ``tag`` the number of the heap. ``in_use`` has an element for each
    block that was handed out, those of page i from ``first[i]`` on.
    """

    address: U64
    block: NDArray[np.int64]
    handed_out: NDArray[np.int64]
    tag: NDArray[np.uint8]
    size: NDArray[np.int64]  # of the page's slices, bytes
    in_use: Mask
    first: NDArray[np.int64]
    segments: U64  # addresses of all segments, and where each ends
    segment_ends: U64
    damaged: U64  # addresses of pages whose lists of free blocks lead astray, and of segments without sense

    def __len__(self) -> int:
        return len(self.address)

    @property
    def used(self) -> NDArray[np.int64]:
        """How many blocks of each page are in use."""
        if not len(self.in_use):
            return np.zeros(len(self), np.int64)
        sums = np.concatenate([[0], np.cumsum(self.in_use, dtype=np.int64)])
        used: NDArray[np.int64] = sums[self.first + self.handed_out] - sums[self.first]
        return used

    def find(self, words: U64) -> tuple[Mask, Mask, U64, U64, NDArray[np.uint8]]:
        """Of each address: (whether it lies in a page, in a block in use; the block's start, end and tag)."""
        if not len(self):
            no = np.zeros(len(words), np.bool_)
            none = np.zeros(len(words), np.uint64)
            return no, no, none, none, none.astype(np.uint8)
        at = np.maximum(np.searchsorted(self.address, words, side="right"), 1) - 1
        offset = (words - self.address[at]).view(np.int64)
        inside = (words >= self.address[at]) & (offset >= 0) & (offset < self.size[at])
        number = np.where(inside, offset // self.block[at], 0)
        used = inside & (number < self.handed_out[at])
        used[used] = self.in_use[(self.first[at] + number)[used]]
        start = self.address[at] + (number * self.block[at]).astype(np.uint64)
        return inside, used, start, start + self.block[at].astype(np.uint64), self.tag[at]


def find_pages(ctx: Context, ranges: Ranges) -> Pages:
    """All pages in ``ranges``: heads of segments are read, and the lists of free blocks."""
    segments = _segments(ctx, ranges)
    entry = _ENTRY
    starts, fields, damaged = _read_segments(ctx, segments, entry)
    if len(damaged) > len(starts):  # nothing fits: a debug build
        other = _read_segments(ctx, segments, _ENTRY_DEBUG)
        if len(other[0]) > len(starts):
            entry, (starts, fields, damaged) = _ENTRY_DEBUG, other
    order = np.argsort(starts, kind="stable")
    starts, fields = starts[order], {name: column[order] for name, column in fields.items()}
    handed_out = fields["capacity"]
    first = np.cumsum(handed_out) - handed_out
    pages = Pages(
        starts,
        fields["block"],
        handed_out,
        (fields["flags"] >> 3 & 15).astype(np.uint8),
        fields["size"],
        np.ones(int(handed_out.sum()), np.bool_),
        first,
        segments,
        segments + ctx.vectors.words(segments, _SEGMENT_FIELDS["segment_size"][0]),
        damaged,
    )
    lists = _Lists(ctx, pages, fields, entry == _ENTRY_DEBUG)
    lists.follow()
    pages.damaged = np.union1d(damaged, lists.damaged)
    return pages


def segment_figures(ctx: Context, ranges: Ranges) -> tuple[U64, int, int]:
    """(segments as n x (start, end), bytes of blocks in use, bytes of pages with such blocks).

    Only heads are read: blocks that other threads have given back, and nobody has collected, count as in use.
    """
    segments = _segments(ctx, ranges)
    _, fields, damaged = _read_segments(ctx, segments, _ENTRY)
    if len(damaged) > len(fields["used"]):
        fields = _read_segments(ctx, segments, _ENTRY_DEBUG)[1]
    ends = segments + ctx.vectors.words(segments, _SEGMENT_FIELDS["segment_size"][0])
    used = np.minimum(fields["used"] * fields["block"], fields["size"])
    return np.stack([segments, ends], axis=1), int(used.sum()), int(fields["size"].sum())


# -- segments -----------------------------------------------------------------------------------------------


def _column(data: Bytes, offset: int, kind: str) -> NDArray[np.int64]:
    width = np.dtype(kind).itemsize
    return np.ascontiguousarray(data[..., offset : offset + width]).view(kind)[..., 0].astype(np.int64)


def _segments(ctx: Context, ranges: Ranges) -> U64:
    """Addresses of what begins as a segment does, all of the same cookie."""
    every = [
        np.arange(low + _SEGMENT - 1 & -_SEGMENT, high, _SEGMENT, dtype=np.uint64) for low, high in ranges
    ]
    candidates = np.concatenate([np.zeros(0, np.uint64), *every])[:_MAX_SEGMENTS]
    data, ok = ctx.capture.memory.load_block(candidates, _HEAD)
    f = {name: _column(data, *where) for name, where in _SEGMENT_FIELDS.items()}
    huge = f["kind"] == 1
    good: Mask = ok & (f["kind"] >= 0) & (f["kind"] <= 1) & (f["used"] > 0) & (f["used"] <= _SLICES)
    good &= (f["segment_slices"] > 0) & (f["segment_slices"] < 1 << 40)
    good &= f["segment_size"] == f["segment_slices"] * _SLICE
    good &= huge | (f["segment_size"] == _SEGMENT)
    good &= (f["segment_info_slices"] > 0) & (f["segment_info_slices"] < 4)
    good &= (f["slice_entries"] > f["segment_info_slices"]) & (f["slice_entries"] <= _SLICES)
    found = candidates[good]
    mask = found ^ f["cookie"][good].view(np.uint64)
    if not len(found):
        return found
    # Another mimalloc in the process has another cookie. Ours has the interpreter's own dicts.
    wanted = mask[np.isin(found, _of_the_interpreter(ctx))]
    values, counts = np.unique(wanted if len(wanted) else mask, return_counts=True)
    ours: U64 = found[mask == values[np.argmax(counts)]]
    return ours


def _of_the_interpreter(ctx: Context) -> U64:
    """Where a segment must begin that holds ``sys.__dict__`` or ``sys.modules`` of the first interpreter."""
    lay, v = ctx.runtime.layout, ctx.vectors
    interpreter = v.words(
        np.array([ctx.runtime.address + lay["_PyRuntimeState.interpreters.head"]], np.uint64)
    )
    fields = [lay[f"PyInterpreterState.{n}"] for n in ("sysdict", "imports.modules", "builtins")]
    objects = np.concatenate([v.words(interpreter, offset) for offset in fields])
    starts: U64 = objects[objects != 0] & np.uint64(-_SEGMENT & (1 << 64) - 1)
    return starts


def _read_segments(ctx: Context, segments: U64, entry: int) -> tuple[U64, dict[str, NDArray[np.int64]], U64]:
    """(address of each page's first block, fields of its head, addresses of what makes no sense).

    Heads of pages have ``entry`` bytes.
    """
    starts: list[U64] = [np.zeros(0, np.uint64)]
    rows: list[dict[str, NDArray[np.int64]]] = [_fields(np.zeros((0, entry), np.uint8))]
    damaged: list[U64] = [np.zeros(0, np.uint64)]
    for at in range(0, len(segments), _BATCH):
        part = segments[at : at + _BATCH]
        data = _heads(ctx, part, _HEAD + _SLICES * entry)
        info, total, size, kind = (
            _column(data, *_SEGMENT_FIELDS[name])
            for name in ("segment_info_slices", "slice_entries", "segment_size", "kind")
        )
        entries = data[:, _HEAD:].reshape(len(part), _SLICES, entry)
        segment, number, astray = _walk(entries, info, total, kind == 1)
        damaged.append(part[astray])
        fields = _fields(entries[segment, number])
        fields["size"] = fields["slice_count"] * _SLICE
        huge = fields["xblock_size"] == _HUGE
        fields["size"] = np.where(huge, size[segment] - number * _SLICE, fields["size"])
        fields["block"] = np.where(huge, fields["size"], fields["xblock_size"])
        start = part[segment] + (number * _SLICE + _skipped(fields["block"])).astype(np.uint64)
        fields["size"] -= _skipped(fields["block"])
        fields["entry"] = (part[segment] + (_HEAD + number * entry).astype(np.uint64)).view(np.int64)
        good = _sensible(fields)
        damaged.append(start[~good])
        good &= fields["used"] > 0
        starts.append(start[good])
        rows.append({name: column[good] for name, column in fields.items()})
    joined = {name: np.concatenate([row[name] for row in rows if name in row]) for name in rows[-1]}
    return np.concatenate(starts), joined, np.concatenate(damaged)


def _heads(ctx: Context, segments: U64, size: int) -> Bytes:
    """Heads of segments, page by page: those that nobody wrote to are not there, and zero."""
    pages = np.arange(0, size, PAGE, dtype=np.uint64)
    wanted = (segments[:, None] + pages[None, :]).reshape(-1)
    there = ctx.capture.memory.mapped(wanted, PAGE)
    for low, high in ctx.capture.left_out:  # to be read from the process now
        there |= (wanted >= np.uint64(low)) & (wanted < np.uint64(high))
    data = np.zeros((len(wanted), PAGE), np.uint8)
    data[there] = ctx.capture.memory.load_block(wanted[there], PAGE)[0]
    return np.ascontiguousarray(data.reshape(len(segments), len(pages) * PAGE)[:, :size])


def _fields(entries: Bytes) -> dict[str, NDArray[np.int64]]:
    late = 16 if entries.shape[1] == _ENTRY_DEBUG else 0
    out = {n: _column(entries, o + (late if o >= _KEYS else 0), k) for n, (o, k) in _PAGE_FIELDS.items()}
    for key in (0, 1) if late else ():
        out[f"key{key}"] = _column(entries, _KEYS + 8 * key, "<u8")
    return {**out, **{name: np.zeros(len(entries), np.int64) for name in ("size", "block", "entry")}}


def _walk(
    entries: Bytes, first: NDArray[np.int64], total: NDArray[np.int64], alone: Mask
) -> tuple[NDArray[np.int64], NDArray[np.int64], Mask]:
    """From slice to slice, one step of all segments at a time: pages as (segment, slice), who led astray.

    Entries inside of a page may be left from earlier ones, so they cannot be looked at on their own. A
    segment that is ``alone`` has one page, which is longer than it has entries.
    """
    count = _column(entries, *_PAGE_FIELDS["slice_count"])
    block = _column(entries, *_PAGE_FIELDS["xblock_size"])
    back = _column(entries, *_PAGE_FIELDS["slice_offset"])
    row = np.flatnonzero(first < total)
    at = first[row]
    astray = np.zeros(len(first), np.bool_)
    found: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    while len(row):
        length = count[row, at]
        good = (length > 0) & (back[row, at] == 0) & ((at + length <= total[row]) | alone[row])
        astray[row[~good]] = True
        row, at, length = row[good], at[good], length[good]
        page = block[row, at] > 0  # 0: slices that no page has
        found.append((row[page], at[page]))
        at = at + length
        more = at < total[row]
        row, at = row[more], at[more]
    none = np.zeros(0, np.int64)
    return (
        np.concatenate([none, *(f[0] for f in found)]),
        np.concatenate([none, *(f[1] for f in found)]),
        astray,
    )


def _skipped(block: NDArray[np.int64]) -> NDArray[np.int64]:
    """Bytes before the first block of a page (_mi_segment_page_start_from_slice)."""
    return np.where(block <= 64, 3 * block, np.where(block <= 512, block, 0))


def _sensible(f: dict[str, NDArray[np.int64]]) -> Mask:
    good: Mask = (f["block"] >= 8) & (f["block"] % 8 == 0) & (f["slice_offset"] == 0)
    good &= (f["capacity"] <= f["reserved"]) & (f["used"] <= f["capacity"])
    good &= f["capacity"] * f["block"] <= f["size"]
    return good


# -- free blocks --------------------------------------------------------------------------------------------


class _Lists:
    """Clears ``pages.in_use`` for the blocks of all free lists."""

    def __init__(self, ctx: Context, pages: Pages, fields: dict[str, NDArray[np.int64]], debug: bool) -> None:
        self.ctx = ctx
        self.pages = pages
        self.fields = fields
        self.debug = debug
        self.damaged: U64 = np.zeros(0, np.uint64)

    def follow(self) -> None:
        """All lists of all pages, one step of all of them at a time, as far as they make sense."""
        f = self.fields
        lists = [f["free"].view(np.uint64), f["local_free"].view(np.uint64)]
        lists.append(f["xthread_free"].view(np.uint64) & ~_LIST_FLAGS)
        row = np.tile(np.arange(len(self.pages)), len(lists))
        heads = np.concatenate(lists)
        keys = None
        if self.debug:
            keys = [np.tile(f[f"key{i}"].view(np.uint64), len(lists)) for i in (0, 1)]
        self._walk(heads, row, keys, np.tile(f["entry"].view(np.uint64), len(lists)))
        self._delayed()

    def _delayed(self) -> None:
        """What other threads freed in full pages, and the owner has not taken back yet."""
        heaps = np.unique(self.fields["xheap"].view(np.uint64))
        heaps = heaps[heaps != 0][:_MAX_HEAPS]
        offset = np.uint64(_DELAYED_DEBUG if self.debug else _DELAYED)
        load = self.ctx.capture.memory.load
        heads = load(heaps + offset)[0]
        keys = [load(heaps + offset + np.uint64(32 + 8 * i))[0] for i in (0, 1)] if self.debug else None
        self._walk(heads, None, keys, heaps)

    def _walk(self, at: U64, row: NDArray[np.int64] | None, keys: list[U64] | None, null: U64) -> None:
        """Mark blocks free from each head on. ``row``: the page that a list must stay in, None: in any."""
        pages = self.pages
        astray: list[U64] = []
        where = np.arange(len(at))
        while len(where):
            there = at != _0
            where, at = where[there], at[there]
            inside, _, start = pages.find(at)[:3]
            page = np.maximum(np.searchsorted(pages.address, at, side="right"), 1) - 1
            good = inside & (start == at)
            if row is not None:
                good &= page == row[where]
            if len(page):
                number = (at - pages.address[page]).view(np.int64) // pages.block[page]
                good &= number < pages.handed_out[page]
                bit = pages.first[page] + number
                good[good] = pages.in_use[bit[good]]  # else it was here before: a ring
                astray.append(pages.address[row[where]][~good] if row is not None else at[~good])
                pages.in_use[bit[good]] = False
            where, at = where[good], at[good]
            at = self.ctx.capture.memory.load(at)[0]
            if keys is not None:
                at = _decoded(at, keys[0][where], keys[1][where], null[where])
        self.damaged = np.union1d(self.damaged, np.concatenate([np.zeros(0, np.uint64), *astray]))


def _decoded(words: U64, first: U64, second: U64, null: U64) -> U64:
    """mi_ptr_decode: what debug builds store instead of a pointer; ``null`` stands for no pointer."""
    turn = first & np.uint64(63)
    value = words - first
    value = value >> turn | np.where(turn > 0, value << (np.uint64(64) - turn & np.uint64(63)), _0)
    value ^= second
    plain: U64 = np.where(value == null, _0, value)
    return plain
