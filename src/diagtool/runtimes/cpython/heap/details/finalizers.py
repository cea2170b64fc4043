"""``weakref.finalize``: what waits for objects to go, and what keeps the very object that it waits for.

"It is important to ensure that func, args and kwargs do not own any references to obj, either directly or
indirectly, since otherwise obj will never be garbage collected." (The documentation of weakref.finalize.)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.heap.details.callables import most_registered
from diagtool.runtimes.cpython.objects.census import TypeNames
from diagtool.runtimes.cpython.objects.referents import Referents

Row = dict[str, Any]

_MAX_STEPS = 5
#: What a function keeps its arguments and variables in; what lies behind other objects is not looked at.
_PASSED = ("tuple", "dict", "method", "function", "cell", "functools.partial", "builtin_function_or_method")
_0 = np.uint64(0)


def finalizers(ctx: Context, names: TypeNames) -> Iterator[Row]:
    """A row for each type of objects that are waited for."""
    o, v, lay = ctx.objects, ctx.vectors, ctx.runtime.layout
    for kind in names.types("weakref", "finalize"):
        held = o.dict_get(o.memory.u64(kind + lay["PyTypeObject.tp_dict"]), "_registry")
        if not held:
            continue
        infos = o.dict_items(held)[1]
        objects = v.field(v.attribute(infos, "weakref"), "PyWeakReference.wr_object")
        functions = v.attribute(infos, "func")
        kept = _keep_themselves(ctx, infos, objects)
        for waited, rows in v.by_type(objects):
            top = most_registered(ctx, functions[rows])
            if top is None:
                continue
            yield {
                "registry": "weakref.finalize",
                "name": o.qualified_type(waited),
                "items": len(rows),
                "same": top.count,
                "example": top.name,
                "instances": top.instances,
                "bound_to": top.of,
                "self_kept": int(np.count_nonzero(kept[rows])),
                "address": int(objects[rows[np.argmax(kept[rows])]]),
            }


def _keep_themselves(ctx: Context, infos: U64, objects: U64) -> NDArray[np.bool_]:
    """Which objects are referred to by the function or the arguments of their own finalizer."""
    v, referents = ctx.vectors, Referents(ctx)
    kept = np.zeros(len(infos), np.bool_)
    owner = np.tile(np.arange(len(infos)), 3)
    frontier = np.concatenate([v.attribute(infos, name) for name in ("func", "args", "kwargs")])
    for _ in range(_MAX_STEPS):
        hit = (frontier == objects[owner]) & (frontier != 0)
        kept[owner[hit]] = True
        follow = v.are(frontier, *_PASSED) & ~kept[owner]
        owner, frontier = owner[follow], frontier[follow]
        source, target = referents.of(frontier)
        pairs = np.unique(np.stack([owner[source].astype(np.uint64), target]), axis=1)
        owner, frontier = pairs[0].astype(np.intp), pairs[1]
        if not len(frontier):
            break
    return kept
