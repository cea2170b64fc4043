"""Figures of Go's heap: by size of objects, by type where the heap notes one, and whose the memory is."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.claims import claim
from diagtool.capture.errors import NotSupported
from diagtool.capture.memory import U64
from diagtool.capture.model import Capture
from diagtool.capture.segments import merged
from diagtool.runtimes.golang.files import go_files
from diagtool.runtimes.golang.find import find_go
from diagtool.runtimes.golang.heap.spans import IN_USE, MANUAL, PAGE, Spans, find_heap, read_spans
from diagtool.runtimes.golang.model import GoRuntime
from diagtool.runtimes.golang.types import TypeNames
from diagtool.snapshot.model import Snapshot

__all__ = ["add_go_heap"]

HEAP, STACKS, FREE = "Go heap", "Go stacks", "Go heap, free pages"

_SMALL = 512  # bytes of objects that say their type nowhere
_LARGEST_WITH_HEADER = 32768
_AT_ONCE = 1 << 20  # objects whose types are read together
_MOST_OBJECTS = 1 << 24  # whose types are read
_MOST_TYPES = 500
_ARENA = 64 << 20  # bytes of an arena: runtime.heapArenaBytes on linux/amd64 and arm64


def add_go_heap(capture: Capture, snapshot: Snapshot) -> None:
    """The tables ``go_heap`` (one row), ``go_heap_sizes`` and ``go_heap_types``, and claims to the memory.

    ``go_heap``: ``spans``, ``bytes`` (of spans with objects), ``objects``, ``used`` and ``free`` (bytes in
    these
    spans), ``large`` (bytes of objects with a span each), ``no_pointers`` (bytes of spans without pointers),
    ``stacks`` (bytes of spans with stacks and what the runtime needs itself), ``typed`` (bytes of objects
    whose type
    is known), ``lost`` (spans that could not be read). ``go_heap_sizes``: ``size`` (0: large objects),
    ``spans``,
    ``bytes``, ``objects``, ``used``, ``free``, ``no_pointers`` (objects). ``go_heap_types``: ``type``,
    ``count``,
    ``bytes``: objects with pointers of more than 512 bytes, from Go 1.22 on; others do not say what they are.
    """
    if not go_files(capture):
        return
    try:
        runtime = find_go(capture)
    except NotSupported:  # or none at all
        return
    if snapshot.target.runtime in ("", "native"):
        snapshot.target.runtime = runtime.version
    heap = find_heap(runtime)
    if not heap:
        return
    every, lost = read_spans(runtime, heap)
    spans = every.take(np.flatnonzero(every.state == IN_USE))
    stacks = every.take(np.flatnonzero(every.state == MANUAL))
    _claim(capture, spans, stacks)
    used = np.minimum(spans.used, spans.objects) * spans.size
    space = spans.pages * PAGE
    types = _types(runtime, spans)
    snapshot.tables["go_heap"] = [
        {
            "spans": len(spans),
            "bytes": int(space.sum()),
            "objects": int(np.minimum(spans.used, spans.objects).sum()),
            "used": int(used.sum()),
            "free": int((space - used).sum()),
            "large": int(space[spans.sizeclass == 0].sum()),
            "no_pointers": int(space[spans.noscan].sum()),
            "stacks": int((stacks.pages * PAGE).sum()),
            "typed": sum(row["bytes"] for row in types),
            "lost": lost,
        }
    ]
    snapshot.tables["go_heap_sizes"] = _sizes(spans, used, space)
    snapshot.tables["go_heap_types"] = types[:_MOST_TYPES]


def _claim(capture: Capture, spans: Spans, stacks: Spans) -> None:
    for name, some in ((HEAP, spans), (STACKS, stacks)):
        claim(capture, name, np.stack([some.base, some.limit], axis=1))
    every = np.concatenate([spans.base, stacks.base])
    first = np.unique(every & np.uint64((1 << 64) - _ARENA)).tolist()
    claim(capture, FREE, merged((low, low + _ARENA) for low in first))


def _sizes(spans: Spans, used: NDArray[np.int64], space: NDArray[np.int64]) -> list[dict[str, Any]]:
    size = np.where(spans.sizeclass == 0, 0, spans.size)
    distinct, inverse = np.unique(size, return_inverse=True)

    def total(values: NDArray[np.int64]) -> list[int]:
        out = np.zeros(len(distinct), np.int64)
        np.add.at(out, inverse, values)
        return [int(value) for value in out]

    objects = np.minimum(spans.used, spans.objects)
    columns = {
        "spans": total(np.ones(len(spans), np.int64)),
        "bytes": total(space),
        "objects": total(objects),
        "used": total(used),
        "free": total(space - used),
        "no_pointers": total(np.where(spans.noscan, objects, 0)),
    }
    rows = [
        {"size": number, **{name: column[i] for name, column in columns.items()}}
        for i, number in enumerate(distinct.tolist())
    ]
    return sorted(rows, key=lambda row: -row["bytes"])


# Objects of 513 bytes and more begin with their type, large ones have it in their span.
def _types(runtime: GoRuntime, spans: Spans) -> list[dict[str, Any]]:
    if runtime.minor < 22 or "noallocheaders" in runtime.version:
        return []
    counts: dict[int, list[int]] = {}
    large = np.flatnonzero(~spans.noscan & (spans.sizeclass == 0) & (spans.large_type != 0))
    _count(counts, spans.large_type[large], spans.size[large])
    headed = np.flatnonzero(~spans.noscan & (spans.sizeclass > 0) & (spans.size > _SMALL))
    objects = np.minimum(spans.used[headed], spans.objects[headed])
    headed = headed[np.cumsum(objects) <= _MOST_OBJECTS]
    done = 0
    while done < len(headed):
        # What is used of a span is in front as a rule; which objects that are does not matter for sums.
        ends = np.cumsum(spans.objects[headed[done:]])
        part = headed[done : done + max(1, int(np.searchsorted(ends, _AT_ONCE)))]
        done += len(part)
        many = spans.objects[part]
        owner = np.repeat(part, many)
        slot = np.arange(len(owner)) - np.repeat(np.cumsum(many) - many, many)
        at = spans.base[owner] + (slot * spans.size[owner]).astype(np.uint64)
        types, ok = runtime.memory.load(at)
        known = ok & (types != 0)
        _count(counts, types[known], spans.size[owner[known]])
    names = TypeNames(runtime)
    rows: dict[str, dict[str, Any]] = {}
    for address, (count, size) in counts.items():
        name = names.of(address)
        if name:
            row = rows.setdefault(name, {"type": name, "count": 0, "bytes": 0})
            row["count"] += count
            row["bytes"] += size
    return sorted(rows.values(), key=lambda row: (-row["bytes"], row["type"]))


def _count(counts: dict[int, list[int]], types: U64, sizes: NDArray[np.int64]) -> None:
    distinct, inverse, number = np.unique(types, return_inverse=True, return_counts=True)
    size = np.zeros(len(distinct), np.int64)
    np.add.at(size, inverse, sizes)
    for address, many, sum_ in zip(distinct.tolist(), number.tolist(), size.tolist(), strict=True):
        known = counts.setdefault(address, [0, 0])
        known[0] += many
        known[1] += sum_
