"""``diagtool heap``: all objects of a process by type."""

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
    from diagtool.capture.image import CloneMode


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
    why: str | None,
    limit: int | None,
    show: str | None,
    values: bool,
    native: bool,
    retained: bool,
    garbage: bool,
    sites: bool,
    clone: CloneMode | None,
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

    With --sites it is shown where memory was allocated: if the program runs with tracemalloc (python3 -X
    tracemalloc, tracemalloc.start()), or `diagtool snapshot --allocations` watched it. With --type only
    where objects of TYPE were allocated. TARGET may be what tracemalloc.Snapshot.dump() wrote, too.

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
        diagtool heap FILE.diag --format json

    \b
    Exit status:
        0   shown
        2   wrong usage
        3   the target could not be read, or FILE not be written
    """
    from diagtool.cli.heapviews import show_details
    from diagtool.cli.keepers import show_keepers
    from diagtool.cli.output import print_lines, print_text, width
    from diagtool.cli.sites import show_sites
    from diagtool.cli.target import resolve
    from diagtool.report import allocations, heap, nativeheap, terminal
    from diagtool.report import json as documents

    look = partial(
        resolve, target, exe=exe, sysroot=sysroot, output=output, clone=clone, inventory=(), frames=False
    )
    if sites:
        if native or why is not None:
            raise click.UsageError("--sites is a view of its own: it has no --native and no --why.")
        return show_sites(
            look(heap=True, graph=False, native=False),
            *(target, pattern, limit, output_format, output, verbose),
        )
    if show is not None or values:
        if native or why is not None or (values and (show is not None or pattern is None)):
            raise click.UsageError("--show and --values are views of their own; --values needs --type TYPE.")
        return show_details(
            look(heap=True, native=False, graph=False, values=pattern if values else None),
            *(target, show, pattern, limit, output_format, output, verbose),
        )
    if retained or garbage:
        if (retained and garbage) or native or why is not None or pattern is not None:
            raise click.UsageError(
                "--retained and --garbage are views of their own: no other goes with them."
            )
        return show_keepers(
            look(heap=True, graph=True, native=False),
            *(target, garbage, limit, output_format, output, verbose),
        )
    if native:
        if pattern is not None or why is not None:
            raise click.UsageError("--native shows blocks of C: they have no --type and no --why.")
        found = look(native=True)
        if not nativeheap.has_native(found.snapshot):
            raise NoNative(target)
        if output_format == "json":
            print_text(documents.dumps(documents.heap(found.snapshot, heap.counts(found.snapshot))), output)
        else:
            view = terminal.View(width(output), verbose, False, found.sources)
            print_lines(nativeheap.lines(found.snapshot, limit or nativeheap.LIMIT, view), output)
        return 0
    resolved = look(heap=True, why=why, graph=False, native=False)
    snap = resolved.snapshot
    if not heap.has_census(snap):
        if why is None and allocations.has_sites(snap):
            return show_sites(resolved, target, pattern, limit, output_format, output, verbose)
        raise NoCensus(target)
    if why is not None and "heap_why" not in snap.tables and not heap.answer_from_paths(snap, why):
        raise NoMemory(target)
    rows = heap.counts(snap, pattern)
    if output_format == "json":
        print_text(documents.dumps(documents.heap(snap, rows[: limit or len(rows)], heap.ways(snap))), output)
    else:
        view = terminal.View(width(output), verbose, False, resolved.sources)
        shown = heap.table(snap, rows, limit or heap.LIMIT, view) if why is None else heap.paths(snap, view)
        print_lines(shown, output)
    return 0


class NoMemory(Exception):
    """A snapshot has counts and no memory, in which one could look who keeps what."""

    hint = "Name the process or its core."

    def __init__(self, target: str) -> None:
        super().__init__(f"{target} holds no memory to find out in who keeps an object")


class NoNative(Exception):
    """A snapshot that was taken without reading the native heap."""

    hint = "Take another one with `diagtool snapshot PID --heap`, or name the process or its core."

    def __init__(self, target: str) -> None:
        super().__init__(f"the native heap was not read when {target} was taken")


class NoCensus(Exception):
    """A snapshot that was taken without counting the objects."""

    hint = "Take another one with `diagtool snapshot PID --heap`, or name the process or its core."

    def __init__(self, target: str) -> None:
        super().__init__(f"the objects were not counted when {target} was taken")
