"""Options of commands that may ask a service, and what they say together."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from diagtool.cli.duration import Duration

if TYPE_CHECKING:
    from diagtool.ingest.service import Asking

_MOST_FILE = 1 << 16


def service_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--url, --header, --timeout, --dump-limit and --prove; the command is given ``asking``.

    The address becomes its ``target``, or one more of its ``targets``, which are not required by themselves.
    """

    @wraps(command)
    def run(
        url: str | None, header: tuple[str, ...], timeout: float, dump_limit: int, prove: bool, **rest: Any
    ) -> Any:
        _name_target(rest, url)
        return command(asking=_asking(header, timeout, dump_limit, prove), **rest)

    for option in (
        click.option(
            "--prove",
            is_flag=True,
            help="Have a service find out which goroutines are leaked (Go 1.27; 1.26 built for that). It "
            "takes a garbage collection.",
        ),
        click.option(
            "--dump-limit",
            type=click.IntRange(min=0),
            default=10_000,
            show_default=True,
            metavar="N",
            help="Ask a service with up to N goroutines for their full dump, which stops it while it is "
            "written; one with more for their profile.",
        ),
        click.option(
            "--timeout",
            type=Duration(),
            default="30s",
            show_default=True,
            metavar="TIME",
            help="Wait that long for each answer of a service.",
        ),
        click.option(
            "--header",
            multiple=True,
            metavar="'NAME: VALUE'|@FILE",
            help="Send this to a service, 'Authorization: Bearer …', say; or each line of FILE. Can be given "
            "several times.",
        ),
        click.option(
            "--url",
            metavar="URL",
            help="Ask the Go service that serves net/http/pprof there; the same as URL for TARGET.",
        ),
    ):
        run = option(run)
    return run


def _name_target(given: dict[str, Any], url: str | None) -> None:
    context = click.get_current_context()
    name = "targets" if "targets" in given else "target"
    if url is not None:
        if not url.lower().startswith(("http://", "https://")):
            url = f"http://{url}"
        if name == "target" and given[name] is not None:
            raise click.UsageError("--url names the target: there is another one.")
        given[name] = (*given[name], url) if name == "targets" else url
    if given[name] in (None, ()):
        parameter = next(p for p in context.command.params if p.name == name)
        raise click.MissingParameter(ctx=context, param=parameter)


def _asking(header: tuple[str, ...], timeout: float, dump_limit: int, prove: bool) -> Asking:
    from diagtool.ingest.service import Asking

    lines = [line for given in header for line in (_lines(given[1:]) if given.startswith("@") else [given])]
    return Asking(tuple(map(_header, lines)), timeout, dump_limit, prove)


def _lines(file: str) -> list[str]:
    try:
        with Path(file).open(encoding="utf-8") as opened:
            text = opened.read(_MOST_FILE)
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or error
        raise click.UsageError(f"--header: {file} cannot be read: {said}.") from None
    return [line for line in text.splitlines() if line.strip()]


def _header(line: str) -> tuple[str, str]:
    name, found, value = line.partition(":")
    name, value = name.strip(), value.strip()
    if not (found and name and value.isprintable() and name.isascii() and name.replace("-", "").isalnum()):
        raise click.UsageError("--header wants 'NAME: VALUE', as in 'Authorization: Bearer …'.")
    if any(ord(c) > 255 for c in value):
        raise click.UsageError(f"--header: the value of {name} has characters that no header can have.")
    return name, value
