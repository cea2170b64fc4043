"""How ``diagtool leaks`` can print a report: a table of formats, and where each goes.

A format is a function that is given a :class:`Shown` and gives text, or lines for a person. Each lives in a
module of ``report/`` of its own, which is imported when that format is asked for: here is one small function
a format, and its row in FORMATS.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from diagtool.leaks.model import Report, Verdict
    from diagtool.report.locations import Locations
    from diagtool.report.sources import Sources
    from diagtool.report.text import Line
    from diagtool.snapshot.model import Snapshot

    _Param = click.ParamType[Any]
else:
    _Param = click.ParamType  # generic since click 8.2 only

__all__ = ("FORMATS", "FormatParam", "Output", "Shown", "here", "outputs", "write_all")

_MOST_FILES = 1000  # of a folder, for completion


@dataclass(frozen=True, slots=True)
class Shown:
    """What a format may show. ``snapshots``: what was judged, oldest first. ``hints``: lines for a person.

    ``locations``: where findings are in the repository. ``fail_on``: from which verdict on they fail the run,
    None for never.
    """

    report: Report
    snapshots: Sequence[Snapshot]
    sources: Sources | None
    width: int
    verbose: bool = False
    idle: bool = False
    hints: tuple[Line, ...] = ()
    locations: Locations = field(default_factory=lambda: here())
    fail_on: Verdict | None = "likely"


@dataclass(frozen=True, slots=True)
class Format:
    """``make`` gives the whole text of a document, or lines that are coloured where that is wanted.

    ``places``: it is about lines in a repository. ``also`` does what else belongs to it, when it is written.
    """

    name: str
    help: str
    make: Callable[[Shown], str | Iterable[Line]]
    places: bool = False
    also: Callable[[Shown], None] | None = None


@dataclass(frozen=True, slots=True)
class Output:
    """A format and where it goes: a file, or the standard output (None)."""

    format: str
    file: Path | None = None


def _terminal(shown: Shown) -> Iterable[Line]:
    from diagtool.report import terminal

    view = terminal.View(shown.width, shown.verbose, shown.idle, shown.sources)
    return [*terminal.leaks(shown.report, view), *shown.hints]


def _json(shown: Shown) -> str:
    from diagtool.report import json

    return json.dumps(json.leaks(shown.report))


def _html(shown: Shown) -> str:
    from diagtool.report.html import page

    notes = ["".join(text for text, _ in line) for line in shown.hints]
    return page(shown.report, shown.snapshots, shown.sources, notes)


def _sarif(shown: Shown) -> str:
    from diagtool.report.sarif import sarif

    return sarif(shown.report, shown.locations)


def _junit(shown: Shown) -> str:
    from diagtool.report.junit import junit

    return junit(shown.report, shown.locations, shown.fail_on, shown.sources)


def _markdown(shown: Shown) -> str:
    from diagtool.report.markdown import markdown

    return markdown(shown.report, shown.locations, shown.sources)


def _github(shown: Shown) -> str:
    from diagtool.report.github import github

    return github(shown.report, shown.locations, shown.fail_on)


def _step_summary(shown: Shown) -> None:
    """The Markdown goes into the summary of the job, if this is one."""
    from diagtool.cli.output import append_text

    file = os.environ.get("GITHUB_STEP_SUMMARY")
    if file:
        append_text(_markdown(shown), Path(file))


def _gitlab(shown: Shown) -> str:
    from diagtool.report.gitlab import gitlab

    return gitlab(shown.report, shown.locations)


def here() -> Locations:
    """Of the repository that the current folder is in."""
    from diagtool.report.locations import Locations, root_of

    return Locations(root_of(Path.cwd()))


#: The first is the default.
FORMATS = {
    f.name: f
    for f in (
        Format("terminal", "for a person", _terminal),
        Format("json", "for programs (docs/json.md)", _json),
        Format("sarif", "SARIF 2.1.0, for code scanning", _sarif, True),
        Format("junit", "JUnit's XML, for Jenkins and others", _junit, True),
        Format(
            "github", "annotations of GitHub Actions, and the job's summary", _github, True, _step_summary
        ),
        Format("gitlab", "GitLab's code quality report", _gitlab, True),
        Format("markdown", "for a comment on a merge request", _markdown, True),
        Format("html", "one page with pictures and tables, to pass on (docs/html-report.md)", _html),
    )
}


class FormatParam(_Param):
    """``NAME`` or ``NAME=FILE``."""

    name = "format"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Output:
        if isinstance(value, Output):
            return value
        name, equals, file = str(value).partition("=")
        if name not in FORMATS:
            self.fail(f"{name!r} is not one of {', '.join(FORMATS)}.", parameter, context)
        if equals and not file:
            self.fail(f"{value!r} names no file: {name}=FILE.", parameter, context)
        return Output(name, Path(file) if file else None)

    def shell_complete(
        self, context: click.Context, parameter: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        name, equals, start = incomplete.partition("=")
        if equals:  # the shells' own completion of files does not know what stands before
            folder = Path(start).parent if not start.endswith("/") else Path(start)
            with suppress(OSError):
                there = [str(p) + "/" * p.is_dir() for p in sorted(folder.iterdir())[:_MOST_FILES]]
                return [CompletionItem(f"{name}={p}") for p in there if p.startswith(start)]
            return []
        return [
            CompletionItem(f.name, help=f.help) for f in FORMATS.values() if f.name.startswith(incomplete)
        ]


def outputs(wanted: Sequence[Output], output: Path | None, targets: Sequence[str]) -> list[Output]:
    """What is written where: one format at most goes to ``output`` (-o), the others name their files.

    Never in the place of a target: of a core there is one only.
    """
    chosen = list(wanted) or [Output(next(iter(FORMATS)))]
    if sum(o.file is None for o in chosen) > 1:
        raise click.UsageError(
            "Only one --format may go to the standard output or -o FILE. Name files for the others: "
            "--format sarif=FILE."
        )
    if output is not None and all(o.file is not None for o in chosen):
        raise click.UsageError("Every --format names its file already. Leave out -o, or one of the files.")
    chosen = [Output(o.format, output) if o.file is None else o for o in chosen]
    files = [o.file for o in chosen if o.file is not None]
    if len({os.path.abspath(file) for file in files}) < len(files):  # noqa: PTH100 (keeps links)
        raise click.UsageError("Two formats can't be written to one file.")
    for file in files:
        if any(_is_same(target, file) for target in targets):
            raise click.UsageError(f"{file} is the file to be read. Name another one with -o.")
    return chosen


def _is_same(target: str, file: Path) -> bool:
    try:
        return file.samefile(target)
    except OSError:  # not there yet
        return False


def write_all(wanted: Sequence[Output], make: Callable[[Output], Shown]) -> None:
    """Write every format to its place, files first. Raises OutputError."""
    from diagtool.cli.output import print_lines, print_text

    for output in sorted(wanted, key=lambda o: o.file is None):
        shown, chosen = make(output), FORMATS[output.format]
        made = chosen.make(shown)
        if isinstance(made, str):
            print_text(made, output.file)
        else:
            print_lines(made, output.file)
        if chosen.also is not None:
            chosen.also(shown)
