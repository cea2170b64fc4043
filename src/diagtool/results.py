"""What becomes of snapshots and reports: files, plain data, exports, answers. Part of the public API.

Everything is imported where it is needed, as in ``diagtool.api``.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diagtool.leaks.model import Cluster, Finding, Report
    from diagtool.report.export.documents import Format
    from diagtool.report.export.samples import By
    from diagtool.snapshot.model import Snapshot, Stack

__all__ = ("export", "save", "sql", "to_dict")


def save(snapshot: Snapshot, path: str | os.PathLike[str]) -> None:
    """Write a snapshot to a .diag file, which its owner only may read. Raises StoreError."""
    from diagtool.snapshot import store

    store.save(snapshot, path)


def to_dict(value: Snapshot | Report | Finding | Cluster | Stack) -> dict[str, Any]:
    """``value`` as plain data, ready for json.dumps: None, bool, int, float, str, lists, dicts with names.

    A Report is the document of ``diagtool leaks --format json``, a Finding, Cluster or Stack one of its
    parts. A Snapshot has ``target``, ``pause_ms``, ``stacks`` (a row each), ``threads``, ``tables`` (by name,
    docs/snapshot-format.md) and ``warnings``. Addresses are hex in all but ``tables``.
    """
    from diagtool.report.json import plain

    return plain(value)


def export(
    snapshots: Snapshot | Sequence[Snapshot], to: Format, *, by: By = "count", native: bool = False
) -> bytes:
    """The file that ``diagtool export --to`` writes: speedscope, pprof, collapsed, chrome.

    ``by``: what stacks weigh, "count", "bytes" (of allocations) or "cpu". ``native``: threads with their
    native frames. Of several snapshots of a process speedscope and chrome show all, the others the last.
    Raises ExportError where nothing is known of what is asked for, SeriesError for snapshots of several
    processes.
    """
    from diagtool.report.export.documents import FORMATS, exported
    from diagtool.snapshot.model import Snapshot

    if to not in FORMATS:
        raise ValueError(f"{to!r} is none of {', '.join(FORMATS)}")
    series = [snapshots] if isinstance(snapshots, Snapshot) else list(snapshots)
    return b"".join(exported(to, series, by=by, native=native))


def sql(
    source: Snapshot | str | os.PathLike[str], query: str, *, rows: int = 10_000, seconds: float = 30.0
) -> list[dict[str, Any]]:
    """The answer to a SELECT, a dict a row, as ``diagtool sql`` has it, of a snapshot or a .diag file.

    A query can't change anything. Raises BadQuery (``diagtool.snapshot.query``), of which TooLong says that
    ``seconds`` are over, ValueError when there are more than ``rows`` rows, StoreError.
    """
    from diagtool.report.sqltable import document
    from diagtool.snapshot.model import Snapshot
    from diagtool.snapshot.query import opened

    with ExitStack() as stack:
        if isinstance(source, Snapshot):
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="diagtool-"))
            path: str | os.PathLike[str] = Path(folder, "snapshot.diag")
            save(source, path)
        else:
            path = source
        answer = stack.enter_context(opened(path)).ask(query, rows=rows, seconds=seconds)
    if answer.more:
        raise ValueError(f"there are more than {rows:,} rows: ask for less, or for more with rows=")
    found: list[dict[str, Any]] = document(answer)["rows"]
    return found
