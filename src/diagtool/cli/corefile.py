"""The file that a core goes to: it is there when it is complete."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

from diagtool.cli.output import OutputError

if TYPE_CHECKING:
    from diagtool.capture.corewriter import Sink
    from diagtool.capture.model import Capture


def write(
    capture: Capture, file: IO[bytes], compress: str | None, writer: Callable[[Capture, Sink], int]
) -> int:
    """Have ``writer`` write a core to an open file, sparse, or as ``compress`` says; gives what it gives."""
    from diagtool.capture.corewriter import SparseFile

    if compress is None:
        sink = SparseFile(file)
        held = writer(capture, sink)
        file.truncate()
        return held
    import zstandard

    with zstandard.ZstdCompressor(level=3, threads=-1).stream_writer(file, closefd=False) as packed:
        return writer(capture, _Zeros(packed))


class SlimCore:
    """Writes the slim core of a capture to ``path``, compressed where its name ends in .zst.

    Raises OutputError where that can't be, before any process is stopped. What goes wrong later is kept in
    ``error``: the snapshot, which needs no core, shall not be lost for it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.error: OutputError | None = None
        self._compress = "zstd" if path.suffix == ".zst" else None
        with suppress(_Tried), replaced(path, "--core"):
            raise _Tried

    def write(self, capture: Capture) -> None:
        """Write it."""
        from diagtool.capture.slimcore import write_slim_core

        try:
            with replaced(self.path, "--core") as file:
                write(capture, file, self._compress, write_slim_core)
        except OutputError as error:
            self.error = error


class _Tried(Exception):
    pass


class _Zeros:
    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def write(self, data: bytes) -> object:
        return self._file.write(data)

    def skip(self, size: int) -> None:
        while size > 0:
            self._file.write(bytes(min(size, 1 << 20)))
            size -= 1 << 20


@contextmanager
def replaced(path: Path, option: str = "-o") -> Iterator[IO[bytes]]:
    """A file, readable by its owner only, that takes its name when it is complete. Raises OutputError."""
    try:
        if path.exists() and not path.is_file():
            raise OutputError(f"{path} is not a plain file", f"Name another place with {option} FILE.")
        # A file without a name is gone when we are, kill -9 included.
        name = str(path.parent / f".diagtool-{os.getpid()}.tmp")
        try:
            handle = os.open(path.parent, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError:  # a file system that has no such files
            handle, name = tempfile.mkstemp(prefix=".diagtool-", suffix=".tmp", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                if not os.path.lexists(name):
                    # With a descriptor it is linkat(2) with AT_SYMLINK_FOLLOW, which open(2) asks for here.
                    os.link(f"/proc/self/fd/{file.fileno()}", name, src_dir_fd=file.fileno())
            os.replace(name, path)  # noqa: PTH105
        except BaseException:
            with suppress(OSError):
                os.unlink(name)  # noqa: PTH108
            raise
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written: {error.strerror or error}", f"Name another place with {option} FILE."
        ) from error
