"""Pages that are not there yet: who is asked for them, how often, and where they are kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.segments import Segment, merged

if TYPE_CHECKING:
    from diagtool.capture.memory import AddressSpace

__all__ = ["PAGE", "FaultHandler", "Faults"]

PAGE = 4096

#: Given sorted page addresses, the bytes of the pages that could be had: (page addresses, n x PAGE bytes).
#: It may instead add buffers and segments to the address space itself and return nothing: a whole mapped
#: file at once. It must not read through the address space, except with ``peek``.
FaultHandler = Callable[[NDArray[np.uint64]], tuple[NDArray[np.uint64], NDArray[np.uint8]]]

_MAX_ABSENT = 1 << 19  # absent pages remembered: a heap full of garbage pointers has no end of them
_SMALL = 64  # so few pages are copied together with others; more keep the buffer they came in
_CHUNK = 256 * PAGE  # one buffer for the small ones


class Faults:
    """Asks the handler for each page at most once, within the ranges it may know about."""

    def __init__(self, handler: FaultHandler | None, within: Sequence[tuple[int, int]] | None = None) -> None:
        self.handler = handler
        #: Pages that came, in the order they came.
        self.came: list[int] = []
        self._absent: set[int] = set()
        self._asking = False
        # Where pages that come in small numbers are copied to: the buffer, its number, how full it is.
        self._chunk = np.zeros(0, dtype=np.uint8)
        self._chunk_number = 0
        self._chunk_used = 0
        self._low: NDArray[np.uint64] | None = None
        self._high: NDArray[np.uint64] | None = None
        if within is not None:
            known = merged([(low & -PAGE, high + PAGE - 1 & -PAGE) for low, high in within])
            self._low = np.array([low for low, _ in known], dtype=np.uint64)
            self._high = np.array([min(high, (1 << 64) - PAGE) for _, high in known], dtype=np.uint64)

    def ask(self, pages: NDArray[np.uint64], memory: AddressSpace) -> None:
        """Have what can be had of ``pages`` (page addresses) added to ``memory``."""
        if self.handler is None or self._asking:
            return
        pages = self._known(pages)
        wanted = set(pages[~memory.mapped(pages, PAGE)].tolist()) - self._absent
        if not wanted:
            return
        need = np.array(sorted(wanted), dtype=np.uint64)
        self._asking = True
        try:
            got, data = self.handler(need)
        finally:
            self._asking = False
        self._keep(got, data, memory)
        if len(self._absent) < _MAX_ABSENT:
            self._absent.update(need[~memory.mapped(need, PAGE)].tolist())

    # Those pages that lie in a range that the handler may know about.
    def _known(self, pages: NDArray[np.uint64]) -> NDArray[np.uint64]:
        if self._low is None or self._high is None:
            return pages
        if not len(self._low):
            return pages[:0]
        index = np.searchsorted(self._low, pages, side="right") - 1
        known: NDArray[np.uint64] = pages[(index >= 0) & (pages < self._high[np.maximum(index, 0)])]
        return known

    def _keep(self, got: NDArray[np.uint64], data: NDArray[np.uint8], memory: AddressSpace) -> None:
        flat = np.ascontiguousarray(data, dtype=np.uint8).reshape(-1)
        pages = got[: len(flat) // PAGE].tolist()
        if not pages:
            return
        self.came.extend(pages)
        if len(pages) >= _SMALL:
            number, at = memory.add_buffer(flat), 0
        else:
            number, at = self._copied(flat[: len(pages) * PAGE], memory)
        memory.add_segments(Segment(page, page + PAGE, number, at + i * PAGE) for i, page in enumerate(pages))

    # Thousands of buffers of one page would make every gather a loop over buffers.
    def _copied(self, data: NDArray[np.uint8], memory: AddressSpace) -> tuple[int, int]:
        if self._chunk_used + len(data) > len(self._chunk):
            self._chunk = np.empty(_CHUNK, dtype=np.uint8)
            self._chunk_number = memory.add_buffer(self._chunk)
            self._chunk_used = 0
        at = self._chunk_used
        self._chunk[at : at + len(data)] = data
        self._chunk_used += len(data)
        return self._chunk_number, at
