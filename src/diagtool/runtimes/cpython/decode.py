"""From a capture of a CPython process to a snapshot."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from diagtool.capture.model import Capture
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.frames.coderows import add_code_rows
from diagtool.runtimes.cpython.frames.codes import Codes
from diagtool.runtimes.cpython.objects.reader import Objects
from diagtool.runtimes.cpython.objects.vectors import Vectors
from diagtool.runtimes.cpython.runtime import find_runtime
from diagtool.runtimes.cpython.threads.decode import decode_threads
from diagtool.runtimes.cpython.threads.interpreters import Interpreter, read_interpreters, require_type_names
from diagtool.runtimes.describe import describe
from diagtool.runtimes.memory import add_process_memory
from diagtool.runtimes.native.stacks.model import NativeFrame
from diagtool.snapshot.model import Snapshot, SnapshotBuilder

if TYPE_CHECKING:
    from diagtool.runtimes.cpython.heapwork import HeapWork
    from diagtool.runtimes.cpython.judged import Judged


def decode(
    capture: Capture,
    *,
    heap: bool = False,
    why: str | None = None,
    graph: bool | None = None,
    values: str | None = None,
    native: Mapping[int, Sequence[NativeFrame]] | None = None,
    tasks: bool = True,
    others: Sequence[Callable[[SnapshotBuilder], None]] = (),
) -> Snapshot:
    """Decode threads and tasks of a captured CPython process.

    With ``heap`` its objects are counted by type, with ``why`` (an address, or the name of a type) it is
    found out who keeps them: tables of the snapshot (``heap.tables``). ``graph``: who keeps how much, too
    (``graph.tables``). With ``heap`` the largest containers, and below a size what nobody refers to, are
    looked for unless it is False.
    ``native``: native frames by tid, which are merged with those of Python.
    ``tasks``: False leaves out what is no thread, and who keeps what is waited on (judged.py), unless the
    heap is looked at.
    ``others`` add the stacks of other runtimes in the process.
    ``values`` with ``heap``: examples of objects of types of this name (``heap.details.values``).

    Raises NotSupported when the process has no CPython of a known version, or its file is needed and not
    here; whatever else can't be read becomes a warning of the snapshot.
    """
    collecting = gc.isenabled()
    gc.disable()  # nothing of what is made becomes garbage, and there is much of it
    try:
        return _decode(capture, heap, why, graph, values, native or {}, tasks, others)
    finally:
        if collecting:
            gc.enable()


def _decode(
    capture: Capture,
    heap: bool,
    why: str | None,
    graph: bool | None,
    values: str | None,
    native: Mapping[int, Sequence[NativeFrame]],
    tasks: bool,
    others: Sequence[Callable[[SnapshotBuilder], None]],
) -> Snapshot:
    runtime = find_runtime(capture)
    objects = Objects(capture.memory, runtime.layout, runtime.version, runtime.free_threaded)
    target = describe(capture, runtime.flavour)
    ctx = Context(
        capture, runtime, objects, Vectors(objects), Codes(objects), SnapshotBuilder(target), native
    )
    for warning in capture.warnings:
        ctx.warn(warning)
    add_process_memory(capture, ctx.builder.snapshot.tables)
    interpreters = read_interpreters(ctx)
    require_type_names(ctx, interpreters)
    target.runtime = f"cpython {_full_version(ctx, interpreters[0].system if interpreters else 0)}"
    threads = decode_threads(ctx, interpreters)
    # Before whatever scans memory: it finds big buffers that need not be read.
    work = _heap_work(ctx, interpreters, heap, why, graph, values)
    judged: Judged | None = None
    if tasks or work is not None:
        from diagtool.runtimes.cpython.judged import judge  # half of all that there is to import

        judged = judge(ctx, interpreters, threads, work)
    add_code_rows(ctx)
    for add in others:
        add(ctx.builder)
    snapshot = ctx.builder.finish()
    if judged is not None:
        judged.add_to(snapshot)
    snapshot.pause_ms = capture.pause_ms
    return snapshot


def _heap_work(
    ctx: Context,
    interpreters: list[Interpreter],
    heap: bool,
    why: str | None,
    graph: bool | None,
    values: str | None,
) -> HeapWork | None:
    if not heap and why is None:
        return None
    from diagtool.runtimes.cpython.heapwork import HeapWork  # a third of all that there is to import

    return HeapWork(ctx, interpreters, heap=heap, why=why, graph=graph, values=values)


def _full_version(ctx: Context, system: int) -> str:
    """ "3.12.1" from sys.version, else what the runtime itself says."""
    text = ctx.objects.text(ctx.objects.dict_get(system, "version")) if system else None
    if text and text[:1] == "3":
        return text.split()[0][:32]
    major, minor = ctx.runtime.version
    return f"{major}.{minor}" + (f".{ctx.runtime.micro}" if ctx.runtime.micro is not None else "")
