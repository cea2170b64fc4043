"""Where tracemalloc keeps its tables.

From 3.12 on they are part of ``_PyRuntime`` (pycore_tracemalloc.h); the layout tables say where. Before, they
are static variables of Modules/_tracemalloc.c, for which only a build that was not stripped has symbols.
Without these the data of the interpreter's file is searched: the table of traces is the one whose keys are
hashed as pointers (its functions are exported) and whose values look like traces.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from diagtool.capture.memory import MemoryFault
from diagtool.capture.modules import Module
from diagtool.runtimes.cpython.allocations.hashtables import entries, looks_like_table
from diagtool.runtimes.cpython.allocations.traces import likely_traces
from diagtool.runtimes.cpython.context import Context

__all__ = ["Tracing", "Unknown", "find_tracing"]

_MAX_FRAMES = 0xFFFF  # MAX_NFRAME: a traceback's number of frames has 16 bits
_MAX_DOMAINS = 1000
_MAX_DATA = 64 << 20  # bytes of an interpreter's data that are searched
_MAX_TRIED = 64  # tables looked into


class Unknown(Exception):
    """The tables can't be found; ``str()`` says why."""


@dataclass(frozen=True, slots=True)
class Tracing:
    """A running tracemalloc: tables of traces by domain (0: Python's own), bytes at the peak, frame limit."""

    tables: dict[int, int]
    peak: int | None
    frames: int


def find_tracing(ctx: Context) -> Tracing | None:
    """tracemalloc's state, None where it does not run. Raises Unknown, or MemoryFault."""
    base = "_PyRuntimeState.tracemalloc"
    if f"{base}.traces" in ctx.runtime.layout:
        return _in_runtime(ctx, base)
    return _in_statics(ctx)


def _in_runtime(ctx: Context, base: str) -> Tracing | None:
    memory, lay, runtime = ctx.capture.memory, ctx.runtime.layout, ctx.runtime
    config = runtime.address + lay[f"{base}.config.initialized"]
    frames = _running(ctx, config)
    if frames is None:
        return None
    traces = memory.u64(runtime.address + lay[f"{base}.traces"])
    if not looks_like_table(ctx, traces):
        raise Unknown(f"there is no table of traces where CPython 3.{ctx.runtime.version[1]} keeps it")
    domains = memory.u64(runtime.address + lay[f"{base}.domains"])
    peak = memory.u64(runtime.address + lay[f"{base}.peak_traced_memory"])
    return Tracing(_tables(ctx, traces, domains), peak, frames)


def _in_statics(ctx: Context) -> Tracing | None:
    module = _module(ctx)
    config = module.symbol("_Py_tracemalloc_config") if module else None
    if module is None or config is None:
        if _was_asked_for(ctx):
            raise Unknown("the interpreter's file has no symbols")
        return None
    frames = _running(ctx, config)
    if frames is None:
        return None
    memory = ctx.capture.memory
    place = module.symbol("tracemalloc_traces")
    traces = memory.u64(place) if place else 0
    peak = None
    domains = 0
    if place and looks_like_table(ctx, traces):
        others = {name: module.symbol(f"tracemalloc_{name}") for name in ("domains", "peak_traced_memory")}
        domains = memory.u64(others["domains"]) if others["domains"] else 0
        peak = memory.u64(others["peak_traced_memory"]) if others["peak_traced_memory"] else None
    else:
        traces = _searched(ctx, module, frames)
    return Tracing(_tables(ctx, traces, domains), peak, frames)


def _running(ctx: Context, config: int) -> int | None:
    """The number of frames kept, None where nothing is traced."""
    memory, lay = ctx.capture.memory, ctx.runtime.layout
    if memory.i32(config + lay["_PyTraceMalloc_Config.tracing"]) != 1:
        return None
    frames = memory.i32(config + lay["_PyTraceMalloc_Config.max_nframe"])
    return frames if 0 < frames <= _MAX_FRAMES else None


def _module(ctx: Context) -> Module | None:
    address = ctx.runtime.address
    return next((m for m in ctx.capture.modules if m.contains(address)), None)


# Only to tell somebody who asked for it; a program may start it later, which leaves no trace here.
def _was_asked_for(ctx: Context) -> bool:
    process = ctx.capture.process
    wanted = process.environ.get("PYTHONTRACEMALLOC", "0")
    return wanted not in ("", "0") or any(a.startswith("tracemalloc") for a in process.cmdline[1:8])


def _tables(ctx: Context, traces: int, domains: int) -> dict[int, int]:
    """The table of each domain. What other domains have is a table of tables, by the domain's number."""
    out = {0: traces}
    if domains and looks_like_table(ctx, domains):
        keys, values = entries(ctx, domains)
        for key, value in list(zip(keys.tolist(), values.tolist(), strict=True))[:_MAX_DOMAINS]:
            if looks_like_table(ctx, value):
                out[key & 0xFFFFFFFF] = value
    return out


def _searched(ctx: Context, module: Module, frames: int) -> int:
    """The table of traces, found in the static data of a module without symbols of its own."""
    hash_pointer = module.symbol("_Py_hashtable_hash_ptr")
    if hash_pointer is None:
        raise Unknown("the interpreter's file has no symbols")
    vectors, lay = ctx.vectors, ctx.runtime.layout
    tried = 0
    for words in _data(ctx, module):
        likely = words[(words & np.uint64(7) == 0) & (words > 4096) & (words < np.uint64(1 << 47))]
        likely = np.unique(likely)
        hashes = vectors.words(likely, lay["_Py_hashtable_t.hash_func"])
        for table in likely[hashes == np.uint64(hash_pointer)].tolist():
            tried += 1
            if tried > _MAX_TRIED:
                break
            try:
                if looks_like_table(ctx, table) and likely_traces(ctx, entries(ctx, table)[1], frames):
                    return int(table)
            except MemoryFault:
                continue
    raise Unknown("the interpreter's file is stripped, and no table of traces was found in its data")


def _data(ctx: Context, module: Module) -> Iterator[np.ndarray[tuple[int], np.dtype[np.uint64]]]:
    """The words of the module's data, and of the anonymous memory right behind it (.bss)."""
    ends = [m.end for m in ctx.capture.mappings if m.path == module.path]
    end = max([module.end, *ends])
    behind = [m.end for m in ctx.capture.mappings if m.start == end and m.writable and not m.path]
    low, high = module.start, max([end, *behind])
    for _, words in ctx.capture.memory.blocks([(low, min(high, low + _MAX_DATA))]):
        yield words
