"""The baseline of a command: the options for it, the file that is found, and writing to it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from diagtool.cli.formats import FORMATS, Output

if TYPE_CHECKING:
    from diagtool.leaks.baseline import Baseline
    from diagtool.leaks.model import Report, Verdict
    from diagtool.report.locations import Locations

__all__ = ("BadBaseline", "Chosen", "baseline_options", "chosen", "write_baseline")

_F = TypeVar("_F", bound=Callable[..., Any])


class BadBaseline(click.UsageError):
    """A baseline file that can't be used."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


def baseline_options(command: _F) -> _F:
    """--baseline, --no-baseline, --root, --map: parameters of :func:`chosen`."""
    command = click.option(
        "--map",
        "maps",
        metavar="FROM=TO",
        multiple=True,
        help="FROM, a folder as the process calls it, is TO in the repository: --map /app=. for a container. "
        "Can be given several times.",
    )(command)
    command = click.option(
        "--root",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        metavar="DIR",
        help="The repository, to which paths in reports for CI are relative. Default: that of the current "
        "folder, else the folder.",
    )(command)
    command = click.option("--no-baseline", is_flag=True, help="Look for no baseline file.")(command)
    return click.option(
        "--baseline",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE",
        help="What is known: findings to ignore, with reasons, and settings. Default: .diagtool.toml, or "
        "[tool.diagtool] in pyproject.toml, here or in a folder above.",
    )(command)


@dataclass(frozen=True, slots=True)
class Chosen:
    """What the command line and the baseline file say together; the command line counts where both do."""

    baseline: Baseline | None
    fail_on: Verdict | None  # None: never
    min_count: int | None
    templates: Path | None
    locations: Locations

    def judged(self, report: Report) -> Report:
        """``report`` with what the baseline knows ignored."""
        if self.baseline is None:
            return report
        from diagtool.leaks.baseline import apply

        return apply(report, self.baseline)

    def placed(self, report: Report, written: Iterable[Output]) -> Report:
        """``report``, which says so where a format wants lines of the repository and they are elsewhere."""
        away = self.locations.warning(report)
        if away is None or not any(FORMATS[output.format].places for output in written):
            return report
        return replace(report, warnings=(*report.warnings, away))

    def status(self, report: Report) -> int:
        """The exit status for a judged report. Verdicts are ordered: "likely" is about proven ones, too."""
        return 1 if self.fail_on is not None and report.at_least(self.fail_on) else 0


def chosen(
    *,
    baseline: Path | None,
    no_baseline: bool,
    root: Path | None,
    maps: tuple[str, ...],
    fail_on: str | None = None,
    min_count: int | None = None,
    templates: Path | None = None,
    new: bool = False,
) -> Chosen:
    """Everything that was asked for. ``new``: the file named by ``baseline`` need not be there yet.

    Raises BadBaseline and other kinds of click.UsageError.
    """
    from diagtool.leaks.baseline import Settings, find
    from diagtool.leaks.model import VERDICTS
    from diagtool.leaks.own import use
    from diagtool.report.locations import Locations, root_of

    if no_baseline and (baseline is not None or new):
        raise click.UsageError("--no-baseline contradicts --baseline and --write-baseline.")
    file = None if no_baseline else baseline or find(Path.cwd())
    known = None if file is None or (new and not os.path.lexists(file)) else _read(file)
    settings = Settings() if known is None else known.settings
    if fail_on is None:
        fail_on = "never" if settings.never else settings.fail_on or "likely"
    if settings.own or settings.libraries:  # for the rest of the command
        click.get_current_context().with_resource(use(settings.own, settings.libraries))
    folder = root or settings.root or root_of(Path.cwd())
    pairs = [_mapping(text) for text in (*maps, *settings.paths)]
    return Chosen(
        baseline=known,
        fail_on=next((v for v in VERDICTS if v == fail_on), None),
        min_count=min_count or settings.min_count,
        templates=templates or settings.templates,
        locations=Locations(folder, pairs),
    )


def _mapping(text: str) -> tuple[str, str]:
    before, equals, after = text.partition("=")
    if not before or not equals:
        raise click.UsageError(f"--map {text} is not FROM=TO. For a container: --map /app=.")
    return before, after


def _read(file: Path) -> Baseline:
    from diagtool.leaks.baseline import BaselineError, read

    try:
        return read(file)
    except BaselineError as error:
        raise BadBaseline(str(error), error.hint) from error
    except OSError as error:
        raise BadBaseline(
            f"{file} cannot be read: {error.strerror or error}", "Name another file with --baseline FILE."
        ) from error


def write_baseline(report: Report, file: Path | None, known: Baseline | None, reason: str | None) -> Baseline:
    """Add entries for the findings of ``report`` to its baseline file, and read it again.

    ``file``: as given on the command line; else that of ``known``, else a new one at the root of the
    repository. Complete or as it was, whatever happens. Raises OutputError, BadBaseline.
    """
    from diagtool.cli.output import print_text
    from diagtool.leaks.baseline import NAME
    from diagtool.leaks.baseline_toml import read_text
    from diagtool.leaks.baseline_write import with_entries
    from diagtool.report.locations import root_of
    from diagtool.report.words import headline, where

    file = file or (known.file if known is not None else root_of(Path.cwd()) / NAME)
    file = file.resolve()  # what a link leads to is written, not the link
    before = "" if known is None else file.read_bytes().decode("utf-8")  # ends of lines as they are
    said = [
        (f, f"{f.verdict}: {headline(f)}" + (f", at {where(f)}" if where(f) else "")) for f in report.findings
    ]
    reason = reason or f"accepted on {date.today().isoformat()} by diagtool leaks --write-baseline"
    table = ("tool", "diagtool") if file.name == "pyproject.toml" else ()
    text = with_entries(before, said, reason, table) if said or known is None else before
    new = read_text(text, file)  # before it is written: never a file that can't be read
    if text != before:
        print_text(text, file)
    many = f"{len(said):,} entries" if len(said) != 1 else "1 entry"
    click.echo(f"{file}: {many} added, {len(new.entries):,} in all", err=True)
    return new
