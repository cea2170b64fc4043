"""The memory in which CPython keeps frames since 3.11: chunks of 16 KiB and more, mapped for each thread.

A chunk begins with struct _PyStackChunk (pycore_interp_structs.h): the one before, its size, what is used.
There may be thousands of them: they are not followed from thread to thread, but found among the pages that
nobody else has claimed.
"""

from __future__ import annotations

import numpy as np

from diagtool.capture.claims import claim, claims
from diagtool.capture.errors import NotSupported
from diagtool.capture.memory import PAGE, U64
from diagtool.capture.model import Capture
from diagtool.capture.peek import Peek, pages_with_content, present_pages
from diagtool.capture.plan import is_anonymous, is_writable_private, joined, without
from diagtool.runtimes.cpython.runtime import find_runtime

__all__ = ["OWNER", "claim_data_stacks"]

OWNER = "Python frames"

_LEAST = 16 << 10  # DATA_STACK_CHUNK_SIZE; larger ones are twice, four times … as large
_MOST = 64 << 20
_MOST_PAGES = 1 << 17  # that are looked at
_HEAD = 24  # bytes of _PyStackChunk before its data


def claim_data_stacks(capture: Capture) -> None:
    """Say whose the chunks are (``capture.claims``)."""
    try:
        runtime = find_runtime(capture)
    except NotSupported:
        return
    if "_PyStackChunk.size" not in runtime.layout:
        return
    free = _unclaimed(capture)
    pages = present_pages(capture) if capture.kind == "live" else pages_with_content(capture)
    # A chunk in use has its first page in memory.
    starts = np.concatenate(
        [np.zeros(0, np.uint64), *(_pages(low, high) for low, high in _common(pages, free))]
    )
    starts = starts[:_MOST_PAGES]
    peek = Peek(capture)
    try:
        data, ok = peek(starts, _HEAD)
    finally:
        peek.close()
    words = np.ascontiguousarray(data).view("<u8")
    lay = runtime.layout
    before, size, top = (words[:, lay[f"_PyStackChunk.{n}"] // 8] for n in ("previous", "size", "top"))
    good = ok & (size >= _LEAST) & (size <= _MOST) & (size & (size - np.uint64(1)) == 0)
    good &= top <= size >> np.uint64(3)  # words
    at = np.maximum(np.searchsorted(free[:, 0], starts, side="right"), 1) - 1 if len(free) else starts
    if len(free):
        good &= (starts >= free[at, 0]) & (starts + size <= free[at, 1])
    known = starts[good]
    good &= (before == 0) | np.isin(before, known)
    claim(capture, OWNER, np.stack([starts[good], starts[good] + size[good]], axis=1))


# Private memory without a file that nobody has claimed, sorted.
def _unclaimed(capture: Capture) -> U64:
    spans = joined(
        [
            (m.start, m.end)
            for m in capture.mappings
            if is_writable_private(m) and is_anonymous(m) and not m.path.startswith("[")
        ]
    )
    taken = joined([(low, high) for _, ranges in claims(capture) for low, high in ranges.tolist()])
    arrays = [np.array(pairs, np.uint64).reshape(-1, 2) for pairs in (spans, taken)]
    return without(arrays[0], arrays[1])


def _common(ranges: U64, others: U64) -> list[tuple[int, int]]:
    return [(a, b) for a, b in without(ranges, without(ranges, others)).tolist()]


def _pages(low: int, high: int) -> U64:
    return np.arange(low + PAGE - 1 & -PAGE, high, PAGE).astype(np.uint64)
