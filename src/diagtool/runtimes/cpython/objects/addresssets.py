"""Sets of addresses as sorted arrays. Sorting 64-bit words is much faster in numpy than hashing them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64

#: Address ranges: (start, end), sorted and disjoint.
Ranges = list[tuple[int, int]]

_WORTH_PEELING = 512  # values
_PEELED = 4  # values that are taken out one by one


def distinct(addresses: U64) -> U64:
    """The distinct addresses, sorted."""
    if not len(addresses):
        return addresses
    ordered = np.sort(addresses)
    first = np.ones(len(ordered), np.bool_)
    first[1:] = ordered[1:] != ordered[:-1]
    return ordered[first]


def contains(members: U64, addresses: U64) -> NDArray[np.bool_]:
    """Which of ``addresses`` are in the sorted set ``members``."""
    if not len(members):
        return np.zeros(len(addresses), np.bool_)
    at = np.minimum(np.searchsorted(members, addresses), len(members) - 1)
    found: NDArray[np.bool_] = members[at] == addresses
    return found


def grouped(values: U64) -> tuple[U64, NDArray[np.intp]]:
    """``np.unique(values, return_inverse=True)``, in no order, and quick where a few values are nearly all.

    So it is with the types of objects that play one part: most are of one or two.
    """
    n = len(values)
    if n < _WORTH_PEELING:
        return np.unique(values, return_inverse=True)
    found: list[np.uint64] = []
    inverse = np.zeros(n, np.intp)
    rows, rest = np.arange(0), values
    for _ in range(_PEELED):
        differ = np.flatnonzero(rest != rest[0])
        if len(differ) * 4 > len(rest) * 3:
            break
        found.append(rest[0])
        if not len(differ):
            return np.array(found, np.uint64), inverse
        rows = rows[differ] if len(found) > 1 else differ
        rest = rest[differ]
        inverse[rows] = len(found)
    if not found:
        return np.unique(values, return_inverse=True)
    more, at = np.unique(rest, return_inverse=True)
    inverse[rows] = len(found) + at
    return np.concatenate([np.array(found, np.uint64), more]), inverse
