"""``diagtool heap --show`` and ``--values``: what keeps objects, and what some of them are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diagtool.cli.target import Resolved


def show_details(
    resolved: Resolved,
    target: str,
    name: str | None,
    pattern: str | None,
    limit: int | None,
    output_format: str,
    output: Path | None,
    verbose: bool,
) -> int:
    """Print the view ``name`` of a snapshot, or (None) examples of objects. Raises NotTold."""
    from diagtool.cli.output import print_lines, print_text, width
    from diagtool.report import heap, heapdetails, terminal
    from diagtool.report import json as documents

    snap = resolved.snapshot
    if name is None and not heapdetails.has_values(snap):
        raise NotTold(f"{target} holds no memory to show values of")
    if name is not None and heapdetails.VIEWS[name] not in snap.tables:
        raise NotTold(f"{target} does not tell its {name}")
    if output_format == "json":
        print_text(documents.dumps(documents.heap(snap, heap.counts(snap, pattern))), output)
        return 0
    view = terminal.View(width(output), verbose, False, resolved.sources)
    if name is None:
        print_lines(heapdetails.values(snap, view), output)
    else:
        print_lines(heapdetails.lines(snap, name, pattern, limit or heapdetails.LIMIT, view), output)
    return 0


class NotTold(Exception):
    """A snapshot that was taken without what is asked for."""

    hint = "Take another one with `diagtool snapshot PID --heap`, or name the process or its core."
