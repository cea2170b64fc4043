"""Sets of objects found in memory, and what tells an object from other words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64
from diagtool.runtimes.cpython.context import Context


@dataclass(slots=True)
class Found:
    """Objects: their addresses, and the number of each one's type in the TypeTable."""

    address: U64
    kind: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.address)

    def only(self, rows: NDArray[np.bool_] | NDArray[np.intp]) -> Found:
        """Those of the given rows."""
        return Found(self.address[rows], self.kind[rows])


def together(parts: list[Found]) -> Found:
    """All of them."""
    return Found(
        np.concatenate([np.zeros(0, np.uint64), *(p.address for p in parts)]),
        np.concatenate([np.zeros(0, np.int32), *(p.kind for p in parts)]),
    )


def counts_of_living(ctx: Context, words: U64) -> NDArray[np.bool_]:
    """Which words may be the reference count of an object that is alive: not 0, and no pointer.

    From 3.12 on the count has 32 bits; 3.14 has flags in the upper 16 (ob_flags, Include/object.h). Free
    objects have a count of 0, those on a free list in some versions a pointer in its place.
    """
    version = ctx.runtime.version
    if version >= (3, 14):
        middle = np.uint64(0xFFFF << 32)
        fine: NDArray[np.bool_] = ((words & np.uint64(0xFFFFFFFF)) != 0) & (words & middle == 0)
        return fine
    # One comparison for "not 0, and below 2**32": 0 - 1 is the largest number there is.
    below: NDArray[np.bool_] = words - np.uint64(1) < np.uint64(0xFFFFFFFF)
    return below


def by_value(values: NDArray[Any]) -> Iterator[tuple[int, NDArray[np.intp]]]:
    """(value, the rows that have it) for each distinct value, the rows in their order."""
    if not len(values):
        return
    order = np.argsort(values, kind="stable")
    distinct, first = np.unique(values[order], return_index=True)
    yield from zip(distinct.tolist(), np.split(order, first[1:]), strict=True)
