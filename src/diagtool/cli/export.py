"""``diagtool export``: a snapshot for speedscope, pprof, flame graphs, Perfetto and spreadsheets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from diagtool.cli.options import (
    color_option,
    core_options,
    heap_option,
    native_options,
    output_option,
    target_argument,
)

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from diagtool.cli.target import Resolved
    from diagtool.report.export.samples import By
    from diagtool.runtimes.native.stacks import Unwinder
    from diagtool.snapshot.model import Snapshot

_FORMATS = ("speedscope", "pprof", "collapsed", "chrome", "csv")
#: Formats that hold several snapshots.
_SEVERAL = ("speedscope", "chrome")


def _tables(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Tables of every snapshot, and those of records in the .diag file that was named, if it was one."""
    import json
    import sqlite3

    from click.shell_completion import CompletionItem

    from diagtool.report.export.csvtables import ALWAYS
    from diagtool.snapshot import store

    names = [*ALWAYS, "findings", "clusters"]
    # What comes before an option without its value is left in args.
    for target in [*(context.params.get("targets") or ()), *context.args][:1]:
        with (
            suppress(OSError, store.StoreError, sqlite3.Error, ValueError, TypeError),
            closing(store.connect(target)) as db,
        ):
            (told,) = db.execute("SELECT value FROM meta WHERE key = 'tables'").fetchone()
            names += [name for name in json.loads(told) if isinstance(name, str) and name.isidentifier()]
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


@click.command("export", short_help="Write stacks and tables for other programs.")
@target_argument("targets", metavar="TARGET...", nargs=-1, required=True)
@click.option(
    "--to",
    "to",
    type=click.Choice(_FORMATS),
    required=True,
    help="speedscope: JSON for speedscope.app. pprof: profile.proto, gzipped, for `go tool pprof`. "
    "collapsed: lines for flamegraph.pl and inferno. chrome: trace events for ui.perfetto.dev, of a series "
    "of snapshots. csv: every table.",
)
@click.option(
    "--by",
    type=click.Choice(["count", "bytes", "cpu"]),
    help="What stacks weigh: how many there are (default), bytes in use that were allocated there (of "
    "tracemalloc or `snapshot --allocations`), processor time of threads. Not of chrome and csv.",
)
@native_options("Threads with their native frames; csv: find them. Default: no.")
@click.option(
    "--table",
    metavar="NAME",
    shell_complete=_tables,
    help="csv: only this table, into FILE or on the standard output.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    metavar="N",
    help="chrome: draw N stacks, threads first; default: 2,000. The others are counted.",
)
@heap_option
@output_option("Write to FILE instead of the standard output; csv: the new folder for its files.")
@core_options
@color_option
def command(
    targets: tuple[str, ...],
    to: str,
    by: By | None,
    native: bool | None,
    unwinder: Unwinder,
    debug_directories: tuple[str, ...],
    table: str | None,
    limit: int | None,
    heap: bool | None,
    output: Path | None,
    exe: str | None,
    sysroot: str | None,
) -> int:
    """Write stacks and tables for other programs: viewers of profiles, traces, spreadsheets.

    TARGET is a process id, a core file or a FILE.diag, as for `diagtool leaks`; speedscope and chrome take
    several snapshots of a process. A running process is stopped for milliseconds and runs on.

    Profiles (speedscope, pprof, collapsed) have a sample for all stacks that are alike. It is no profile of
    time: a snapshot is one instant, and wide is where many stacks are. In pprof each has the tags kind,
    state, wait, waits_on, thread and template. A trace (chrome) has what each thread and task did at each
    snapshot, and waits whose length is known.

    Files are complete or not there. Names are escaped; cells of CSV that could be a formula begin with an
    apostrophe.

    \b
    Examples:
        diagtool export 4242 --to speedscope -o stacks.speedscope.json
        diagtool export FILE.diag --to pprof -o stacks.pb.gz
        go tool pprof -http :8080 -tagroot kind,state stacks.pb.gz
        diagtool export core.4242 --to collapsed --native | flamegraph.pl
        diagtool export FILE.diag --to pprof --by bytes -o heap.pb.gz
        diagtool export 1.diag 2.diag 3.diag --to chrome -o trace.json
        diagtool export FILE.diag --to csv -o tables
        diagtool export 4242 --to csv --table fds

    \b
    Exit status:
        0   written
        2   wrong usage
        3   the target could not be read, or FILE not be written
    """
    from diagtool.cli.output import check_new_folder, check_no_terminal
    from diagtool.cli.target import in_series, looks_at_heap, resolve

    _check(to, by, table, limit, len(targets))
    if to == "csv" and table is None:
        check_new_folder(output)  # before a process is stopped for it
    if to == "pprof":
        check_no_terminal(output)
    found: list[Resolved] = []
    for target in targets:
        # Objects and the inventory are tables; allocations are found with the objects.
        objects = looks_at_heap(target, True if heap is None and by == "bytes" else heap)
        found.append(
            resolve(
                target,
                exe=exe,
                sysroot=sysroot,
                output=output,
                heap=objects,
                frames=native is True,
                unwinder=unwinder,
                debug_directories=debug_directories,
                inventory=None if to == "csv" else (),
            )
        )
    snapshots = in_series(found) if to in _SEVERAL else [r.snapshot for r in found]
    if to == "csv":
        return _csv(snapshots[0], table, output)
    return _profile(to, snapshots, by or "count", native is True, limit, output)


def _check(to: str, by: str | None, table: str | None, limit: int | None, targets: int) -> None:
    if targets > 1 and to not in _SEVERAL:
        raise click.UsageError(f"--to {to} holds one snapshot: name one, or choose speedscope or chrome.")
    if by is not None and to in ("chrome", "csv"):
        raise click.UsageError(f"--by says what stacks of a profile weigh: --to {to} has no use for it.")
    if table is not None and to != "csv":
        raise click.UsageError("--table goes with --to csv.")
    if limit is not None and to != "chrome":
        raise click.UsageError("--limit goes with --to chrome.")


def _profile(
    to: str, snapshots: Sequence[Snapshot], by: By, native: bool, limit: int | None, output: Path | None
) -> int:
    from diagtool.cli.output import print_bytes
    from diagtool.cli.progress import progress
    from diagtool.leaks.series import SeriesError
    from diagtool.report.export.documents import FORMATS, exported

    try:
        with progress("counting stacks"):
            chosen = FORMATS[FORMATS.index(to)]
            parts = exported(chosen, snapshots, by=by, native=native, most=limit)
    except SeriesError as error:
        raise click.UsageError(f"{error}. {error.hint}") from error
    with progress("writing"):
        print_bytes(parts, output)
    return 0


def _csv(snapshot: Snapshot, table: str | None, output: Path | None) -> int:
    from diagtool.cli.output import new_folder, print_bytes, print_lines
    from diagtool.cli.progress import progress
    from diagtool.leaks import find_leaks
    from diagtool.report.export.csvtables import tables
    from diagtool.report.text import clean, count, size

    judged = table in (None, "findings", "clusters")
    with progress("matching leak templates"):
        report = find_leaks([snapshot]) if judged else None
    found = tables(snapshot, report)
    if table is not None:
        if table not in found:
            known = ", ".join(tables(snapshot, report if judged else find_leaks([snapshot])))
            raise click.UsageError(f"there is no table {clean(table)}; there are: {known}.")
        print_bytes(found[table](), output)
        return 0
    with new_folder(output) as folder, progress("writing"):
        sizes = [_write(folder / f"{name}.csv", make()) for name, make in found.items()]
    said = f"  {count(sum(map(bool, sizes)), 'table')}, {size(sum(sizes))}"
    print_lines([[(clean(str(output)), "own"), (said, "")]], None)
    return 0


def _write(path: Path, parts: Iterator[bytes]) -> int:
    """How many bytes there were; of a table without columns there is no file."""
    first = next(parts, b"")
    if not first:
        return 0
    with path.open("wb") as file:
        return file.write(first) + sum(file.write(part) for part in parts)
