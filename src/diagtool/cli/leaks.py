"""``diagtool leaks``: what leaked, who waits on what, who holds it, how to fix it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from diagtool.cli.baseline import baseline_options, chosen, write_baseline
from diagtool.cli.formats import FORMATS, FormatParam, Output, Shown, outputs, write_all
from diagtool.cli.options import (
    all_option,
    clone_option,
    color_option,
    core_options,
    heap_option,
    known_templates,
    label_option,
    native_options,
    output_option,
    source_option,
    target_argument,
    templates_option,
    verbose_option,
)
from diagtool.cli.service import service_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diagtool.capture.clonemode import CloneMode
    from diagtool.ingest.service import Asking
    from diagtool.leaks.model import Report
    from diagtool.leaks.template import Template
    from diagtool.report.sources import Sources
    from diagtool.report.text import Line
    from diagtool.runtimes.native.stacks import Unwinder
    from diagtool.snapshot.model import Snapshot


@click.command("leaks", short_help="Say what leaked or hangs, why, and how to fix it.")
@target_argument("targets", metavar="TARGET...", nargs=-1)
@click.option(
    "--format",
    "formats",
    type=FormatParam(),
    multiple=True,
    metavar="NAME[=FILE]",
    help=f"How to print it: {', '.join(FORMATS)}. Can be given several times, all but one with a file: "
    "--format terminal --format sarif=leaks.sarif. Default: terminal.",
)
@output_option("Write the report to FILE instead of the standard output.")
@click.option(
    "--fail-on",
    type=click.Choice(["proven", "likely", "suspect", "never"]),
    help="Exit with 1 when there is a finding of this verdict or a worse one. Default: likely.",
)
@click.option(
    "--min-count",
    type=click.IntRange(min=1),
    metavar="N",
    help="Report what has at least N stacks, instead of as many as each template says.",
)
@baseline_options
@click.option(
    "--write-baseline",
    "write",
    is_flag=True,
    help="Add what is found to the baseline file: from the next run on only what is new counts.",
)
@click.option("--reason", metavar="TEXT", help="Why, for the entries of --write-baseline.")
@click.option(
    "--explain",
    metavar="FINDING",
    help="Everything known about one finding, by its id (its beginning will do) or its template.",
)
@label_option
@heap_option
@clone_option("auto with --heap, else never")
@native_options()
@templates_option
@all_option("Show idle stacks, too: worker pools, event loops, listeners.")
@core_options
@source_option
@service_options
@verbose_option
@color_option
def command(
    targets: tuple[str, ...],
    formats: tuple[Output, ...],
    output: Path | None,
    fail_on: str | None,
    min_count: int | None,
    baseline: Path | None,
    no_baseline: bool,
    root: Path | None,
    maps: tuple[str, ...],
    write: bool,
    reason: str | None,
    explain: str | None,
    labels: tuple[tuple[str, str], ...],
    heap: bool | None,
    clone: CloneMode | None,
    native: bool | None,
    unwinder: Unwinder,
    debug_directories: tuple[str, ...],
    templates: Path | None,
    everything: bool,
    exe: str | None,
    sysroot: str | None,
    sources: tuple[str, ...],
    asking: Asking,
    verbose: bool,
) -> int:
    """Say what leaked or hangs, why, since when, who holds it, and what to change.

    TARGET is a process id, a core file (kernel, gcore or systemd; plain or compressed with gzip, xz, lz4
    or zstd), or a FILE.diag that `diagtool snapshot` wrote, recognised by its content. Several snapshots
    of one process, oldest first, report only what persisted or grew.

    Goroutine dumps, profiles, traces and stacks that other tools wrote are read, too, compressed or not, and
    from within logs; several dumps in a file are a series. With - the standard input is read. The address of
    a Go service is a TARGET, too (`diagtool snapshot --help` says how).

    With --heap objects and native blocks are counted, too, and judged: what is lost, who holds most, and in
    a series what grew (three snapshots taken with --heap, the last after the load is over). Of a core that
    is done without being asked where its stacks show nothing likely, and where it is small.

    Native frames of threads are unwound, too, after the stop: they say which lock of C or C++ a thread waits
    for, and who owns it. A program without Python is judged by them alone.

    Where the source of the program can be read (where it was, below --sysroot, or below --source), it is held
    against some findings: a task that nobody keeps, acquire() without finally. It is parsed, never run. What
    was changed since the process started, or has other lines than its code, is not used, and that is said.

    Which functions handle signals only a frozen copy of a process can tell: with --clone always one is made,
    and handlers that C code took from Python are found.

    A running process is stopped for milliseconds and runs on. Nothing is executed in it. A core is never
    read as a whole; files of its machine that are missing here can be given with --exe and --sysroot, and
    are used only if their build-ids match.

    \b
    Verdicts:
        proven    nothing that can still run reaches what it waits on
        likely    a leak template matched with all its conditions
        suspect   a template matched in part, or many wait where none matched
    Idle pools, event loops and listeners are no findings; --all shows them.

    What a team knows and accepts is in .diagtool.toml, each entry with a reason (docs/baseline.md). It is
    ignored, and counted in the last line; -v shows it. In CI: docs/ci.md.

    \b
    Examples:
        diagtool leaks 4242
        diagtool leaks core.4242.zst --sysroot /srv/image
        diagtool leaks service.diag --source src
        diagtool leaks before.diag after.diag
        diagtool leaks service.log --label service=search
        kubectl logs pod/search | diagtool leaks -
        diagtool leaks http://127.0.0.1:6060/debug/pprof
        diagtool leaks 4242 --heap
        diagtool leaks 4242 --format json --fail-on proven -o leaks.json
        diagtool leaks 4242 --format github --format sarif=leaks.sarif
        diagtool leaks service.diag --explain asyncio-queue-get-starved
        diagtool leaks 4242 --write-baseline --reason "being repaired: #123"

    \b
    Exit status:
        0   nothing found at or above --fail-on
        1   findings
        2   wrong usage
        3   a target could not be read, or FILE not be written
    """
    from diagtool.cli.output import width
    from diagtool.cli.progress import progress
    from diagtool.cli.target import in_series, looks_at_heap, resolve
    from diagtool.leaks import find_leaks
    from diagtool.leaks.series import SeriesError

    # What can be wrong with these is told before the stop, which it must not cost.
    written = outputs(formats, output, targets)
    if reason is not None and not (write and reason.strip()):
        raise click.UsageError("--reason says why entries are written: it needs --write-baseline and a text.")
    rules = chosen(
        baseline=baseline,
        no_baseline=no_baseline,
        root=root,
        maps=maps,
        fail_on=fail_on,
        min_count=min_count,
        templates=templates,
        new=write,
    )
    known = known_templates(rules.templates)
    look = partial(
        resolve,
        exe=exe,
        sysroot=sysroot,
        sources=sources,
        clone=clone,
        frames=native is not False,
        unwinder=unwinder,
        debug_directories=debug_directories,
        asking=asking,
    )
    resolved = [look(target, heap=looks_at_heap(target, heap)) for target in targets]

    def judged(with_sources: bool = True) -> Report:
        with progress("looking for leaks"):
            try:
                snapshots = in_series(resolved)
                return rules.judged(
                    find_leaks(
                        snapshots,
                        templates=known,
                        min_count=rules.min_count,
                        sources=resolved[-1].sources if with_sources else None,
                        labels=labels,
                    )
                )
            except SeriesError as error:
                raise click.UsageError(f"{error}. {error.hint}") from error

    # What stacks alone say of a core decides whether its heap is looked at: a source file makes a suspect
    # likely, and what is in the heap does not depend on that.
    more = heap is None and len(targets) == 1 and _has_more(targets[0], resolved[0].snapshot)
    if more and not judged(with_sources=False).at_least("likely"):
        resolved = [look(targets[0], heap=True)]
    report = judged()
    last = resolved[-1]
    if write:
        new = write_baseline(report, baseline, rules.baseline, reason)
        rules = replace(rules, baseline=new)
        report = judged()
    if explain is not None:
        return _explained(report, explain, in_series(resolved), known, written, last.sources, everything)
    report = rules.placed(report, written)

    def shown(where: Output) -> Shown:
        return Shown(
            report,
            in_series(resolved),
            last.sources,
            width(where.file),
            verbose,
            everything,
            tuple(_hint(targets[-1], last.snapshot)),
            rules.locations,
            rules.fail_on,
        )

    write_all(written, shown)
    return rules.status(report)


def _explained(
    report: Report,
    wanted: str,
    snapshots: Sequence[Snapshot],
    templates: Sequence[Template],
    written: Sequence[Output],
    sources: Sources,
    everything: bool,
) -> int:
    """Print what is known about one finding."""
    from diagtool.cli.output import print_lines, print_text, width
    from diagtool.leaks.explain import NoSuchFinding
    from diagtool.leaks.explain import explain as explained
    from diagtool.report import explain as words
    from diagtool.report import json as documents
    from diagtool.report.terminal import View

    if any(o.format not in ("terminal", "json") for o in written):
        raise click.UsageError("--explain is for --format terminal and json.")
    try:
        told = explained(report, wanted, snapshots, templates)
    except NoSuchFinding as error:
        raise click.UsageError(f"{error}. Name an id of `diagtool leaks --format json`.") from error
    for where in written:
        if where.format == "json":
            print_text(documents.dumps(documents.explain(report, told)), where.file)
        else:
            print_lines(words.lines(told, View(width(where.file), True, everything, sources)), where.file)
    return 0


def _has_more(target: str, snap: Snapshot) -> bool:
    """Whether there is a heap that was not looked at yet: that of a core."""
    from diagtool.api import kind_of

    missing = snap.target.details.get("missing")  # of a slim core, say: what is left is no heap
    return kind_of(target) == "core" and not {"heap", "native_heap"} & snap.tables.keys() and not missing


def _hint(target: str, snap: Snapshot) -> list[Line]:
    """That a large core has a heap, too; that only a copy of a process knows its signal handlers."""
    from diagtool.report.signals import doubted

    if _has_more(target, snap):
        return [[("the heap was not looked at; --heap does, and takes longer", "label")]]
    names = doubted(snap) if snap.target.kind == "live" and "signals" in snap.tables else []
    if not names:
        return []
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    text = f"not known: who handles {', '.join(names[:3])}{more}; --clone always asks a copy of the process"
    return [[(text, "label")]]
