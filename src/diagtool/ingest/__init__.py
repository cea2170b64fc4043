"""Evidence that other programs wrote: read into snapshots, one module or package a format.

Recognised by content. What a format does not tell is empty in the snapshot. A new format is one line in
``READERS``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

from diagtool.capture.elf import ELF_MAGIC
from diagtool.capture.errors import BadEvidence, NotSupported, TargetError
from diagtool.ingest import goroutines, gotrace, pprof, tracemalloc
from diagtool.ingest.files import HEAD, first_bytes, name_of, only_once, opened, text_like, windows
from diagtool.ingest.stacks import look as stacks
from diagtool.snapshot.model import Snapshot

__all__ = ["HEAD", "READERS", "Reader", "is_evidence", "read_evidence", "reader_of"]


class Reader(NamedTuple):
    """A format: ``looks`` tells by the first HEAD bytes (unpacked) whether a file is of it.

    ``read`` is given a path whose contents are unpacked already. It returns one snapshot, or several of one
    process where the file holds several, oldest first; raises TargetError. ``anywhere``: it is text that
    may stand anywhere in a log; ``looks`` is asked about each part of one.
    """

    name: str
    looks: Callable[[bytes], bool]
    read: Callable[[str], Snapshot | list[Snapshot]]
    anywhere: bool = False


#: The more special ones first. Modules that are large are imported in ``read``.
READERS: tuple[Reader, ...] = (
    Reader("dump of tracemalloc", tracemalloc.is_dump, tracemalloc.read_dump),
    Reader("execution trace of Go", gotrace.is_trace, gotrace.read_trace),
    Reader("profile of pprof's format", pprof.is_profile, pprof.read_profile),
    Reader("goroutine dump", goroutines.looks, goroutines.read, anywhere=True),
    *(Reader(name, stacks.looks(name), stacks.read(name), anywhere=True) for name in stacks.NAMES),
)


def is_evidence(head: bytes) -> bool:
    """True when a file that starts with ``head`` is for :func:`read_evidence`."""
    return any(reader.looks(head) for reader in READERS)


def reader_of(path: str | os.PathLike[str]) -> Reader | None:
    """The reader for a file, None where it is nothing that others wrote and that we read. Raises OSError."""
    name = _recognised(os.fspath(path))
    return next((r for r in READERS if r.name == name), None)


@only_once
def _recognised(path: str) -> str | None:
    with open(path, "rb") as file:  # noqa: PTH123
        head = first_bytes(file)
        if head.startswith(ELF_MAGIC):
            return None
        for reader in READERS:
            if reader.looks(head):
                return reader.name
        if not text_like(head):
            return None
        file.seek(0)
        for window in windows(file):
            for reader in READERS:
                if reader.anywhere and reader.looks(window):
                    return reader.name
    return None


def read_evidence(path: str | os.PathLike[str]) -> list[Snapshot]:
    """The snapshots of what a file tells, oldest first; one at least. Raises TargetError."""
    name = os.fspath(path)
    reader = reader_of(name)
    if reader is None:
        raise NotSupported(
            f"{name_of(name)} is nothing that diagtool reads",
            "Name what tracemalloc.Snapshot.dump() wrote, or a goroutine dump.",
        )
    with opened(name) as file:
        try:
            found = reader.read(file.path)
        except TargetError as error:
            error.args = tuple(str(part).replace(file.path, file.name) for part in error.args)
            raise
        except OSError as error:
            raise BadEvidence(f"{file.name} can't be read: {error.strerror or error}") from error
        snapshots = [found] if isinstance(found, Snapshot) else found
        if not snapshots:
            raise BadEvidence(f"{file.name} holds nothing of a {reader.name}")
        snapshots[-1].warnings[:0] = file.warnings
        return snapshots
