"""CPython 3.9 to 3.15: interpreters, threads, frames, tasks, objects."""

from diagtool.runtimes.cpython.decode import decode

__all__ = ["decode"]
