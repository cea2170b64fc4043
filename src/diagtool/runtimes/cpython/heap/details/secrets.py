"""Which of a few objects somebody has under a name that looks like a secret: a key, an attribute, a variable.

One pass over memory finds who refers to them. In the tables of dicts the key lies right before the value; of
attributes without a dict, and of the dicts that share their keys, the holder tells the name; of frames the
variable's. An object with one such name is not shown, whatever other names it has.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64, MemoryFault
from diagtool.runtimes.cpython.context import STACKREF_TAGS, Context
from diagtool.runtimes.cpython.frames.generators import GENERATOR_KINDS, read_generators
from diagtool.runtimes.cpython.heap.census import HeapCensus
from diagtool.runtimes.cpython.heap.owners import Owners
from diagtool.runtimes.cpython.heap.referrers import Targets, words_that_refer
from diagtool.runtimes.cpython.heap.steps import name_in_dict
from diagtool.runtimes.cpython.objects.addresssets import contains, distinct
from diagtool.runtimes.cpython.tasks.labels import looks_secret
from diagtool.runtimes.cpython.threads.interpreters import Interpreter

_MAX_ASKED = 5_000  # (holder, value) pairs that are asked for a name
_DICTS = ("dict", "collections.OrderedDict", "collections.defaultdict")


def under_secret_names(
    ctx: Context, census: HeapCensus, interpreters: Sequence[Interpreter], objects: U64
) -> U64:
    """Those of ``objects`` (some hundred) that have such a name."""
    objects = distinct(objects)
    if not len(objects):
        return objects
    found = [_locals(ctx, interpreters, objects)]
    words, which = words_that_refer(ctx, _memory(ctx), Targets(objects, np.zeros(len(objects), np.uint64)))
    keys = ctx.vectors.words(words - np.uint64(8))
    found.append(objects[which[_secret_texts(ctx, keys)]])
    owners = Owners(ctx, census)
    holder, bare, unused = owners.find(words)
    value, good = objects[which], (holder != 0) & ~unused
    pairs = [_pairs(holder[good & (bare == 0)], value[good & (bare == 0)])]
    rows = np.flatnonzero(good & (bare != 0))
    blocks, first, back = np.unique(holder[rows], return_index=True, return_inverse=True)
    if len(blocks):
        above, to = words_that_refer(ctx, _memory(ctx), Targets(blocks, bare[rows][first]))
        outer, inner_bare, outer_unused = owners.find(above)
        fine = (outer != 0) & (inner_bare == 0) & ~outer_unused
        for block in range(len(blocks)):
            inside = value[rows[back == block]]
            for one in distinct(outer[fine & (to == block)]).tolist():
                pairs.append(_pairs(np.full(len(inside), one, np.uint64), inside))
    asked = np.unique(np.concatenate(pairs), axis=0)
    if len(asked) > _MAX_ASKED:
        ctx.warn("some values are not shown: not all of their names could be looked at")
        found.append(asked[_MAX_ASKED:, 1])
    named = [own for one, own in asked[:_MAX_ASKED].tolist() if _secretly(ctx, one, own)]
    return distinct(np.concatenate([*found, np.array(named, np.uint64)]))


def _memory(ctx: Context) -> list[tuple[int, int]]:
    return ctx.vectors.object_memory()


def _pairs(holders: U64, values: U64) -> U64:
    return np.stack([holders, values], axis=1)


def _secret_texts(ctx: Context, keys: U64) -> NDArray[np.bool_]:
    """Which words are str objects whose text looks like the name of a secret."""
    texts = ctx.vectors.texts(ctx.vectors.only(keys, "str"))
    return np.array([bool(t) and looks_secret(t) for t in texts], np.bool_)


def _secretly(ctx: Context, holder: int, value: int) -> bool:
    try:
        kind = ctx.objects.kind(holder)
        if kind in GENERATOR_KINDS or kind == "frame":
            return any(looks_secret(n) for n in _variables(ctx, holder, value))
        name = (
            name_in_dict(ctx, holder, value) if kind in _DICTS else ctx.objects.attribute_name(holder, value)
        )
    except MemoryFault:
        return False
    return name is not None and looks_secret(name)


def _variables(ctx: Context, holder: int, value: int) -> list[str]:
    """Names of the variables of a generator or of a frame object that have this value."""
    if ctx.objects.kind(holder) != "frame":
        columns = read_generators(ctx, np.array([holder], np.uint64))
        return _names(ctx, int(columns.code[0]), int(columns.locals[0]), value)
    m, lay = ctx.objects.memory, ctx.runtime.layout
    if ctx.runtime.version < (3, 11):
        code = m.u64(holder + lay["PyFrameObject.f_code"])
        return _names(ctx, code, holder + lay["PyFrameObject.f_localsplus"], value)
    frame = m.u64(holder + lay["PyFrameObject.f_frame"])
    name = next(n for n in ("f_executable", "f_code") if f"_PyInterpreterFrame.{n}" in lay)
    code = m.u64(frame + lay[f"_PyInterpreterFrame.{name}"]) & ~STACKREF_TAGS
    return _names(ctx, code, frame + lay["_PyInterpreterFrame.localsplus"], value)


def _names(ctx: Context, code_address: int, first: int, value: int) -> list[str]:
    """Names of the variables of a frame that have this value."""
    code = ctx.codes.get(code_address)
    names = ctx.codes.local_names(code) if code and first else []
    words = ctx.vectors.words(np.uint64(first) + np.arange(len(names), dtype=np.uint64) * np.uint64(8))
    here = words & np.uint64(~STACKREF_TAGS & (1 << 64) - 1) == np.uint64(value)
    return [names[i] for i in np.flatnonzero(here).tolist()]


def _locals(ctx: Context, interpreters: Sequence[Interpreter], objects: U64) -> U64:
    found: list[int] = []
    for interpreter in interpreters:
        for thread in interpreter.threads:
            for raw in thread.frames[:500]:
                code = ctx.codes.get(raw.code)
                names = ctx.codes.local_names(code) if code and raw.locals else []
                places = np.uint64(raw.locals) + np.arange(len(names), dtype=np.uint64) * np.uint64(8)
                words = ctx.vectors.words(places) & np.uint64(~STACKREF_TAGS & (1 << 64) - 1)
                held = contains(objects, words)
                found += [int(words[i]) for i in np.flatnonzero(held).tolist() if looks_secret(names[i])]
    return np.array(found, np.uint64)
