"""Who refers to objects: one pass over memory for all of them at once, whatever the types of the referrers.

A word that is the address of one of them is a reference, in whatever it lies. So nothing is missed for want
of a layout; a stale word in memory that is used for something else may add one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.objects.addresssets import Ranges, contains

_FILTER_BITS = 20  # of an address above its lowest four
_MASK = np.uint32((1 << _FILTER_BITS) - 1)
_MAX_HITS = 1 << 22  # references found in one pass
_PER_TARGET = 256  # of one target
_MANY = 64  # to one target, in one block of memory


@dataclass(slots=True)
class Targets:
    """Objects (by their address) and bare blocks (any address inside), sorted by address."""

    address: U64
    size: U64  # bytes of a bare block; 0 for an object


def words_that_refer(
    ctx: Context, ranges: Ranges, targets: Targets, instances: U64 | None = None
) -> tuple[U64, NDArray[np.intp]]:
    """(addresses of words, row of the target each refers to). At most some hundred of each target.

    ``instances``: sorted addresses of objects whose own reference to their type is left out. (Of a type with
    many instances nothing else would be among the first hundreds.)
    """
    table = np.zeros(1 << _FILTER_BITS, np.bool_)
    table[_places(targets.address)] = True
    reach = int(targets.size.max(initial=0))
    for step in range(16, reach + 16, 16):
        inside = targets.address[targets.size > np.uint64(step)]
        table[_places(inside + np.uint64(step))] = True
    where: list[U64] = [np.zeros(0, np.uint64)]
    which: list[NDArray[np.intp]] = [np.zeros(0, np.intp)]
    total = 0
    for start, words in ctx.capture.memory.blocks(ranges):
        low = words.view("<u4")[::2] >> np.uint32(4)
        low &= _MASK
        rows = np.flatnonzero(np.take(table, low))
        values = words[rows]
        at = np.maximum(np.searchsorted(targets.address, values, side="right"), 1) - 1
        distance = values - targets.address[at]
        hit = (distance == 0) | (distance < targets.size[at])
        place = np.uint64(start) + rows[hit].astype(np.uint64) * np.uint64(8)
        target = at[hit]
        if instances is not None:
            others = _but_types(place, target, instances, ctx.objects.type_offset)
            place, target = place[others], target[others]
        where.append(place)
        which.append(target)
        total += len(place)
        if total > _MAX_HITS:
            ctx.warn("more references than can be looked at: who keeps objects was not followed to the end")
            break
    return _few(np.concatenate(where), np.concatenate(which))


def _but_types(place: U64, target: NDArray[np.intp], instances: U64, offset: int) -> NDArray[np.bool_]:
    """Which words are not the reference of an instance to its type, as far as there are many of them."""
    others = np.ones(len(place), np.bool_)
    rows = np.flatnonzero(np.bincount(target)[target] > _MANY) if len(target) > _MANY else target[:0]
    others[rows] = ~contains(instances, place[rows] - np.uint64(offset))
    return others


def _places(addresses: U64) -> NDArray[np.uint32]:
    places: NDArray[np.uint32] = (addresses >> np.uint64(4)).astype(np.uint32) & _MASK
    return places


def _few(where: U64, which: NDArray[np.intp]) -> tuple[U64, NDArray[np.intp]]:
    order = np.argsort(which, kind="stable")
    ordered = which[order]
    first = np.searchsorted(ordered, ordered)
    keep = order[np.arange(len(order)) - first < _PER_TARGET]
    return where[keep], which[keep]
