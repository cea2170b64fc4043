"""Heap profiles as the table ``allocation_sites``: what is in use, and what was allocated since the start."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diagtool.ingest.pprof.frames import Frames
from diagtool.ingest.pprof.profile import Profile
from diagtool.snapshot.model import Frame

__all__ = ["heap_tables", "is_heap"]

_MOST_SITES = 20_000
_MOST_FRAMES = 64

#: What stands innermost in every stack of an allocation.
_ALLOCATES = re.compile(
    r"runtime\.(?:malloc|new|make|grow|raw|persistentalloc|profilealloc|systemstack|mcall)"
)

_IN_USE, _OBJECTS = ("inuse_space", "space"), ("inuse_objects", "objects")
_ALLOCATED, _ALLOCATED_OBJECTS = ("alloc_space",), ("alloc_objects",)


def is_heap(profile: Profile) -> bool:
    """Whether a profile says who has or had memory (Go's heap and allocs, tcmalloc's, jemalloc's)."""
    return any(profile.unit(name) == "bytes" for name in (*_IN_USE, *_ALLOCATED))


def heap_tables(profile: Profile) -> dict[str, list[dict[str, Any]]]:
    """The tables ``allocation_sites`` and ``profiles`` of a heap profile. See docs/snapshot-format.md."""
    stacks = len(profile.stacks)
    size, count = _by_stack(profile, *_IN_USE), _by_stack(profile, *_OBJECTS)
    all_size, all_count = _by_stack(profile, *_ALLOCATED), _by_stack(profile, *_ALLOCATED_OBJECTS)
    has_all = profile.column(*_ALLOCATED) is not None
    order = np.lexsort((-all_size, -size)) if stacks else np.zeros(0, np.intp)
    order = order[(size[order] > 0) | (count[order] > 0) | (all_size[order] > 0)]
    frames, rows = Frames(profile), []
    for stack in order[:_MOST_SITES].tolist():
        numbers = (int(count[stack]), int(size[stack]), int(all_count[stack]), int(all_size[stack]))
        rows.append(_row(frames, frames.of(stack), numbers, has_all))
    rest = order[_MOST_SITES:]
    if len(rest):
        sums = tuple(int(c[rest].sum()) for c in (count, size, all_count, all_size))
        rows.append(_row(frames, [], sums, has_all) | {"sites": len(rest)})
    summary: dict[str, Any] = {
        "kind": "heap",
        "blocks": int(count.sum()),
        "bytes": int(size.sum()),
        "allocated_blocks": int(all_count.sum()) if has_all else None,
        "allocated_bytes": int(all_size.sum()) if has_all else None,
        "rate": max(0, profile.period) or None,
        "sites": len(order),
    }
    return {"allocation_sites": rows, "profiles": [summary]}


def _by_stack(profile: Profile, *names: str) -> NDArray[np.int64]:
    """The sum of a type for each stack; 0 where the profile does not have it. Of hostile numbers part."""
    out = np.zeros(len(profile.stacks), np.int64)
    column = profile.column(*names)
    if column is not None:
        np.add.at(out, profile.stack, np.clip(column, 0, 1 << 50))
    return np.clip(out, 0, 1 << 60)


def _row(frames: Frames, stack: list[Frame], numbers: tuple[int, ...], has_all: bool) -> dict[str, Any]:
    own = _without_runtime(stack)
    count, size, all_count, all_size = numbers
    first = own[0] if own else None
    row: dict[str, Any] = {
        "source": "pprof",
        "file": first.file if first else None,
        "line": first.line if first else None,
        "function": first.function if first else None,
        "count": count,
        "bytes": size,
        "types": [],
        "frames": [[f.file, f.line, f.function] for f in own[:_MOST_FRAMES]],
        "language": first.language if first else "go" if frames.go else "native",
    }
    if has_all:
        row |= {"allocated_count": all_count, "allocated_bytes": all_size}
    return row | ({"depth": len(own)} if len(own) > _MOST_FRAMES else {})


def _without_runtime(stack: list[Frame]) -> list[Frame]:
    """Without what the runtime does to allocate, and what every program starts with."""
    first, last = 0, len(stack)
    while last and stack[last - 1].function in ("runtime.goexit", "runtime.main"):
        last -= 1
    while first < last and stack[first].function.startswith("runtime."):
        first += 1
    if first < last:
        return stack[first:last]
    return [f for f in stack if not _ALLOCATES.match(f.function)] or stack  # what the runtime itself needs
