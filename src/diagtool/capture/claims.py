"""Whose memory is whose: ranges that a decoder has recognised, for those who add up all of it.

A decoder of a runtime knows where its heap lies, in mappings that it shares with others. It says so here; who
adds up the memory (``diagtool.inventory.memory``) needs to know no runtime for it.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from diagtool.capture.memory import U64
from diagtool.capture.model import Capture

__all__ = ["claim", "claims"]

_CLAIMS = "claims"  # the name of what is found, among a capture's

#: n x (start, end)
Ranges = U64


def claim(capture: Capture, owner: str, ranges: Iterable[tuple[int, int]] | Ranges) -> None:
    """Say that ``ranges`` belong to ``owner``. Of ranges that overlap the one said first counts."""
    found = capture.found.setdefault(_CLAIMS, [])
    assert isinstance(found, list)
    pairs = ranges if isinstance(ranges, np.ndarray) else np.array(list(ranges), np.uint64)
    if pairs.size:
        found.append((owner, pairs.reshape(-1, 2).astype(np.uint64)))


def claims(capture: Capture) -> list[tuple[str, Ranges]]:
    """(owner, n x (start, end)), in the order in which they were said."""
    found = capture.found.get(_CLAIMS, [])
    return list(found) if isinstance(found, list) else []
