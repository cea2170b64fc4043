"""Native frames of threads: unwound and named by drgn or gdb, from a capture, live or core."""

from diagtool.runtimes.native.stacks.engines import UNWINDERS, Unwinder, native_stacks
from diagtool.runtimes.native.stacks.model import NativeFrame, NativeStacks

__all__ = ["UNWINDERS", "NativeFrame", "NativeStacks", "Unwinder", "native_stacks"]
