"""Which unreachable blocks were lost themselves, and which only hang on those.

Who loses a structure loses what only it points to as well: one leak, though the blocks are of several sizes.
A block that no other unreachable one points to was lost itself. In rings, where each is pointed to, the kind
with fewest blocks counts as what was lost: of a parent and its children, the parent.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import Mask

__all__ = ["causes"]

_Index = NDArray[np.int64]

_MOST_STEPS = 1000  # along one chain; what lies farther counts for itself
_MOST_RINGS = 100  # kinds that are tried as the cause of rings


def causes(kinds: _Index, heads: Mask, source: _Index, target: _Index) -> _Index:
    """For each block the kind on which it hangs; its own kind where it was lost itself.

    ``kinds``: numbers from 0, one a block. ``source``, ``target``: pointers between the blocks, by row.
    """
    count = len(kinds)
    cause: _Index = np.full(count, -1, dtype=np.int64)
    order = np.argsort(source, kind="stable")
    source, target = source[order], target[order]
    first = np.searchsorted(source, np.arange(count + 1))
    _spread(cause, np.flatnonzero(heads), kinds, first, target)
    sizes = np.bincount(kinds) if count else np.zeros(0, dtype=np.int64)
    for _ in range(_MOST_RINGS):
        rest = np.flatnonzero(cause < 0)
        if not len(rest):
            return cause
        present = np.unique(kinds[rest])
        chosen = present[np.argmin(sizes[present])]
        _spread(cause, rest[kinds[rest] == chosen], kinds, first, target)
    return np.where(cause < 0, kinds, cause)


# Give what ``blocks`` lead to their kind, as far as it has none.
def _spread(cause: _Index, blocks: _Index, kinds: _Index, first: _Index, target: _Index) -> None:
    cause[blocks] = kinds[blocks]
    for _ in range(_MOST_STEPS):
        if not len(blocks):
            return
        low = first[blocks]
        counts = first[blocks + 1] - low
        before = np.cumsum(counts) - counts
        edges = np.repeat(low - before, counts) + np.arange(int(counts.sum()))
        given = np.repeat(cause[blocks], counts)
        found = target[edges]
        fresh = cause[found] < 0
        found, given = found[fresh], given[fresh]
        cause[found] = given  # of several, one
        blocks = np.unique(found)
