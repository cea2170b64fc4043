"""What a process holds besides threads and objects: files, signal handlers, libraries, kinds of memory.

Each part is a module with ``add(capture, snapshot)``, which adds its tables to a decoded snapshot. What an
interpreter has to say of the same thing (which object owns a descriptor, which function handles a signal)
is in tables that its runtime has added before, so that nothing here knows any runtime.
"""

from __future__ import annotations

from collections.abc import Collection
from importlib import import_module

from diagtool.capture.memory import MemoryFault
from diagtool.capture.model import Capture
from diagtool.snapshot.model import Snapshot

__all__ = ["ON_REQUEST", "PARTS", "add_inventory"]

#: Name of a part, and what it is about in words. Its module is ``diagtool.inventory.NAME``.
PARTS: dict[str, str] = {
    "fds": "open files",
    "memory": "whose the memory is",
    "pools": "pools of threads",
    "signals": "signals",
    "ffi": "mapped libraries",
}

#: Parts that are taken only where they are named, after the others.
ON_REQUEST: dict[str, str] = {
    "peers": "the other ends of pipes and sockets",
}


def add_inventory(capture: Capture, snapshot: Snapshot, parts: Collection[str] | None = None) -> None:
    """Add tables of ``parts`` (of all of PARTS without it). What one of them can't read becomes a warning."""
    known = {**PARTS, **ON_REQUEST}
    for name in PARTS if parts is None else [p for p in known if p in parts]:
        try:
            import_module(f"diagtool.inventory.{name}").add(capture, snapshot)
        except (MemoryFault, OSError) as error:
            snapshot.warnings.append(f"{known[name]} could not be read: {error}")
