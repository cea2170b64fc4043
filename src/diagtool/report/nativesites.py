"""Where unreachable blocks were allocated, for ``diagtool heap --native``.

1,000  1.0 MB  1,008 bytes each, first word: retire in libworker.so
               990 allocated at app.py:41 in handle, by decode (decode.c:88)
               10 were not seen: older than the recording, or younger
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from diagtool.leaks.own import is_own
from diagtool.report.allocations import AllocationSite, site_of_row
from diagtool.report.terminal import View, place
from diagtool.report.text import clean
from diagtool.snapshot.model import Frame, Snapshot

__all__ = ["allocated", "documents", "lines"]

_MOST_ROWS = 50_000
_MOST_SITES = 3  # told of one group without -v
_MAX_CALLERS = 25  # frames told of one site with -v


def allocated(snapshot: Snapshot) -> dict[int, list[AllocationSite]] | None:
    """By the ``example`` of a group of unreachable blocks the places, those with most blocks first; None
    where no single allocations were recorded. Rows of a file that make no sense are left out."""
    if "native_allocated" not in snapshot.tables:
        return None
    out: dict[int, list[AllocationSite]] = {}
    for row in snapshot.tables["native_allocated"][:_MOST_ROWS]:
        example = row.get("example") if isinstance(row, dict) else None
        site = site_of_row(row) if isinstance(example, int) else None
        if site is not None and isinstance(example, int):
            out.setdefault(example, []).append(site)
    for sites in out.values():
        sites.sort(key=lambda s: -s.count)
    return out


def documents(sites: Sequence[AllocationSite]) -> list[dict[str, Any]]:
    """The places of one group as JSON."""
    return [
        {
            "count": s.count,
            "bytes": s.bytes,
            "frames": [_frame(f) for f in s.frames],
            "native": [_frame(f) for f in s.native],
        }
        for s in sites
    ]


def _frame(frame: Frame) -> dict[str, Any]:
    return {"function": frame.function or None, "file": frame.file, "line": frame.line}


def _caller(frame: Frame) -> str:
    where = place(frame, True) if frame.line else ""
    function = clean(frame.function)
    return f"{where} in {function}" if where and function else where or function


def lines(sites: Sequence[AllocationSite], blocks: int, view: View) -> Iterator[str]:
    """What to say below a group of so many blocks."""
    shown = sites if view.verbose else sites[:_MOST_SITES]
    for site in shown:
        own = next((f for f in site.frames if is_own(f)), None)
        first = own or next(iter([*site.frames, *site.native]), None)
        text = "at a place without a name" if first is None else f"at {place(first, view.verbose)}"
        if first is not None and first.function:
            text += f" in {clean(first.function)}"
        if site.frames and first is not site.frames[0]:
            text += f", through {place(site.frames[0])}"
        c = next((f for f in site.native if f.line), None)  # the first that has a name in a file
        if c is not None and c is not first:
            text += f", by {clean(c.function)} ({place(c)})"
        yield f"{site.count:,} allocated {text}"
        if view.verbose:
            callers = [f for f in (*site.native, *site.frames) if f is not first and f is not c]
            said = [_caller(f) for f in callers if f.line or f.function.strip("<>") != "unknown"]
            yield from (f"  from {caller}" for caller in said[:_MAX_CALLERS])
    if len(sites) > len(shown):
        rest = sites[len(shown) :]
        yield f"{sum(s.count for s in rest):,} at {len(rest):,} more places (-v)"
    unseen = blocks - sum(s.count for s in sites)
    if sites and unseen > 0:
        verb = "was" if unseen == 1 else "were"
        yield f"{unseen:,} {verb} not seen: older than the recording, or younger"
