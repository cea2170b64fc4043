"""The heap of glibc in a capture, which several ask for: it is walked once."""

from __future__ import annotations

from diagtool.capture.model import Capture
from diagtool.runtimes.native.glibc.heap import GlibcHeap, read_glibc
from diagtool.runtimes.native.memorymap import Ranges

__all__ = ["walked"]

_NAME = "glibc"  # of what is found, among a capture's


def walked(capture: Capture, data: Ranges, stacks: Ranges) -> GlibcHeap | None:
    """As :func:`read_glibc`: ``data`` are those of modules, ``stacks`` those of threads.

    After what a capture left out has been fetched, else it would be walked with holes.
    """
    if _NAME not in capture.found:
        threads = [(t.tid, t.registers.get("fs_base", 0)) for t in capture.threads]
        capture.found[_NAME] = read_glibc(capture.memory, capture.mappings, data, stacks, threads)
    found = capture.found[_NAME]
    return found if isinstance(found, GlibcHeap) else None
