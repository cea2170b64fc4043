"""Bytes of chosen objects, and which of them have no other references than those that were counted."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.heap.census import HeapCensus
from diagtool.runtimes.cpython.heap.found import by_value
from diagtool.runtimes.cpython.heap.sizes import NO_SIZE, Sizer
from diagtool.runtimes.cpython.heap.types import kinds_named
from diagtool.runtimes.cpython.objects.addresssets import contains, distinct
from diagtool.runtimes.cpython.objects.referents import Referents

_MAX_KEPT = 1 << 21  # objects
_MAX_LEVELS = 32


def objects_named(ctx: Context, census: HeapCensus, *names: str) -> U64:
    """All objects of types of exactly these ``tp_name``s, sorted."""
    return objects_of(census, kinds_named(ctx, census.types, *names))


def objects_of(census: HeapCensus, kinds: list[int]) -> U64:
    """All objects of the types of these numbers, sorted."""
    return np.sort(np.concatenate([np.zeros(0, np.uint64), *(census.of(kind) for kind in kinds)]))


def bytes_of(ctx: Context, census: HeapCensus, sizer: Sizer, objects: U64) -> int:
    """Bytes of distinct objects with what they own outside; what is no object has none."""
    kinds = census.types.index(ctx.vectors.types(objects))
    total = 0
    for kind, rows in by_value(kinds):
        if kind < 0:
            continue
        own, owned = sizer.of(kind, objects[rows])
        good = own < NO_SIZE
        total += int(own[good].sum()) + int(owned[good].sum())
    return total


def kept_only(ctx: Context, references: U64) -> tuple[U64, NDArray[np.bool_]]:
    """(the distinct objects that references lead to, which of them have no further references).

    An object that is immortal, or of which the count can't be read, counts as one that others refer to.
    """
    objects, counts = np.unique(references[references != 0], return_counts=True)
    return objects, ctx.vectors.references(objects) == counts


def kept_with(ctx: Context, objects: U64) -> U64:
    """``objects``, and all that would go with them: what nothing but these refers to, and so on (sorted).

    References that are not understood make an object one that stays; so this is the least there is.
    """
    referents = Referents(ctx)
    kept = distinct(objects)
    fresh, seen = kept, np.zeros(0, np.uint64)
    for _ in range(_MAX_LEVELS):
        if not len(fresh) or len(kept) > _MAX_KEPT:
            break
        seen = np.concatenate([seen, referents.of(fresh)[1]])
        found, alone = kept_only(ctx, seen)
        found = found[alone]
        fresh = found[~contains(kept, found)]
        kept = distinct(np.concatenate([kept, fresh]))
    return kept
