"""``diagtool core``: a core file of a process that hardly has to stop for it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

import click

from diagtool.cli.options import color_option, output_option, target_argument

if TYPE_CHECKING:
    from diagtool.capture.image import CloneMode
    from diagtool.capture.model import Capture

_EVERYTHING = 1 << 40  # bytes: what of it fits in memory is copied in the stop where there is no image


@click.command("core", short_help="Write a core of a process that hardly has to stop.")
@target_argument("target", metavar="PID")
@output_option("Write to FILE; default: core.PID in this folder.")
@click.option("--compress", type=click.Choice(["zstd"]), help="Write it compressed: FILE.zst by default.")
@click.option(
    "--clone",
    type=click.Choice(["auto", "always"]),
    default="auto",
    show_default=True,
    help="always: only from a copy-on-write image, else not at all.",
)
@color_option
def command(target: str, output: Path | None, compress: str | None, clone: str) -> int:
    """Write a core of a process that hardly has to stop for it.

    The process is stopped for as long as it takes to make a copy-on-write image of it, about 20 ms a GiB of
    memory, measured and printed. The core is written from the image while the process runs on. gdb, drgn,
    pystack and diagtool open it like one of the kernel.

    Where no image can be made (a seccomp filter, no more processes allowed, little memory), what fits is
    copied in one longer stop, and a warning says so.

    FILE holds all memory of the process, secrets too: it is readable by you only. It is sparse: `ls -s`
    says what it takes. It appears when it is complete.

    \b
    Examples:
        diagtool core 4242
        diagtool core 4242 -o /var/tmp/core.zst --compress zstd
        gdb python3 core.4242

    \b
    Exit status:
        0   written
        2   wrong usage
        3   the process could not be read, or FILE not be written
    """
    from diagtool.cli.progress import progress

    if not (target.isascii() and target.isdigit() and 0 < len(target) < 10):
        raise click.UsageError(f"{target} is no process id.")
    path = output or Path(f"core.{target}" + (".zst" if compress else ""))
    from diagtool.capture.live import capture_live

    # Of small processes, too: what a copy in the stop leaves out as dead belongs into a core.
    mode: CloneMode = "always" if clone == "always" else "auto"
    with (
        _replaced(path) as file,
        progress(f"writing {path}"),
        capture_live(int(target), clone=mode, image_from=0, max_copy=_EVERYTHING, vectors=True) as capture,
    ):
        held = _write(capture, file, compress)
        pause, warnings = capture.pause_ms or 0.0, list(capture.warnings)
        threads = len(capture.threads)
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)
    taken = path.stat().st_blocks * 512
    click.echo(
        f"{path}: {threads} threads, {held >> 20:,} MiB of memory, {taken >> 20:,} MiB on disk · "
        f"stopped for {pause:.1f} ms"
    )
    return 0


def _write(capture: Capture, file: IO[bytes], compress: str | None) -> int:
    from diagtool.capture.corewriter import write_core

    if compress is None:
        sink = _Sparse(file)
        held = write_core(capture, sink)
        file.truncate()
        return held
    import zstandard

    with zstandard.ZstdCompressor(level=3, threads=-1).stream_writer(file, closefd=False) as writer:
        return write_core(capture, _Zeros(writer))


class _Sparse:
    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def write(self, data: bytes) -> object:
        return self._file.write(data)

    def skip(self, size: int) -> None:
        self._file.seek(size, os.SEEK_CUR)


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
def _replaced(path: Path) -> Iterator[IO[bytes]]:
    from diagtool.cli.output import OutputError

    try:
        if path.exists() and not path.is_file():
            raise OutputError(f"{path} is not a plain file", "Name another place with -o FILE.")
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
            f"{path} cannot be written: {error.strerror or error}", "Name another place with -o FILE."
        ) from error
