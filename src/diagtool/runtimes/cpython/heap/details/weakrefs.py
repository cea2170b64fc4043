"""Weak references: to one object in great number, and those whose object is gone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.heap.census import HeapCensus
from diagtool.runtimes.cpython.heap.details.amounts import objects_of
from diagtool.runtimes.cpython.heap.details.callables import most_registered

Row = dict[str, Any]

_WEAK = ("weakref.ReferenceType", "weakref", "weakproxy", "weakref.ProxyType", "weakcallableproxy")
_MANY = 50  # callbacks of one object that are worth a row
_MAX_OBJECTS = 50


def weak_references(ctx: Context, census: HeapCensus) -> Iterator[Row]:
    """A row for all with callbacks, one for those that are dead, one for each object with many callbacks."""
    o, v = ctx.objects, ctx.vectors
    kinds = [
        i
        for i, a in enumerate(census.types.address.tolist())
        if any(o.type_name(t) in _WEAK for t in o.mro(a))
    ]
    references = objects_of(census, kinds)
    target = v.field(references, "PyWeakReference.wr_object")
    callback = v.field(references, "PyWeakReference.wr_callback")
    alive = (target != 0) & ~v.are(target, "NoneType")
    dead = references[~alive]
    if len(dead):
        kind = ctx.vectors.types(dead)
        most, counts = np.unique(kind, return_counts=True)
        yield {
            **_row("weakref.ref to nothing", "", len(dead)),
            "same": int(counts.max()),
            "example": o.qualified_type(int(most[np.argmax(counts)])),
            "address": int(dead[0]),
        }
    called = alive & (callback != 0) & ~v.are(callback, "NoneType")
    yield from _rows(ctx, "weakref callbacks", "", callback[called])
    objects, counts = np.unique(target[called], return_counts=True)
    for i in np.argsort(-counts, kind="stable")[:_MAX_OBJECTS].tolist():
        if counts[i] < _MANY:
            break
        mine = callback[called & (target == objects[i])]
        for row in _rows(ctx, "weakref callbacks of one object", o.qualified_kind(int(objects[i])), mine):
            yield {**row, "address": int(objects[i])}


def _row(registry: str, name: str, items: int) -> Row:
    return {
        "registry": registry,
        "name": name,
        "items": items,
        "same": items,
        "example": None,
        "instances": 0,
        "bound_to": None,
    }


def _rows(ctx: Context, registry: str, name: str, callbacks: Any) -> Iterator[Row]:
    top = most_registered(ctx, callbacks)
    if top is not None:
        yield {
            **_row(registry, name, len(callbacks)),
            "same": top.count,
            "example": top.name,
            "instances": top.instances,
            "bound_to": top.of,
            "address": top.example,
        }
