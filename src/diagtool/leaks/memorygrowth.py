"""What grows of a process's resident memory over a series, owner by owner, as rows of a table for templates.

The table ``memory_growth`` has a row an owner that got much larger: ``signature`` ("mapped": memory that the
program maps itself, "stacks", "shared": shared memory, memfd, deleted files), ``owner``, ``course``, ``more``
(bytes), ``text``, ``threads`` (how many more there are at the end). What grows in the heaps of Python and of
malloc is told by ``heap_growth``. Nothing is judged here (library/memory.toml).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from diagtool.leaks.facts import Facts
from diagtool.snapshot.model import KIND, Snapshot
from diagtool.snapshot.trend import course, slope

__all__ = ["TABLE", "derive_memory"]

TABLE = "memory_growth"

Row = dict[str, Any]

_LEAST = 16 << 20  # bytes of growth that are worth a word
_RATIO = 0.1  # of what was there
_MORE = ("grows", "grew")

#: Owners (inventory/memoryowners.py) by what their growth means.
_SIGNATURES = {
    "unknown anonymous memory": "mapped",
    "code made at run time": "mapped",
    "thread stacks": "stacks",
    "main stack": "stacks",
    "shared memory": "shared",
    "shared anonymous memory": "shared",
    "SysV shared memory": "shared",
    "memfd": "shared",
    "deleted files": "shared",
}


def derive_memory(facts: Sequence[Facts]) -> None:
    """Give each of ``facts`` (of snapshots, oldest first) its rows of the table."""
    rows = list(_rows([f.snapshot for f in facts])) if len(facts) > 1 else []
    for at, one in enumerate(facts):
        one.derived[TABLE] = [{**row, "bytes": values[at]} for row, values in rows]


def _rows(snapshots: Sequence[Snapshot]) -> Iterator[tuple[Row, list[int]]]:
    if not all(s.tables.get("memory_owners") for s in snapshots):
        return
    first = snapshots[0].target.captured_at
    times = [
        s.target.captured_at - first
        if s.target.captured_at is not None and first is not None
        else float("nan")
        for s in snapshots
    ]
    resident = [_by_owner(s) for s in snapshots]
    threads = [int((s.stacks.kind == KIND["thread"]).sum()) for s in snapshots]
    for owner, signature in _SIGNATURES.items():
        values = [one.get(owner, 0) for one in resident]
        way = course(values, times, _LEAST, _RATIO)
        if way not in _MORE:
            continue
        rate = slope(values, times)
        more = values[-1] - values[0]
        pace = f"{more / 1e6:,.0f} MB more than before"
        if rate is not None and rate > 0 and way == "grows":
            pace += f", about {rate * 3600 / 1e6:,.0f} MB an hour"
        yield (
            {
                "signature": signature,
                "owner": owner,
                "course": way,
                "more": more,
                "threads": threads[-1] - threads[0],
                "text": pace,
            },
            values,
        )


def _by_owner(snapshot: Snapshot) -> dict[str, int]:
    out: dict[str, int] = {}
    for row in snapshot.tables.get("memory_owners", ()):
        if isinstance(row, dict) and isinstance(row.get("owner"), str):
            rss = row.get("rss")
            good = isinstance(rss, int) and not isinstance(rss, bool) and 0 <= rss < 1 << 63
            out[row["owner"]] = rss if good else 0  # type: ignore[assignment]
    return out
