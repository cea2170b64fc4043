"""Where memory was allocated, as tracemalloc keeps it in the process: tables of the snapshot.

``tracemalloc`` (one row, where it runs) and ``allocation_sites``: see docs/snapshot-format.md.
"""

from __future__ import annotations

from diagtool.capture.memory import MemoryFault
from diagtool.runtimes.cpython.allocations.hashtables import Damaged
from diagtool.runtimes.cpython.allocations.sites import site_rows
from diagtool.runtimes.cpython.allocations.statics import Unknown, find_tracing
from diagtool.runtimes.cpython.allocations.traces import read_traces
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.heap.census import HeapCensus

__all__ = ["add_allocations"]


def add_allocations(ctx: Context, census: HeapCensus) -> None:
    """Read what tracemalloc knows, where it runs in the process. What can't be read is a warning."""
    tables = ctx.builder.snapshot.tables
    try:
        tracing = find_tracing(ctx)
        if tracing is None:
            return
        traces = read_traces(ctx, tracing)
    except Unknown as error:
        ctx.warn(f"tracemalloc runs in the process, and its tables are not read: {error}")
        return
    except (MemoryFault, Damaged) as error:
        ctx.warn(f"the tables of tracemalloc could not be read: {error}")
        return
    tables["tracemalloc"] = [
        {
            "blocks": len(traces),
            "bytes": int(traces.size.sum()),
            "peak": tracing.peak,
            "frames": tracing.frames,
            "sites": len(traces.sites),
        }
    ]
    tables["allocation_sites"] = site_rows(ctx, census, traces)
