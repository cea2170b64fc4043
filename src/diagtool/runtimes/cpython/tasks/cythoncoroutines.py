"""Coroutines compiled by Cython (uvloop, asyncpg, grpc.aio …): name, state, what they await.

They are objects of a C structure of their own, ``__pyx_CoroutineObject``, whose fields moved between releases
of Cython. Three of them are strings in a row in all of them (0.29 to 3.3: gi_name, gi_qualname,
gi_modulename), which is how the others are found: before them lies what is awaited, behind them the code
object and the label of the place where it goes on. There is no frame, so no line and no locals.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.frames.generators import (
    CREATED,
    FINISHED,
    GENERATOR_KINDS,
    RUNNING,
    SUSPENDED,
    GeneratorColumns,
)
from diagtool.runtimes.cpython.objects.reader import CYTHON_PREFIX
from diagtool.snapshot.model import Frame

__all__ = ("is_cython", "read_cython")

_KINDS = (*GENERATOR_KINDS, "iterable_coroutine")
_WORDS = range(3, 16)  # where the first of the three strings may lie, in words

#: What such a coroutine awaits, by type; anything else before its name is a function pointer.
_AWAITABLE = (
    "FutureIter",
    "Future",
    "Task",
    "coroutine_wrapper",
    "async_generator_asend",
    "async_generator_athrow",
    "anext_awaitable",
    *_KINDS,
)

_0 = np.uint64(0)


@dataclass(slots=True)
class CythonColumns:
    """``columns`` as of generators (without frame); ``frames``: interned frame of each, -1 for none."""

    columns: GeneratorColumns
    frames: NDArray[np.int32]


def is_cython(kind: str) -> bool:
    """Whether a type name is one of Cython's coroutines: "_cython_3_0_11.coroutine", "iterable_coroutine"."""
    return kind.rpartition(".")[2] in _KINDS and (
        kind.startswith(CYTHON_PREFIX) or kind == "iterable_coroutine"
    )


def read_cython(ctx: Context, addresses: U64) -> CythonColumns:
    """Decode coroutines whose types are :func:`is_cython`."""
    n = len(addresses)
    none = np.zeros(n, np.uint64)
    state = np.full(n, FINISHED, np.uint8)
    awaited, qualname = none.copy(), none.copy()
    frames = np.full(n, -1, np.int32)
    types, inverse = np.unique(ctx.vectors.types(addresses), return_inverse=True)
    for i in range(len(types)):
        rows = np.flatnonzero(inverse == i)
        at = _names_at(ctx, addresses[rows])
        if not at:
            continue
        awaited[rows] = _awaited(ctx, addresses[rows], at)
        qualname[rows] = ctx.vectors.words(addresses[rows], at + 8)
        state[rows] = _states(ctx, addresses[rows], at)
        frames[rows] = _frames(ctx, addresses[rows], at)
    awaited[state != SUSPENDED] = 0
    columns = GeneratorColumns(
        state=state,
        code=none,
        offset=np.full(n, -1, np.int64),
        frame=none,
        globals=none,
        locals=none,
        depth=np.zeros(n, np.int64),
        awaited=awaited,
        qualname=qualname,
    )
    return CythonColumns(columns, frames)


def _names_at(ctx: Context, objects: U64) -> int:
    """Offset of gi_name in objects of one type; 0 when none of the first few shows it."""
    for address in objects[:8].tolist():
        words = np.uint64(address) + np.arange(len(_WORDS) + 3, dtype=np.uint64) * np.uint64(8)
        kinds = ctx.vectors.kinds(ctx.vectors.words(words, 8 * _WORDS[0])) == "str"
        three = np.flatnonzero(kinds[:-2] & kinds[1:-1] & kinds[2:])
        if len(three):
            return 8 * (int(three[0]) + _WORDS[0])
    return 0


def _awaited(ctx: Context, objects: U64, at: int) -> U64:
    v = ctx.vectors
    near, far = v.words(objects, at - 8), v.words(objects, at - 16)
    return np.where(_awaitable(ctx, near), near, np.where(_awaitable(ctx, far), far, _0))


def _awaitable(ctx: Context, objects: U64) -> NDArray[np.bool_]:
    kinds, inverse = np.unique(ctx.vectors.kinds(objects), return_inverse=True)
    good = [str(k).rpartition(".")[2] in _AWAITABLE for k in kinds]
    return np.array(good, np.bool_)[inverse]


def _states(ctx: Context, objects: U64, at: int) -> NDArray[np.uint8]:
    # Behind the names: gi_code, gi_frame, int resume_label (0: not started, -1: ended), char is_running.
    memory = ctx.objects.memory
    label, ok = memory.load(objects + np.uint64(at + 40), "<i4")
    running, _ = memory.load(objects + np.uint64(at + 44), "u1")
    state = np.where(running == 1, RUNNING, np.where(label > 0, SUSPENDED, CREATED))
    return np.where(ok & (label >= 0), state, FINISHED).astype(np.uint8)


def _frames(ctx: Context, objects: U64, at: int) -> NDArray[np.int32]:
    v = ctx.vectors
    qualname, module, code = (v.words(objects, at + o) for o in (8, 16, 24))
    key = np.unique(qualname, return_inverse=True)[1].astype(np.int64) << 32
    key |= np.unique(module, return_inverse=True)[1]
    _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
    ids = []
    for row in first.tolist():
        name, where = ctx.objects.text(int(qualname[row])), ctx.objects.text(int(module[row]))
        known = ctx.codes.get(int(code[row]))
        file = known.filename if known else f"{(where or '').replace('.', '/')}.pyx"
        line = known.first_line if known and known.first_line > 0 else None
        ids.append(ctx.builder.frame(Frame(name, file, line, where, "cython")) if name else -1)
    return np.array(ids, np.int32)[inverse]
