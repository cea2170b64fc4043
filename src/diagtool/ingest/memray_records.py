"""Reads what memray recorded, prints sums of what was not freed as JSON: ``memray_records.py FILE``.

A program of its own: the file was written by another process and is read by C++ code. Memory and time are
bounded by the kernel.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from typing import Any

_MAX_ROWS = 20_000  # sites told; the rest is one row
_MAX_FRAMES = 100  # frames told of one site
_MAX_NAME = 4096  # characters
_ROOM = 4 << 30  # bytes; memray maps more than it uses
_SECONDS = 600
_HOOK = "_memray_attach_hook.py"
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
    json.dump(found, sys.stdout)
    return 0


def sums(path: str) -> dict[str, Any]:
    """What was allocated and not freed, by stack and kind of allocator."""
    import memray

    sites: dict[tuple[Any, ...], list[int]] = {}
    with memray.FileReader(path) as reader:
        seconds = (reader.metadata.end_time - reader.metadata.start_time).total_seconds()
        for record in reader.get_leaked_allocation_records(merge_threads=True):
            stack = record.stack_trace(max_stacks=_MAX_FRAMES)
            frames = tuple((file[:_MAX_NAME], line, function[:_MAX_NAME]) for function, file, line in stack)
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
