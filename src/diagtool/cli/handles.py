"""``diagtool handles``: every open file of a process, and who owns it."""

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


@click.command("handles", short_help="Show every open file of a process, and who owns it.")
@target_argument("target", metavar="TARGET")
@click.option("--kind", metavar="KIND", help="Only those of KIND: file, socket, tcp, pipe, epoll, memfd …")
@click.option("--unowned", is_flag=True, help="Only those that no Python object owns.")
@click.option(
    "--owners/--no-owners",
    default=True,
    help="Look for the Python objects that own them, or not. It takes the heap. Default: look.",
)
@click.option("--all", "everything", is_flag=True, help="A line for each; else many alike ones have one.")
@clone_option("auto")
@format_option("terminal", "json")
@output_option("Write to FILE instead of the standard output.")
@core_options
@verbose_option
@color_option
def command(
    target: str,
    kind: str | None,
    unowned: bool,
    owners: bool,
    everything: bool,
    clone: CloneMode | None,
    output_format: str,
    output: Path | None,
    exe: str | None,
    sysroot: str | None,
    verbose: bool,
) -> int:
    """Show every open file of a process, and who in Python owns it.

    TARGET is a process id, a core file or a FILE.diag. What each descriptor is: path, size, deleted or not;
    a socket with both addresses, its state, bytes in its queues, and for how long nothing came or went; the
    other end of a pipe; how many descriptors an epoll watches, and how many of these are dead (closed, or
    another file now); the process of a pidfd; eventfd, timerfd, signalfd, inotify, memfd, io_uring, devices.
    And the limit.

    The owner is the object that would close it: a file, a socket, an epoll, an mmap, a transport of asyncio,
    a multiprocessing connection, an object with the number in an attribute such as _fd. What nobody in
    Python owns was opened by C code, or lost by os.open() or os.pipe(). Descriptors that came or went
    while the process was looked at, and 0 to 2, are never said to be without an owner.

    With -v other processes are searched for the other ends of pipes and unix sockets. A core has no table
    of open files: shown is what objects on its heap own.

    The process is stopped while its memory is copied for the owners, and runs on. A large one makes a frozen
    copy of itself instead, by one system call that is injected; --clone never forbids that, --no-owners
    needs neither.

    \b
    Examples:
        diagtool handles 4242
        diagtool handles 4242 --kind socket -v
        diagtool handles 4242 --unowned --all
        diagtool handles core.4242
        diagtool handles FILE.diag --format json

    \b
    Exit status:
        0   shown
        2   wrong usage
        3   the target could not be read, or FILE not be written
    """
    from diagtool.cli.output import print_lines, print_text, width
    from diagtool.report import handles, terminal
    from diagtool.report import json as documents

    resolved = _look(target, owners, verbose, exe, sysroot, output, clone)
    snap = resolved.snapshot
    if not handles.is_told(snap):
        raise NoHandles(target)
    found = handles.rows(snap)
    if kind is not None and not handles.chosen(found, kind, False) and handles.kinds(found):
        known = ", ".join(handles.kinds(found))
        raise click.UsageError(f"{target} has no open file of the kind {kind}; there are: {known}.")
    shown = handles.chosen(found, kind, unowned)
    if output_format == "json":
        print_text(documents.dumps(documents.handles(snap, shown)), output)
        return 0
    view = terminal.View(width(output), verbose, everything, resolved.sources)
    print_lines(handles.lines(snap, shown, view), output)
    return 0


def _look(
    target: str,
    owners: bool,
    verbose: bool,
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
        inventory=("fds", "peers") if verbose else ("fds",),
        clone=clone,
    )
    return look_at_objects(lambda heap: look(heap=heap, stacks=heap), owners)


class NoHandles(Exception):
    """A snapshot that was taken without open files."""

    hint = "Take another one with `diagtool snapshot PID`, or name the process."

    def __init__(self, target: str) -> None:
        super().__init__(f"open files were not read when {target} was taken")
