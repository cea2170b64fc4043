"""``diagtool diff``: what grew between snapshots of a process, and how fast."""

from __future__ import annotations

from pathlib import Path

import click

from diagtool.cli.options import (
    color_option,
    core_options,
    format_option,
    heap_option,
    output_option,
    target_argument,
    verbose_option,
)


class _Work(click.ParamType[tuple[float, ...]]):
    name = "work"

    def convert(
        self, value: str | tuple[float, ...], parameter: click.Parameter | None, context: click.Context | None
    ) -> tuple[float, ...]:
        try:
            numbers = tuple(float(part) for part in value.split(",")) if isinstance(value, str) else value
        except ValueError:
            self.fail(f"{value!r} is no number, and no list of numbers", parameter, context)
        if not all(0 <= number < 1e15 for number in numbers) or not sum(numbers):
            self.fail(f"{value!r} is no amount of work", parameter, context)
        return numbers


@click.command("diff", short_help="Say what grew between snapshots, and how fast.")
@target_argument("targets", metavar="OLD NEW [MORE]...", nargs=-1, required=True)
@click.option(
    "--work",
    type=_Work(),
    metavar="N[,N]...",
    help="N requests, jobs or other units of work were done between the first and the last; or one number "
    "for each time in between.",
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Show N rows of each; default: 12.")
@heap_option
@format_option("terminal", "json")
@output_option("Write to FILE instead of the standard output.")
@core_options
@verbose_option
@color_option
def command(
    targets: tuple[str, ...],
    work: tuple[float, ...] | None,
    limit: int | None,
    heap: bool | None,
    output_format: str,
    output: Path | None,
    exe: str | None,
    sysroot: str | None,
    verbose: bool,
) -> int:
    """Say what grew between snapshots of a process, and how fast.

    OLD, NEW and MORE are snapshots, cores, or a process id for the last. Shown are the heaps (objects that
    the collector tracks, blocks of Python's allocator, the native heap, resident memory), then types, the
    containers that hold most with the way to them, stacks at one place, mapped files. Snapshots that were
    taken without --heap have only stacks, files and resident memory to compare.

    One pair proves little: what is loaded at first use, or still in flight, grows, too. Take three, the last
    ones when the load is over; "grows steadily" is said of nothing else. `diagtool leaks` judges the same.

    \b
    Examples:
        diagtool snapshot 4242 --heap -o a.diag
        diagtool diff a.diag b.diag
        diagtool diff a.diag b.diag c.diag --work 30000
        diagtool diff a.diag 4242 --heap --format json

    \b
    Exit status:
        0   shown
        2   wrong usage
        3   a target could not be read, or FILE not be written
    """
    from diagtool.api import kind_of
    from diagtool.cli.output import print_lines, print_text, width
    from diagtool.cli.progress import progress
    from diagtool.cli.target import in_series, looks_at_heap, resolve
    from diagtool.leaks.series import SeriesError, in_order
    from diagtool.report import diff as view_of
    from diagtool.report import diffjson, json, terminal
    from diagtool.snapshot.diff import diff

    work = work or ()
    alone = "one snapshot has nothing to be compared with: name two at least."
    if len(targets) < 2 and kind_of(targets[0]) != "evidence":
        raise click.UsageError(alone)
    files = any(kind_of(target) == "evidence" for target in targets)  # which may hold several dumps each
    if not files and len(work) not in (0, 1, len(targets) - 1):
        raise click.UsageError(f"--work has {len(work)} numbers: give one, or {len(targets) - 1}.")
    resolved = [
        resolve(target, exe=exe, sysroot=sysroot, output=output, heap=looks_at_heap(target, heap))
        for target in targets
    ]
    snapshots, warning = in_series(resolved), ""
    if len(snapshots) < 2:
        raise click.UsageError(alone)
    if len(work) not in (0, 1, len(snapshots) - 1):
        raise click.UsageError(f"--work has {len(work)} numbers: give one, or {len(snapshots) - 1}.")
    try:
        snapshots = in_order(snapshots)
    except SeriesError as error:
        warning = f"{error}: compared by name, not by address"
    with progress("comparing"):
        found = diff(snapshots, work=work, same=not warning, notes=(warning,) if warning else ())
    if output_format == "json":
        print_text(json.dumps(diffjson.document(found)), output)
    else:
        view = terminal.View(width(output), verbose, False, resolved[-1].sources)
        print_lines(view_of.report(found, limit or view_of.LIMIT, view), output)
    return 0
