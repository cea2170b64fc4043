"""Options that several commands share, so that they read and behave the same everywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from diagtool._version import __version__

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from diagtool.leaks.template import Template

_F = TypeVar("_F", bound=Callable[..., Any])
_COLOR = "diagtool.color"


def _keep_color(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    if value is not None:
        context.meta[_COLOR] = value


def color_wanted(context: click.Context) -> str:
    """``auto``, ``always`` or ``never``: as given before or after the command."""
    wanted: str = context.meta.get(_COLOR, "auto")
    return wanted


def _considerate(
    context: click.Context, parameter: click.Parameter, value: str | tuple[str, ...] | None
) -> str | tuple[str, ...] | None:
    names = (value,) if isinstance(value, str) else value or ()
    if "-" in names and not context.resilient_parsing:
        path = _standard_input()
        names = tuple(path if name == "-" else name for name in names)
        value = names[0] if isinstance(value, str) else names
    # As early as a process is named: what is imported next keeps a processor busy for a while.
    for name in names:
        if name.isascii() and name.isdigit() and len(name) < 10 and not context.resilient_parsing:
            from diagtool.capture.processors import keep_off

            keep_off(int(name))
    return value


def _standard_input() -> str:
    """The path of a file with what the standard input gives, which is gone with us."""
    import sys

    from diagtool.ingest.files import spooled

    if sys.stdin is None:
        raise click.UsageError("the standard input is closed: there is nothing to read.")
    return spooled(sys.stdin.buffer)


def target_argument(name: str, **attributes: Any) -> Callable[[_F], _F]:
    """The process id, core or snapshot that a command is about. Processors of a process are left to it."""
    return click.argument(name, callback=_considerate, shell_complete=_files, **attributes)


def _files(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="file")]


def version_option(command: _F) -> _F:
    """--version"""
    return click.version_option(__version__, prog_name="diagtool", message="%(prog)s %(version)s")(command)


def color_option(command: _F) -> _F:
    """--color, for the group and for each command that prints."""
    return click.option(
        "--color",
        type=click.Choice(["auto", "always", "never"]),
        callback=_keep_color,
        expose_value=False,
        help="Colour the output; auto: on a terminal, unless NO_COLOR is set.",
    )(command)


def format_option(*formats: str) -> Callable[[_F], _F]:
    """--format, the first of ``formats`` being the default."""
    return click.option(
        "--format",
        "output_format",
        type=click.Choice(formats),
        default=formats[0],
        show_default=True,
        help="How to print it.",
    )


def output_option(help: str) -> Callable[[_F], _F]:
    """-o FILE."""
    return click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help=help)


def all_option(help: str) -> Callable[[_F], _F]:
    """--all."""
    return click.option("--all", "everything", is_flag=True, help=help)


def verbose_option(command: _F) -> _F:
    """-v."""
    return click.option(
        "-v",
        "--verbose",
        is_flag=True,
        help="Stacks whole (to 1,000 frames), with paths; every reason and warning.",
    )(command)


def core_options(command: _F) -> _F:
    """--exe and --sysroot: where the files of a core from another machine are."""
    command = click.option(
        "--sysroot",
        type=click.Path(exists=True, file_okay=False),
        metavar="DIR",
        help="Look for the core's executable, libraries and sources below DIR.",
    )(command)
    return click.option(
        "--exe",
        type=click.Path(exists=True, dir_okay=False),
        metavar="FILE",
        help="The executable that a core is of, when it is not where it was.",
    )(command)


def source_option(command: _F) -> _F:
    """--source DIR."""
    return click.option(
        "--source",
        "sources",
        type=click.Path(exists=True, file_okay=False),
        multiple=True,
        metavar="DIR",
        help="Look for the program's source below DIR first, by the end of its path; can be given several "
        "times. Else it is read where it was, if it was not changed since the process started.",
    )(command)


def _pairs(
    context: click.Context, parameter: click.Parameter, value: tuple[str, ...]
) -> tuple[tuple[str, str], ...]:
    for text in value:
        if not text.partition("=")[0] or "=" not in text:
            raise click.BadParameter(f"{text!r} is not KEY=VALUE.", context, parameter)
    return tuple((text.partition("=")[0], text.partition("=")[2]) for text in value)


def label_option(command: _F) -> _F:
    """--label KEY=VALUE."""
    return click.option(
        "--label",
        "labels",
        callback=_pairs,
        multiple=True,
        metavar="KEY=VALUE",
        help="Show only stacks with this label: a profiler label of goroutines, a context variable of tasks; "
        "* matches anything. Several: all of them; several of one key: one of them.",
    )(command)


def clone_option(default: str) -> Callable[[_F], _F]:
    """--clone: whether a copy-on-write image may be made of the process, which injects a system call."""
    return click.option(
        "--clone",
        type=click.Choice(["auto", "always", "never"]),
        help="Make a frozen copy-on-write image of a large process, of any, of none, instead of copying its "
        f"memory in the stop. One system call is injected into it for that. Default: {default}.",
    )


def native_options(show: str = "Unwind native frames, too. Default: yes.") -> Callable[[_F], _F]:
    """--native/--no-native, --unwinder and --debug-dir: how native frames are found."""

    def add(command: _F) -> _F:
        command = click.option(
            "--debug-dir",
            "debug_directories",
            type=click.Path(exists=True, file_okay=False),
            multiple=True,
            metavar="DIR",
            help="Look for separate debug files (DIR/.build-id/…) here, too; can be given several times.",
        )(command)
        command = click.option(
            "--unwinder",
            type=click.Choice(["auto", "drgn", "gdb"]),
            default="auto",
            show_default=True,
            help="What finds native frames; auto: drgn, else gdb.",
        )(command)
        return click.option("--native/--no-native", "native", default=None, help=show)(command)

    return add


def heap_option(command: _F) -> _F:
    """--heap/--no-heap: whether objects and native blocks are counted."""
    return click.option(
        "--heap/--no-heap",
        "heap",
        default=None,
        help="Look at the heap, too. Default: of small cores; of a large one `leaks` does where its stacks "
        "show nothing likely. Of a process only when asked: a "
        "large one makes a frozen copy of itself for it, by a system call that is injected.",
    )(command)


def templates_option(command: _F) -> _F:
    """--templates DIR."""
    return click.option(
        "--templates",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        metavar="DIR",
        help="Use the templates (*.toml) in DIR, too; one with the id of ours replaces it.",
    )(command)


def known_templates(folder: Path | None) -> tuple[Template, ...]:
    """Our templates and those in ``folder``. What is wrong in them is wrong usage."""
    from diagtool.leaks.template import TemplateError, library

    try:
        return library(folder)
    except TemplateError as error:
        if folder is None:
            raise
        raise BadTemplates(str(error)) from error


class BadTemplates(click.UsageError):
    """The folder given with --templates has templates that can't be used."""

    hint = "`diagtool templates check DIR` says all that is wrong."
