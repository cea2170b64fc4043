"""Greenlets (gevent, eventlet): where each one that does not run right now is suspended.

A suspended greenlet keeps its interpreter's frame chain in a C++ structure whose layout changes with the
greenlet release and the Python version (``src/greenlet/TGreenlet.hpp``). It is not looked up by version but
found by what must be true of all greenlets of a process: which word is the greenlet itself, which four are
the bounds of its C stack, which three are those of its data stack. Its part of the C stack is copied to the
heap while others run there, so addresses in it (3.12's shim frames) are translated into the copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64, MemoryFault
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.greenlets.frames import GreenletFrames, walk
from diagtool.runtimes.cpython.greenlets.waits import GreenletWaits
from diagtool.runtimes.cpython.objects.census import Census, TypeNames
from diagtool.runtimes.cpython.threads.interpreters import Interpreter
from diagtool.snapshot.model import KIND, STATE

__all__ = ("Greenlets", "add_greenlets", "decode_greenlets", "greenlet_types")

_WORDS = 32  # of a greenlet's structure that are looked at
_MAX_TYPES = 4096  # subclasses of greenlet
_MAX_PARENTS = 16  # steps from a greenlet that never ran up to one that did
_USER_SPACE = np.uint64(1 << 56)
_PAGE, _MAX_CHUNK = np.uint64(4096), np.uint64(1 << 30)
_MAIN_STOP = np.uint64(2**64 - 1)  # StackState: a main greenlet's stack has no end

_0, _8 = np.uint64(0), np.uint64(8)


@dataclass(slots=True)
class Greenlets:
    """All greenlets of a process, one column a fact.

    ``state``: codes of snapshot.model.STATES: created (not started), running, waiting (suspended), done.
    ``trace``: index into Traces; ``parent``: address of the parent greenlet (0: none); ``thread``: tid it
    belongs to (0: unknown); ``main``: whether it is a thread's main greenlet.
    """

    address: U64
    state: NDArray[np.uint8]
    trace: NDArray[np.int32]
    parent: U64
    thread: NDArray[np.int64]
    main: NDArray[np.bool_]
    name: list[str]
    suspended: NDArray[np.intp]  # the rows of those that wait
    frames: GreenletFrames  # their frames: its row i is that of ``suspended[i]``

    def __len__(self) -> int:
        return len(self.address)


@dataclass(slots=True)
class _Layout:
    """Columns of the words of a greenlet: where what lies; -1 for what could not be found."""

    stack: int  # start, stop, copy and size of what is copied of its C stack
    top_frame: int  # PyFrameObject; 0 in the greenlet that runs
    current_frame: int  # 3.11+: _PyInterpreterFrame
    main: int  # main greenlet of its thread
    parent: int
    thread_state: int  # of a main greenlet: the C++ ThreadState, which knows who runs


def greenlet_types(ctx: Context, interpreters: Sequence[Interpreter]) -> list[int]:
    """Addresses of ``greenlet.greenlet`` and of all its subclasses; [] where greenlet is not loaded."""
    roots = TypeNames(ctx, interpreters).types("greenlet", "greenlet")
    seen: dict[int, None] = dict.fromkeys(roots)
    todo = list(roots)
    while todo and len(seen) < _MAX_TYPES:
        for subclass in _subclasses(ctx, todo.pop()):
            if subclass not in seen:
                seen[subclass] = None
                todo.append(subclass)
    return list(seen)


def _subclasses(ctx: Context, type_address: int) -> list[int]:
    # tp_subclasses: a dict of weak references (Objects/typeobject.c, add_subclass)
    o, lay = ctx.objects, ctx.runtime.layout
    try:
        own = o.memory.u64(type_address + lay["PyTypeObject.tp_subclasses"])
        if not own or o.kind(own) != "dict":
            return []
        references = o.dict_items(own)[1]
    except (MemoryFault, KeyError):
        return []
    found = ctx.vectors.field(references, "PyWeakReference.wr_object")
    return [int(t) for t in found if t and o.is_a(int(t), "type")]


def decode_greenlets(
    ctx: Context, interpreters: Sequence[Interpreter], census: Census | None = None
) -> Greenlets | None:
    """All greenlets of a process; None where there are none. ``census``: one that counted their types."""
    types = greenlet_types(ctx, interpreters)
    if not types:
        return None
    addresses = (census or Census(ctx, types)).of(types)
    if not len(addresses):
        return None
    words, layout = _words(ctx, addresses)
    if layout is None:
        ctx.warn(f"{len(addresses):,} greenlets could not be read: their layout is not known")
        return None
    start, stop = words[:, layout.stack], words[:, layout.stack + 1]
    main = stop == _MAIN_STOP
    state = np.full(len(addresses), STATE["waiting"], np.uint8)
    state[(start == 0) & (stop != 0)] = STATE["done"]
    state[(start == 0) & (stop == 0)] = STATE["created"]
    state[_running(ctx, addresses, words, layout)] = STATE["running"]
    suspended = np.flatnonzero(state == STATE["waiting"])
    frames = walk(ctx, *_first_frames(ctx, words[suspended], layout))
    trace = np.zeros(len(addresses), np.int32)
    trace[suspended] = frames.traces(ctx)
    parent = _greenlets_of(words, layout.parent, addresses)
    parent[main] = 0
    names = ctx.vectors.attribute(addresses, "name")
    return Greenlets(
        address=addresses,
        state=state,
        trace=trace,
        parent=parent,
        thread=_threads(ctx, addresses, words, layout, parent),
        main=main,
        name=ctx.vectors.texts(np.where(ctx.vectors.kinds(names) == "str", names, _0)),
        suspended=suspended,
        frames=frames,
    )


def add_greenlets(
    ctx: Context, interpreters: Sequence[Interpreter], census: Census | None = None
) -> Greenlets | None:
    """Decode the greenlets and add them to the builder, but those that run: they are their thread's stack."""
    found = decode_greenlets(ctx, interpreters, census)
    if found is None:
        return None
    waits = np.zeros(len(found), np.int32)
    things = np.full(len(found), -1, np.int32)
    read = GreenletWaits(ctx, interpreters).of
    waits[found.suspended], things[found.suspended] = read(found.trace[found.suspended], found.frames)
    rows = np.flatnonzero(found.state != STATE["running"])
    ctx.builder.add(
        [found.name[row] for row in rows.tolist()],
        kind=KIND["greenlet"],
        state=found.state[rows],
        address=found.address[rows],
        trace=found.trace[rows],
        wait=waits[rows],
        thing=things[rows],
        thread=found.thread[rows],
    )
    return found


# -- the structure --------------------------------------------------------------------------------------


def _words(ctx: Context, addresses: U64) -> tuple[U64, _Layout | None]:
    """(the first words of each greenlet's structure, where what lies in them).

    From 2.0 on the Python object is weak references, dict and a pointer to a C++ object; before, all is in
    the Python object itself.
    """
    head = ctx.runtime.layout["sizeof.PyObject"]
    inner = ctx.vectors.words(addresses, head + 16)
    for modern in (True, False):
        base = inner if modern else addresses + np.uint64(head)
        words = np.stack([ctx.vectors.words(base, 8 * i) for i in range(_WORDS)], axis=1)
        layout = _layout(ctx, addresses, words, modern)
        if layout is not None:
            return words, layout
    return words, None


def _layout(ctx: Context, addresses: U64, words: U64, modern: bool) -> _Layout | None:
    own = words == addresses[:, None]
    old = ctx.runtime.version < (3, 11)
    # 3.1 and later keep the Python object in their second word too; then come the exception state (five
    # words, from Python 3.11 on three) and the two arguments of a switch.
    shift = 1 if modern and own[:, 1].mean() > 0.5 else 0
    stack = shift + (8 if old else 6) if modern else 0
    start, stop, copy, saved = (words[:, stack + i] for i in range(4))
    main = stop == _MAIN_STOP
    idle = (start == 0) & (copy == 0) & (saved == 0)
    suspended = (start < stop) & ((saved == 0) | ((copy != 0) & (saved <= stop - start)))
    if not ((idle | suspended) & ((stop == 0) | main | (stop < _USER_SPACE))).all() or not stop.any():
        return None
    top_frame = stack + (6 if modern else 7)
    current = -1
    if not old:
        current = _data_stack(words[suspended & ~main & (start != 0)], top_frame + 1)
    if not modern:
        return _Layout(stack, top_frame, current, -1, 5, -1)
    # A main greenlet has itself as the first word of its own part, the others (to 3.0) as well.
    later = np.flatnonzero(own[main].mean(axis=0) > 0.5) if main.any() else np.zeros(0, np.intp)
    later = later[later > top_frame]
    if not len(later):
        return _Layout(stack, top_frame, current, -1, -1, -1)
    at = int(later[0])
    first = at + 1 - shift  # of the others' own part: main greenlet, function to run, parent
    if first + 2 >= _WORDS:
        return None
    return _Layout(stack, top_frame, current, first, first + 2, at + 1)


def _data_stack(words: U64, first: int) -> int:
    """The column before the three words of Python 3.11+'s data stack: chunk (a page), top, limit."""
    if not len(words):
        return -1
    for column in range(first, min(first + 12, _WORDS - 3)):
        frame, chunk, top, limit = (words[:, column + i] for i in range(4))
        fits = (frame != 0) & (chunk != 0) & (chunk <= top) & (top <= limit) & (limit - chunk < _MAX_CHUNK)
        fits &= (chunk % _PAGE == 0) & (limit % _PAGE == 0) & (limit != chunk)
        if fits.mean() > 0.5:
            return column
    return -1


def _greenlets_of(words: U64, column: int, addresses: U64) -> U64:
    """The greenlets in a column; 0 for what is none."""
    if column < 0:
        return np.zeros(len(words), np.uint64)
    values = words[:, column]
    return np.where(np.isin(values, addresses), values, _0)


def _running(ctx: Context, addresses: U64, words: U64, layout: _Layout) -> NDArray[np.bool_]:
    """Which greenlets run now, each in its thread."""
    start, stop = words[:, layout.stack], words[:, layout.stack + 1]
    without_frame: NDArray[np.bool_] = (start != 0) & (words[:, layout.top_frame] == 0)
    if layout.thread_state < 0:
        return without_frame
    main = np.flatnonzero(stop == _MAIN_STOP)
    state = words[main, layout.thread_state]
    known = ctx.vectors.words(state) == addresses[main]  # ThreadState: main greenlet, current greenlet
    current = ctx.vectors.words(state, 8)[known]
    if not len(current) or not np.isin(current, addresses).all():
        return without_frame
    return np.isin(addresses, current)


def _threads(ctx: Context, addresses: U64, words: U64, layout: _Layout, parent: U64) -> NDArray[np.int64]:
    """The tid of each greenlet's thread: by whose stack it lies on, else that of its main or parent."""
    start, stop = words[:, layout.stack], words[:, layout.stack + 1]
    place = np.where((stop != 0) & (stop != _MAIN_STOP), stop - _8, start)
    tids = _threads_at(ctx, place)
    for other in (_greenlets_of(words, layout.main, addresses), *[parent] * _MAX_PARENTS):
        rows = np.flatnonzero((tids == 0) & (other != 0))
        if len(rows):
            tids[rows] = tids[np.searchsorted(addresses, other[rows])]
    return tids


def _threads_at(ctx: Context, places: U64) -> NDArray[np.int64]:
    mappings = sorted(ctx.capture.mappings, key=lambda m: m.start)
    starts = np.array([m.start for m in mappings], np.uint64)
    ends = np.array([m.end for m in mappings], np.uint64)
    out = np.zeros(len(places), np.int64)
    stacks = [(t.registers["rsp"], t.tid) for t in ctx.capture.threads if "rsp" in t.registers]
    if not stacks or not len(mappings):
        return out
    pointers = np.array([p for p, _ in stacks], np.uint64)
    tids = np.array([tid for _, tid in stacks], np.int64)
    mapping_of = np.searchsorted(starts, pointers, side="right") - 1
    at = np.searchsorted(starts, places, side="right") - 1
    inside = (at >= 0) & (places < ends[at])
    for mapping in np.unique(at[inside]):
        own = np.flatnonzero(mapping_of == mapping)
        rows = np.flatnonzero(inside & (at == mapping))
        if len(own) == 1:
            out[rows] = tids[own[0]]
        elif len(own):  # stacks without a gap between them: the nearest pointer at or below the place
            order = own[np.argsort(pointers[own])]
            nearest = np.searchsorted(pointers[order], places[rows], side="right") - 1
            out[rows] = np.where(nearest >= 0, tids[order[np.maximum(nearest, 0)]], 0)
    return out


def _first_frames(ctx: Context, words: U64, layout: _Layout) -> tuple[U64, U64, U64, U64]:
    """(innermost frame, start and size of what is copied of the C stack, where the copy lies)."""
    column = layout.top_frame if ctx.runtime.version < (3, 11) else layout.current_frame
    frame = words[:, column].copy() if column >= 0 else np.zeros(len(words), np.uint64)
    start, saved, copy = (words[:, layout.stack + i] for i in (0, 3, 2))
    return frame, start, saved, copy
