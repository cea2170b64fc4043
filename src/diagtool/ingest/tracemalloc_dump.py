"""Reads a pickled ``tracemalloc.Snapshot`` from its standard input, prints sums of it as JSON.

A program of its own, of the standard library only: ``python3 -I -S tracemalloc_dump.py < FILE``.

The pickle may be hostile. Two names are known, for which there are classes that hold what is put into them
and do nothing; every other name, and so every call, is refused. Memory and time are bounded by the kernel. A
file that crashes the unpickler (it hashes deeply nested tuples without a bound) ends this process and nothing
else.

What is in a dump (Lib/tracemalloc.py): Snapshot{traces: _Traces{_traces: [trace, …]}, traceback_limit}, a
trace being (domain, size, ((file, line), … innermost first), frames in all); without the last up to 3.8.
"""

from __future__ import annotations

import json
import os
import pickle
import resource
import sys
from typing import Any

_MAX_ROWS = 20_000  # sites told; the rest is one row
_MAX_FRAMES = 100  # frames told of one site
_MAX_NAME = 4096  # characters of a file's name
_MAX_NUMBER = 1 << 47  # of a size in bytes, or a line
_GROWTH = 40  # bytes of memory a byte of the file: a trace has some 12 in the file and 200 in memory
_ROOM = 1 << 30
_RATE = 1 << 20  # bytes a second, at least


class _Inert:
    """Holds what a pickle puts into it."""


_NAMES = (("tracemalloc", "Snapshot"), ("tracemalloc", "_Traces"))


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NAMES:
            raise pickle.UnpicklingError(f"it names {module[:50]}.{name[:50]}, which is no part of a dump")
        return type(name, (_Inert,), {})


class _Senseless(Exception):
    """The pickle is fine, and no dump."""


def main() -> int:
    """Read, add up, print."""
    size = os.fstat(0).st_size
    _bound(size)
    try:
        with open(0, "rb") as file:
            found = sums(_Reader(file).load())
    except MemoryError:
        found = {"error": "it takes too much memory"}
    except Exception as error:  # noqa: BLE001  # whatever a pickle can do to its reader
        found = {"error": f"{type(error).__name__}: {str(error)[:200]}"}
    json.dump(found, sys.stdout)
    return 0


def _bound(size: int) -> None:
    for what, limit in (
        (resource.RLIMIT_AS, _ROOM + _GROWTH * size),
        (resource.RLIMIT_CPU, 60 + size // _RATE),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NPROC, 0),
    ):
        hard = resource.getrlimit(what)[1]
        if hard != resource.RLIM_INFINITY:
            limit = min(limit, hard)
        resource.setrlimit(what, (limit, limit))


def sums(snapshot: Any) -> dict[str, Any]:
    """What is in a snapshot, added up by domain and traceback. Raises _Senseless."""
    state = vars(snapshot) if isinstance(snapshot, _Inert) else {}
    inner = state.get("traces")
    traces = vars(inner).get("_traces") if isinstance(inner, _Inert) else None
    limit = state.get("traceback_limit")
    if not isinstance(traces, (list, tuple)) or not _is_number(limit):
        raise _Senseless("it holds no traces")
    counts: dict[tuple[int, int], list[int]] = {}
    # Equal tracebacks are one object in the file: looked at once each. They stay alive in ``traces``.
    known: dict[int, int] = {}
    sites: dict[tuple[tuple[str, int], ...], int] = {}
    depths: list[int] = []
    for trace in traces:
        if type(trace) is not tuple or not 3 <= len(trace) <= 4:
            raise _Senseless("it holds what is no trace")
        domain, size, frames = trace[:3]
        total = trace[3] if len(trace) == 4 else 0
        if not (_is_number(domain) and _is_number(size)):
            raise _Senseless("it holds a trace whose size is none")
        site = known.get(id(frames))
        if site is None:
            kept = _frames(frames)
            site = known[id(frames)] = sites.setdefault(kept, len(sites))
            depths[site:] = depths[site:] or [len(kept)]
        if _is_number(total) and total > depths[site]:
            depths[site] = total
        sum_of = counts.setdefault((domain, site), [0, 0])
        sum_of[0] += 1
        sum_of[1] += size
    told = list(sites)
    order = sorted(counts.items(), key=lambda item: (-item[1][1], item[0]))
    rows = [
        [domain, number, size, [list(f) for f in told[site][:_MAX_FRAMES]], depths[site], 0]
        for (domain, site), (number, size) in order[:_MAX_ROWS]
    ]
    rest = [values for _, values in order[_MAX_ROWS:]]
    if rest:
        rows.append([0, sum(n for n, _ in rest), sum(b for _, b in rest), [], 0, len(rest)])
    return {
        "blocks": len(traces),
        "bytes": sum(size for _, size in counts.values()),
        "frames": limit,
        "sites": len(sites),
        "rows": rows,
    }


def _frames(frames: Any) -> tuple[tuple[str, int], ...]:
    if type(frames) is not tuple or not frames:
        raise _Senseless("it holds a trace without a traceback")
    for frame in frames:
        if type(frame) is not tuple or len(frame) != 2:
            raise _Senseless("it holds a frame that is none")
        if type(frame[0]) is not str or not _is_number(frame[1]):
            raise _Senseless("it holds a frame that is none")
    return tuple((file[:_MAX_NAME], line) for file, line in frames)


def _is_number(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MAX_NUMBER


if __name__ == "__main__":
    sys.exit(main())
