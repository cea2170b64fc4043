"""``diagtool heap``: all objects of a process by type."""

from __future__ import annotations

from pathlib import Path

import click

from diagtool.cli.options import (
    color_option,
    core_options,
    format_option,
    output_option,
    target_argument,
    verbose_option,
)


@click.command("heap", short_help="Count the objects of a process by type.")
@target_argument("target", metavar="TARGET")
@click.option("--type", "pattern", metavar="TYPE", help="Only types of this name; * and ? match anything.")
@click.option(
    "--limit", type=click.IntRange(min=1), metavar="N", help="Show N types; default: 30 (JSON: all)."
)
@format_option("terminal", "json")
@output_option("Write to FILE instead of the standard output.")
@core_options
@verbose_option
@color_option
def command(
    target: str,
    pattern: str | None,
    limit: int | None,
    output_format: str,
    output: Path | None,
    exe: str | None,
    sysroot: str | None,
    verbose: bool,
) -> int:
    """Count the objects of a process by type, with the bytes that they take.

    TARGET is a process id, a core file or a FILE.diag that `diagtool snapshot --heap` wrote. All objects
    on the heap are counted, not only those that the garbage collector knows. Bytes are those of the
    objects and of what they alone own: the tables of lists, dicts and sets, the buffers of bytearrays and
    arrays. Types of the same name are one row.

    A running process is stopped while its memory is copied, and runs on.

    \b
    Examples:
        diagtool heap 4242
        diagtool heap core.4242 --type 'app.*'
        diagtool heap FILE.diag --format json

    \b
    Exit status:
        0   shown
        2   wrong usage
        3   the target could not be read, or FILE not be written
    """
    from diagtool.cli.output import print_lines, print_text, width
    from diagtool.cli.target import resolve
    from diagtool.report import heap, terminal
    from diagtool.report import json as documents

    resolved = resolve(target, exe=exe, sysroot=sysroot, output=output, heap=True)
    snap = resolved.snapshot
    if not heap.has_census(snap):
        raise NoCensus(target)
    rows = heap.counts(snap, pattern)
    if output_format == "json":
        print_text(documents.dumps(documents.heap(snap, rows[: limit or len(rows)])), output)
    else:
        view = terminal.View(width(output), verbose, False, resolved.sources)
        print_lines(heap.table(snap, rows, limit or heap.LIMIT, view), output)
    return 0


class NoCensus(Exception):
    """A snapshot that was taken without counting the objects."""

    hint = "Take another one with `diagtool snapshot PID --heap`, or name the process or its core."

    def __init__(self, target: str) -> None:
        super().__init__(f"the objects were not counted when {target} was taken")
