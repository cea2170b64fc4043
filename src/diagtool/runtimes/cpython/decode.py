"""From a capture of a CPython process to a snapshot."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import MemoryFault
from diagtool.capture.model import Capture
from diagtool.runtimes.cpython.allocations import add_allocations
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.extensions import add_extensions
from diagtool.runtimes.cpython.frames.codes import Codes
from diagtool.runtimes.cpython.graph.tables import add_graph
from diagtool.runtimes.cpython.greenlets.decode import add_greenlets
from diagtool.runtimes.cpython.heap.bases import add_bases
from diagtool.runtimes.cpython.heap.details import add_details
from diagtool.runtimes.cpython.heap.details.foreign import add_foreign
from diagtool.runtimes.cpython.heap.details.values import add_values
from diagtool.runtimes.cpython.heap.tables import add_heap, add_why
from diagtool.runtimes.cpython.liveness.holders import hold_stacks
from diagtool.runtimes.cpython.liveness.waiters import judge_exclusive
from diagtool.runtimes.cpython.objects.addresssets import distinct
from diagtool.runtimes.cpython.objects.reader import Objects
from diagtool.runtimes.cpython.objects.vectors import Vectors
from diagtool.runtimes.cpython.runtime import find_runtime
from diagtool.runtimes.cpython.signalhandlers import add_signals
from diagtool.runtimes.cpython.tasks import decode as asyncstacks
from diagtool.runtimes.cpython.threads.decode import decode_threads
from diagtool.runtimes.cpython.threads.interpreters import Interpreter, read_interpreters, require_type_names
from diagtool.runtimes.describe import describe
from diagtool.runtimes.memory import add_process_memory
from diagtool.runtimes.native.stacks.model import NativeFrame
from diagtool.snapshot.model import Snapshot, SnapshotBuilder

_MAX_HELD_THINGS = 10_000  # things whose holders are looked for


def decode(
    capture: Capture,
    *,
    heap: bool = False,
    why: str | None = None,
    graph: bool | None = None,
    values: str | None = None,
    native: Mapping[int, Sequence[NativeFrame]] | None = None,
) -> Snapshot:
    """Decode threads and tasks of a captured CPython process.

    With ``heap`` its objects are counted by type, with ``why`` (an address, or the name of a type) it is
    found out who keeps them: tables of the snapshot (``heap.tables``). ``graph``: who keeps how much, too
    (``graph.tables``). With ``heap`` the largest containers, and below a size what nobody refers to, are
    looked for unless it is False.
    ``native``: native frames by tid, which are merged with those of Python.
    ``values`` with ``heap``: examples of objects of types of this name (``heap.details.values``).

    Raises NotSupported when the process has no CPython of a known version, or its file is needed and not
    here; whatever else can't be read becomes a warning of the snapshot.
    """
    collecting = gc.isenabled()
    gc.disable()  # nothing of what is made becomes garbage, and there is much of it
    try:
        return _decode(capture, heap, why, graph, values, native or {})
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
    with capture.memory.unwatched():
        census = add_heap(ctx) if heap or why is not None else None
    tasks = asyncstacks.decode_tasks(ctx, interpreters, threads)
    add_greenlets(ctx, interpreters)
    add_extensions(ctx, interpreters)
    add_signals(ctx)
    timeouts = ctx.builder.snapshot.tables.setdefault("timeouts", [])
    timeouts += [{"stack": t.row, "left": round(t.time_left, 3)} for t in threads if t.time_left is not None]
    with capture.memory.unwatched():
        if census is not None and heap:
            add_details(ctx, census, interpreters)
            add_allocations(ctx, census)
        if census is not None and heap and graph is not False:
            with _as_far_as_memory_goes(ctx, "what keeps the largest containers"):
                add_bases(ctx, census, interpreters, tasks.tasks.address)
        if census is not None and values is not None:
            add_values(ctx, census, interpreters, values)
        if census is not None and why is not None:
            add_why(ctx, census, interpreters, tasks.tasks.address, why)
    stuck = judge_exclusive(ctx, tasks, threads)
    holder = _hold(ctx, interpreters, tasks)
    if census is not None and heap and graph is not False:
        # It may read what is late: after what is to be of one instant.
        with capture.memory.unwatched(), _as_far_as_memory_goes(ctx, "what nobody refers to"):
            add_graph(ctx, census, interpreters, tasks.tasks.address, asked=graph is True)
            if len(census.garbage):
                add_foreign(ctx, census, interpreters)  # again, without what only waits for the collector
    snapshot = ctx.builder.finish()
    rows = slice(tasks.first, tasks.first + len(tasks.tasks))
    snapshot.stacks.holder[rows] = holder
    snapshot.stacks.stuck[rows] = stuck[: len(tasks.tasks)]
    snapshot.stacks.stuck[[t.row for t in threads]] = stuck[len(tasks.tasks) :]
    snapshot.pause_ms = capture.pause_ms
    return snapshot


@contextmanager
def _as_far_as_memory_goes(ctx: Context, what: str) -> Iterator[None]:
    """A part that a core without all memory need not have."""
    try:
        yield
    except MemoryFault as fault:
        ctx.warn(f"{what} is not known: {fault}")


def _hold(ctx: Context, interpreters: list[Interpreter], tasks: asyncstacks.TaskStacks) -> NDArray[np.int64]:
    """Who holds the tasks (index into Snapshot.holders for each), and the things that others reach."""
    things = [t for t in ctx.builder.snapshot.things if t.address and not t.exclusive][:_MAX_HELD_THINGS]
    addresses = np.array([t.address for t in things], np.uint64)
    wanted = distinct(np.concatenate([tasks.tasks.address, addresses]))
    inner = [level.objects for level in tasks.chains.levels]
    parts = distinct(np.concatenate([tasks.tasks.address, *inner]))
    holder, paths = hold_stacks(ctx, interpreters, tasks.chains, wanted, parts)
    for thing, index in zip(things, holder[np.searchsorted(wanted, addresses)].tolist(), strict=True):
        if index >= 0:
            thing.held_by.append(paths[index])
    own: NDArray[np.int64] = holder[np.searchsorted(wanted, tasks.tasks.address)]
    used, inverse = np.unique(own[own >= 0], return_inverse=True)
    ctx.builder.snapshot.holders = [paths[i] for i in used.tolist()]
    own[own >= 0] = inverse
    return own


def _full_version(ctx: Context, system: int) -> str:
    """ "3.12.1" from sys.version, else what the runtime itself says."""
    text = ctx.objects.text(ctx.objects.dict_get(system, "version")) if system else None
    if text and text[:1] == "3":
        return text.split()[0][:32]
    major, minor = ctx.runtime.version
    return f"{major}.{minor}" + (f".{ctx.runtime.micro}" if ctx.runtime.micro is not None else "")
