"""The first line of a goroutine in a dump: ``goroutine 7 [chan receive, 5 minutes]:``.

By version (``goroutineheader`` in runtime/traceback.go): ``gp=0x… m=nil`` before the bracket from 1.22 on in
tracebacks of the runtime's own; ``(scan)``, ``(leaked)``, ``(durable)`` after the wait reason; ``N minutes``,
``locked to thread``, ``synctest bubble N`` after commas; profiler labels in the bracket (1.26, if asked for)
or behind it (1.27).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["HEADER", "MAX_GOID", "Header", "parse_header"]

#: A header anywhere in a line. What it says is looked at by :func:`parse_header`.
HEADER = re.compile(
    rb"goroutine (\d{1,20})(?: gp=0x[0-9a-f]+ m=(?:nil|\d+)(?: mp=0x[0-9a-f]+)?)? "
    rb"\[([^\]\n{]*(?: labels:\{[^\n]*\})?)\]( \{[^\n]*\})?:[ \t|]*$",
    re.MULTILINE,
)

#: The runtime counts in 64 bits. What is larger was not written by it.
MAX_GOID = (1 << 63) - 1

_MINUTES = re.compile(r"(\d{1,15}) minutes")
_BUBBLE = re.compile(r"synctest (?:bubble|group) \d+")
_LABELS = re.compile(r"""(?P<key>"(?:[^"\\]|\\.)*"|[^":,{}\s]+): ?(?P<value>"(?:[^"\\]|\\.)*"|[^",{}\s]*)""")
_ESCAPED = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.)", re.DOTALL)
_PLAIN = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}

#: Labels of one goroutine that are kept, and characters of one.
_MOST_LABELS, _MOST_TEXT = 64, 1000


@dataclass(frozen=True, slots=True)
class Header:
    """What the line says besides the number of the goroutine."""

    reason: str  # status or wait reason, with its marks
    minutes: int = 0
    leaked: bool = False
    locked: bool = False
    labels: tuple[tuple[str, str], ...] = ()


def parse_header(bracket: bytes, behind: bytes = b"") -> Header:
    """What stands between the brackets of a header, and in braces ``behind`` them."""
    text = bracket.decode("utf-8", "replace")
    labels: tuple[tuple[str, str], ...] = ()
    if behind:
        labels = _labels(behind.decode("utf-8", "replace"))
    # In 1.26 they are the last thing within the bracket.
    text, found, inside = text.partition(" labels:{")
    if found:
        labels += _labels(inside)
    reason, *rest = text.split(", ")
    minutes, locked = 0, False
    for part in rest:
        if told := _MINUTES.fullmatch(part):
            minutes = min(int(told[1]), 1 << 40)
        elif part == "locked to thread":
            locked = True
        elif not _BUBBLE.fullmatch(part):
            reason += ", " + part  # no version writes that; it is kept
    return Header(reason[:200].strip(), minutes, "(leaked)" in reason, locked, labels)


def _labels(text: str) -> tuple[tuple[str, str], ...]:
    found = []
    for match in _LABELS.finditer(text):
        found.append((_unquoted(match["key"]), _unquoted(match["value"])))
        if len(found) == _MOST_LABELS:
            break
    return tuple(found)


def _unquoted(text: str) -> str:
    if text.startswith('"'):
        text = _ESCAPED.sub(_character, text[1:-1])
    return text[:_MOST_TEXT]


def _character(match: re.Match[str]) -> str:
    code = match[1]
    if len(code) > 1:
        number = int(code[1:], 16)
        return chr(number) if number < 0x110000 else "\ufffd"
    return _PLAIN.get(code, code)
