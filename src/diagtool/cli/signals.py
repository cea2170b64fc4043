"""``diagtool signals``: what happens on each signal, and whether that is what Python believes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from diagtool.cli.options import (
    clone_option,
    color_option,
    core_options,
    format_option,
    output_option,
    target_argument,
    verbose_option,
)

if TYPE_CHECKING:
    from diagtool.capture.clonemode import CloneMode


@click.command("signals", short_help="Show who handles each signal, by the kernel and by Python.")
@target_argument("target", metavar="TARGET")
@clone_option("auto, here of a small process too")
@format_option("terminal", "json")
@output_option("Write to FILE instead of the standard output.")
@core_options
@verbose_option
@color_option
def command(
    target: str,
    clone: CloneMode | None,
    output_format: str,
    output: Path | None,
    exe: str | None,
    sysroot: str | None,
    verbose: bool,
) -> int:
    """Show what happens on each signal, and whether that is what Python believes.

    TARGET is a process id, a core file or a FILE.diag. Of each signal that somebody handles, ignores or
    blocks: the function that the kernel calls and the library that holds it, the function that Python has
    for it, and whether the two agree: a C library that sets a handler of its own takes the signal from
    Python, which is not told. And which threads block it, and whether it is pending; faulthandler; the
    wakeup descriptor; the alternate signal stack.

    Which function handles a signal the kernel tells nobody but the process. So a frozen copy-on-write copy
    is made of it, by one system call that is injected, and the copy is asked: the process itself is asked
    nothing. --clone never forbids that; then it is known which signals are caught, but not by whom.

    A core holds Python's table, and in that of a crash the signal, the address of the fault and what lies
    there, who sent it, and where. The kernel's side is in it only if `diagtool core` wrote it.

    \b
    Examples:
        diagtool signals 4242
        diagtool signals 4242 --clone never
        diagtool signals core.4242 -v
        diagtool signals FILE.diag --format json

    \b
    Exit status:
        0   shown
        2   wrong usage
        3   the target could not be read, or FILE not be written
    """
    from diagtool.cli.output import print_lines, print_text, width
    from diagtool.cli.target import resolve
    from diagtool.report import json as documents
    from diagtool.report import signals, terminal

    resolved = resolve(
        target,
        exe=exe,
        sysroot=sysroot,
        output=output,
        frames=False,
        inventory=("signals",),
        clone=clone or "auto",
    )
    snap = resolved.snapshot
    if not signals.is_told(snap):
        raise NoSignals(target)
    if output_format == "json":
        print_text(documents.dumps(documents.signals(snap)), output)
        return 0
    view = terminal.View(width(output), verbose, False, resolved.sources)
    print_lines(signals.lines(snap, signals.rows(snap), view), output)
    return 0


class NoSignals(Exception):
    """A snapshot that was taken without looking at signals."""

    hint = "Take another one with `diagtool snapshot PID`, or name the process or its core."

    def __init__(self, target: str) -> None:
        super().__init__(f"signals were not looked at when {target} was taken")
