"""The command line. One module a command; heavy imports only where a command needs them."""

from __future__ import annotations

import errno
import gc
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from types import FrameType
from typing import NoReturn

import click

from diagtool.capture.processors import kept
from diagtool.cli.lazy import LazyGroup
from diagtool.cli.options import color_option, version_option
from diagtool.cli.stdout import ELSEWHERE, silence_stdout

#: Exit status. Part of the contract: scripts and CI rely on it.
OK, FINDINGS, USAGE, UNREADABLE = 0, 1, 2, 3
INTERRUPTED = 128 + signal.SIGINT

#: What only writing meets.
_OUTPUT_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)

#: New objects after which garbage is looked for.
_COLLECTED = 10_000

_COMMANDS = (
    "snapshot",
    "leaks",
    "run",
    "stacks",
    "core",
    "heap",
    "handles",
    "ffi",
    "memory",
    "signals",
    "diff",
    "export",
    "sql",
    "templates",
    "doctor",
    "completion",
)


@click.group(
    "diagtool",
    cls=LazyGroup,
    commands_from=("diagtool.cli", _COMMANDS),
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@version_option
@color_option
@click.pass_context
def cli(context: click.Context) -> int:
    """Say what leaked or hangs in a live or core-dumped process.

    A service eats memory or has stopped answering, and may not be restarted:

    \b
        diagtool snapshot 4242    stop it for milliseconds, keep all in a file
        diagtool leaks FILE.diag  what leaked, who waits on what, how to fix it
        diagtool leaks core.4242  the same for one that died

    No code of diagtool is put into the process or run in it. It runs on after the stop, whatever happens
    to diagtool.

    \b
    Exit status:
        0   nothing found at or above --fail-on
        1   findings
        2   wrong usage
        3   the target could not be read, or the result not be written
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
        return USAGE
    return OK


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status. Prints every error as a sentence and a hint."""
    if arguments is None:
        return _program(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that can't show "·" is no error
    try:
        with _terminable(), kept():
            status = _run(list(arguments))
            if sys.stdout is not None:
                sys.stdout.flush()
            return status
    except BrokenPipeError:  # `diagtool … --help | head`: who reads has enough
        silence_stdout()
        return OK
    except KeyboardInterrupt:
        return _fail("interrupted", "", INTERRUPTED)
    except OSError as error:
        silence_stdout()
        return _fail(f"cannot write the output: {error.strerror or error}", ELSEWHERE, UNREADABLE, error)


def _program(arguments: Sequence[str]) -> int:
    """The command line as all that this process is for."""
    # Modules are most of what there is, and stay: nobody need look through them for garbage again and again,
    # and not twice more when all is over.
    gc.set_threshold(_COLLECTED)
    try:
        return main(arguments)
    finally:
        gc.freeze()


def _run(arguments: list[str]) -> int:
    if "_DIAGTOOL_COMPLETE" in os.environ:
        cli.main(prog_name="diagtool")  # prints completions and exits
    try:
        with cli.make_context("diagtool", arguments) as context:
            result = cli.invoke(context)
            return result if isinstance(result, int) else OK
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx is not None else "diagtool"
        hint = getattr(error, "hint", "") or f"Try '{path} --help'."
        return _fail(error.format_message(), hint, USAGE, error)
    except click.ClickException as error:
        return _fail(error.format_message(), "", USAGE)
    except click.Abort:
        return _fail("interrupted", "", INTERRUPTED)
    except BrokenPipeError:
        raise
    except Exception as error:  # noqa: BLE001 - the last resort, so that nobody ever sees a traceback
        return _report(error)


def _report(error: Exception) -> int:
    # Errors with a hint are ours: TargetError, StoreError, TemplateError. Anything else is a bug.
    hint = getattr(error, "hint", None)
    if isinstance(hint, str):
        return _fail(str(error), hint, UNREADABLE, error)
    if isinstance(error, OSError) and error.errno in _OUTPUT_ERRORS:
        silence_stdout()
        return _fail(f"cannot write the output: {error.strerror}", ELSEWHERE, UNREADABLE, error)
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        hint = "Raise the limit: ulimit -n 1024."
        return _fail("diagtool may not open as many files as it needs", hint, UNREADABLE, error)
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return _fail(
        f"internal error: {what}",
        "Please report it, with what DIAGTOOL_DEBUG=1 prints for the same command.",
        UNREADABLE,
        error,
    )


def _fail(message: str, hint: str, status: int, error: BaseException | None = None) -> int:
    from diagtool.report.text import clean

    if error is not None and os.environ.get("DIAGTOOL_DEBUG", "0") not in ("", "0"):
        import traceback

        traceback.print_exception(error)
    files = sys.modules.get("diagtool.ingest.files")
    if files is not None:  # what was read from a pipe has no name
        message = files.named(message)
    with suppress(OSError, AttributeError, ValueError):
        for line in (f"diagtool: {message}", hint):
            if line:
                sys.stderr.write(clean(line, 2000) + "\n")
        sys.stderr.flush()
    return status


@contextmanager
def _terminable() -> Iterator[None]:
    # SIGTERM and SIGHUP as an exception, so that the target is let go and temporary files are removed.
    before = {}
    with suppress(ValueError):  # not in the main thread: somebody else's program
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, _terminate)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
