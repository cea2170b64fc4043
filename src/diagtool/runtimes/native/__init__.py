"""The native heap: glibc's malloc read from memory, other allocators recognised."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diagtool.runtimes.native.heap import native_heap
    from diagtool.runtimes.native.model import NativeHeap

__all__ = ["NativeHeap", "native_heap"]


def __getattr__(name: str) -> object:
    """Whoever needs the figures of malloc alone need not wait for what walks a heap."""
    if name == "native_heap":
        from diagtool.runtimes.native.heap import native_heap

        return native_heap
    if name == "NativeHeap":
        from diagtool.runtimes.native.model import NativeHeap

        return NativeHeap
    raise AttributeError(name)
