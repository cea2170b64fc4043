"""What is told of objects besides their number: caches, registries, strings, exceptions, views of arrays.

Each module adds one table to the snapshot. All of them read bounded numbers of objects, and a walk that
memory ends early is a warning, never an error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from diagtool.capture.memory import MemoryFault
from diagtool.runtimes.cpython.context import Context
from diagtool.runtimes.cpython.heap.census import HeapCensus
from diagtool.runtimes.cpython.heap.details.arrays import add_array_views
from diagtool.runtimes.cpython.heap.details.caches import add_caches
from diagtool.runtimes.cpython.heap.details.ctypesobjects import add_ctypes
from diagtool.runtimes.cpython.heap.details.debugmode import add_debug_mode
from diagtool.runtimes.cpython.heap.details.exceptions import add_exceptions
from diagtool.runtimes.cpython.heap.details.exports import add_exports
from diagtool.runtimes.cpython.heap.details.fdowners import add_fd_owners
from diagtool.runtimes.cpython.heap.details.foreign import add_foreign
from diagtool.runtimes.cpython.heap.details.registries import add_registries
from diagtool.runtimes.cpython.heap.details.strings import add_interned
from diagtool.runtimes.cpython.threads.interpreters import Interpreter

__all__ = ["add_details"]

_Adder = Callable[[Context, HeapCensus, Sequence[Interpreter]], None]
_ADDERS: dict[str, _Adder] = {
    "caches of functools": add_caches,
    "registries of callbacks": add_registries,
    "interned strings": add_interned,
    "exceptions": add_exceptions,
    "views of arrays": add_array_views,
    "asyncio's debug mode": add_debug_mode,
    "objects of ctypes": add_ctypes,
    "callbacks and handles of C code": add_foreign,
    "memory that objects lend to others": add_exports,
    "owners of open files": add_fd_owners,
}


def add_details(ctx: Context, census: HeapCensus, interpreters: Sequence[Interpreter]) -> None:
    """Add the tables of details; each module of this package says what is in its own."""
    for what, add in _ADDERS.items():
        try:
            add(ctx, census, interpreters)
        except MemoryFault as fault:
            ctx.warn(f"{what} could not be read to the end: {fault}")
