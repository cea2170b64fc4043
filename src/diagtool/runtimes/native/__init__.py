"""The native heap: glibc's malloc read from memory, other allocators recognised."""

from diagtool.runtimes.native.heap import native_heap
from diagtool.runtimes.native.model import NativeHeap

__all__ = ["NativeHeap", "native_heap"]
