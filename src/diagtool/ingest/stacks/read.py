"""The readers of this package by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from diagtool.ingest.stacks import gdb, look, pyspy, tasks, tracebacks
from diagtool.ingest.stacks.lines import lines_of
from diagtool.ingest.stacks.model import Dump, Notes, snapshots
from diagtool.snapshot.model import Snapshot

__all__ = ["read_file"]

_TEXT: dict[str, Callable[[Iterable[str], Notes], list[Dump]]] = {
    look.PYSPY: pyspy.parse,
    look.GDB: gdb.parse,
    look.ASYNCIO: tasks.parse,
}


def read_file(name: str, path: str) -> list[Snapshot]:
    """What reader ``name`` makes of a file: snapshots, oldest first. Raises TargetError."""
    notes = Notes()
    if name == look.PYSPY_JSON:
        dumps = pyspy.parse_json(path, notes)
    else:
        dumps = _TEXT.get(name, tracebacks.parse)(lines_of(path), notes)
    return snapshots(dumps, name, path, notes)
