"""Which pages of an address space somebody looked at: what a slim core has to hold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.faults import PAGE
from diagtool.capture.segments import Segment, merged

__all__ = ["Touched"]

_SHIFT = 12  # PAGE is 1 << 12


class Touched:
    """Pages of flat buffers that were read, by the number of the buffer. Offsets are in bytes."""

    def __init__(self) -> None:
        self._pages: dict[int, NDArray[np.bool_]] = {}

    def range(self, buffer: int, length: int, offset: int, size: int) -> None:
        """A range of a buffer of ``length`` bytes was read."""
        self._of(buffer, length)[offset >> _SHIFT : (offset + size - 1 >> _SHIFT) + 1] = True

    def values(self, buffer: int, length: int, offsets: NDArray[np.int64], size: int) -> None:
        """Values of ``size`` bytes were read, at many offsets."""
        pages = self._of(buffer, length)
        for at in (*range(0, size - 1, PAGE), size - 1):
            pages[offsets + at >> _SHIFT] = True

    def ranges(self, segments: Sequence[Segment]) -> list[tuple[int, int]]:
        """Addresses that were read, whole pages of a buffer, sorted and joined."""
        out = []
        for s in segments:
            pages = self._pages.get(s.buffer)
            if pages is None:
                continue
            first = s.offset >> _SHIFT
            part = pages[first : (s.offset + s.end - s.start - 1 >> _SHIFT) + 1].view(np.int8)
            edges = np.flatnonzero(np.diff(part, prepend=0, append=0)) + first
            at = (edges << _SHIFT) - s.offset + s.start
            pairs = at.reshape(-1, 2).tolist()
            out += [(max(low, s.start), min(high, s.end)) for low, high in pairs]
        return merged(out)

    def _of(self, buffer: int, length: int) -> NDArray[np.bool_]:
        pages = self._pages.get(buffer)
        if pages is None or len(pages) <= length >> _SHIFT:
            grown = np.zeros((length >> _SHIFT) + 2, np.bool_)
            if pages is not None:
                grown[: len(pages)] = pages
            self._pages[buffer] = pages = grown
        return pages
