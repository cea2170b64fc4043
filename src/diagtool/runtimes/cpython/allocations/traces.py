"""Traces: which block was allocated where, as arrays.

    traces:      address of a block ─▶ trace_t {size, traceback}
    traceback_t: hash, nframe, total_nframe, frames[] {filename, lineno}, innermost first

Tracebacks are interned, so equal ones have one address, and so do file names: ``str`` objects up to 3.14,
C strings since (Python/tracemalloc.c). Which of the two they are is seen, not known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64, MemoryFault
from diagtool.runtimes.cpython.allocations.hashtables import entries
from diagtool.runtimes.cpython.context import Context

if TYPE_CHECKING:
    from diagtool.runtimes.cpython.allocations.statics import Tracing

__all__ = ["Site", "Traces", "likely_traces", "read_traces"]

_MAX_SIZE = 1 << 47  # bytes of a block
_MAX_SITES = 1 << 20
_MAX_FRAMES = 1 << 23  # of all tracebacks together
_MAX_NAME = 4096  # bytes of a file's name (PATH_MAX)
_SAMPLE = 64
_UNKNOWN = "<unknown>"


@dataclass(frozen=True, slots=True)
class Site:
    """One place of allocation: (file, line) of each frame kept, innermost first, and how many there were."""

    frames: tuple[tuple[str, int], ...]
    depth: int


@dataclass(slots=True)
class Traces:
    """Blocks that are alive. Columns have an element a block; ``site`` is an index into ``sites``."""

    address: U64
    size: NDArray[np.int64]  # bytes, as the program asked for
    domain: NDArray[np.uint32]  # 0 is Python's own memory; numpy's data is in domain 389047
    site: NDArray[np.int64]
    sites: list[Site]

    def __len__(self) -> int:
        return len(self.address)


def likely_traces(ctx: Context, values: U64, frames: int) -> bool:
    """Whether most values of a table look like traces with at most ``frames`` frames."""
    sample = values[:: max(1, len(values) // _SAMPLE)][:_SAMPLE]
    if not len(sample):
        return False
    size, at = _sizes(ctx, sample)
    count = ctx.vectors.small(at, "tracemalloc_traceback.nframe", "<u2")
    good = (size < _MAX_SIZE) & (at != 0) & (at % 8 == 0) & (count > 0) & (count <= frames)
    return int(good.sum()) * 4 >= len(sample) * 3


def read_traces(ctx: Context, tracing: Tracing) -> Traces:
    """All traces. Warns of what makes no sense and is left out. Raises Damaged or MemoryFault."""
    parts = []
    for domain, table in tracing.tables.items():
        keys, values = entries(ctx, table)
        parts.append((keys, values, np.full(len(keys), domain, np.uint32)))
    key, value, domain_of = (np.concatenate(column) for column in zip(*parts, strict=True))
    size, traceback = _sizes(ctx, value)
    good = (size < _MAX_SIZE) & (traceback != 0)
    places, site = np.unique(traceback[good], return_inverse=True)
    sites, which = _sites(ctx, places[:_MAX_SITES], tracing.frames)
    which = np.append(which, np.full(len(places) - len(which), -1))
    site = which[site]
    known = site >= 0
    rows = np.flatnonzero(good)[known]
    lost = len(key) - len(rows)
    if lost:
        ctx.warn(f"{lost:,} of {len(key):,} traces of tracemalloc make no sense and are left out")
    return Traces(key[rows], size[rows].astype(np.int64), domain_of[rows], site[known], sites)


def _sizes(ctx: Context, traces: U64) -> tuple[U64, U64]:
    """(size, address of the traceback) of each trace."""
    lay = ctx.runtime.layout
    data, ok = ctx.capture.memory.load_block(traces, lay["sizeof.tracemalloc_trace"])
    words = data.view("<u8")
    size = words[:, lay["tracemalloc_trace.size"] // 8]
    return size, np.where(ok, words[:, lay["tracemalloc_trace.traceback"] // 8], np.uint64(0))


def _sites(ctx: Context, places: U64, limit: int) -> tuple[list[Site], NDArray[np.int64]]:
    """(the sites, for each of ``places`` the number of its site, -1 where no traceback is there)."""
    v, lay = ctx.vectors, ctx.runtime.layout
    count = v.small(places, "tracemalloc_traceback.nframe", "<u2")
    depth = v.small(places, "tracemalloc_traceback.total_nframe", "<u2")
    good = (count > 0) & (count <= limit) & (np.cumsum(count) < _MAX_FRAMES)
    count = np.where(good, count, 0)
    owner = np.repeat(np.arange(len(places)), count)
    number = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
    at = places[owner] + np.uint64(lay["tracemalloc_traceback.frames"])
    at = at + number.astype(np.uint64) * np.uint64(lay["sizeof.tracemalloc_frame"])
    name = v.words(at, lay["tracemalloc_frame.filename"])
    line = ctx.capture.memory.load(at + np.uint64(lay["tracemalloc_frame.lineno"]), "<u4")[0].tolist()
    distinct, inverse = np.unique(name, return_inverse=True)
    names = _names(ctx, distinct)
    frames = [(names[n], at_line) for n, at_line in zip(inverse.tolist(), line, strict=True)]
    ends = np.cumsum(count)
    starts = ends - count
    numbers: dict[tuple[tuple[str, int], ...], int] = {}
    which = np.zeros(len(places), np.int64)
    deepest: list[int] = []
    for i, (low, high, total) in enumerate(zip(starts.tolist(), ends.tolist(), depth.tolist(), strict=True)):
        # Those that differ in what was cut off only are one.
        which[i] = number_of = numbers.setdefault(tuple(frames[low:high]), len(numbers))
        deepest[number_of : number_of + 1] = [max(total, high - low, *deepest[number_of : number_of + 1])]
    sites = [Site(kept, total) for kept, total in zip(numbers, deepest, strict=True)]
    return sites, np.where(good, which, -1)


def _names(ctx: Context, addresses: U64) -> list[str]:
    """File names, "<unknown>" where one can't be read."""
    if not len(addresses):
        return []
    objects = ctx.vectors.are(addresses, "str")
    if int(objects.sum()) * 2 >= len(addresses):
        return [text or _UNKNOWN for text in ctx.vectors.texts(np.where(objects, addresses, np.uint64(0)))]
    return [_string(ctx, address) for address in addresses.tolist()]


def _string(ctx: Context, address: int) -> str:
    try:
        return ctx.capture.memory.cstring(address, _MAX_NAME).decode("utf-8", "replace") or _UNKNOWN
    except MemoryFault:
        return _UNKNOWN
