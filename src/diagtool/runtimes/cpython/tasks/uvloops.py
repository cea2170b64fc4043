"""Objects of uvloop: loops, timers, transports. They are C structures of Cython that no header describes.

What is needed is found by what it must be: a libuv handle begins with a pointer back to its Python object
(``uv_handle_t.data``, libuv's uv.h), a timer has one float (when it is due) and one tuple (its arguments), a
loop has the ident of its thread behind four flags. What does not fit gives nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64, MemoryFault
from diagtool.runtimes.cpython.context import Context

__all__ = (
    "UV_PLAIN",
    "UvLoop",
    "UvTimers",
    "field_of_kind",
    "is_uvloop",
    "read_loop",
    "read_timers",
    "transport_fds",
)

TIMER_KIND = "uvloop.loop.TimerHandle"
#: Transports that are streams of libuv themselves.
UV_PLAIN = (
    "uvloop.loop.TCPTransport",
    "uvloop.loop.UnixTransport",
    "uvloop.loop.ReadUnixTransport",
    "uvloop.loop.WriteUnixTransport",
)
_FIRST, _LAST = 16, 160  # bytes of an object that are looked through
_LOOP_END = 512  # of a loop, up to its receive buffer

# Offsets in libuv's structures on 64-bit Linux (uv.h and uv/unix.h of libuv 1.x). uv_stream_t: the fields of
# uv_handle_t (96 bytes), of uv_stream_t (24), two requests, then uv__io_t with its descriptor.
_UV_TYPE = 16
_UV_STREAM_FD = 184
_UV_STREAMS = (7, 12, 14)  # UV_NAMED_PIPE, UV_TCP, UV_TTY

_0 = np.uint64(0)


@dataclass(slots=True)
class UvLoop:
    """``ident`` of the thread that runs it (0: none); addresses of its timers; ``ready`` callbacks."""

    closed: bool
    debug: bool
    running: bool
    ident: int
    ready: int | None
    timers: U64
    executor: int


@dataclass(slots=True)
class UvTimers:
    """Arrays of one length: what timers will call, with what (a tuple), in which context, when."""

    callback: U64
    args: U64
    context: U64
    when: NDArray[np.float64]  # seconds of CLOCK_MONOTONIC


def is_uvloop(ctx: Context, address: int) -> bool:
    """Whether an object is (of a subclass of) uvloop's Loop."""
    try:
        line = ctx.objects.mro(ctx.objects.type_of(address))
    except MemoryFault:
        return False
    return any(ctx.objects.type_name(t) == "uvloop.loop.Loop" for t in line)


def read_loop(ctx: Context, address: int) -> UvLoop | None:
    """A loop of uvloop; None where its fields are not where they are known to be."""
    # uv_loop_t *, two ints, an object, then bint closed, debug, running, stopping and the ident (loop.pxd)
    o = ctx.objects
    head = ctx.runtime.layout["sizeof.PyObject"] + 8  # behind the table of methods
    try:
        closed, debug, running, stopping, ident = o.memory.unpack("<iiiiQ", address + head + 24)
        number = o.kind(o.memory.u64(address + head + 16))
    except MemoryFault:
        return None
    if number not in ("float", "int") or not {closed, debug, running, stopping} <= {0, 1}:
        return None
    words = np.uint64(address) + np.arange(head, _LOOP_END, 8, dtype=np.uint64)
    values = ctx.vectors.words(words)
    kinds = ctx.vectors.kinds(values)
    deques = values[kinds == "collections.deque"]
    timers = [o.set_items(int(s)) for s in values[kinds == "set"] if o.size(int(s))]
    found = [t for t in timers if len(t) and o.kind(int(t[0])) == TIMER_KIND]
    executors = values[kinds == "ThreadPoolExecutor"]
    return UvLoop(
        closed=bool(closed),
        debug=bool(debug),
        running=bool(running),
        ident=ident if running else 0,
        ready=o.size(int(deques[0])) if len(deques) else None,
        timers=found[0] if found else np.zeros(0, np.uint64),
        executor=int(executors[0]) if len(executors) else 0,
    )


def read_timers(ctx: Context, timers: U64) -> UvTimers:
    """Timers of uvloop; ``when`` is NaN where the release of uvloop does not keep it."""
    v = ctx.vectors
    when_at = _offset_of_kind(ctx, timers, ("float",))
    args_at = _offset_of_kind(ctx, timers, ("tuple",))
    context_at = _offset_of_kind(ctx, timers, ("_contextvars.Context", "Context"))
    nothing = np.zeros(len(timers), np.uint64)
    head = ctx.runtime.layout["sizeof.PyObject"] + 8
    return UvTimers(
        callback=v.words(timers, head),
        args=v.words(timers, args_at) if args_at else nothing,
        context=v.words(timers, context_at) if context_at else nothing,
        when=v.reals(v.words(timers, when_at)) if when_at else np.full(len(timers), np.nan),
    )


def _offset_of_kind(ctx: Context, objects: U64, kinds: Sequence[str]) -> int:
    """Offset of the first field that refers to an object of one of these types in any of a few objects."""
    for offset in range(_FIRST, _LAST, 8):
        if np.isin(ctx.vectors.kinds(ctx.vectors.words(objects[:64], offset)), kinds).any():
            return offset
    return 0


def field_of_kind(ctx: Context, objects: U64, *kinds: str) -> U64:
    """What each object of one type refers to by its field for objects of these types; 0 for none."""
    offset = _offset_of_kind(ctx, objects, kinds) if len(objects) else 0
    if not offset:
        return np.zeros(len(objects), np.uint64)
    values = ctx.vectors.words(objects, offset)
    return ctx.vectors.only(values, *kinds)


def transport_fds(ctx: Context, transports: U64) -> NDArray[np.int64]:
    """The descriptor of each transport of one type, -1 where it has none or is no stream of libuv."""
    v, memory = ctx.vectors, ctx.objects.memory
    out = np.full(len(transports), -1, np.int64)
    for offset in range(_FIRST, _LAST, 8):
        handles = v.words(transports, offset)
        own = (v.words(handles) == transports) & (transports != 0)
        if own.any():
            kind, _ = memory.load(handles + np.uint64(_UV_TYPE), "<i4")
            fd, ok = memory.load(handles + np.uint64(_UV_STREAM_FD), "<i4")
            good = own & ok & np.isin(kind, _UV_STREAMS) & (fd >= 0)
            out[good] = fd[good]
            break
    return out
