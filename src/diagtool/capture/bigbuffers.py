"""Big buffers of a live process, found before the stop so that they need not be copied in it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diagtool.capture.blobs import without_blobs
from diagtool.capture.memory import PAGE, U64, Mask
from diagtool.capture.residency import Residency
from diagtool.capture.vmread import IOV_MAX, MemoryReader

#: Below this many bytes everything is copied in the stop and is of one instant. Beyond, a short stop is worth
#: more than the insides of arrays.
LEAST = 128 << 20
_MOST = 64 << 30  # bytes of memory that are looked through, at most


def big_buffers(
    spans: Sequence[tuple[int, int]], residency: Residency, reader: MemoryReader
) -> list[tuple[int, int]]:
    """The insides of malloc's big blocks in ``spans``: sorted, disjoint, whole pages.

    The process runs on meanwhile. What it frees and uses anew until the stop is read after it instead, and
    counts as late. Only pages that are in memory are looked at: reading others would make them real.
    """
    present = residency.find(spans, _MOST)[0]
    if not len(present) or int((present[:, 1] - present[:, 0]).sum()) < LEAST:
        return []
    present = present[np.argsort(present[:, 0])]

    def read(addresses: U64) -> tuple[U64, Mask]:
        at = np.maximum(np.searchsorted(present[:, 0], addresses, side="right"), 1) - 1
        there = (present[at, 0] <= addresses) & (addresses < present[at, 1])
        return _words(reader, addresses, there)

    joined: list[tuple[int, int]] = []
    for start, end in without_blobs(spans, read)[1]:
        start -= PAGE  # the block's first page holds its header and the first bytes of the buffer
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return joined


def _words(reader: MemoryReader, addresses: U64, there: Mask) -> tuple[U64, Mask]:
    out = np.zeros(len(addresses), np.uint64)
    ok = there.copy()
    wanted = np.flatnonzero(there)
    for first in range(0, len(wanted), IOV_MAX):
        rows = wanted[first : first + IOV_MAX]
        got = np.zeros(len(rows), np.uint64)
        sizes = np.full(len(rows), 8, np.uint64)
        vectors = np.ascontiguousarray(np.stack([addresses[rows], sizes], axis=1))
        try:
            lost = reader.read(vectors, int(got.ctypes.data))
        except OSError:  # gone: the stop will say so
            return out, np.zeros(len(addresses), np.bool_)
        out[rows] = got
        for low, high in lost:
            ok &= (addresses < low) | (addresses >= high)
    return out, ok
