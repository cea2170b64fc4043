"""From a capture to a snapshot: what each runtime in the process has to say of it."""

from __future__ import annotations

from diagtool.capture.errors import NoRuntime, NotSupported
from diagtool.capture.model import Capture
from diagtool.runtimes.cpython.decode import decode as decode_cpython
from diagtool.runtimes.cpython.decode import describe
from diagtool.runtimes.native import native_heap
from diagtool.snapshot.model import Snapshot

__all__ = ["add_native", "decode"]

#: What a process without a runtime that we read is called.
NATIVE = "native"


def decode(
    capture: Capture,
    *,
    heap: bool = False,
    why: str | None = None,
    graph: bool | None = None,
    values: str | None = None,
    native: bool = False,
) -> Snapshot:
    """The snapshot of a captured process.

    ``heap``, ``why``, ``graph``, ``values``: see :func:`diagtool.runtimes.cpython.decode`.

    With ``native`` the heap of the C library is read, too (:func:`add_native`); then a process without a
    Python has a snapshot as well, of nothing else, and a warning says why; and one whose Python can't be read
    unless its objects are asked for (``heap``). Raises NotSupported where nothing can be read.
    """
    try:
        snapshot = decode_cpython(capture, heap=heap, why=why, graph=graph, values=values)
    except NotSupported as error:
        if not native or why is not None or (heap and not isinstance(error, NoRuntime)):
            raise
        snapshot = Snapshot(describe(capture), pause_ms=capture.pause_ms, warnings=[*capture.warnings])
        snapshot.target.runtime = NATIVE
        snapshot.warnings.append(f"only the native heap is read: {error}")
        add_native(capture, snapshot)
        if snapshot.tables["native_heap"][0]["allocator"] is None and not snapshot.tables["native_foreign"]:
            raise
        return snapshot
    if native:
        add_native(capture, snapshot)
    return snapshot


def add_native(capture: Capture, snapshot: Snapshot) -> None:
    """Read the native heap: tables ``native_*`` of the snapshot, as ``NativeHeap.to_rows`` describes them."""
    with capture.memory.unwatched():
        snapshot.tables.update(native_heap(capture).to_rows())
