"""Where unreachable blocks were allocated, as a recorder saw it: joined by address.

A recording ends before the capture, so a block may have been freed since, and its place taken by another one,
which is not to be blamed on the first one's site. So the block that is there has to have the size that malloc
would give for what was asked for.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from diagtool.capture.memory import U64
from diagtool.runtimes.native.model import LostBlocks

__all__ = ["add_allocated", "site_of_blocks"]

Row = dict[str, Any]

#: Bytes that malloc may give beyond those asked for: its sizes are multiples of 16 and at least 24, and a
#: rest of less than a smallest chunk (32) stays with the block. Of a block with a mapping of its own: pages.
_SLACK, _SLACK_MAPPED = 32, 8192
_MOST_SITES = 20  # told of one group, those with most blocks
_MOST_OF_LOST = 3  # and for findings


def add_allocated(
    lost: LostBlocks,
    tables: dict[str, list[Row]],
    address: U64,
    size: U64,
    site: NDArray[np.int64],
    sites: list[Row],
) -> None:
    """Say of unreachable blocks where they were allocated: the table ``native_allocated``.

    ``address`` (each once, sorted), ``size`` (as asked for) and ``site`` are of the blocks that were not
    freed when the recording ended; ``site`` is an index into ``sites``, the columns that tell a place.
    A row of ``native_allocated`` is a group of unreachable blocks and a place: ``example`` (as the group's),
    ``count``, ``bytes`` and the columns of the place, those with most blocks first. The rows of
    ``native_lost`` get ``recorded`` (blocks with a known place; the others are older than the recording, or
    were not seen) and ``allocated`` (the first of these rows).
    """
    groups = tables.get("native_unreachable", [])
    where = site_of_blocks(lost, address, size, site)
    fine = (where >= 0) & (where < len(sites)) & (lost.group >= 0) & (lost.group < len(groups))
    pair, count = np.unique(np.stack([lost.group[fine], where[fine]], axis=1), axis=0, return_counts=True)
    by_group: dict[int, list[Row]] = {}
    order = np.lexsort((pair[:, 1], -count, pair[:, 0]))
    for (group, place), number in zip(pair[order].tolist(), count[order].tolist(), strict=True):
        told = {"example": groups[group]["example"], "count": number, "bytes": number * groups[group]["size"]}
        by_group.setdefault(group, []).append({**told, **sites[place]})
    tables["native_allocated"] = [row for rows in by_group.values() for row in rows[:_MOST_SITES]]
    findings = iter(tables.get("native_lost", ()))
    for group, row in enumerate(groups):
        if row["known"] is None and row["count"] > row["hangs"]:  # as NativeHeap.to_rows() takes them
            finding = next(findings, None)
            if finding is not None:
                rows = by_group.get(group, [])
                finding["recorded"] = sum(r["count"] for r in rows)
                finding["allocated"] = rows[:_MOST_OF_LOST]


def site_of_blocks(lost: LostBlocks, address: U64, size: U64, site: NDArray[np.int64]) -> NDArray[np.int64]:
    """The site of each unreachable block, -1 where none was recorded or another block was there."""
    none = np.full(len(lost.address), -1, dtype=np.int64)
    if not len(address):
        return none
    at = np.minimum(np.searchsorted(address, lost.address), len(address) - 1)
    asked = size[at]
    slack = np.where(lost.mapped, np.uint64(_SLACK_MAPPED), np.uint64(_SLACK))
    # A block has 24 usable bytes at least, whatever was asked for.
    same = (address[at] == lost.address) & (asked <= lost.usable) & (lost.usable - asked <= slack)
    return np.where(same, site[at], none)
