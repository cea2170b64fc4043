"""The store: a Snapshot as one SQLite file.

The file is written beside its destination and renamed when complete, so a destination either has the whole
snapshot or what it had before. It is read with every value checked: a file may come from anybody, so what is
out of range, of the wrong type or missing is a :class:`StoreError`, never a crash later on.

The layout is ``schema.sql``; docs/snapshot-format.md tells how to query it.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from diagtool.snapshot.model import Snapshot
from diagtool.snapshot.reading import BadRows, read_rows
from diagtool.snapshot.writing import write_rows

#: PRAGMA user_version of the files written. A reader refuses what is newer.
SCHEMA_VERSION = 3

#: PRAGMA application_id: "diag" in ASCII, at offset 68 of the file.
APPLICATION_ID = 0x64696167

#: The first 16 bytes of every SQLite 3 file (sqlite.org/fileformat2.html, section 1.3).
MAGIC = b"SQLite format 3\0"

_HEADER_SIZE = 100
_COPY_AGAIN = "Copy the file again, or take another snapshot."
_NOT_OURS = "Name a file that `diagtool snapshot` wrote."


class StoreError(Exception):
    """A .diag file can't be read or written. ``str()`` says what, ``hint`` what to do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


def save(snapshot: Snapshot, path: str | os.PathLike[str]) -> None:
    """Write ``snapshot`` to ``path``, readable by its owner only, replacing a file that is there.

    Raises StoreError when it can't be written; then ``path`` is as it was.
    """
    path = Path(path)
    with _writing(path), _beside(path) as temp:
        with contextlib.closing(sqlite3.connect(temp, isolation_level=None)) as db:
            db.executescript(
                # A file that nobody else knows yet needs no journal: on failure it is thrown away.
                "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA locking_mode = EXCLUSIVE;"
                "PRAGMA page_size = 8192; PRAGMA temp_store = MEMORY;"
                f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION};"
            )
            db.executescript(schema())
            db.execute("BEGIN")
            write_rows(db, snapshot)
            db.execute("COMMIT")
        _sync(temp)


def load(path: str | os.PathLike[str]) -> Snapshot:
    """Read the snapshot in ``path``.

    Raises StoreError when there is no such file, it is no .diag file, a truncated or damaged one, or one that
    a newer diagtool wrote.
    """
    path = Path(path)
    try:
        with contextlib.closing(connect(path)) as db:
            _check_schema(db, path)
            return read_rows(db)
    except BadRows as error:
        raise StoreError(f"{path} is damaged: {error}", _COPY_AGAIN) from None
    except (sqlite3.Error, ValueError, RecursionError) as error:  # ValueError: names that are no UTF-8
        raise damaged(path, error) from None


def connect(path: str | os.PathLike[str]) -> sqlite3.Connection:
    """The database in a .diag file, to be read only. What is in it may come from anybody.

    Raises StoreError as :func:`load` does, but the tables and rows were not looked at yet.
    """
    path = Path(path)
    try:
        _check_header(path)
        # immutable: no locks, no journal of a stranger rolled back, works in a read-only folder.
        uri = path.absolute().as_uri() + "?mode=ro&immutable=1"
        db = sqlite3.connect(uri, uri=True, isolation_level=None)
        # Nothing in a stranger's schema may run: no triggers, no functions in its views.
        db.execute("PRAGMA trusted_schema = OFF")
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {_reason(error)}", "Check the path and its mode.") from None
    except sqlite3.Error as error:
        raise damaged(path, error) from None
    return db


def damaged(path: str | os.PathLike[str], error: Exception) -> StoreError:
    """What to raise when reading the database failed."""
    return StoreError(f"{os.fspath(path)} is damaged: {_reason(error)}", _COPY_AGAIN)


def schema() -> str:
    """The SQL that makes the tables and views, with comments on what each column means."""
    return Path(__file__).with_name("schema.sql").read_text("utf-8")


def is_store(head: bytes) -> bool:
    """True when a file that starts with ``head`` is a SQLite database: one for :func:`load`."""
    return head.startswith(MAGIC)


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise StoreError when :func:`save` to ``path`` is bound to fail.

    To be asked before a process is stopped for a snapshot that then has nowhere to go.
    """
    path = Path(path)
    folder = path.parent
    with contextlib.suppress(OSError):  # not there: nothing to replace
        mode = path.lstat().st_mode
        # A rename would put a plain file in the place of a device, a pipe or a socket.
        if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
            what = "a folder" if stat.S_ISDIR(mode) else "not a plain file"
            raise StoreError(f"{path} cannot be written: it is {what}", "Name a file with -o FILE.diag.")
    if not folder.is_dir():
        raise StoreError(f"{path} cannot be written: there is no folder {folder}", "Create it, or use -o.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StoreError(
            f"{path} cannot be written: the folder {folder} is not writable",
            "Name another place with -o FILE.diag.",
        )


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    check_writable(path)
    hint = "Name another place with -o FILE.diag, one with more room."
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise StoreError(f"{path} cannot be written: {_reason(error)}", hint) from error


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[Path]:
    # A temporary file (mode 0600) in the folder of path, which becomes path when the block ends well.
    handle, name = tempfile.mkstemp(prefix=".diagtool-", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temp = Path(name)
    try:
        yield temp
        temp.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temp.unlink()
        raise


def _sync(path: Path) -> None:
    # Before the rename: a machine that goes down right after must not leave an empty file under the name.
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _check_header(path: Path) -> None:
    # What SQLite itself reports as "malformed" or "not a database", said in words that help.
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_HEADER_SIZE)
    if not is_store(head):
        if not head or MAGIC.startswith(head):
            raise StoreError(f"{path} is empty or cut off after {size:,} bytes", _COPY_AGAIN)
        raise StoreError(f"{path} is not a .diag file", _NOT_OURS)
    if len(head) < _HEADER_SIZE:
        raise StoreError(f"{path} is cut off after {size:,} bytes", _COPY_AGAIN)
    if int.from_bytes(head[68:72], "big") != APPLICATION_ID:
        raise StoreError(f"{path} is a SQLite database of another program, not a .diag file", _NOT_OURS)
    version = int.from_bytes(head[60:64], "big")
    if version > SCHEMA_VERSION:
        raise StoreError(
            f"{path} is of a newer diagtool (its schema is {version}, this one reads {SCHEMA_VERSION})",
            "Upgrade diagtool, or read the file with sqlite3.",
        )
    if version < SCHEMA_VERSION:
        raise StoreError(
            f"{path} is of an older diagtool (its schema is {version}, this one reads {SCHEMA_VERSION})",
            "Read it with the diagtool that wrote it, or with sqlite3; or take another one.",
        )
    page = int.from_bytes(head[16:18], "big")
    whole = (65536 if page == 1 else page) * int.from_bytes(head[28:32], "big")
    if size < whole:
        raise StoreError(f"{path} is cut off: {size:,} of its {whole:,} bytes are there", _COPY_AGAIN)


def _check_schema(db: sqlite3.Connection, path: Path) -> None:
    # Tables must be exactly those that this version writes. That keeps out views and generated columns
    # dressed up as tables, whose reading could take forever. Further tables and views do no harm.
    tables = "SELECT name, sql FROM sqlite_master WHERE type = 'table'"
    there = dict(db.execute(tables).fetchall())
    with contextlib.closing(sqlite3.connect(":memory:")) as ours:
        ours.executescript(schema())
        for name, sql in ours.execute(tables).fetchall():
            if there.get(name) != sql:
                what = "is not the one that diagtool writes" if name in there else "is missing"
                raise StoreError(f"{path} is damaged: its table {name} {what}", _COPY_AGAIN)
