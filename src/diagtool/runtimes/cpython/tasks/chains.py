"""Await chains of many coroutines at once: outermost frame first, down to what is really waited on.

All chains go one step inward together, so the cost is one set of numpy gathers for each level of depth,
however many tasks there are. Equal chains come out as the same trace number.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64
from diagtool.runtimes.cpython.context import STACKREF_TAGS, Context
from diagtool.runtimes.cpython.frames.generators import (
    FINISHED,
    GENERATOR_KINDS,
    RUNNING,
    GeneratorColumns,
    read_generators,
)
from diagtool.runtimes.cpython.objects.addresssets import grouped
from diagtool.runtimes.cpython.objects.reader import CYTHON_PREFIX
from diagtool.runtimes.cpython.tasks.cythoncoroutines import is_cython, read_cython

MAX_DEPTH = 25_000  # steps of one chain

#: Awaitables in C that only pass on to a generator or coroutine: type -> field that holds it.
_PASSES_ON = {
    "coroutine_wrapper": "PyCoroWrapper.cw_coroutine",
    "async_generator_asend": "PyAsyncGenASend.ags_gen",
    "async_generator_athrow": "PyAsyncGenAThrow.agt_gen",
    "anext_awaitable": "anextawaitableobject.wrapped",
}
_FUTURE_ITERATORS = ("_asyncio.FutureIter", "FutureIter")

_0 = np.uint64(0)
_TAGS = np.uint64(~STACKREF_TAGS & (1 << 64) - 1)


@dataclass(slots=True)
class Level:
    """One step of all chains that got so far: ``rows`` (sorted) with the frame of each."""

    rows: NDArray[np.intp]
    objects: U64
    columns: GeneratorColumns
    trace: NDArray[np.int32]


@dataclass(slots=True)
class Chains:
    """``trace`` of each chain; ``leaf`` the object at its end that is no generator (0: none);
    ``leaf_kind`` its type; ``state`` the state of the outermost frame; ``running`` whether any frame runs."""

    trace: NDArray[np.int32]
    leaf: U64
    state: NDArray[np.uint8]
    running: NDArray[np.bool_]
    levels: list[Level] = field(default_factory=list)

    def level_of(self, rows: NDArray[np.intp], depth: int, values: str) -> U64:
        """A column of the frame at ``depth`` (0: outermost) for ``rows``; 0 where a chain ended before."""
        out = np.zeros(len(rows), np.uint64)
        if not 0 <= depth < len(self.levels):
            return out
        level = self.levels[depth]
        column = level.objects if values == "objects" else getattr(level.columns, values)
        at = np.minimum(np.searchsorted(level.rows, rows), len(level.rows) - 1)
        hit = level.rows[at] == rows
        out[hit] = column[at[hit]].astype(np.uint64)
        return out


def follow(ctx: Context, coroutines: U64) -> Chains:
    """Follow the chains that start at ``coroutines`` (of whatever type; 0 gives an empty chain)."""
    n = len(coroutines)
    chains = Chains(
        np.zeros(n, np.int32), np.zeros(n, np.uint64), np.full(n, FINISHED, np.uint8), np.zeros(n, np.bool_)
    )
    rows = np.arange(n)
    current = coroutines.astype(np.uint64)
    checkpoint = np.zeros(n, np.uint64)  # Brent's cycle check: a chain that meets its own past goes nowhere
    for depth in range(MAX_DEPTH):
        current, kinds, kind_of = _through(ctx, current)
        compiled = np.array([is_cython(k) for k in kinds], np.bool_)[kind_of]
        generator = np.array([k in GENERATOR_KINDS for k in kinds], np.bool_)[kind_of] | compiled
        ended = ~generator
        chains.leaf[rows[ended]] = current[ended]
        rows, current, compiled = rows[generator], current[generator], compiled[generator]
        if not len(rows):
            break
        looping = checkpoint[rows] == current
        if looping.any():
            ctx.warn(f"{int(looping.sum())} await chains lead back to themselves and were cut")
            rows, current, compiled = rows[~looping], current[~looping], compiled[~looping]
            if not len(rows):
                break
        if depth & (depth - 1) == 0:
            checkpoint[rows] = current
        columns, frames = _read(ctx, current, compiled)
        trace = _extend(ctx, chains, rows, columns, frames)
        chains.levels.append(Level(rows, current, columns, trace))
        if depth == 0:
            chains.state[rows] = columns.state
        chains.running[rows] |= columns.state == RUNNING
        on = columns.awaited != 0
        rows, current = rows[on], columns.awaited[on]
    else:
        ctx.warn(f"{len(rows)} await chains were cut at {MAX_DEPTH:,} frames")
    return chains


def _read(
    ctx: Context, objects: U64, compiled: NDArray[np.bool_]
) -> tuple[GeneratorColumns, NDArray[np.int32]]:
    """(what is known of one step of the chains, interned frame of each, -1 for none)."""
    if not compiled.any():
        columns = read_generators(ctx, objects)
        return columns, _frame_ids(ctx, columns)
    of_cython = read_cython(ctx, objects[compiled])
    columns = read_generators(ctx, objects[~compiled])
    frames = np.full(len(objects), -1, np.int32)
    frames[~compiled], frames[compiled] = _frame_ids(ctx, columns), of_cython.frames
    return columns.merged(of_cython.columns, compiled), frames


def _frame_ids(ctx: Context, columns: GeneratorColumns) -> NDArray[np.int32]:
    def details(row: int) -> tuple[str | None, str | None]:
        return ctx.module_name(int(columns.globals[row])), ctx.objects.text(int(columns.qualname[row]))

    frames = ctx.codes.frame_ids(ctx.builder, columns.code, columns.offset, details)
    shown = (columns.state != FINISHED) & (columns.frame != 0)
    return np.where(shown, frames, -1).astype(np.int32)


def _extend(
    ctx: Context,
    chains: Chains,
    rows: NDArray[np.intp],
    columns: GeneratorColumns,
    frames: NDArray[np.int32],
) -> NDArray[np.int32]:
    """Add one frame to the traces of ``rows``; where there is no frame any more the trace stays."""
    shown = (frames >= 0) & (columns.state != FINISHED)
    trace = chains.trace[rows]
    if shown.any():
        # pairs of (trace, frame): nearly always very few
        key = trace[shown].astype(np.int64) << 32 | frames[shown].astype(np.int64)
        distinct, inverse = grouped(key.view(np.uint64))
        nodes = [ctx.builder.node(int(k) >> 32, int(k) & 0xFFFFFFFF) for k in distinct]
        trace[shown] = np.array(nodes, np.int32)[inverse]
    chains.trace[rows] = trace
    return trace


def _through(ctx: Context, objects: U64) -> tuple[U64, list[str], NDArray[np.intp]]:
    """Step through wrappers that only pass on, a few deep: (objects, their distinct kinds, kind of each)."""
    for _ in range(4):
        types, kind_of = grouped(ctx.vectors.types(objects))
        kinds = [ctx.objects.type_name(int(t)) if t else "" for t in types]
        wrappers = [(i, _passes_on(ctx, kind)) for i, kind in enumerate(kinds)]
        if not any(offset for _, offset in wrappers):
            break
        objects = objects.copy()
        for i, offset in wrappers:
            if offset:
                rows = np.flatnonzero(kind_of == i)
                objects[rows] = ctx.vectors.words(objects[rows], offset)
    else:
        types, kind_of = grouped(ctx.vectors.types(objects))
        kinds = [ctx.objects.type_name(int(t)) if t else "" for t in types]
    return objects, kinds, kind_of


def _passes_on(ctx: Context, kind: str) -> int:
    # Offset of the field to go on with, 0 for what is no such wrapper. Cython's has one field.
    if kind.startswith(CYTHON_PREFIX) and kind.endswith(".coroutine_wrapper"):
        return ctx.runtime.layout["sizeof.PyObject"]
    return ctx.runtime.layout.get(_PASSES_ON.get(kind, ""), 0)


def local_of(ctx: Context, chains: Chains, rows: NDArray[np.intp], depth: int, name: str) -> U64:
    """A fast local by name of the frames at ``depth`` of chains that share one code object there."""
    none = np.zeros(len(rows), np.uint64)
    codes = chains.level_of(rows, depth, "code")
    if not len(codes) or not codes[0]:
        return none
    code = ctx.codes.get(int(codes[0]))
    names = ctx.codes.local_names(code) if code else []
    if name not in names:
        return none
    base = chains.level_of(rows, depth, "locals")
    values = ctx.vectors.words(np.where(codes == codes[0], base, _0), 8 * names.index(name)) & _TAGS
    cells = ctx.vectors.are(values, "cell")
    return np.where(cells, ctx.vectors.field(values, "PyCellObject.ob_ref"), values)


def future_of(ctx: Context, leaves: U64) -> U64:
    """The future behind each leaf: FutureIter -> its future, a Future or Task itself; else 0."""
    kinds = ctx.vectors.kinds(leaves)
    iterators = np.isin(kinds, _FUTURE_ITERATORS)
    out = np.zeros(len(leaves), np.uint64)
    out[iterators] = ctx.vectors.field(leaves[iterators], "futureiterobject.future")
    return out
