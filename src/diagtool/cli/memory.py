"""``diagtool memory``: whose the resident memory of a process is."""

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


@click.command("memory", short_help="Show whose the resident memory of a process is.")
@target_argument("target", metavar="TARGET")
@click.option(
    "--limit", type=click.IntRange(min=1), metavar="N", help="Show N arenas, libraries and files; default: 5."
)
@format_option("terminal", "json")
@output_option("Write to FILE instead of the standard output.")
@core_options
@verbose_option
@color_option
def command(
    target: str,
    limit: int | None,
    output_format: str,
    output: Path | None,
    exe: str | None,
    sysroot: str | None,
    verbose: bool,
) -> int:
    """Show whose the resident memory of a process is, adding up to what the kernel counts.

    TARGET is a process id, a core file or a FILE.diag. Every page has one owner: Python's objects, the heap
    of glibc's malloc and its blocks with mappings of their own, stacks, libraries, files, shared memory,
    memfd, CUDA, DRM, deleted files, code made at run time; what nobody is known to own is shown as such.

    "in use" and "free" are what the allocators say: for glibc the figures of mallinfo2() in the process
    itself, arena by arena; for Python blocks of its small object allocator. A "~" marks an estimate, where
    lists of free memory are too long to follow; `diagtool heap TARGET --native` walks all of them.

    A core tells which bytes it holds, not which pages were resident; it knows nothing of pages of files, of
    what is shared, and of swap.

    A running process is stopped for a few milliseconds, and runs on while the rest is read. Python is not
    needed.

    \b
    Examples:
        diagtool memory 4242
        diagtool memory core.4242 -v
        diagtool memory FILE.diag --format json

    \b
    Exit status:
        0   shown
        2   wrong usage
        3   the target could not be read, or FILE not be written
    """
    from diagtool.cli.output import print_lines, print_text, width
    from diagtool.cli.target import resolve
    from diagtool.report import json as documents
    from diagtool.report import memory, terminal

    resolved = resolve(
        target, exe=exe, sysroot=sysroot, output=output, stacks=False, clone="never", inventory=("memory",)
    )
    snap = resolved.snapshot
    if not memory.has_memory(snap):
        said = [w for w in snap.warnings if w.startswith("whose the memory is")]
        raise NoMemory(target, said[0] if said else None)
    if output_format == "json":
        print_text(documents.dumps(documents.memory(snap)), output)
        return 0
    view = terminal.View(width(output), verbose, False, resolved.sources)
    print_lines(memory.lines(snap, limit or memory.LIMIT, view), output)
    return 0


class NoMemory(Exception):
    """A snapshot that was taken without looking, or a process that ended or forbids it."""

    hint = "Take another one with `diagtool snapshot PID`, or name the process or its core."

    def __init__(self, target: str, said: str | None) -> None:
        super().__init__(said or f"whose the memory is was not looked at when {target} was taken")
