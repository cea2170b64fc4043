"""The references that waiting threads hold: frames of all of them at once, and their Thread objects."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64, MemoryFault
from diagtool.runtimes.cpython.context import Context, RawFrame
from diagtool.runtimes.cpython.frames.evalstack import EvalStacks
from diagtool.runtimes.cpython.liveness.exclusive import KnownObjects
from diagtool.runtimes.cpython.objects.referents import Edges, Referents, joined, ragged, slot_edges
from diagtool.runtimes.cpython.threads.decode import ThreadStack

#: Types whose waiting methods are in C. Up to 3.13 nobody notes how much of the evaluation stack of a frame
#: that calls C is in use; the object of the call is on it.
_WAITED_IN_C = ("_queue.SimpleQueue", "_thread.lock", "_thread.RLock")
_MAX_SLOTS = 1 << 16  # of one frame

#: Attributes of a Thread that only its own run() uses.
_STARTED_WITH = ("_target", "_args", "_kwargs")

_0 = np.uint64(0)


def thread_edges(ctx: Context, threads: list[ThreadStack]) -> Edges:
    """(index of the thread, address of what it refers to) for all references of threads."""
    frames = [f for t in threads for f in t.thread.frames]
    owner = np.repeat(np.arange(len(threads)), [len(t.thread.frames) for t in threads])
    parts: list[Edges] = []
    if frames:
        first = np.array([f.locals for f in frames], np.uint64)
        address = np.array([f.address for f in frames], np.uint64)
        row, target = slot_edges(ctx, address, first, _depths(ctx, frames, address, first))
        parts.append((owner[row], target))
        row, where = ragged(first, _kept_arguments(ctx, frames, owner, address))
        parts.append((owner[row], ctx.vectors.words(where)))
    for i, t in enumerate(threads):
        for target in _own_fields(ctx, t):
            parts.append((np.full(len(target), i), target))
    return joined(parts)


def _locals_of(ctx: Context, frames: list[RawFrame]) -> NDArray[np.int64]:
    counts: dict[int, int] = {}
    for f in frames:
        if f.code not in counts:
            code = ctx.codes.get(f.code)
            counts[f.code] = len(ctx.codes.local_names(code)) if code else 0
    return np.array([counts[f.code] for f in frames], np.int64)


def _depths(ctx: Context, frames: list[RawFrame], address: U64, first: U64) -> NDArray[np.int64]:
    """Slots of each frame that are surely in use: the locals, and the evaluation stack where it is noted."""
    lay, v = ctx.runtime.layout, ctx.vectors
    count = _locals_of(ctx, frames)
    if "_PyInterpreterFrame.stackpointer" in lay:
        top = v.field(address, "_PyInterpreterFrame.stackpointer")
        noted = (top > first) & (top - first < 8 * _MAX_SLOTS)
        return np.where(noted, ((top - first) // np.uint64(8)).astype(np.int64), count)
    if "_PyInterpreterFrame.stacktop" in lay:  # -1 while unknown
        noted_depth = v.small(address, "_PyInterpreterFrame.stacktop", "<i4")
        noted = (noted_depth >= count) & (noted_depth < _MAX_SLOTS)
    else:
        noted_depth, noted = count, np.zeros(len(frames), np.bool_)
    stacks = EvalStacks(ctx)
    used = [0 if noted[i] else stacks.surely_used(f) for i, f in enumerate(frames)]
    return np.where(noted, noted_depth, count + np.minimum(np.array(used, np.int64), _MAX_SLOTS))


def _kept_arguments(
    ctx: Context, frames: list[RawFrame], owner: NDArray[np.intp], address: U64
) -> NDArray[np.int64]:
    """Of each frame how many of its arguments its caller still holds as well.

    Up to 3.10 they stay on the caller's evaluation stack. 3.11 moves them into the new frame, except where it
    enters the interpreter anew (``f(*args)``: the tuple stays). Later versions always move them.
    """
    none = np.zeros(len(frames), np.int64)
    if ctx.runtime.version >= (3, 12):
        return none
    codes = {f.code: ctx.codes.get(f.code) for f in frames}
    counts = np.array([c.argcount if (c := codes[f.code]) else 0 for f in frames], np.int64)
    counts[(counts < 0) | (counts >= 256)] = 0
    called = np.zeros(len(frames), np.bool_)  # by a frame of the same thread: all but each outermost one
    called[:-1] = owner[1:] == owner[:-1]
    # Thread.run calls with a tuple, which holds the arguments: see _run_holds
    called[:-1] &= np.array([not _is_thread_run(ctx, f) for f in frames[1:]], np.bool_)
    if ctx.runtime.version == (3, 11):
        called &= ctx.vectors.small(address, "_PyInterpreterFrame.is_entry", "u1") != 0
    return np.where(called, counts, none)


def _is_thread_run(ctx: Context, frame: RawFrame) -> bool:
    found = ctx.frame_of(frame)
    return found is not None and found.function == "Thread.run" and found.module == "threading"


def _run_holds(ctx: Context, stack: ThreadStack) -> list[int]:
    """``Thread.run`` calls ``self._target(*self._args)``: while that runs, it holds both on its stack.

    Except where the call entered no new interpreter loop (functions written in Python, from 3.12 on), and
    from 3.14 on, where the evaluation stack itself is read.
    """
    if ctx.runtime.version >= (3, 14) or not stack.thread.thread_object:
        return []
    frames = stack.thread.frames
    at = next((i for i, f in enumerate(frames) if i and _is_thread_run(ctx, f)), None)
    if at is None or not _entered_anew(ctx, frames[at - 1], frames[at]):
        return []
    names = ("_target", "_args")
    return [a for a in (ctx.objects.attribute(stack.thread.thread_object, n) for n in names) if a]


def _entered_anew(ctx: Context, callee: RawFrame, caller: RawFrame) -> bool:
    m, lay = ctx.objects.memory, ctx.runtime.layout
    if ctx.runtime.version < (3, 11):
        return True
    if ctx.runtime.version == (3, 11):
        return bool(m.u8(callee.address + lay["_PyInterpreterFrame.is_entry"]))
    return m.u64(callee.address + lay["_PyInterpreterFrame.previous"]) != caller.address  # a shim between


def _own_fields(ctx: Context, stack: ThreadStack) -> list[U64]:
    """What the thread holds besides its frames: what it was started with, the object of a call in C."""
    held: list[int] = []
    if ctx.runtime.version < (3, 14) and ctx.objects.kind(stack.thing) in _WAITED_IN_C:
        held.append(stack.thing)
    held += _run_holds(ctx, stack)
    held += [ctx.objects.attribute(stack.thread.thread_object, name) for name in _STARTED_WITH]
    return [np.array([a for a in held if a], np.uint64)]


def thread_objects(ctx: Context, threads: list[ThreadStack]) -> KnownObjects:
    """The Thread objects, with the attributes that others may use.

    Somebody who has a Thread can reach what its class keeps in attributes (``worker.queue.put(…)``), so these
    count as reachable as soon as anybody has it. What it was started with is the stack's own: nobody takes
    the arguments out of a Thread again. ``threading._active`` has every thread, and while it runs the C code
    that started it has its bound method ``_bootstrap``.
    """
    objects = {t.thread.thread_object: t for t in threads if t.thread.thread_object}
    addresses = np.array(sorted(objects), np.uint64)
    spare = []
    for a in addresses.tolist():
        frames = objects[a].thread.frames
        outermost = ctx.codes.get(frames[-1].code) if frames else None
        spare.append(2 if outermost is not None and outermost.name == "_bootstrap" else 1)
    referents = Referents(ctx)
    owner, target = referents.of(addresses)
    storage = np.array([_storage(ctx, a) for a in addresses.tolist()], np.uint64)
    through, inner = referents.of(storage)
    keep = target != storage[owner]
    sources = np.concatenate([addresses[owner[keep]], addresses[through]])
    targets = np.concatenate([target[keep], inner])
    own = {ctx.objects.attribute(a, name) for a in addresses.tolist() for name in _STARTED_WITH}
    others = ~np.isin(targets, np.array(sorted(own), np.uint64))
    return KnownObjects(addresses, np.array(spare, np.int64), sources[others], targets[others])


def _storage(ctx: Context, address: int) -> int:
    """Address of the ``__dict__`` of an instance where that is an object of its own, else 0."""
    try:
        return ctx.objects.instance_dict(address)
    except MemoryFault:
        return 0
