"""Text for a terminal: made safe, measured, wrapped and coloured.

Names come from the memory of a process that may be hostile. :func:`clean` is the only way out for them: what
could move the cursor, change colours, reverse the reading direction or start a line is shown as an escape.
"""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import TextIO

#: One line of output: pieces of text, each with the name of its style ("" for plain).
Line = list[tuple[str, str]]

#: Style names as rich understands them. Colour never carries meaning alone: every word is there without it.
STYLES = {
    "proven": "bold red",
    "likely": "bold yellow",
    "suspect": "bold cyan",
    "count": "bold",
    "own": "bold",
    "library": "dim",
    "source": "green",
    "label": "dim",
    "template": "dim",
    "fix": "bold",
    "warning": "yellow",
    "idle": "dim",
}

#: No report is laid out narrower than this.
MIN_WIDTH = 80

#: Laid out for this width when the output is no terminal.
FILE_WIDTH = 100

_PLURALS = {
    "asyncgen": ("async generator", "async generators"),
    "cluster": ("cluster", "clusters"),
    "process": ("process", "processes"),
}


def clean(text: str, limit: int = 300) -> str:
    """``text`` with everything that is not printable as ``\\x1b``-like escapes, cut to ``limit`` characters.

    Not printable are control characters, line and paragraph separators, bidirectional overrides and other
    format characters, surrogates and unassigned code points (str.isprintable). Idempotent.
    """
    if len(text) > limit:
        text = text[: max(limit - 1, 0)] + "…"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def cells(text: str) -> int:
    """How many columns of a terminal ``text`` takes. It must be clean."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.combining(c) != 0 for c in text)


def pad(text: str, width: int) -> str:
    """``text`` with spaces up to ``width`` columns."""
    return text + " " * (width - cells(text))


def cut(text: str, width: int) -> str:
    """``text`` in at most ``width`` columns, the last one ``…`` when something is missing."""
    if cells(text) <= width:
        return text
    while text and cells(text) >= width:
        text = text[: min(len(text) - 1, width - 1)]
    return text.rstrip() + "…"


def wrap(text: str, width: int) -> list[str]:
    """``text`` in lines of ``width`` columns; words that are longer stay whole (paths must stay usable)."""
    return textwrap.wrap(text, max(width, 20), break_long_words=False, break_on_hyphens=False) or [""]


def count(number: int, noun: str) -> str:
    """``10,000 tasks``, ``1 task``."""
    one, many = _PLURALS.get(noun, (noun, noun + "s"))
    return f"{number:,} {one if number == 1 else many}"


def duration(seconds: float) -> str:
    """``85 ms``, ``12 s``, ``3 min 20 s``, ``5 h 12 min``, ``4 d 3 h``."""
    if not 0 <= seconds < 1e10:
        return "an unknown time"
    if seconds < 1:
        return f"{seconds * 1e3:.0f} ms"
    whole = round(seconds)
    for size, unit, smaller_size, smaller in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            big, rest = divmod(whole, size)
            small = rest // smaller_size
            return f"{big:,} {unit} {small} {smaller}" if small else f"{big:,} {unit}"
    return f"{whole} s"


def size(number: int) -> str:
    """``512 bytes``, ``4.2 MB``: powers of 1000."""
    if number < 1000:
        return count(number, "byte")
    power = min((len(str(number)) - 1) // 3, 4)
    value = number / 1000**power
    unit = ("kB", "MB", "GB", "TB")[power - 1]
    return f"{value:.1f} {unit}" if value < 10 else f"{value:,.0f} {unit}"


def write(lines: Iterable[Line], file: TextIO, *, color: bool) -> None:
    """Write lines to ``file``. Every piece is cleaned once more, whoever made it."""
    if not color:
        for line in lines:
            file.write("".join(clean(text, 10_000) for text, _ in line).rstrip() + "\n")
        return
    from rich.console import Console
    from rich.text import Text

    # no_color: else NO_COLOR would overrule --color=always.
    console = Console(
        file=file,
        force_terminal=True,
        color_system="standard",
        no_color=False,
        highlight=False,
        width=100_000,
    )
    for line in lines:
        pieces = [(clean(text, 10_000), STYLES.get(style, "")) for text, style in line]
        text = Text.assemble(*pieces)
        text.rstrip()
        console.print(text, soft_wrap=True)


def columns(head: Sequence[str], body: Sequence[Sequence[str]], styles: Sequence[str] = ()) -> Iterator[Line]:
    """Columns set to the right, the last one to the left; ``styles`` of the rows, plain without."""
    widths = [max(cells(row[i]) for row in (head, *body)) for i in range(len(head) - 1)]
    for row, style in zip((head, *body), ("label", *(styles or [""] * len(body))), strict=True):
        numbers = [f"{cell:>{width}}" for cell, width in zip(row, widths, strict=False)]
        yield [("  ".join([*numbers, row[-1]]), style)]
