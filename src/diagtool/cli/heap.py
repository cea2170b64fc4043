"""``diagtool heap``: all objects of a process by type."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

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


@click.command("heap", short_help="Count the objects of a process by type.")
@target_argument("target", metavar="TARGET")
@click.option("--type", "pattern", metavar="TYPE", help="Only types of this name; * and ? match anything.")
@click.option("--why", metavar="ADDR|TYPE", help="Who keeps the object at ADDR (0x…), or those of TYPE.")
@click.option(
    "--limit", type=click.IntRange(min=1), metavar="N", help="Show N types; default: 30 (JSON: all)."
)
@click.option(
    "--show",
    type=click.Choice(["caches", "registries", "strings", "exceptions", "views", "debug"]),
    metavar="VIEW",
    help="Show what keeps objects: caches, registries, strings, exceptions, views or debug.",
)
@click.option("--values", is_flag=True, help="Show a few objects of --type TYPE, shortened, no secrets.")
@click.option("--native", is_flag=True, help="Show the heap of the C library, in place of the objects.")
@click.option(
    "--go", is_flag=True, help="Show the heap of Go, by size and type. Shown if there is no Python."
)
@click.option("--retained", is_flag=True, help="Show what types, modules and containers keep alone.")
@click.option("--garbage", is_flag=True, help="Show what nobody refers to: garbage, and what C code lost.")
@click.option(
    "--sites", is_flag=True, help="Show where memory was allocated, as far as somebody recorded that."
)
@clone_option("auto")
@format_option("terminal", "json")
@output_option("Write to FILE instead of the standard output.")
@core_options
@verbose_option
@color_option
def command(
    target: str,
    pattern: str | None,
    limit: int | None,
    clone: CloneMode | None,
    output_format: str,
    output: Path | None,
    exe: str | None,
    sysroot: str | None,
    verbose: bool,
    **views: Any,  # of cli.heapviews, by name
) -> int:
    """Count the objects of a process by type, with the bytes that they take.

    TARGET is a process id, a core file or a FILE.diag that `diagtool snapshot --heap` wrote. All objects
    on the heap are counted, not only those that the garbage collector knows. Bytes are those of the
    objects and of what they alone own: the tables of lists, dicts and sets, the buffers of bytearrays and
    arrays. Types of the same name are one row.

    With --why the ways from a root to objects are shown: from a global of a module, a local of a thread, a
    task, or C. Of a type with many objects 200 are looked at, spread over memory. It needs a process or a
    core; keys and items of containers are not shown.

    With --show what keeps objects is shown: caches of functools, with hits and misses and the keys that
    nobody can ask for again (lost); registries of callbacks (atexit, hooks at fork, signals, loggers and
    handlers, finalizers, weak references, warnings); interned strings; stored exceptions and what their
    tracebacks keep; small views of large numpy arrays; what asyncio's debug mode wrote down. --type picks
    rows by their names.

    With --type TYPE --values a few objects of TYPE are shown, shortened. What is known under a name that
    looks like a secret (password, token, key) is not, nor is text that looks like credentials.

    With --retained it is shown how many bytes would be free without a type, the globals of a module, or one
    container, with all that only they keep. With --garbage: whether the cycle collector is on, what only
    it can free, and objects with more references than anything holds, which C code has lost.

    With --native the blocks of the C library's malloc are shown: used and free by arena and size, and
    blocks that no pointer of the process leads to any more: leaks of C code. It needs no Python.

    With --go the heap of Go is shown, by size of objects and, where Go notes them (from 1.22 on, of objects
    of more than 512 bytes with pointers), by type: what is in use, and what is free in spans that are in use.
    A program without Python has nothing else to show, and needs no --go.

    With --sites it is shown where memory was allocated: if the program runs with tracemalloc (python3 -X
    tracemalloc, tracemalloc.start()), or `diagtool snapshot --allocations` watched it. With --type only
    where objects of TYPE were allocated. TARGET may be what tracemalloc.Snapshot.dump() wrote,
    or a heap profile in pprof's format, too.

    A running process is stopped while its memory is copied, and runs on. A large one makes a frozen copy of
    itself instead, by one system call that is injected; --clone never forbids that.

    \b
    Examples:
        diagtool heap 4242
        diagtool heap core.4242 --type 'app.*'
        diagtool heap core.4242 --why app.Image
        diagtool heap 4242 --sites --type app.Image
        diagtool heap 4242 --show caches
        diagtool heap 4242 --type app.Order --values
        diagtool heap core.4242 --retained
        diagtool heap 4242 --garbage
        diagtool heap 4242 --native
        diagtool heap 4242 --go
        diagtool heap FILE.diag --format json

    \b
    Exit status:
        0   shown
        2   wrong usage
        3   the target could not be read, or FILE not be written
    """
    from diagtool.cli.heapviews import Asked, chosen, show
    from diagtool.cli.target import resolve

    view, which = chosen(views, pattern)
    look = partial(
        resolve, target, exe=exe, sysroot=sysroot, output=output, clone=clone, inventory=(), frames=False
    )
    return show(view, Asked(target, pattern, limit, which), look, output_format, output, verbose)
