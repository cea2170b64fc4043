"""``diagtool leaks``: what leaked, who waits on what, who holds it, how to fix it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from diagtool.cli.formats import FORMATS, FormatParam, Output, Shown, outputs, write_all
from diagtool.cli.options import (
    all_option,
    clone_option,
    color_option,
    core_options,
    heap_option,
    known_templates,
    native_options,
    output_option,
    target_argument,
    templates_option,
    verbose_option,
)

if TYPE_CHECKING:
    from diagtool.capture.image import CloneMode
    from diagtool.leaks.model import Report, Verdict
    from diagtool.report.text import Line
    from diagtool.runtimes.native.stacks import Unwinder
    from diagtool.snapshot.model import Snapshot


@click.command("leaks", short_help="Say what leaked or hangs, why, and how to fix it.")
@target_argument("targets", metavar="TARGET...", nargs=-1, required=True)
@click.option(
    "--format",
    "formats",
    type=FormatParam(),
    multiple=True,
    metavar="NAME[=FILE]",
    help=f"How to print it: {', '.join(FORMATS)}. Can be given several times, all but one with a file: "
    "--format terminal --format json=leaks.json. Default: terminal.",
)
@output_option("Write the report to FILE instead of the standard output.")
@click.option(
    "--fail-on",
    type=click.Choice(["proven", "likely", "suspect", "never"]),
    default="likely",
    show_default=True,
    help="Exit with 1 when there is a finding of this verdict or a worse one.",
)
@click.option(
    "--min-count",
    type=click.IntRange(min=1),
    metavar="N",
    help="Report what has at least N stacks, instead of as many as each template says.",
)
@heap_option
@clone_option("auto with --heap, else never")
@native_options()
@templates_option
@all_option("Show idle stacks, too: worker pools, event loops, listeners.")
@core_options
@verbose_option
@color_option
def command(
    targets: tuple[str, ...],
    formats: tuple[Output, ...],
    output: Path | None,
    fail_on: Verdict | Literal["never"],
    min_count: int | None,
    heap: bool | None,
    clone: CloneMode | None,
    native: bool | None,
    unwinder: Unwinder,
    debug_directories: tuple[str, ...],
    templates: Path | None,
    everything: bool,
    exe: str | None,
    sysroot: str | None,
    verbose: bool,
) -> int:
    """Say what leaked or hangs, why, since when, who holds it, and what to change.

    TARGET is a process id, a core file (kernel, gcore or systemd; plain or compressed with gzip, xz, lz4
    or zstd), or a FILE.diag that `diagtool snapshot` wrote, recognised by its content. Several snapshots
    of one process, oldest first, report only what persisted or grew.

    With --heap objects and native blocks are counted, too, and judged: what is lost, who holds most, and in
    a series what grew (three snapshots taken with --heap, the last after the load is over). Of a core that
    is done without being asked where its stacks show nothing likely, and where it is small.

    Native frames of threads are unwound, too, after the stop: they say which lock of C or C++ a thread waits
    for, and who owns it. A program without Python is judged by them alone.

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

    \b
    Examples:
        diagtool leaks 4242
        diagtool leaks core.4242.zst --sysroot /srv/image
        diagtool leaks before.diag after.diag
        diagtool leaks 4242 --heap
        diagtool leaks 4242 --format json --fail-on proven -o leaks.json

    \b
    Exit status:
        0   nothing found at or above --fail-on
        1   findings
        2   wrong usage
        3   a target could not be read, or FILE not be written
    """
    from diagtool.cli.output import width
    from diagtool.cli.progress import progress
    from diagtool.cli.target import looks_at_heap, resolve
    from diagtool.leaks import find_leaks
    from diagtool.leaks.series import SeriesError

    chosen = outputs(formats, output, targets)
    known = known_templates(templates)  # before the stop, which a mistake in them must not cost
    look = partial(
        resolve,
        exe=exe,
        sysroot=sysroot,
        clone=clone,
        frames=native is not False,
        unwinder=unwinder,
        debug_directories=debug_directories,
    )
    resolved = [look(target, heap=looks_at_heap(target, heap)) for target in targets]

    def judged() -> Report:
        with progress("looking for leaks"):
            try:
                return find_leaks([r.snapshot for r in resolved], templates=known, min_count=min_count)
            except SeriesError as error:
                raise click.UsageError(f"{error}. {error.hint}") from error

    report = judged()
    unsure = heap is None and len(targets) == 1 and not report.at_least("likely")
    if unsure and _has_more(targets[0], resolved[0].snapshot):
        resolved = [look(targets[0], heap=True)]
        report = judged()
    last = resolved[-1]

    def shown(where: Output) -> Shown:
        return Shown(
            report,
            [r.snapshot for r in resolved],
            last.sources,
            width(where.file),
            verbose,
            everything,
            tuple(_hint(targets[-1], last.snapshot)),
        )

    write_all(chosen, shown)
    # Verdicts are ordered: "likely" is about proven ones, too.
    return 1 if fail_on != "never" and report.at_least(fail_on) else 0


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
