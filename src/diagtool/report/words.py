"""A finding in words, for reports that have one line of it: what it is, where, and what it is called."""

from __future__ import annotations

from diagtool.leaks.model import Finding, Ignored
from diagtool.leaks.own import is_own
from diagtool.report.terminal import doing, place
from diagtool.report.text import clean, count, size
from diagtool.snapshot.model import Frame

__all__ = ("UNKNOWN", "at", "headline", "ignored_line", "rule", "short", "where")

#: What stands for the template of findings that have none.
UNKNOWN = "unknown-place"


def rule(finding: Finding) -> str:
    """The id of its template."""
    return clean(finding.template or UNKNOWN, 100)


def short(function: str) -> str:
    """The name of a function without those that it is nested in: ``worker`` for ``main.<locals>.worker``."""
    return clean(function.rpartition("<locals>.")[2].partition("(")[0] or "?", 100)


def headline(finding: Finding) -> str:
    """``10,000 tasks waiting in asyncio.Queue.get``."""
    number = count(finding.count, finding.kind)
    if finding.bytes is not None:
        number += f", {size(finding.bytes)}"
    return f"{number} {doing(finding.state, finding.wait)}"


def where(finding: Finding) -> str:
    """``worker.py:41 in leaf``, of the innermost frame of the user's own, "" where there are no frames."""
    frame = at(finding)
    return "" if frame is None else f"{place(frame)} in {short(frame.function)}"


def at(finding: Finding) -> Frame | None:
    """The innermost frame of the user's own, else the innermost one."""
    frames = (*finding.frames, *(finding.created_by or ()))
    return next((f for f in frames if is_own(f)), frames[0] if frames else None)


def ignored_line(known: Ignored) -> str:
    """``10,000 tasks waiting in asyncio.Queue.get at worker.py:41 in leaf: why (until 2027-01-31)``."""
    place = where(known.finding)
    until = f" (until {known.expires.isoformat()})" if known.expires else ""
    return f"{headline(known.finding)}{' at ' + place if place else ''}: {clean(known.reason, 500)}{until}"
