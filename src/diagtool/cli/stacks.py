"""``diagtool stacks``: what every thread and task does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from diagtool.cli.options import (
    all_option,
    color_option,
    core_options,
    format_option,
    known_templates,
    label_option,
    native_options,
    output_option,
    source_option,
    target_argument,
    verbose_option,
)

if TYPE_CHECKING:
    from diagtool.runtimes.native.stacks import Unwinder


@click.command("stacks", short_help="Show what every thread and task does.")
@target_argument("target", metavar="TARGET")
@click.option("--tree", "as_tree", is_flag=True, help="Show who awaits whom instead of the clusters.")
@native_options("Show threads with their native frames; or don't look for any.")
@click.option(
    "--hide",
    multiple=True,
    metavar="PATTERN",
    help="With --native: no frames of functions or libraries of this name; * matches anything.",
)
@click.option("--only", multiple=True, metavar="PATTERN", help="With --native: only such frames.")
@label_option
@format_option("terminal", "json")
@output_option("Write to FILE instead of the standard output.")
@all_option("Show idle clusters and every line, too; with --format json, every stack.")
@core_options
@source_option
@verbose_option
@color_option
def command(
    target: str,
    as_tree: bool,
    native: bool | None,
    unwinder: Unwinder,
    debug_directories: tuple[str, ...],
    hide: tuple[str, ...],
    only: tuple[str, ...],
    labels: tuple[tuple[str, str], ...],
    output_format: str,
    output: Path | None,
    everything: bool,
    exe: str | None,
    sysroot: str | None,
    sources: tuple[str, ...],
    verbose: bool,
) -> int:
    """Show what every thread and task does, alike ones counted.

    TARGET is a process id, a core file, a FILE.diag, what another tool wrote, or - for the standard input, as
    for `diagtool leaks`. Stacks of the same kind, state, wait and frames are one line, the largest cluster
    first; -v adds their frames. With --tree each task stands above what it awaits, alike subtrees counted
    once and cycles marked.

    With --native threads are shown with what they run in C, C++ or Rust, inlined functions too, between the
    frames of Python, in the order of their calls. Frames of the C library and of the interpreter are folded;
    -v shows them. Names come from symbols and debug files, where there are any: those of the files
    themselves, of /usr/lib/debug, of --debug-dir, and of a debuginfod server if DEBUGINFOD_URLS is set. Where
    there are none, library and offset stand for the function. A program without Python is shown so, too.

    Of a Go service or a profile of mutexes or blocking, places are shown at which goroutines waited for each
    other, with how long that took.

    A running process is stopped for milliseconds and runs on. Nothing is unwound before it does.

    \b
    Examples:
        diagtool stacks 4242
        diagtool stacks 4242 --tree
        diagtool stacks 4242 --native
        diagtool stacks core.4242 --native --only 'libtorch*'
        diagtool stacks FILE.diag --all --format json

    \b
    Exit status:
        0   shown
        2   wrong usage
        3   the target could not be read, or FILE not be written
    """
    from diagtool.cli.output import print_lines, print_text, width
    from diagtool.cli.target import resolve
    from diagtool.report import terminal
    from diagtool.report.native import Shown
    from diagtool.report.native import lines as native_lines
    from diagtool.report.native import rows as native_rows

    if (hide or only or as_tree) and bool(native) is as_tree:
        raise click.UsageError(
            "--hide and --only go with --native, which is a view of its own, as --tree is."
        )
    if labels and (as_tree or native):
        raise click.UsageError("--label goes with the clusters: not with --tree and --native.")
    threads_alone = bool(native) and output_format != "json"
    resolved = resolve(
        target,
        exe=exe,
        sysroot=sysroot,
        sources=sources,
        output=output,
        frames=native is not False,
        unwinder=unwinder,
        debug_directories=debug_directories,
        inventory=(),
        tasks=not threads_alone,
    )
    snap = resolved.snapshot
    shown = Shown(hide, only, verbose or output_format == "json")
    view = terminal.View(width(output), verbose, everything, resolved.sources)
    if threads_alone:
        print_lines(native_lines(snap, shown, view), output)
        return 0
    from diagtool.leaks import find_leaks
    from diagtool.leaks.labelled import labelled
    from diagtool.report import contention, stacks
    from diagtool.report import json as documents
    from diagtool.report.tree import await_tree

    report = find_leaks([snap], templates=known_templates(None), min_count=None, labels=labels)
    some = labelled(snap, labels)
    if output_format == "json":
        document = documents.stacks(
            report,
            rows=(stack for stack in snap if some[stack.index]) if everything else None,
            tree=await_tree(snap) if as_tree else None,
            threads=native_rows(snap, shown) if native else None,
            contention=contention.document(snap),
        )
        print_text(documents.dumps(document), output)
        return 0
    if as_tree:
        print_lines(stacks.tree(snap, report, await_tree(snap), view), output)
    else:
        print_lines(stacks.table(report, view, contention.lines(snap, view)), output)
    return 0
