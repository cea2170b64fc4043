"""``diagtool ffi``: the libraries of a process, what Python holds of C, and threads of C."""

from __future__ import annotations

from functools import partial
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
    from diagtool.cli.target import Resolved


@click.command("ffi", short_help="Show libraries, what Python holds of C, and threads of C.")
@target_argument("target", metavar="TARGET")
@click.option(
    "--objects/--no-objects",
    default=True,
    help="Look for objects of ctypes, cffi and the like, or not. It takes the heap. Default: look.",
)
@click.option("--all", "everything", is_flag=True, help="Every row of every part; else the first of each.")
@clone_option("auto")
@format_option("terminal", "json")
@output_option("Write to FILE instead of the standard output.")
@core_options
@verbose_option
@color_option
def command(
    target: str,
    objects: bool,
    everything: bool,
    clone: CloneMode | None,
    output_format: str,
    output: Path | None,
    exe: str | None,
    sysroot: str | None,
    verbose: bool,
) -> int:
    """Show the libraries of a process, what Python holds of C and C of Python, and threads of C.

    TARGET is a process id, a core file or a FILE.diag. Of each mapped library: its version as well as it can
    be told (≥: at least), and why it is there: an extension module, a dependency, loaded later by dlopen, by
    ctypes or by cffi. First come those to look at: replaced or deleted on disk since they were loaded,
    mapped twice from different places, with pages that can be written to and executed.

    Then, of Python's heap: callbacks that C may call and the function behind each, functions that ctypes
    calls, buffers in C's layout and those that somebody holds, memoryviews by what they view, small views of
    large arrays, capsules by name, handles and pending destructors of cffi.

    Then the threads that no interpreter knows, by the library that they began in, how many of them run, and
    what limits their number: OMP_NUM_THREADS, torch.set_num_threads() …

    A core does not tell whether the files are still the same. The process is stopped while its memory is
    copied for the objects, and runs on. A large one makes a frozen copy of itself instead, by one system call
    that is injected; --clone never forbids that, --no-objects needs neither.

    \b
    Examples:
        diagtool ffi 4242
        diagtool ffi 4242 --no-objects --all -v
        diagtool ffi core.4242
        diagtool ffi FILE.diag --format json

    \b
    Exit status:
        0   shown
        2   wrong usage
        3   the target could not be read, or FILE not be written
    """
    from diagtool.cli.output import print_lines, print_text, width
    from diagtool.report import ffi, ffirows, terminal
    from diagtool.report import json as documents

    resolved = _look(target, objects, exe, sysroot, output, clone)
    snap = resolved.snapshot
    if not ffirows.is_told(snap):
        raise NoLibraries(target)
    if output_format == "json":
        print_text(documents.dumps(documents.ffi(snap)), output)
        return 0
    view = terminal.View(width(output), verbose, everything, resolved.sources)
    print_lines(ffi.lines(snap, view), output)
    return 0


def _look(
    target: str,
    objects: bool,
    exe: str | None,
    sysroot: str | None,
    output: Path | None,
    clone: CloneMode | None,
) -> Resolved:
    from diagtool.cli.target import look_at_objects, resolve

    look = partial(
        resolve,
        target,
        exe=exe,
        sysroot=sysroot,
        output=output,
        graph=False,
        native=False,
        frames=False,
        inventory=("pools", "ffi"),
        clone=clone,
    )
    return look_at_objects(look, objects)


class NoLibraries(Exception):
    """A snapshot that was taken without libraries."""

    hint = "Take another one with `diagtool snapshot PID`, or name the process."

    def __init__(self, target: str) -> None:
        super().__init__(f"libraries were not looked at when {target} was taken")
