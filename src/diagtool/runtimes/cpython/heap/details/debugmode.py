"""What asyncio's debug mode and the tracking of coroutine origins write down with every task and handle.

Table ``asyncio_debug``, one row where there is any: ``tracebacks`` (of tasks, futures and handles),
``origins`` (of coroutines), ``frames`` in all of them, ``bytes`` that only they keep, ``debug_loops`` (loops
in debug mode).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.heap.census import HeapCensus
from diagtool.runtimes.cpython.heap.details.amounts import bytes_of, kept_with
from diagtool.runtimes.cpython.heap.sizes import Sizer
from diagtool.runtimes.cpython.objects.addresssets import distinct
from diagtool.runtimes.cpython.threads.interpreters import Interpreter

_SAMPLE = 20_000  # tracebacks of which the bytes are added up


def add_debug_mode(ctx: Context, census: HeapCensus, _: Sequence[Interpreter]) -> None:
    """Add the table ``asyncio_debug``."""
    o, v, lay = ctx.objects, ctx.vectors, ctx.runtime.layout
    tracebacks, origins = [np.zeros(0, np.uint64)], [np.zeros(0, np.uint64)]
    for kind, address in enumerate(census.types.address.tolist()):
        line = [o.type_name(t) for t in o.mro(address)]
        objects = census.of(kind)
        if not len(objects):
            continue
        if "_asyncio.Task" in line or "_asyncio.Future" in line:
            field = "TaskObj.task_source_tb" if "_asyncio.Task" in line else "FutureObj.fut_source_tb"
            tracebacks.append(v.field(objects, field))
        elif "Handle" in line and o.qualified_type(address).startswith("asyncio."):
            tracebacks.append(v.attribute(objects, "_source_traceback"))
        elif line[0] == "coroutine":
            name = next(n for n in ("cr_origin_or_finalizer", "cr_origin") if f"PyCoroObject.{n}" in lay)
            origins.append(v.only(v.field(objects, f"PyCoroObject.{name}"), "tuple"))
    lists = np.concatenate(tracebacks)
    lists = lists[v.inherit(lists, "list")]
    tuples = np.concatenate(origins)
    tuples = tuples[tuples != 0]
    loops = [r.get("address") for r in ctx.builder.snapshot.tables.get("loops", ())]
    debug = sum(bool(o.truth(o.attribute(a, "_debug"))) for a in loops if isinstance(a, int))
    if not len(lists) and not len(tuples) and not debug:
        ctx.builder.snapshot.tables["asyncio_debug"] = []
        return
    every = distinct(np.concatenate([lists, tuples]))
    part = every[:_SAMPLE]
    size = bytes_of(ctx, census, Sizer(ctx, census.types), kept_with(ctx, part)) if len(part) else 0
    ctx.builder.snapshot.tables["asyncio_debug"] = [
        {
            "tracebacks": len(lists),
            "origins": len(tuples),
            "frames": int(np.clip(v.field(every, "PyVarObject.ob_size").astype(np.int64), 0, 1 << 20).sum()),
            "bytes": size * len(every) // max(len(part), 1),
            "debug_loops": debug,
        }
    ]
