"""``diagtool heap --retained`` and ``--garbage``: what keeps how much, and what nobody refers to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diagtool.cli.target import Resolved


def show_keepers(
    resolved: Resolved,
    target: str,
    garbage: bool,
    limit: int | None,
    output_format: str,
    output: Path | None,
    verbose: bool,
) -> int:
    """Print who keeps how much, or with ``garbage`` what nobody refers to. Raises NoGraph if not known."""
    from diagtool.cli.output import print_lines, print_text, width
    from diagtool.report import heap, retained, terminal
    from diagtool.report import json as documents

    snap = resolved.snapshot
    if not (retained.has_garbage(snap) if garbage else retained.has_retained(snap)):
        raise NoGraph(target)
    if output_format == "json":
        print_text(documents.dumps(documents.heap(snap, heap.counts(snap))), output)
    else:
        view = terminal.View(width(output), verbose, False, resolved.sources)
        lines = retained.garbage_lines if garbage else retained.retained_lines
        print_lines(lines(snap, limit or retained.LIMIT, view), output)
    return 0


class NoGraph(Exception):
    """It was not looked at what the objects refer to."""

    hint = "Name the process or its core."

    def __init__(self, target: str) -> None:
        super().__init__(f"what the objects of {target} refer to is not known")
