"""Exceptions that are stored with their traceback, which keeps ended frames and all their locals.

Table ``exceptions``, a row a type: ``count`` of those whose traceback has frames of calls that are over, and
that no coroutine is handling right now; ``frames``: how many such frames they keep; ``bytes``: of what would
go with them; ``held_by``: what some of them lie in; ``address`` of one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64, MemoryFault
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.frames.generators import GENERATOR_KINDS
from diagtool.runtimes.cpython.heap.census import HeapCensus
from diagtool.runtimes.cpython.heap.details.amounts import bytes_of, kept_with, objects_named, objects_of
from diagtool.runtimes.cpython.heap.owners import Owners
from diagtool.runtimes.cpython.heap.referrers import Targets, words_that_refer
from diagtool.runtimes.cpython.heap.sizes import Sizer
from diagtool.runtimes.cpython.objects.addresssets import contains, distinct
from diagtool.runtimes.cpython.objects.referents import handled_exceptions
from diagtool.runtimes.cpython.threads.interpreters import Interpreter

_BASE_EXCEPTION = 1 << 30  # Py_TPFLAGS_BASE_EXC_SUBCLASS
_MAX_FRAMES = 256  # of one traceback that are looked at
_MAX_WALKED = 1 << 22  # frames of all tracebacks
_MANY = 50  # exceptions of a type that are worth finding out who holds them
_SAMPLE = 64  # of these
_MAX_SIZED = 50_000  # exceptions of one type of which the bytes are added up
_MAX_ROWS = 500
_SIZED = ("dict", "list", "tuple", "set", "frozenset", "collections.deque", "collections.OrderedDict")
#: What refers to an exception and does not store it.
_PASSING = ("traceback", "frame", "weakref.ReferenceType", "weakref")
_0 = np.uint64(0)


def add_exceptions(ctx: Context, census: HeapCensus, _: Sequence[Interpreter]) -> None:
    """Add the table ``exceptions``."""
    v = ctx.vectors
    flags = census.types.flags & np.uint64(_BASE_EXCEPTION) != 0
    exceptions = objects_of(census, np.flatnonzero(flags).tolist())
    owner, frames = _ended_frames(ctx, exceptions)
    generators = objects_named(ctx, census, *GENERATOR_KINDS)
    handled = distinct(handled_exceptions(ctx, generators)[1])
    keeping = np.zeros(len(exceptions), np.bool_)
    keeping[owner] = True
    keeping &= ~contains(handled, exceptions)
    sizer = Sizer(ctx, census.types)
    rows = []
    stored: list[tuple[dict[str, object], U64]] = []
    for kind, mine in v.by_type(exceptions[keeping]):
        here = exceptions[keeping][mine]
        of = frames[contains(here, exceptions[owner])]
        part = here[:_MAX_SIZED]
        size = bytes_of(ctx, census, sizer, kept_with(ctx, part))
        row: dict[str, object] = {
            "type": ctx.objects.qualified_type(kind),
            "count": len(here),
            "frames": len(distinct(of)),
            "bytes": size * len(here) // len(part),
            "held_by": [],
            "address": int(here[0]),
        }
        rows.append(row)
        if len(here) >= _MANY:
            stored.append((row, here))
    if stored:
        owners = Owners(ctx, census)
        for row, here in stored[:4]:
            pick = np.unique(np.linspace(0, len(here) - 1, _SAMPLE).astype(np.intp))
            row["held_by"] = _held_by(ctx, owners, here[pick])
    rows.sort(key=lambda r: (-int(str(r["bytes"])), str(r["type"])))
    ctx.builder.snapshot.tables["exceptions"] = rows[:_MAX_ROWS]


def _ended_frames(ctx: Context, exceptions: U64) -> tuple[NDArray[np.intp], U64]:
    """(row of an exception, ended frame that its traceback keeps), for all of them."""
    v = ctx.vectors
    rows = np.arange(len(exceptions))
    trace = v.only(v.field(exceptions, "PyBaseExceptionObject.traceback"), "traceback")
    owners, frames = [np.zeros(0, np.intp)], [np.zeros(0, np.uint64)]
    walked = 0
    for _ in range(_MAX_FRAMES):
        rows, trace = rows[trace != 0], trace[trace != 0]
        walked += len(rows)
        if not len(rows) or walked > _MAX_WALKED:
            break
        frame = v.only(v.field(trace, "PyTracebackObject.tb_frame"), "frame")
        ended = _ended(ctx, frame)
        owners.append(rows[ended])
        frames.append(frame[ended])
        trace = v.only(v.field(trace, "PyTracebackObject.tb_next"), "traceback")
    return np.concatenate(owners), np.concatenate(frames)


def _ended(ctx: Context, frames: U64) -> NDArray[np.bool_]:
    """Which frame objects outlived their call: from 3.11 on these have taken over the frame itself.

    (take_ownership() in Python/frame.c. To 3.10, gen_send_ex() and _PyEval_EvalFrameDefault(): what neither
    runs nor belongs to a generator that may go on.)
    """
    v, lay = ctx.vectors, ctx.runtime.layout
    if ctx.runtime.version >= (3, 11):
        own = frames + np.uint64(lay["PyFrameObject._f_frame_data"])
        over: NDArray[np.bool_] = (frames != 0) & (v.field(frames, "PyFrameObject.f_frame") == own)
        return over
    over = (frames != 0) & (v.field(frames, "PyFrameObject.f_gen") == 0)
    if "PyFrameObject.f_state" in lay:
        over &= v.small(frames, "PyFrameObject.f_state", "i1") > lay["const.FRAME_EXECUTING"]
    else:
        over &= v.small(frames, "PyFrameObject.f_executing", "i1") == 0
    return over


def _held_by(ctx: Context, owners: Owners, exceptions: U64) -> list[str]:
    """What the exceptions lie in, in words, that of most of them first."""
    o = ctx.objects
    found = [h for h in _holders(ctx, owners, exceptions) if not _passing(ctx, h)]
    dicts = np.array(
        [h for h in distinct(np.array(found, np.uint64)).tolist() if o.kind(h) == "dict"], np.uint64
    )
    instances = _instances(ctx, owners, dicts[:_SAMPLE])
    said: Counter[str] = Counter()
    named: dict[str, str | None] = {}
    for address in (instances.get(h, h) for h in found):
        kind = o.kind(address)
        name = o.qualified_kind(address) or kind
        if kind in _SIZED:
            items = o.size(address)
            name += f" ({items:,} item{'s' * (items != 1)})"
        else:
            if name not in named:
                named[name] = _attribute(ctx, address, exceptions)
            attribute = named[name]
            name += f".{attribute}" if attribute else ""
        said[name] += 1
    return [name for name, n in said.most_common(3) if 10 * n >= len(found)]


def _passing(ctx: Context, holder: int) -> bool:
    return ctx.objects.kind(holder) in _PASSING or ctx.objects.is_a(holder, "BaseException")


def _holders(ctx: Context, owners: Owners, objects: U64) -> list[int]:
    """The objects that refer to any of ``objects``, once for each reference."""
    targets, size = objects, np.zeros(len(objects), np.uint64)
    found: list[int] = []
    for _ in range(2):  # a table of a small container is a block of its own: who points to that?
        if not len(targets):
            break
        words = words_that_refer(ctx, ctx.vectors.object_memory(), Targets(targets, size))[0]
        holder, bare, unused = owners.find(words)
        good = (holder != 0) & ~unused
        found += holder[good & (bare == 0)].tolist()
        blocks, first = np.unique(holder[good & (bare != 0)], return_index=True)
        targets, size = blocks, bare[good & (bare != 0)][first]
    return found


def _instances(ctx: Context, owners: Owners, dicts: U64) -> dict[int, int]:
    """Of dicts those that are the ``__dict__`` of an instance: the instance of each."""
    out: dict[int, int] = {}
    for holder in distinct(np.array(_holders(ctx, owners, dicts), np.uint64)).tolist():
        try:
            own = ctx.objects.instance_dict(holder)
        except MemoryFault:
            continue
        if own:
            out[own] = holder
    return out


def _attribute(ctx: Context, holder: int, values: U64) -> str | None:
    """The name of an attribute of ``holder`` that has one of the values."""
    for value in values.tolist():
        try:
            name = ctx.objects.attribute_name(holder, value)
        except MemoryFault:
            return None
        if name:
            return name
    return None
