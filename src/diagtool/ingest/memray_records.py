"""Reads what memray recorded, prints sums of what was not freed as JSON: ``memray_records.py FILE [blocks]``.

With ``blocks`` the JSON is one line, and behind it come three arrays: of each block that was not freed its
address, the bytes asked for (uint64) and the index of its place (int32).

A program of its own: the file was written by another process and is read by C++ code. Memory and time are
bounded by the kernel.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MAX_ROWS = 20_000  # sites told; the rest is one row
_MAX_FRAMES = 100  # frames told of one site
_MAX_NAME = 4096  # characters
_ROOM = 4 << 30  # bytes; memray maps more than it uses
_SECONDS = 600
_SECONDS_BLOCKS = 200.0  # of the processor, for the blocks one by one: some 80 million records
_MAX_BLOCKS = 10_000_000  # blocks told: 200 MB
_CHUNK = 1 << 15  # records at once
_GATHER = 1 << 22  # events that are kept before what was freed is taken out
_MAX_STACKS = 500_000  # stacks of which a record is kept
_HOOK = "_memray_attach_hook.py"
_FREES = {"FREE", "MUNMAP", "PYMALLOC_FREE"}
_MAPS = {"MMAP", "MUNMAP"}
_PLAIN = {"MALLOC", "CALLOC", "REALLOC", "PYMALLOC_MALLOC", "PYMALLOC_CALLOC", "PYMALLOC_REALLOC"}


def main() -> int:
    """Read, add up, print."""
    path = sys.argv[1]
    resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))
    limit = _ROOM + 40 * os.path.getsize(path)  # noqa: PTH202
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        found = sums(path)
    except MemoryError:
        found = {"error": "it takes too much memory"}
    except Exception as error:  # noqa: BLE001  # whatever a damaged file can do to its reader
        found = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
    arrays: list[NDArray[Any]] = []
    if "blocks" in sys.argv[2:] and "error" not in found:
        try:
            found["places"], arrays = places(path)
            found["live"] = len(arrays[0])
        except MemoryError:
            found["unread"] = "it takes too much memory"
        except Exception as error:  # noqa: BLE001
            found["unread"] = f"{type(error).__name__}: {str(error)[:300]}"
    out = sys.stdout.buffer
    out.write(json.dumps(found).encode() + b"\n")
    for array in arrays:
        out.write(array.tobytes())
    out.flush()
    return 0


class TooMuch(Exception):
    """There are too many records to be read one by one; what is left out would be wrong, not only less."""


def places(path: str) -> tuple[list[list[Any]], list[NDArray[Any]]]:
    """Where each block that was not freed was allocated: places, and address, size, index of its place.

    A place is [allocator, frames of Python, frames of C before the first of these], the innermost first; a
    frame is [file, line, function]. Only blocks of malloc and of Python's allocators: who maps memory gets no
    block. Sorted by address.
    """
    import memray

    kinds = {member.value: member.name for member in memray.AllocatorType}
    allocates = np.zeros(256, np.bool_)
    allocates[[v for v, name in kinds.items() if name not in _FREES and name not in _MAPS]] = True
    skipped = np.zeros(256, np.bool_)
    skipped[[v for v, name in kinds.items() if name in _MAPS]] = True
    samples: dict[int, Any] = {}
    with memray.FileReader(path) as reader:
        native = reader.metadata.has_native_traces
        address, size, stack = live_blocks(
            reader.get_allocation_records(), allocates, skipped, samples, native
        )
        stacks, inverse = np.unique(stack, return_inverse=True)
        found: dict[tuple[Any, ...], int] = {}
        index = np.full(len(stacks) + 1, -1, np.int32)
        for row, number in enumerate(stacks.tolist()):
            record = samples.get(number)
            place = _place_of(record, kinds[record.allocator], native) if record is not None else None
            if place is not None and (place in found or len(found) < _MAX_ROWS):
                index[row] = found.setdefault(place, len(found))
    site = index[inverse.reshape(-1)]
    known = site >= 0
    told = [[kind_, [list(f) for f in frames], [list(f) for f in c]] for kind_, frames, c in found]
    return told, [address[known], size[known], site[known]]


def live_blocks(
    records: Iterable[Any],
    allocates: NDArray[np.bool_],
    skipped: NDArray[np.bool_],
    samples: dict[int, Any],
    native: bool = False,
) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint64]]:
    """Of records in their order: (address, size, stack) of what was not freed, by address.

    ``allocates``: which allocators give a block, by number; ``skipped``: which have nothing to do with
    blocks. The last event of an address counts. ``samples`` gets a record of each stack. A stack
    is a number of memray's, with ``native`` that of C's besides. Raises TooMuch.
    """
    end = time.process_time() + _SECONDS_BLOCKS
    fields = ("address", "size", "allocator", "stack_id", *(("native_stack_id",) if native else ()))
    kept = np.zeros((0, 4), np.uint64)
    parts: list[NDArray[np.uint64]] = []
    waiting = 0
    for chunk in _chunks(records):
        flat = chain.from_iterable(map(attrgetter(*fields), chunk))
        events = np.fromiter(flat, np.uint64, len(chunk) * len(fields)).reshape(-1, len(fields))
        if native:
            events[:, 3] = events[:, 3] << np.uint64(32) | events[:, 4]
            events = events[:, :4]
        rows = np.flatnonzero(~skipped[events[:, 2] & np.uint64(255)])
        events = events[rows]
        given = allocates[events[:, 2] & np.uint64(255)]
        distinct, first = np.unique(events[given, 3], return_index=True)
        for number, row in zip(distinct.tolist(), rows[given][first].tolist(), strict=True):
            if number not in samples and len(samples) < _MAX_STACKS:
                samples[number] = chunk[row]
        parts.append(events)
        waiting += len(events)
        if waiting >= max(_GATHER, len(kept)):
            kept, parts, waiting = _last(kept, parts, allocates), [], 0
        if len(kept) > _MAX_BLOCKS or time.process_time() > end:
            raise TooMuch("there are too many records")
    kept = _last(kept, parts, allocates)
    if len(kept) > _MAX_BLOCKS:
        raise TooMuch("there are too many blocks")
    return kept[:, 0], kept[:, 1], kept[:, 3]


def _chunks(records: Iterable[Any]) -> Iterator[list[Any]]:
    each = iter(records)
    while chunk := list(islice(each, _CHUNK)):
        yield chunk


# What is there after all these events: the last one of each address, where that is not its end.
def _last(
    kept: NDArray[np.uint64], parts: list[NDArray[np.uint64]], allocates: NDArray[np.bool_]
) -> NDArray[np.uint64]:
    events = np.concatenate([kept, *parts])
    order = np.argsort(events[:, 0], kind="stable")
    events = events[order]
    last = np.append(events[1:, 0] != events[:-1, 0], True)[: len(events)]
    events = events[last]
    alive: NDArray[np.uint64] = events[allocates[events[:, 2] & np.uint64(255)]]
    return alive


def _place_of(record: Any, kind: str, native: bool) -> tuple[Any, ...] | None:
    frames = _frames(record.stack_trace(max_stacks=_MAX_FRAMES))
    if any(file.endswith(_HOOK) for file, _, _ in frames):
        return None  # what memray itself needs in the process
    c: tuple[tuple[str, int, str], ...] = ()
    if native:
        c = _frames(record.hybrid_stack_trace(max_stacks=_MAX_FRAMES))
        if frames and frames[0] in c:
            c = c[: c.index(frames[0])]
    return "" if kind in _PLAIN else kind.lower(), frames, c


def _frames(stack: Iterable[Any]) -> tuple[tuple[str, int, str], ...]:
    return tuple((file[:_MAX_NAME], line, function[:_MAX_NAME]) for function, file, line in stack)


def sums(path: str) -> dict[str, Any]:
    """What was allocated and not freed, by stack and kind of allocator."""
    import memray

    sites: dict[tuple[Any, ...], list[int]] = {}
    with memray.FileReader(path) as reader:
        seconds = (reader.metadata.end_time - reader.metadata.start_time).total_seconds()
        for record in reader.get_leaked_allocation_records(merge_threads=True):
            frames = _frames(record.stack_trace(max_stacks=_MAX_FRAMES))
            if any(file.endswith(_HOOK) for file, _, _ in frames):
                continue  # what memray itself needs in the process
            name = memray.AllocatorType(record.allocator).name
            kind = "" if name in _PLAIN else name.lower()
            total = sites.setdefault((frames, kind), [0, 0])
            total[0] += record.n_allocations
            total[1] += record.size
    order = sorted(sites.items(), key=lambda item: (-item[1][1], item[0]))
    rest = [values for _, values in order[_MAX_ROWS:]]
    rows = [
        [kind, count, size, [list(f) for f in frames], 0]
        for (frames, kind), (count, size) in order[:_MAX_ROWS]
    ]
    if rest:
        rows.append(["", sum(n for n, _ in rest), sum(b for _, b in rest), [], len(rest)])
    return {
        "seconds": seconds,
        "blocks": sum(n for n, _ in sites.values()),
        "bytes": sum(b for _, b in sites.values()),
        "sites": len(sites),
        "rows": rows,
    }


if __name__ == "__main__":
    sys.exit(main())
