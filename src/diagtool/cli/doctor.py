"""``diagtool doctor``: can I attach, with what, and what would help."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from diagtool.cli.options import color_option

if TYPE_CHECKING:
    from diagtool.capture.doctor import Check
    from diagtool.report.text import Line


@click.command("doctor", short_help="Say whether processes can be captured here.")
@click.argument("pid", type=click.IntRange(min=1), required=False)
@color_option
def command(pid: int | None) -> int:
    """Say whether processes (or the process PID) can be captured here, and what would help.

    Looks at capabilities, Yama, containers, where cores go, and with PID at that process: its owner, its
    namespaces, its Python. Nothing is stopped, and nothing in the process is read but what /proc says.

    \b
    Examples:
        diagtool doctor
        diagtool doctor 4242

    \b
    Exit status:
        0   it can be captured
        2   wrong usage
        3   it can't; what is missing is said
    """
    from diagtool.capture.doctor import examine
    from diagtool.cli.output import print_lines, width

    checks = examine(pid)
    print_lines(_lines(checks, width(None)), None)
    return 3 if any(check.ok is False for check in _decisive(checks, pid)) else 0


def _decisive(checks: Sequence[Check], pid: int | None) -> Sequence[Check]:
    # With a pid the kernel's answer for that process counts; Yama, say, does not matter for a child of ours.
    return checks[-1:] if pid is not None else checks


def _lines(checks: Sequence[Check], columns: int) -> Iterator[Line]:
    from diagtool.report.text import clean, pad, wrap

    marks = {True: ("ok    ", "source"), False: ("NO    ", "proven"), None: ("      ", "")}
    names = max(len(c.name) for c in checks)
    indent = 6 + names + 2
    for check in checks:
        parts = wrap(clean(check.what, 1000), columns - indent)
        yield [marks[check.ok], (pad(clean(check.name), names) + "  ", "own"), (parts[0], "")]
        for part in parts[1:]:
            yield [(" " * indent + part, "")]
        for part in wrap(clean(check.hint, 1000), columns - indent) if check.hint else ():
            yield [(" " * indent + part, "label")]
