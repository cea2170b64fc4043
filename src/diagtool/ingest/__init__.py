"""Evidence that other programs wrote: read into a snapshot, one module a format.

Recognised by content. What a format does not tell is empty in the snapshot.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from diagtool.capture.errors import NotSupported
from diagtool.ingest import tracemalloc
from diagtool.snapshot.model import Snapshot

__all__ = ["HEAD", "is_evidence", "read_evidence"]

#: So many bytes from the start of a file tell what it is.
HEAD = 256

_FORMATS: dict[Callable[[bytes], bool], Callable[[str], Snapshot]] = {
    tracemalloc.is_dump: tracemalloc.read_dump,
}


def is_evidence(head: bytes) -> bool:
    """True when a file that starts with ``head`` is for :func:`read_evidence`."""
    return any(recognise(head) for recognise in _FORMATS)


def read_evidence(path: str | os.PathLike[str]) -> Snapshot:
    """The snapshot of what a file tells. Raises TargetError."""
    name = os.fspath(path)
    with open(name, "rb") as file:  # noqa: PTH123
        head = file.read(HEAD)
    for recognise, read in _FORMATS.items():
        if recognise(head):
            return read(name)
    raise NotSupported(
        f"{name} is nothing that diagtool reads", "Name what tracemalloc.Snapshot.dump() wrote."
    )
