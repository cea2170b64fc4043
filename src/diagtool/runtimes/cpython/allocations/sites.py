"""Allocation sites as rows: how much was allocated where, and of which types it is."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from diagtool.runtimes.cpython.allocations.traces import Site, Traces
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.heap.census import HeapCensus

__all__ = ["site_rows"]

_MAX_ROWS = 20_000  # sites kept; the rest is one row
_MAX_TYPES = 16  # types told of one site, those with most bytes
_MAX_FRAMES = 100  # frames told of one site
_SOURCE = "tracemalloc"


def site_rows(ctx: Context, census: HeapCensus, traces: Traces) -> list[dict[str, Any]]:
    """A row a site and domain, most bytes first: see docs/snapshot-format.md, ``allocation_sites``.

    The memory that an object has outside (the items of a list) is a block of its own, and of no type here.
    """
    # A site and a domain together: numpy's data is told from the arrays.
    group, inverse = np.unique(traces.site * (1 << 32) + traces.domain.astype(np.int64), return_inverse=True)
    count = np.bincount(inverse, minlength=len(group))
    size = _sums(inverse, traces.size, len(group))
    types = _types(ctx, census, traces, inverse)
    order = np.lexsort((group, -count, -size))
    rows = []
    for at in order[:_MAX_ROWS].tolist():
        site = traces.sites[int(group[at]) >> 32]
        row = _row(site, int(count[at]), int(size[at]), types.get(at, []))
        if int(group[at]) & 0xFFFFFFFF:
            row["domain"] = int(group[at]) & 0xFFFFFFFF
        rows.append(row)
    rest = order[_MAX_ROWS:]
    if len(rest):
        row = _row(Site((), 0), int(count[rest].sum()), int(size[rest].sum()), [])
        rows.append({**row, "sites": len(rest)})
    return rows


def _row(site: Site, count: int, size: int, types: list[dict[str, Any]]) -> dict[str, Any]:
    file, line = site.frames[0] if site.frames else (None, None)
    row: dict[str, Any] = {
        "source": _SOURCE,
        "file": file,
        "line": line,
        "function": None,
        "count": count,
        "bytes": size,
        "types": types,
        "frames": [list(frame) for frame in site.frames[:_MAX_FRAMES]],
    }
    if site.depth > len(row["frames"]):
        row["depth"] = site.depth
    return row


def _sums(group: NDArray[np.int64], values: NDArray[np.int64], groups: int) -> NDArray[np.int64]:
    """The sum of the values of each group: exact, as bincount's weights are not."""
    out = np.zeros(groups, np.int64)
    if len(group):
        order = np.argsort(group, kind="stable")
        first = np.searchsorted(group[order], np.arange(groups))
        out += np.add.reduceat(values[order], first)
    return out


def _types(
    ctx: Context, census: HeapCensus, traces: Traces, group: NDArray[np.int64]
) -> dict[int, list[dict[str, Any]]]:
    """Per group the types of the objects that its blocks are."""
    found, kinds = census.objects, census.types
    if not len(found) or not len(traces):
        return {}
    # A block begins with what is before its object: the collector's head, and the like.
    block = found.address - kinds.before[found.kind].astype(np.uint64)
    order = np.argsort(block)
    at = np.minimum(np.searchsorted(block[order], traces.address), len(order) - 1)
    hit = np.flatnonzero((block[order[at]] == traces.address) & (traces.domain == 0))
    kind = found.kind[order[at[hit]]].astype(np.int64)
    pair, inverse = np.unique(group[hit] * len(kinds) + kind, return_inverse=True)
    count = np.bincount(inverse, minlength=len(pair))
    size = _sums(inverse, traces.size[hit], len(pair))
    names = {
        k: ctx.objects.qualified_type(int(kinds.address[k])) or f"type at {int(kinds.address[k]):#x}"
        for k in np.unique(pair % len(kinds)).tolist()
    }
    out: dict[int, list[dict[str, Any]]] = {}
    for i in np.lexsort((-size, pair // len(kinds))).tolist():
        which = out.setdefault(int(pair[i]) // len(kinds), [])
        if len(which) < _MAX_TYPES:
            name = names[int(pair[i]) % len(kinds)]
            which.append({"type": name, "count": int(count[i]), "bytes": int(size[i])})
    return out
