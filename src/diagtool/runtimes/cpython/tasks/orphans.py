"""Coroutines and async generators that no task or thread drives: left suspended, or never started.

All of them are found in a census; those that are part of a task's await chain, run in a thread, or are held
by a frame of either as what its ``async for`` or ``async with`` works on, belong to that. Of the others only
the outermost of each chain is listed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64
from diagtool.runtimes.cpython.context import STACKREF_TAGS, Context
from diagtool.runtimes.cpython.frames.generators import CREATED, SUSPENDED, read_generators
from diagtool.runtimes.cpython.objects.addresssets import contains, distinct
from diagtool.runtimes.cpython.objects.census import Census, TypeNames
from diagtool.runtimes.cpython.objects.referents import ragged
from diagtool.runtimes.cpython.tasks.chains import Chains, follow, future_of
from diagtool.runtimes.cpython.tasks.creation import origin_trace
from diagtool.runtimes.cpython.tasks.things import read_things
from diagtool.runtimes.cpython.threads.interpreters import Interpreter
from diagtool.snapshot.model import KIND, STATE, Thing

__all__ = ("Orphans", "add_orphans", "orphan_types")

_KINDS = {"coroutine": KIND["coroutine"], "async_generator": KIND["asyncgen"]}
_NAMES = {"coroutine": "CoroutineType", "async_generator": "AsyncGeneratorType"}
_SYMBOLS = {"coroutine": "PyCoro_Type", "async_generator": "PyAsyncGen_Type"}

_MAX_ORPHANS = 200_000
_MAX_ORIGINS = 20_000  # whose place of creation is read, one by one
_MAX_SLOTS = 1 << 23

_0 = np.uint64(0)
_TAGS = np.uint64(~STACKREF_TAGS & (1 << 64) - 1)


@dataclass(slots=True)
class Orphans:
    """As they went into the builder: row ``first + i`` is the object at ``address[i]``, with its chain."""

    first: int
    address: U64
    chains: Chains


def orphan_types(ctx: Context, names: TypeNames) -> dict[str, list[int]]:
    """Addresses of the types of coroutines and async generators, by kind."""
    out = {}
    for kind, name in _NAMES.items():
        found = names.types("types", name)
        if not found:  # a program that dropped ``types``
            symbols = (m.symbol(_SYMBOLS[kind]) for m in ctx.capture.modules if m.path == ctx.runtime.module)
            found = [s for s in symbols if s]
        out[kind] = found
    return out


def add_orphans(
    ctx: Context,
    interpreters: list[Interpreter],
    census: Census,
    types: dict[str, list[int]],
    chains: Chains,
) -> Orphans:
    """Add a stack for each orphan; ``chains`` are those of all tasks."""
    owned = _owned(ctx, interpreters, chains)
    found = {kind: census.of(group, but=owned) for kind, group in types.items()}
    address = np.concatenate([*found.values(), np.zeros(0, np.uint64)])
    kinds = np.repeat([_KINDS[k] for k in found], [len(a) for a in found.values()]).astype(np.uint8)
    columns = read_generators(ctx, address)
    good = np.isin(columns.state, (CREATED, SUSPENDED)) & ctx.codes.code_like(columns.code)
    address, kinds = address[good], kinds[good]
    of_generators = np.flatnonzero(kinds == KIND["asyncgen"])
    driven = np.zeros(len(address), np.bool_)
    if len(of_generators):
        driven[of_generators] = _driven(ctx, interpreters, chains, address[of_generators])
    address, kinds = address[~driven], kinds[~driven]
    own = follow(ctx, address)
    inner = [np.zeros(0, np.uint64), *(level.objects for level in own.levels[1:])]
    outermost = ~contains(distinct(np.concatenate(inner)), address)
    if int(outermost.sum()) > _MAX_ORPHANS:
        ctx.warn(f"{int(outermost.sum()):,} coroutines have no task: only {_MAX_ORPHANS:,} are listed")
        outermost[np.flatnonzero(outermost)[_MAX_ORPHANS:]] = False
    rows = np.flatnonzero(outermost)
    first = _add(ctx, address[rows], kinds[rows], own, rows)
    return Orphans(first, address[rows], _of_rows(own, rows))


def _add(ctx: Context, address: U64, kinds: NDArray[np.uint8], chains: Chains, rows: NDArray[np.intp]) -> int:
    created = chains.state[rows] == CREATED
    state = np.where(created, STATE["created"], STATE["suspended"])
    origins = np.zeros(len(rows), np.int32)
    field = ctx.runtime.layout.get("PyCoroObject.cr_origin_or_finalizer")
    if field is None:
        field = ctx.runtime.layout.get("PyCoroObject.cr_origin", 0)
    if field:
        tuples = ctx.vectors.words(np.where(kinds == KIND["coroutine"], address, _0), field)
        with_origin = np.flatnonzero(ctx.vectors.are(tuples, "tuple"))[:_MAX_ORIGINS]
        for i in with_origin.tolist():
            origins[i] = origin_trace(ctx, int(tuples[i]))
    names = ctx.vectors.texts(ctx.vectors.field(address, "PyGenObject.gi_qualname"))
    return ctx.builder.add(
        names,
        kind=kinds,
        state=state,
        address=address,
        trace=chains.trace[rows],
        thing=_things(ctx, address, kinds, future_of(ctx, chains.leaf[rows])),
        created_by=origins,
    )


def _things(ctx: Context, address: U64, kinds: NDArray[np.uint8], futures: U64) -> NDArray[np.int32]:
    """The future at the end of a chain; else, of an async generator, itself: nobody iterates over it."""
    out = np.full(len(address), -1, np.int32)
    there = np.flatnonzero(futures)
    if len(there):
        awaited, inverse = np.unique(futures[there], return_inverse=True)
        ids = [ctx.builder.thing(thing) for thing in read_things(ctx, awaited)]
        out[there] = np.array(ids, np.int32)[inverse]
    for i in np.flatnonzero((kinds == KIND["asyncgen"]) & (futures == 0)).tolist():
        thing = Thing(int(address[i]), "async_generator", "nobody iterates over it", {"driven": False})
        out[i] = ctx.builder.thing(thing)
    return out


def _of_rows(chains: Chains, rows: NDArray[np.intp]) -> Chains:
    """The chains of some rows, with levels renumbered."""
    new = np.full(len(chains.trace), -1, np.intp)
    new[rows] = np.arange(len(rows))
    levels = []
    for level in chains.levels:
        keep = new[level.rows] >= 0
        if keep.any():
            columns = type(level.columns)(
                **{n: getattr(level.columns, n)[keep] for n in level.columns.__dataclass_fields__}
            )
            levels.append(type(level)(new[level.rows[keep]], level.objects[keep], columns, level.trace[keep]))
    return Chains(chains.trace[rows], chains.leaf[rows], chains.state[rows], chains.running[rows], levels)


# -- what belongs to somebody -----------------------------------------------------------------------------


def _owned(ctx: Context, interpreters: list[Interpreter], chains: Chains) -> U64:
    """Generators in chains of tasks and those that threads run."""
    parts = [np.zeros(0, np.uint64), *(level.objects for level in chains.levels)]
    frames = np.array([f.address for i in interpreters for t in i.threads for f in t.frames], np.uint64)
    lay = ctx.runtime.layout
    if "PyGenObject.gi_iframe" in lay:
        parts.append(frames - np.uint64(lay["PyGenObject.gi_iframe"]))
    elif "PyFrameObject.f_gen" in lay:
        parts.append(ctx.vectors.field(frames, "PyFrameObject.f_gen"))
    return distinct(np.concatenate(parts))


def _driven(
    ctx: Context, interpreters: list[Interpreter], chains: Chains, generators: U64
) -> NDArray[np.bool_]:
    """Which async generators a frame of a task or thread works on: its ``async for`` has the generator on the
    evaluation stack, its ``async with`` the method of a context manager that has it."""
    v = ctx.vectors
    slots = distinct(_all_slots(ctx, interpreters, chains))
    # Not all of them are objects. What we look for was made by the program, and is in the copy.
    slots = slots[ctx.objects.memory.mapped(slots, ctx.objects.type_offset + 8)]
    kinds, inverse = np.unique(v.types(slots), return_inverse=True)
    names = [ctx.objects.type_name(int(t)) if t else "" for t in kinds]
    of_kind = {n: slots[inverse == i] for i, n in enumerate(names)}
    reach = [slots]
    methods = of_kind.get("method", np.zeros(0, np.uint64))
    owners = np.concatenate([v.field(methods, "PyMethodObject.im_self"), *_managers(of_kind)])
    reach += [owners, v.attribute(owners, "gen"), v.attribute(owners, "thing")]
    for name, field in (
        ("async_generator_asend", "PyAsyncGenASend.ags_gen"),
        ("async_generator_athrow", "PyAsyncGenAThrow.agt_gen"),
    ):
        if name in of_kind:
            reach.append(v.field(of_kind[name], field))
    return contains(distinct(np.concatenate(reach)), generators)


def _managers(of_kind: dict[str, U64]) -> list[U64]:
    return [a for name, a in of_kind.items() if name.endswith(("_AsyncGeneratorContextManager", "aclosing"))]


def _all_slots(ctx: Context, interpreters: list[Interpreter], chains: Chains) -> U64:
    """What the locals and evaluation stacks of all frames of tasks and threads refer to."""
    parts = [np.zeros(0, np.uint64)]
    total = 0
    for level in chains.levels:
        c = level.columns
        places = ragged(np.where(c.frame != 0, c.locals, _0), c.depth)[1]
        total += len(places)
        if total > _MAX_SLOTS:
            ctx.warn("there are too many frames to see which of them iterate over async generators")
            break
        parts.append(ctx.vectors.words(places) & _TAGS)
    for interpreter in interpreters:
        for thread in interpreter.threads:
            for frame in thread.frames[:_MAX_ORIGINS]:
                code = ctx.codes.get(frame.code)
                size = ctx.objects.memory.try_read(
                    frame.code + ctx.runtime.layout["PyCodeObject.co_stacksize"], 4
                )
                count = len(ctx.codes.local_names(code)) if code else 0
                count += int.from_bytes(size or b"", "little") & 0xFFF
                raw = ctx.objects.memory.try_read(frame.locals, 8 * count) if count else None
                if raw:
                    parts.append(np.frombuffer(raw, dtype="<u8") & _TAGS)
    return np.concatenate(parts)
