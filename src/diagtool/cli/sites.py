"""``diagtool heap --sites``: where memory was allocated."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diagtool.cli.target import Resolved


def show_sites(
    resolved: Resolved,
    target: str,
    pattern: str | None,
    limit: int | None,
    output_format: str,
    output: Path | None,
    verbose: bool,
) -> int:
    """Print the allocation sites of a snapshot. Raises NoSites where there are none."""
    from diagtool.cli.output import print_lines, print_text, width
    from diagtool.report import allocations, heap, terminal
    from diagtool.report import json as documents

    snap = resolved.snapshot
    if not allocations.has_sites(snap):
        raise NoSites(target, snap.warnings)
    found = allocations.sites(snap, pattern)
    if output_format == "json":
        document = documents.heap(snap, heap.counts(snap, pattern))
        document.update(allocations.document(snap, found[: limit or len(found)]))
        print_text(documents.dumps(document), output)
    else:
        view = terminal.View(width(output), verbose, False, resolved.sources)
        print_lines(allocations.lines(snap, found, limit or allocations.LIMIT, view), output)
    return 0


class NoSites(Exception):
    """Nobody recorded where memory was allocated."""

    hint = (
        "Start the program with `python3 -X tracemalloc=10`, or have it call tracemalloc.start(). "
        "`diagtool snapshot PID --allocations 30s` watches a running process with memray."
    )

    def __init__(self, target: str, warnings: list[str]) -> None:
        said = next((f" ({w})" for w in warnings if "tracemalloc" in w or "memray" in w), "")
        super().__init__(f"nobody recorded where the memory of {target} was allocated{said}")
