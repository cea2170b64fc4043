"""Whose the memory is, as far as runtimes and allocators tell it; and a snapshot of nothing but that."""

from __future__ import annotations

from diagtool.capture.errors import NotSupported
from diagtool.capture.model import Capture
from diagtool.runtimes.cpython.heap.arenas import add_arenas
from diagtool.runtimes.cpython.heap.datastacks import claim_data_stacks
from diagtool.runtimes.cpython.runtime import find_runtime
from diagtool.runtimes.describe import describe
from diagtool.runtimes.golang.heap.tables import add_go_heap
from diagtool.runtimes.memory import add_process_memory
from diagtool.runtimes.native.malloc import add_malloc
from diagtool.snapshot.model import Snapshot

__all__ = ["add_owners", "outline"]


def add_owners(capture: Capture, snapshot: Snapshot) -> None:
    """The tables ``python_arenas``, ``malloc``, ``malloc_arenas``, ``allocators``, ``thread_stacks`` and
    those of
    Go's heap.

    What they are about is said to ``capture.claims``, too. It reads little memory, whatever the size of the
    process, some of it after the stop: figures, not facts that a verdict needs of one instant.
    """
    late = capture.late_pages
    with capture.memory.unwatched():
        add_arenas(capture, snapshot)
        add_malloc(capture, snapshot.tables)
        claim_data_stacks(capture)
        add_go_heap(capture, snapshot)
    capture.late_pages = late


def outline(capture: Capture) -> Snapshot:
    """A snapshot without stacks: what was looked at, and what :func:`add_owners` has to say."""
    # That little was copied is as it should be here.
    said = [w for w in capture.warnings if not (capture.left_out and "were not copied in the stop" in w)]
    snapshot = Snapshot(describe(capture), pause_ms=capture.pause_ms, warnings=said)
    try:
        runtime = find_runtime(capture)
        micro = "" if runtime.micro is None else f".{runtime.micro}"
        snapshot.target.runtime = f"cpython {runtime.version[0]}.{runtime.version[1]}{micro}"
        snapshot.target.flavour = runtime.flavour
    except NotSupported:
        snapshot.target.runtime = "native"
    add_process_memory(capture, snapshot.tables)
    return snapshot
