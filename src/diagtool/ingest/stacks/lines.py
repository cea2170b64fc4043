"""Lines of a log as programs wrote them: without what log collectors put before them, without colours."""

from __future__ import annotations

import re
from collections.abc import Iterator

__all__ = ["lines_of", "plain"]

#: Bytes of a line that are looked at; the rest of a longer one is passed over.
MAX_LINE = 16 << 10

_COLOUR = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_TIME = r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d{1,9})?(?: ?(?:Z|UTC|[+-]\d\d:?\d\d))?"
#: What stands before each line, the outer ones first; each at most once.
_PREFIXES = tuple(
    re.compile(pattern)
    for pattern in (
        r"(?:> ?){1,4}(?=\S|  )",  # quoted in a mail or an issue
        r"\[pod/[^\]\s]{1,200}\] ",  # kubectl logs --prefix
        r"[\w.-]{1,100} +\| ",  # docker compose
        # syslog, journald
        r"[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d(?:\.\d+)? \S{1,100} [^\s:\[]{1,100}(?:\[\d+\])?: ",
        rf"{_TIME} (?:stdout|stderr) [FP] ",  # CRI
        rf"{_TIME} \S{{1,100}} [^\s:\[]{{1,100}}\[\d+\]: ",  # journalctl -o short-iso
        rf"\[?{_TIME}\]?(?:[ \t]\|)?[ \t]",
        r"\[\d{1,12}(?:\.\d{1,9})?\] ",  # seconds since something
    )
)
_MAY_BEGIN = re.compile(r"[>\[\dA-Za-z]")


def plain(line: str) -> str:
    """``line`` without what collectors put before it."""
    if "\x1b" in line:
        line = _COLOUR.sub("", line)
    if line[:1].isspace() or not _MAY_BEGIN.match(line):
        return line
    for prefix in _PREFIXES:
        found = prefix.match(line)
        if found is not None:
            line = line[found.end() :]
            if line[:1].isspace():
                break
    return line


def lines_of(path: str) -> Iterator[str]:
    """The lines of a file, plain, without their ends. Memory does not grow with the file."""
    with open(path, "rb") as file:  # noqa: PTH123
        while line := file.readline(MAX_LINE):
            text = line.decode("utf-8", "replace").rstrip("\r\n")
            while not line.endswith(b"\n") and (line := file.readline(1 << 20)):
                pass
            yield plain(text)
