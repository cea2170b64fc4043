"""Memory that a capture of a live process did not copy, read for the search for pointers.

What was left out of the copy is read after the stop, when the program may have moved its pointers: then
nothing can be said of what they lead to. The image of a process is of one instant however late it is read;
there, what is not in memory (swapped out) is to be asked for, and what a fork leaves out is not there at all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diagtool.capture.memory import PAGE
from diagtool.capture.model import Capture, Mapping
from diagtool.capture.plan import is_anonymous
from diagtool.capture.residency import Residency, own_pages
from diagtool.capture.room import headroom
from diagtool.capture.segments import both, merged, without
from diagtool.runtimes.native.memorymap import Ranges

__all__ = ["Fetched", "fetch"]

_AT_ONCE = 1 << 14  # pages fetched together
_MOST_SHARED = 256 << 20  # bytes of shared memory that are looked through
_MOST_UNFORKED = 1 << 20  # bytes that a fork leaves out, and that may have changed since
#: Shared memory that may be a program's own: no files, whose pages have no use for its pointers.
_SHARED = ("/dev/zero", "/dev/shm/", "/memfd:", "/SYSV", "/anon_hugepage")


@dataclass(slots=True)
class Fetched:
    """``missing``: what could not be read, or may be there and was not looked at. ``late``: bytes that were
    read after the stop. ``shared``: memory shared with others, as far as it is looked through."""

    missing: Ranges
    late: int
    shared: Ranges


def fetch(capture: Capture, private: Ranges) -> Fetched:
    """Read what belongs to ``private`` memory and is not here yet."""
    if capture.kind == "core":
        return Fetched([], 0, _within([(m.start, m.end) for m in capture.mappings if _is_shared(m)], capture))
    pid = capture.process.pid
    left_out = [*capture.left_out, *capture.skipped]
    if not capture.image:
        if capture.swapped:
            left_out += _absent(capture, private)
        late, unseen = _own(both(private, merged(left_out)), pid)
        wanted = late
    else:
        unforked, unseen = _own(without(private, merged(capture.imaged)), pid)
        late = unforked if _size(unforked) > _MOST_UNFORKED else []
        # Of memory without a file all is here that is in memory.
        files = merged((m.start, m.end) for m in capture.mappings if not is_anonymous(m))
        absent = _absent(capture, private)
        own, more = _own(absent if capture.swapped else both(absent, files), capture.image_pid)
        wanted, unseen = merged([*unforked, *own]), [*unseen, *more]
    missing = _load(capture, wanted, headroom())
    return Fetched([*missing, *unseen], _size(late), _shared(capture))


def _load(capture: Capture, ranges: Ranges, room: int) -> Ranges:
    missing = []
    for start, end in ranges:
        if end - start > room:
            missing.append((start, end))
            continue
        room -= end - start
        for low in range(start & -PAGE, end, _AT_ONCE * PAGE):
            capture.memory.load(np.arange(low, min(end, low + _AT_ONCE * PAGE), PAGE, dtype=np.uint64))
    return missing


# What of private memory no segment holds: never written to, swapped out, or beyond what is copied of a file.
def _absent(capture: Capture, private: Ranges) -> Ranges:
    return without(private, merged((s.start, s.end) for s in capture.memory.segments))


def _own(ranges: Ranges, pid: int) -> tuple[Ranges, Ranges]:
    whole = [(start & -PAGE, end + PAGE - 1 & -PAGE) for start, end in ranges]
    return own_pages(pid, whole) if whole else ([], [])


def _size(ranges: Ranges) -> int:
    return sum(end - start for start, end in ranges)


def _is_shared(m: Mapping) -> bool:
    return m.permissions.startswith("rw") and m.permissions.endswith("s") and m.path.startswith(_SHARED)


# Pages that are in memory only: to read others would make them real.
def _shared(capture: Capture) -> Ranges:
    spans = sorted(((m.start, m.end) for m in capture.mappings if _is_shared(m)), key=lambda s: s[1] - s[0])
    if not spans:
        return []
    residency = Residency(capture.process.pid)
    try:
        present = residency.find(spans, _MOST_SHARED)[0]
    finally:
        residency.close()
    found = merged((start, end) for start, end in present.tolist())
    late = capture.late_pages
    _load(capture, found, _MOST_SHARED)
    capture.late_pages = late  # what others may write to says nothing of the process's own memory
    return _within(found, capture)


def _within(ranges: Ranges, capture: Capture) -> Ranges:
    return both(merged(ranges), merged((s.start, s.end) for s in capture.memory.segments))
