"""Generators, coroutines and async generators, thousands at a time: frame, state, what each awaits.

All three share one header (PyGenObject). 3.9 and 3.10 point to a PyFrameObject, later versions embed a
``_PyInterpreterFrame``. Where the awaited object lies on the evaluation stack follows ``_PyGen_yf`` of each
version (Objects/genobject.c).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64
from diagtool.runtimes.cpython.context import STACKREF_TAGS, Context
from diagtool.runtimes.cpython.objects.addresssets import grouped

GENERATOR_KINDS = ("coroutine", "generator", "async_generator")

# States of a generator, of our own: CPython's numbers change with the version.
CREATED, SUSPENDED, RUNNING, FINISHED, GARBAGE = range(5)

_YIELD_FROM = 72  # opcode, 3.9 and 3.10 (Lib/opcode.py)
_AWAIT_OPARG = 2  # RESUME's argument from here on: after ``yield from`` (2) or ``await`` (3), 3.11 and 3.12
_MAX_SLOTS = 1 << 16  # of one frame

_0 = np.uint64(0)
_TAGS = np.uint64(~STACKREF_TAGS & (1 << 64) - 1)


@dataclass(slots=True)
class GeneratorColumns:
    """What is known of each generator: arrays of one length.

    ``frame``: address of its frame (0: finished). ``locals``: address of the frame's first fast local.
    ``depth``: slots of localsplus in use, evaluation stack included. ``awaited``: the object it delegates to
    by ``await`` or ``yield from``, 0 when it does not.
    """

    state: NDArray[np.uint8]
    code: U64
    offset: NDArray[np.int64]
    frame: U64
    globals: U64
    locals: U64
    depth: NDArray[np.int64]
    awaited: U64
    qualname: U64

    def merged(self, other: GeneratorColumns, where: NDArray[np.bool_]) -> GeneratorColumns:
        """These columns and those of ``other``, which go to the rows marked in ``where``."""
        out = {}
        for name in self.__dataclass_fields__:
            own = getattr(self, name)
            column = np.zeros(len(where), own.dtype)
            column[~where], column[where] = own, getattr(other, name)
            out[name] = column
        return GeneratorColumns(**out)


def read_generators(ctx: Context, addresses: U64) -> GeneratorColumns:
    """Decode generator-like objects; the caller made sure that their type is one of GENERATOR_KINDS."""
    if ctx.runtime.version < (3, 11):
        return _with_frame_objects(ctx, addresses)
    return _with_embedded_frames(ctx, addresses)


def _with_frame_objects(ctx: Context, addresses: U64) -> GeneratorColumns:
    v, lay = ctx.vectors, ctx.runtime.layout
    frame = v.field(addresses, "PyGenObject.gi_frame")
    code = v.field(frame, "PyFrameObject.f_code")
    lasti = v.small(frame, "PyFrameObject.f_lasti", "<i4")
    stack = v.field(frame, "PyFrameObject.f_valuestack")
    if ctx.runtime.version == (3, 9):
        top = v.field(frame, "PyFrameObject.f_stacktop")  # 0 while it runs
        running = v.small(addresses, "PyGenObject.gi_running", "i1") != 0
        following = lasti + 2
        offset = lasti
    else:
        depth = v.small(frame, "PyFrameObject.f_stackdepth", "<i4")
        top = np.where(depth > 0, stack + (depth * 8).astype(np.uint64), _0)
        state = v.small(frame, "PyFrameObject.f_state", "i1")
        running = state == lay["const.FRAME_EXECUTING"]
        offset = np.where(lasti >= 0, lasti * 2, -1)
        following = offset + 2
    states = np.where(
        frame == 0, FINISHED, np.where(running, RUNNING, np.where(lasti < 0, CREATED, SUSPENDED))
    ).astype(np.uint8)
    text = v.words(v.field(code, "PyCodeObject.co_code") * np.uint64(1), 0)  # readable at all?
    bytecode = v.field(code, "PyCodeObject.co_code") + np.uint64(lay["PyBytesObject.ob_sval"])
    opcode, ok = ctx.objects.memory.load(bytecode + np.maximum(following, 0).astype(np.uint64), "u1")
    delegates = (states == SUSPENDED) & ok & (text != 0) & (opcode == _YIELD_FROM) & (top > stack)
    awaited = np.where(delegates, v.words(np.where(delegates, top - np.uint64(8), _0)), _0)
    first = np.where(frame != 0, frame + np.uint64(lay["PyFrameObject.f_localsplus"]), _0)
    used = np.where(top > first, (top - first) // np.uint64(8), (stack - first) // np.uint64(8))
    return GeneratorColumns(
        state=states,
        code=code,
        offset=offset,
        frame=frame,
        globals=v.field(frame, "PyFrameObject.f_globals"),
        locals=first,
        depth=_bounded(used, first),
        awaited=awaited,
        qualname=v.field(addresses, "PyGenObject.gi_qualname"),
    )


def _with_embedded_frames(ctx: Context, addresses: U64) -> GeneratorColumns:
    v, lay = ctx.vectors, ctx.runtime.layout
    base = lay["PyGenObject.gi_iframe"]
    at = _FrameFields(ctx, base)
    block = v.block(addresses, at.low, at.high)
    frame = addresses + np.uint64(base)
    raw_state = block.column(lay["PyGenObject.gi_frame_state"], "i1").astype(np.int64)
    code = block.column(at.code) & _TAGS
    states = np.full(len(addresses), GARBAGE, np.uint8)
    for name, state in (
        ("FRAME_CREATED", CREATED),
        ("FRAME_SUSPENDED", SUSPENDED),
        ("FRAME_SUSPENDED_YIELD_FROM", SUSPENDED),
        ("FRAME_SUSPENDED_YIELD_FROM_LOCKED", SUSPENDED),
        ("FRAME_EXECUTING", RUNNING),
        ("FRAME_COMPLETED", FINISHED),
        ("FRAME_CLEARED", FINISHED),
    ):
        number = lay.get(f"const.{name}")
        if number is not None:
            states[raw_state == number] = state
    first = frame + np.uint64(lay["_PyInterpreterFrame.localsplus"])
    if at.stackpointer:  # 3.14+: the address behind the last slot
        top = block.column(at.stackpointer)
        depth = np.where(top > first, (top - first) // np.uint64(8), _0)
    else:  # the number of slots in use; -1 while it runs
        depth = np.maximum(block.column(at.stacktop, "<i4"), 0).astype(np.uint64)
    slots = _bounded(depth, first)
    pointer = block.column(at.instruction)
    delegates = (states == SUSPENDED) & (slots > 0) & _delegates(ctx, pointer, raw_state)
    return GeneratorColumns(
        state=states,
        code=code,
        offset=_offsets(ctx, frame, code, pointer),
        frame=np.where(states == FINISHED, _0, frame),
        globals=block.column(at.globals),
        locals=first,
        depth=slots,
        awaited=_awaited(ctx, first + (slots * 8).astype(np.uint64), slots, delegates),
        qualname=block.column(lay["PyGenObject.gi_qualname"]),
    )


class _FrameFields:
    """Offsets of an embedded frame's fields from the start of its generator, which has them at ``base``."""

    def __init__(self, ctx: Context, base: int) -> None:
        lay = ctx.runtime.layout

        def of(*names: str) -> int:
            found = [lay[f"_PyInterpreterFrame.{n}"] for n in names if f"_PyInterpreterFrame.{n}" in lay]
            return base + found[0] if found else 0

        self.code = of("f_executable", "f_code")
        self.instruction = of("instr_ptr", "prev_instr")
        self.globals = of("f_globals")
        self.stackpointer = of("stackpointer")
        self.stacktop = of("stacktop")
        outside = (lay["PyGenObject.gi_frame_state"], lay["PyGenObject.gi_qualname"])
        inside = (self.code, self.instruction, self.globals, self.stackpointer, self.stacktop)
        used = [o for o in (*outside, *inside) if o]
        self.low, self.high = min(used), max(used) + 8


def _awaited(ctx: Context, top: U64, slots: NDArray[np.int64], delegates: NDArray[np.bool_]) -> U64:
    """What generators that delegate have on top of their evaluation stack."""
    v = ctx.vectors
    awaited: U64 = v.words(np.where(delegates, top - np.uint64(8), _0)) & _TAGS
    if ctx.runtime.version >= (3, 15):  # the receiver lies under a NULL that SEND keeps there
        below = delegates & (awaited == 0) & (slots > 1)
        if below.any():
            awaited = np.where(below, v.words(np.where(below, top - np.uint64(16), _0)) & _TAGS, awaited)
    return awaited


def _delegates(ctx: Context, pointer: U64, raw_state: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether a suspended generator stands in an ``await`` or ``yield from``."""
    lay = ctx.runtime.layout
    if ctx.runtime.version >= (3, 13):
        names = ("const.FRAME_SUSPENDED_YIELD_FROM", "const.FRAME_SUSPENDED_YIELD_FROM_LOCKED")
        return np.isin(raw_state, [lay[n] for n in names if n in lay])
    # Nearly all stand at the same few instructions, so each is read once.
    distinct, inverse = grouped(pointer)
    following, ok = ctx.objects.memory.load(distinct + np.uint64(2), "<u2")
    argument = following.astype(np.int64) >> 8
    found: NDArray[np.bool_] = ok & (argument & 3 >= _AWAIT_OPARG) & (argument < 8)
    return found[inverse]


def _offsets(ctx: Context, frame: U64, code: U64, pointer: U64) -> NDArray[np.int64]:
    """Offset in bytes of the current instruction from the start of its code, -1 for none."""
    lay, v = ctx.runtime.layout, ctx.vectors
    start = code + np.uint64(lay["PyCodeObject.co_code_adaptive"])
    if ctx.runtime.free_threaded and "PyCodeObject.co_tlbc" in lay:
        index = v.small(frame, "_PyInterpreterFrame.tlbc_index", "<i4")
        table = v.field(code, "PyCodeObject.co_tlbc")
        size = v.words(table).astype(np.int64)
        use = (index > 0) & (index < size)
        own = v.words(np.where(use, table + (8 + 8 * index).astype(np.uint64), _0))
        start = np.where(own != 0, own, start)
    offset = (pointer - start).astype(np.int64)
    return np.where((offset >= 0) & (offset < 1 << 30), offset, -1)


def _bounded(depth: U64, first: U64) -> NDArray[np.int64]:
    return np.where((first != 0) & (depth < _MAX_SLOTS), depth, _0).astype(np.int64)
