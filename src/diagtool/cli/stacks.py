"""``diagtool stacks``: what every thread and task does."""

from __future__ import annotations

from pathlib import Path

import click

from diagtool.cli.options import (
    all_option,
    color_option,
    core_options,
    format_option,
    known_templates,
    output_option,
    target_argument,
    verbose_option,
)


@click.command("stacks", short_help="Show what every thread and task does.")
@target_argument("target", metavar="TARGET")
@click.option("--tree", "as_tree", is_flag=True, help="Show who awaits whom instead of the clusters.")
@format_option("terminal", "json")
@output_option("Write to FILE instead of the standard output.")
@all_option("Show idle clusters and every line, too; with --format json, every stack.")
@core_options
@verbose_option
@color_option
def command(
    target: str,
    as_tree: bool,
    output_format: str,
    output: Path | None,
    everything: bool,
    exe: str | None,
    sysroot: str | None,
    verbose: bool,
) -> int:
    """Show what every thread and task does, alike ones counted.

    TARGET is a process id, a core file or a FILE.diag, as for `diagtool leaks`. Stacks of the same kind,
    state, wait and frames are one line, the largest cluster first; -v adds their frames. With --tree each
    task stands above what it awaits, alike subtrees counted once and cycles marked.

    A running process is stopped for milliseconds and runs on.

    \b
    Examples:
        diagtool stacks 4242
        diagtool stacks 4242 --tree
        diagtool stacks FILE.diag --all --format json

    \b
    Exit status:
        0   shown
        2   wrong usage
        3   the target could not be read, or FILE not be written
    """
    from diagtool.cli.output import print_lines, print_text, width
    from diagtool.cli.target import resolve
    from diagtool.leaks import find_leaks
    from diagtool.report import json as documents
    from diagtool.report import stacks, terminal
    from diagtool.report.tree import await_tree

    resolved = resolve(target, exe=exe, sysroot=sysroot, output=output, inventory=())
    snap = resolved.snapshot
    report = find_leaks([snap], templates=known_templates(None), min_count=None)
    if output_format == "json":
        document = documents.stacks(
            report, rows=snap if everything else None, tree=await_tree(snap) if as_tree else None
        )
        print_text(documents.dumps(document), output)
        return 0
    view = terminal.View(width(output), verbose, everything, resolved.sources)
    if as_tree:
        print_lines(stacks.tree(snap, report, await_tree(snap), view), output)
    else:
        print_lines(stacks.table(report, view), output)
    return 0
