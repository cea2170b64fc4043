"""Files of evidence: plain or compressed, or from the standard input; and how they are told from others.

What is unpacked or comes from a pipe goes to a file without a name in ``$TMPDIR`` that only we can read and
that is gone with us, however we end.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import BinaryIO

from diagtool.capture.decompress import Damaged, compression_of, unpacked
from diagtool.capture.errors import BadEvidence, TargetError
from diagtool.snapshot.store import is_store

__all__ = [
    *("HEAD", "MOST", "Plain", "first_bytes", "name_of", "named", "only_once"),
    *("opened", "spooled", "text_like", "windows"),
]

#: So many bytes from the start of a file, unpacked, tell what it is.
HEAD = 64 << 10

#: Bytes that a compressed file may unpack to, and that are taken from the standard input.
MOST = 16 << 30

_WINDOW = 4 << 20
_OVERLAP = 1 << 10
_HOLE = 64 << 10

#: Paths of files without a name -> what the user called them.
_names: dict[str, str] = {}
_kept: list[BinaryIO] = []


@dataclass(slots=True)
class Plain:
    """A file to read: ``path`` gives its contents unpacked, ``name`` is what the user called it."""

    path: str
    name: str
    warnings: list[str] = field(default_factory=list)


def name_of(path: str) -> str:
    """What the user called the file at ``path``."""
    return _names.get(path, path)


def first_bytes(file: BinaryIO, most: int = HEAD) -> bytes:
    """The first bytes of what a file holds, unpacked if it is compressed. What is damaged ends there."""
    head = file.read(most)
    kind = compression_of(head)
    if kind is None:
        return head
    file.seek(0)
    out = b""
    try:
        for block in unpacked(file, kind):
            out += bytes(block[: most - len(out)])
            if len(out) >= most:
                break
    except Damaged:
        pass
    return out


def windows(file: BinaryIO) -> Iterator[bytes]:
    """What a file holds, unpacked, in large pieces that overlap by a line or so."""
    kind = compression_of(file.read(64))
    file.seek(0)
    blocks: Iterable[bytes | memoryview]
    blocks = iter(lambda: file.read(_WINDOW), b"") if kind is None else unpacked(file, kind)
    last, gone = b"", 0
    try:
        for block in blocks:
            window = last + bytes(block)
            yield window
            last = window[-_OVERLAP:]
            gone += len(block)
            if gone > MOST:
                return
    except Damaged:
        return


def named(text: str) -> str:
    """``text`` with what the user called files in the place of paths."""
    for path, name in _names.items():
        text = text.replace(path, name)
    return text


@contextmanager
def opened(path: str) -> Iterator[Plain]:
    """The file at ``path`` as one that can be read plainly within the block. Raises TargetError."""
    with open(path, "rb") as file:  # noqa: PTH123
        kind = compression_of(file.read(64))
        if kind is None:
            yield Plain(path, name_of(path))
            return
        file.seek(0)
        name = name_of(path)
        warnings: list[str] = []
        with _unnamed(name) as target:
            try:
                _fill(target, unpacked(file, kind), f"{name} unpacks to")
            except Damaged as error:
                warnings.append(f"{error}: what came before is read")
            yield Plain(f"/proc/self/fd/{target.fileno()}", name, warnings)


def spooled(stream: BinaryIO, name: str = "the standard input") -> str:
    """The path of a file with all that ``stream`` gives, which exists as long as this process.

    Raises TargetError.
    """
    with _unnamed(name, keep=True) as target:
        _fill(target, iter(lambda: stream.read(1 << 20), b""), f"{name} has")
        if not target.seek(0, os.SEEK_END):
            raise BadEvidence(f"{name} is empty", "Name a file, or write what it holds to the pipe.")
        target.seek(0)
        if is_store(target.read(64)):
            raise BadEvidence(f"{name} holds a .diag file", "Name the file instead.")
        path = f"/proc/self/fd/{target.fileno()}"
        _names[path] = name
        _kept.append(target)
        return path


@contextmanager
def _unnamed(name: str, *, keep: bool = False) -> Iterator[BinaryIO]:
    try:
        file: BinaryIO = tempfile.TemporaryFile(prefix="diagtool-")  # noqa: SIM115 (may be kept)
    except OSError as error:
        raise TargetError(
            f"there is no place for what {name} holds", "Set TMPDIR to a folder that you may write to."
        ) from error
    done = False
    try:
        yield file
        done = True
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise TargetError(
            f"there is no room in {tempfile.gettempdir()} for what {name} holds",
            "Set TMPDIR to a folder with more room.",
        ) from error
    finally:
        if not (keep and done):
            file.close()


def _fill(target: BinaryIO, blocks: Iterable[bytes | memoryview], what: str) -> None:
    fd, size = target.fileno(), 0
    zeros = bytes(_HOLE)
    for block in blocks:
        data = memoryview(block)
        for at in range(0, len(data), _HOLE):
            part = data[at : at + _HOLE]
            if part == zeros[: len(part)]:
                continue  # a hole: what unpacks to nothing but zeros takes no room
            while len(part):
                n = os.pwrite(fd, part, size + at)
                part, at = part[n:], at + n
        size += len(data)
        if size > MOST:
            raise BadEvidence(f"{what} more than {MOST >> 30} GiB", "Cut out the part that matters.")
    os.ftruncate(fd, size)


def text_like(head: bytes) -> bool:
    """Whether a file that starts with ``head`` may be text."""
    start = head[:4096]
    odd = sum(start.count(code) for code in range(9))
    return bool(start) and odd * 50 <= len(start)


def only_once(recognise: Callable[[str], str | None]) -> Callable[[str], str | None]:
    """``recognise(path)``, remembered for as long as the file is the same."""
    known: dict[tuple[int, ...], str | None] = {}

    def ask(path: str) -> str | None:
        facts = os.stat(path)  # noqa: PTH116
        key = (facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns)
        if key not in known:
            if len(known) > 64:
                known.clear()
            known[key] = recognise(path)
        return known[key]

    return ask
