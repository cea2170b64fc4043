"""Loggers and their handlers, those that do the same twice among them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from diagtool.capture.memory import U64
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.heap.details.contents import items_of
from diagtool.runtimes.cpython.objects.census import TypeNames

Row = dict[str, Any]

_MAX_LOGGERS = 200_000
_MAX_HANDLERS = 100_000  # of one logger


def handlers(ctx: Context, names: TypeNames) -> Iterator[Row]:
    """A row a logger that has handlers."""
    v, o = ctx.vectors, ctx.objects
    known = _loggers(ctx, names)
    lists = v.only(v.attribute(known, "handlers"), "list")
    counts = v.sizes(lists)
    texts = v.texts(v.attribute(known, "name"))
    for i in np.flatnonzero(counts > 0).tolist():
        held = items_of(ctx, int(lists[i]))[:_MAX_HANDLERS]
        kinds = Counter(v.types(held).tolist())
        if not kinds:
            continue
        kind, same = kinds.most_common(1)[0]
        yield {
            "registry": "logging handlers",
            "name": texts[i],
            "items": len(held),
            "same": same,
            "example": o.qualified_type(kind),
            "instances": 0,
            "bound_to": None,
            "duplicates": _duplicates(ctx, held),
            "address": int(held[0]),
        }


def loggers(ctx: Context, names: TypeNames) -> Iterator[Row]:
    """One row: all loggers, which ``logging`` keeps for good."""
    known = _loggers(ctx, names)
    if not len(known):
        return
    texts = ctx.vectors.texts(ctx.vectors.attribute(known, "name"))
    shapes = Counter(re.sub(r"[0-9a-f]{8,}|\d+", "#", text) for text in texts)
    shape, same = shapes.most_common(1)[0]
    yield {
        "registry": "logging.getLogger",
        "name": "",
        "items": len(known),
        "same": same,
        "example": shape if same > 1 else None,
        "instances": 0,
        "bound_to": None,
        "address": int(known[0]),
    }


def _loggers(ctx: Context, names: TypeNames) -> U64:
    """The root loggers, and those that their managers know (Logger.manager.loggerDict)."""
    o, lay = ctx.objects, ctx.runtime.layout
    found = [np.array(names.values("logging", "root"), np.uint64)]
    for kind in names.types("logging", "Logger"):
        manager = o.dict_get(o.memory.u64(kind + lay["PyTypeObject.tp_dict"]), "manager")
        held = o.attribute(manager, "loggerDict")
        if held:
            found.append(items_of(ctx, held)[:_MAX_LOGGERS])
    every = np.concatenate(found)
    return every[~ctx.vectors.are(every, "PlaceHolder")]


def _duplicates(ctx: Context, held: U64) -> int:
    """How many handlers do what another one does: same type, level and target, no filters.

    The target is the file's name, the stream or the queue; of what has none of these nothing is known.
    """
    v = ctx.vectors
    files = v.texts(v.attribute(held, "baseFilename"))
    target = v.attribute(held, "stream")
    target = np.where(target != 0, target, v.attribute(held, "queue"))
    levels = v.integers(v.attribute(held, "level"))
    filters = v.sizes(v.attribute(held, "filters"))
    kinds = v.types(held)
    seen: Counter[tuple[int, int | str, int]] = Counter()
    for kind, file, place, level, many in zip(
        kinds.tolist(), files, target.tolist(), levels.tolist(), filters.tolist(), strict=True
    ):
        if (file or place) and many == 0:
            seen[kind, file or place, level] += 1
    return sum(n - 1 for n in seen.values())
