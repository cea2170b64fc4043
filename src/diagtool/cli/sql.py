"""``diagtool sql``: questions in SQL to a snapshot."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from diagtool.cli.options import (
    color_option,
    core_options,
    format_option,
    heap_option,
    native_options,
    output_option,
    target_argument,
)

if TYPE_CHECKING:
    from diagtool.cli.target import How
    from diagtool.runtimes.native.stacks import Unwinder

_ROWS = 10_000
_SECONDS = 30.0
_MOST_QUERY = 1 << 20


class _BadQuery(click.UsageError):
    """SQLite does not take the query."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


@click.command("sql", short_help="Ask a snapshot in SQL.")
@target_argument("target", metavar="TARGET")
@click.argument("query", required=False)
@click.option("--schema", "show_schema", is_flag=True, help="List tables, views and what their columns mean.")
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=_ROWS,
    show_default=True,
    metavar="N",
    help="Show N rows at most; if there are more, that is said.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=_SECONDS,
    show_default=True,
    metavar="SECONDS",
    help="Give up after so long.",
)
@format_option("terminal", "json", "csv")
@heap_option
@native_options("With the native frames of threads. Default: no.")
@output_option("Write to FILE instead of the standard output.")
@core_options
@color_option
def command(
    target: str,
    query: str | None,
    show_schema: bool,
    limit: int,
    timeout: float,
    output_format: str,
    heap: bool | None,
    native: bool | None,
    unwinder: Unwinder,
    debug_directories: tuple[str, ...],
    output: Path | None,
    exe: str | None,
    sysroot: str | None,
) -> int:
    """Ask a snapshot in SQL (SQLite's).

    TARGET is a FILE.diag, or a process id or a core file, of which a snapshot is taken that is not kept; a
    running process is stopped for milliseconds for it. QUERY is one SELECT; with - it is read from the
    standard input. It can't change anything, and it gets no other file to see.

    Views that help: stack_text (a line a stack), cluster_text (alike stacks counted), trace_text (a line a
    stack's frames), and one for every table of records: fds, libraries, signals, memory_owners, heap_types …
    --schema lists them all. Functions besides SQLite's: hex64(x) writes an address, frames(trace) all frames
    of a trace, innermost first, frame(trace) the innermost one.

    On a terminal columns are cut to its width, elsewhere nothing is.

    \b
    Examples:
        diagtool sql FILE.diag 'select count, kind, wait from cluster_text'
        diagtool sql FILE.diag 'select name, frame(trace) from stack'
        diagtool sql FILE.diag 'select hex64(address), type from thing'
        diagtool sql 4242 'select kind, count(*) from fds group by kind'
        diagtool sql FILE.diag - --format csv < question.sql
        diagtool sql FILE.diag --schema

    \b
    Exit status:
        0   answered
        2   wrong usage, or a query that can't be answered
        3   the target could not be read, or the answer took too long
    """
    from diagtool.cli.output import print_bytes, print_lines, print_text, width
    from diagtool.cli.progress import progress
    from diagtool.report import json, sqltable
    from diagtool.snapshot.query import BadQuery, TooLong, opened

    text = None if show_schema else _query(query)
    how: How = {
        "exe": exe,
        "sysroot": sysroot,
        "frames": native is True,
        "unwinder": unwinder,
        "debug_directories": debug_directories,
    }
    with _file(target, output, heap, how) as file, opened(file, alone=True) as database:
        if text is None:
            print_lines(sqltable.schema(database.tables(), width(output)), output)
            return 0
        try:
            with progress("asking"):
                answer = database.ask(text, rows=limit, seconds=timeout)
        except TooLong:
            raise
        except BadQuery as error:
            raise _BadQuery(str(error), error.hint) from error
    if output_format == "json":
        print_text(json.dumps(sqltable.document(answer)), output)
    elif output_format == "csv":
        print_bytes(sqltable.csv(answer), output)
    else:
        on_terminal = output is None and sys.stdout is not None and sys.stdout.isatty()
        print_lines(sqltable.table(answer, width(output) if on_terminal else None), output)
    if answer.more:
        click.echo(f"diagtool: there are more rows than {limit:,}: --limit N shows N of them.", err=True)
    return 0


def _query(given: str | None) -> str:
    if given is None:
        raise click.UsageError("there is no query: give a SELECT, or - to read it; --schema says of what.")
    if given != "-":
        return given
    if sys.stdin is None:
        raise click.UsageError("the standard input is closed: there is no query to read.")
    text = sys.stdin.buffer.read(_MOST_QUERY + 1)
    if len(text) > _MOST_QUERY:
        raise click.UsageError("the query on the standard input is longer than a megabyte.")
    return text.decode("utf-8", "replace")


@contextmanager
def _file(target: str, output: Path | None, heap: bool | None, how: How) -> Iterator[Path]:
    """The .diag file to ask: the target, or one that is made of it and gone afterwards."""
    from diagtool.api import kind_of
    from diagtool.cli.target import looks_at_heap, resolve
    from diagtool.snapshot import store

    if kind_of(target) == "store":
        if output is not None and output.exists() and output.samefile(target):
            raise click.UsageError(f"{output} is the file to be read. Name another one with -o.")
        yield Path(target)
        return
    how["heap"] = looks_at_heap(target, heap)
    found = resolve(target, output=output, **how)
    with tempfile.TemporaryDirectory(prefix="diagtool-") as folder:
        file = Path(folder, "snapshot.diag")
        store.save(found.snapshot, file)
        yield file
