"""``diagtool run``: start a command unchanged, look at it when something happens, judge it when it ends."""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

import click

from diagtool.cli.baseline import Chosen, baseline_options, chosen
from diagtool.cli.duration import Duration
from diagtool.cli.formats import FORMATS, FormatParam, Output, Shown, outputs, write_all
from diagtool.cli.options import (
    all_option,
    color_option,
    known_templates,
    output_option,
    source_option,
    templates_option,
    verbose_option,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from diagtool.capture.model import Capture
    from diagtool.leaks.model import Report
    from diagtool.report.sources import Sources
    from diagtool.snapshot.model import Snapshot
    from diagtool.supervise.analyst import Look
    from diagtool.supervise.plan import Ended
    from diagtool.supervise.triggers import Trigger

_TIMED_OUT = 124  # as timeout(1) has it
_DEFAULT = "exit,signal,crash,hang"
_RULES = (".diagtool.toml", "pyproject.toml")  # leaks/baseline.py


def _triggers(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> list[Trigger]:
    from diagtool.supervise.triggers import BadTrigger, parse

    try:
        return [trigger for value in values or (_DEFAULT,) for trigger in parse(value)]
    except BadTrigger as error:
        raise click.BadParameter(str(error), context, parameter) from None


@click.command(
    "run",
    short_help="Start a command, look at it when something happens, judge it.",
    context_settings={"allow_interspersed_args": False},
)
@click.argument("command_line", metavar="-- CMD [ARG]...", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option(
    "--snapshot-on",
    "triggers",
    multiple=True,
    callback=_triggers,
    metavar="TRIGGER,…",
    help=f"When to look; several with commas, or the option again. Default: {_DEFAULT}.",
)
@click.option(
    "--fail-on",
    type=click.Choice(["proven", "likely", "suspect", "never"]),
    help="Exit with 1 when there is a finding of this verdict or a worse one, and CMD ended with 0. "
    "Default: likely.",
)
@click.option(
    "--format",
    "formats",
    type=FormatParam(),
    multiple=True,
    metavar="NAME[=FILE]",
    help=f"How to print it: {', '.join(FORMATS)}. Can be given several times, all but one with a file. "
    "Default: terminal.",
)
@output_option("Write the report to FILE instead of the standard error.")
@click.option(
    "--keep",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Keep the snapshots in DIR, as NUMBER-WHY-PID.diag; cores go there, too.",
)
@click.option("--core", is_flag=True, help="When CMD crashes write a core, to DIR/core.PID or here.")
@click.option("--follow", is_flag=True, help="See crashes of processes that CMD starts, too.")
@click.option(
    "--timeout",
    type=Duration(),
    metavar="TIME",
    help="After TIME (30s, 10m) look at what keeps CMD from ending, and end it: SIGTERM, then SIGKILL.",
)
@click.option(
    "--grace",
    type=click.FloatRange(0, 3600),
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="How long CMD has to end after SIGTERM.",
)
@click.option(
    "--min-count",
    type=click.IntRange(min=1),
    metavar="N",
    help="Report what has at least N stacks, instead of as many as each template says.",
)
@baseline_options
@templates_option
@source_option
@all_option("Show idle stacks, too: worker pools, event loops, listeners.")
@verbose_option
@color_option
def command(
    command_line: tuple[str, ...],
    triggers: list[Trigger],
    fail_on: str | None,
    formats: tuple[Output, ...],
    output: Path | None,
    keep: Path | None,
    core: bool,
    follow: bool,
    timeout: float | None,
    grace: float,
    min_count: int | None,
    baseline: Path | None,
    no_baseline: bool,
    root: Path | None,
    maps: tuple[str, ...],
    templates: Path | None,
    sources: tuple[str, ...],
    everything: bool,
    verbose: bool,
) -> int:
    """Start CMD unchanged, look at it when something happens, and say what leaked when it has ended.

    CMD runs as it would without diagtool: same terminal, files, environment and process group; signals reach
    it, Ctrl-C and Ctrl-Z as ever. Its memory is read from outside, nothing is put into it. If diagtool is
    killed it runs on.

    \b
    Triggers of --snapshot-on:
        exit          short looks while it runs, after 0.5, 1, 2, 4 … seconds
                      (every minute at most), and one as it goes away
        signal        it is asked to end (TERM, INT, HUP, QUIT), just before
        signal=USR2   diagtool gets this signal, which is not passed on
        crash         a signal ends it (SEGV, ABRT, BUS …), before it is gone
        hang          --timeout is over
        every=30s     again and again
        rss>2GiB      one of its processes has more than so much memory,
        tasks>1000    asyncio tasks, threads, or open files (of its limit)
        threads>200
        fds>80%

    All Python processes that CMD has started are looked at, too. The looks are judged together: what stays or
    grows from one to the next counts. Processes that outlive CMD are findings, and left alone.

    \b
    Examples:
        diagtool run -- python app.py
        diagtool run --timeout 10m --format github -- pytest -x
        diagtool run --snapshot-on 'rss>2GiB,every=60s' --keep looks -- app

    \b
    Exit status:
        that of CMD, when it is not 0; by the signal that ended CMD (128+N)
        0     CMD ended with 0, nothing found at or above --fail-on
        1     CMD ended with 0, and there are findings
        2     wrong usage
        3     CMD ended with 0, and the report could not be written
        124   --timeout was reached
        126   CMD may not be run
        127   there is no CMD
    """
    from diagtool.supervise.child import NotStarted, die_of
    from diagtool.supervise.loop import Supervisor
    from diagtool.supervise.plan import Plan

    # What can be wrong with these is told before the start, which it must not cost.
    written = outputs(formats, output, ())

    def rules_of() -> Chosen:
        rules = chosen(
            baseline=baseline,
            no_baseline=no_baseline,
            root=root,
            maps=maps,
            fail_on=fail_on,
            min_count=min_count,
            templates=templates,
        )
        if rules.templates is not None:
            known_templates(rules.templates)
        return rules

    # A mistake in them is told before the start; where none can be made, CMD need not wait for it.
    asked = baseline is not None or bool(maps) or templates is not None
    rules = rules_of() if asked or (not no_baseline and _has_rules(Path.cwd())) else None
    if timeout is None and any(t.kind == "hang" for t in triggers):
        triggers = [t for t in triggers if t.kind != "hang"]
    if keep is not None:
        _make_folder(keep)
    writer = _core_writer(keep) if core else None
    keeper = None if keep is None else _keeper(keep)
    plan = Plan(command_line, triggers, timeout, grace, follow, writer, keeper)
    try:
        ended = Supervisor(plan).run()
    except NotStarted as error:
        click.echo(f"diagtool: {error}\n{error.hint}", err=True)
        return error.status
    status = os.waitstatus_to_exitcode(ended.status)
    try:
        rules = rules or rules_of()
        report = _told(ended, written, rules, sources, verbose, everything)
    except Exception:
        if status == 0 and not ended.timed_out:
            raise
        _say_why_not()  # what became of CMD is more important
        report = None
    if ended.timed_out:
        return _TIMED_OUT
    if status < 0:
        die_of(-status)
    if status:
        return status
    return 0 if report is None or rules is None else rules.status(report)


# Whether there may be a baseline file: a look that costs nothing.
def _has_rules(folder: Path) -> bool:
    return any((f / name).exists() for f in (folder, *folder.parents) for name in _RULES)


def _told(
    ended: Ended,
    written: list[Output],
    rules: Chosen,
    sources: tuple[str, ...],
    verbose: bool,
    everything: bool,
) -> Report | None:
    """Judge and print; None where nothing was seen of which that could be said."""
    if not ended.looks and not ended.orphans and not ended.timed_out and written == [Output("terminal")]:
        for note in ended.notes or [f"nothing to look at in {ended.seconds:.2f} s"]:
            click.echo(f"diagtool: {note}", err=True)
        return None
    from diagtool.cli.output import width
    from diagtool.report.sources import Sources
    from diagtool.supervise.verdict import judge

    def sources_of(snap: Snapshot) -> Sources:
        return Sources(snap.target, None, folders=sources, codes=snap.tables.get("code_objects", ()))

    report, snapshots = judge(
        ended, templates=known_templates(rules.templates), min_count=rules.min_count, sources_of=sources_of
    )
    report = rules.placed(rules.judged(report), written)

    def shown(where: Output) -> Shown:
        return Shown(
            report,
            snapshots,
            sources_of(snapshots[-1]) if snapshots else None,
            width(where.file),
            verbose,
            everything,
            locations=rules.locations,
            fail_on=rules.fail_on,
        )

    with redirect_stdout(sys.stderr):
        write_all(written, shown)
    return report


def _keeper(folder: Path) -> Callable[[Look], None]:
    """Saves snapshots as they are taken: what was seen is there whatever happens to us."""
    numbers = itertools.count()

    def keep(look: Look) -> None:
        from diagtool.snapshot import store

        if look.snapshot is not None and look.why != "check":
            store.save(look.snapshot, folder / f"{next(numbers):02}-{look.why}-{look.pid}.diag")

    return keep


def _make_folder(folder: Path) -> None:
    from diagtool.cli.output import OutputError

    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(
            f"{folder} can't be written to: {error.strerror or error}", "Name another folder with --keep DIR."
        ) from error


def _core_writer(folder: Path | None) -> Callable[[int], Callable[[Capture], str]]:
    def for_process(pid: int) -> Callable[[Capture], str]:
        def write_it(capture: Capture) -> str:
            from diagtool.capture.corewriter import write_core
            from diagtool.cli.corefile import replaced, write
            from diagtool.cli.output import OutputError

            try:
                with replaced((folder or Path()) / f"core.{pid}", "--keep") as file:
                    write(capture, file, None, write_core)
            except OutputError as error:
                return str(error)
            return ""

        return write_it

    return for_process


def _say_why_not() -> None:
    error = sys.exc_info()[1]
    hint = getattr(error, "hint", "")
    click.echo(f"diagtool: {error}" + (f"\n{hint}" if hint else ""), err=True)
