"""Where a report goes: the terminal, a pipe, or a file that is complete or not there."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

import click

from diagtool.cli.options import color_wanted
from diagtool.cli.stdout import ELSEWHERE, silence_stdout
from diagtool.report.text import FILE_WIDTH, MIN_WIDTH, Line, write


class OutputError(Exception):
    """A report can't be written where the user wants it."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


def width(output: Path | None) -> int:
    """Columns to lay a report out for."""
    if output is None and sys.stdout is not None and sys.stdout.isatty():
        import shutil

        return max(shutil.get_terminal_size().columns, MIN_WIDTH)
    columns = os.environ.get("COLUMNS", "")
    return max(int(columns), MIN_WIDTH) if columns.isdecimal() and len(columns) < 5 else FILE_WIDTH


def print_lines(lines: Iterable[Line], output: Path | None) -> None:
    """Write a report for a person, coloured when wanted."""
    wanted = color_wanted(click.get_current_context())
    if os.environ.get("GITHUB_ACTIONS") == "true":
        lines = map(_no_command, lines)
    with opened(output) as file:
        plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb" or not file.isatty()
        write(lines, file, color=wanted == "always" or (wanted == "auto" and not plain))


def _no_command(line: Line) -> Line:
    """``line`` without what the runner of GitHub Actions would obey: ``::`` at its start, ``##[`` anywhere.

    Names come from the process, and the log of a job is read for commands.
    """
    text = "".join(piece for piece, _ in line)
    if "##[" not in text and not text.lstrip().startswith("::"):
        return line
    return [(piece.replace("::", ": :").replace("##[", "## ["), style) for piece, style in line]


def print_text(text: str, output: Path | None) -> None:
    """Write a document for a program."""
    with opened(output) as file:
        file.write(text)


def print_bytes(parts: Iterable[bytes], output: Path | None) -> None:
    """Write a document for a program piece by piece, as it is made."""
    with opened(output) as file:
        for part in parts:
            file.buffer.write(part)


def check_no_terminal(output: Path | None) -> None:
    """Raise UsageError where a binary file would go to a terminal."""
    if output is None and sys.stdout is not None and sys.stdout.isatty():
        raise click.UsageError("this is no text for a terminal: name a file with -o FILE.")


def check_new_folder(output: Path | None) -> None:
    """Raise UsageError where :func:`new_folder` is bound to fail because of what the user named."""
    if output is None or str(output) == "-":
        raise click.UsageError("name a new folder for the tables with -o DIR, or one table with --table.")
    if os.path.lexists(output) and not (output.is_dir() and _is_empty(output)):
        raise click.UsageError(f"{output} is there already: name a new folder with -o DIR.")


def _is_empty(folder: Path) -> bool:
    with suppress(OSError):
        return not any(folder.iterdir())
    return False


@contextmanager
def new_folder(output: Path | None) -> Iterator[Path]:
    """A folder that takes its name ``output`` when the block ends well; else nothing is left of it."""
    check_new_folder(output)
    assert output is not None
    import shutil
    import tempfile

    mask = os.umask(0)
    os.umask(mask)
    try:
        temp = Path(tempfile.mkdtemp(prefix=".diagtool-", suffix=".tmp", dir=output.absolute().parent))
        try:
            yield temp
            temp.chmod(0o777 & ~mask)
            temp.rename(output)  # also in the place of an empty one
        except BaseException:
            shutil.rmtree(temp, ignore_errors=True)
            raise
    except OSError as error:
        raise OutputError(
            f"{output} cannot be written: {error.strerror or error}", "Name another place for it."
        ) from error


def append_text(text: str, file: Path) -> None:
    """Add a document to a file that may hold others: whole, or the file stays as it was."""
    try:
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        try:
            before = os.fstat(handle).st_size
            data = memoryview(text.encode("utf-8", "backslashreplace"))
            try:
                while data:
                    data = data[os.write(handle, data) :]
            except OSError:
                with suppress(OSError):
                    os.ftruncate(handle, before)
                raise
        finally:
            os.close(handle)
    except OSError as error:
        raise OutputError(
            f"{file} cannot be written: {error.strerror or error}",
            "Make room there, or choose another format.",
        ) from error


@contextmanager
def opened(output: Path | None) -> Iterator[TextIO]:
    """stdout (None or "-"), or a file that takes its name when it is complete."""
    if output is None or str(output) == "-":
        with _stdout() as file:
            yield file
        return
    try:
        with _device(output) if _is_device(output) else _replaced(output) as file:
            yield file
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(
            f"{output} cannot be written: {error.strerror or error}", "Name another place for it."
        ) from error


@contextmanager
def _stdout() -> Iterator[TextIO]:
    if sys.stdout is None:
        raise OutputError("the standard output is closed", "Send it to a file: > FILE.")
    try:
        yield sys.stdout
        sys.stdout.flush()
    except BrokenPipeError:  # `diagtool … | head`: who reads has enough; the exit status still counts
        silence_stdout()
    except OSError as error:
        silence_stdout()
        raise OutputError(f"cannot write the output: {error.strerror or error}", ELSEWHERE) from error


def _is_device(path: Path) -> bool:
    # /dev/stdout, a pipe: nothing to put a file in the place of.
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


def _device(path: Path) -> TextIO:
    return path.open("w", encoding="utf-8", errors="backslashreplace")


@contextmanager
def _replaced(path: Path) -> Iterator[TextIO]:
    mask = os.umask(0)
    os.umask(mask)
    mode = 0o666 & ~mask
    with suppress(OSError):
        mode = stat.S_IMODE(path.stat().st_mode)  # who may read it stays as somebody decided
    import tempfile  # and with it what makes random numbers and archives

    handle, name = tempfile.mkstemp(prefix=".diagtool-", suffix=".tmp", dir=path.parent)
    temp = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            yield file
        temp.chmod(mode)
        temp.replace(path)
    except BaseException:
        with suppress(OSError):
            temp.unlink()
        raise
