"""A Capture of the copy-on-write image of a process: when one is taken, and how its memory is read.

    clone="never"    memory is copied in the stop, what does not fit is read later
    clone="auto"     an image where a process has more than can be copied in a few milliseconds, and where
                     it can be made; else as "never", with a warning that says why
    clone="always"   an image, or an error that says why not

What is consistent: all private memory, of one instant, however long one reads. Not: shared memory (it is
shared with the image, too) and memory that a fork leaves out (MADV_DONTFORK); both count in ``late_pages``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from diagtool.capture import plan, procfs, reap, room
from diagtool.capture.gadgets import find_gadgets
from diagtool.capture.late import LateReader
from diagtool.capture.lazy import LazyBuffer
from diagtool.capture.memory import AddressSpace, Segment
from diagtool.capture.model import Capture, Mapping
from diagtool.capture.residency import Residency
from diagtool.capture.stop import RSP, Preparation, Stopped
from diagtool.capture.vmread import MemoryReader

__all__ = ["FrozenMemory", "reap_leftovers"]

_MOST_RESIDENT = 2 << 30  # bytes of the image that stay in our memory, at most
_LEAST_RESIDENT = 64 << 20


def reap_leftovers(pid: int, mappings: Sequence[Mapping], reader: MemoryReader) -> None:
    """Have the process reap dead images that a diagtool that was killed has left."""
    children = reap.leftovers(pid)
    gadgets = find_gadgets(mappings, reader) if children else None
    if gadgets is not None:
        reap.in_target(pid, children, gadgets)


class Frozen(Protocol):
    """What stands still and is read: an image, or the process itself."""

    @property
    def pid(self) -> int:
        """Whose memory it is."""

    def close(self) -> None:
        """Let it go."""


class FrozenMemory:
    """The memory of an image. Close it after the address space; that ends the image."""

    def __init__(self, prepared: Preparation, stopped: Stopped, image: Frozen) -> None:
        """Raises OSError when the image is gone already."""
        self._image = image
        self._target = prepared.reader
        self._reader = MemoryReader(image.pid)
        self._lazy: LazyBuffer | None = None
        residency = Residency(image.pid)
        try:
            order = plan.MappingOrder(stopped.mappings)
            if order.spans:
                self._reader.probe(order.spans[0][0])
            pointers = [stopped.registers[tid][RSP] for tid in stopped.tids]
            layout = plan.choose(order, residency, pointers, 1 << 62)
        finally:
            residency.close()
        self._ranges = layout.ranges[np.argsort(layout.ranges[:, 0])]
        self._theirs = procfs.parse_maps(procfs.read_file(f"/proc/{image.pid}/maps"))

    def address_space(self, capture: Capture) -> AddressSpace:
        """Segments for what is in memory; the rest through faults."""
        space = AddressSpace(LateReader(capture, self._target, self._reader, self._theirs))
        sizes = self._ranges[:, 1] - self._ranges[:, 0]
        offsets = np.cumsum(sizes, dtype=np.uint64) - sizes
        limit = max(_LEAST_RESIDENT, min(_MOST_RESIDENT, room.headroom()))
        capture.imaged = plan.joined([(m.start, m.end) for m in self._theirs])
        self._lazy = LazyBuffer(self._reader, self._ranges, offsets, limit)
        number = space.add_buffer(self._lazy.array, source=self._lazy)
        pairs = zip(self._ranges.tolist(), offsets.tolist(), strict=True)
        space.add_segments([Segment(start, end, number, offset) for (start, end), offset in pairs])
        return space

    def close(self) -> None:
        """End the image: the target may have to be stopped for a moment, to reap it."""
        self._reader.close()
        if self._lazy is not None:
            self._lazy.close()
        self._image.close()
