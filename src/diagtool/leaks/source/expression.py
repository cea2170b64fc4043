"""Regular expressions of a team's templates, searched for a limited time.

``re`` can't be stopped: an expression such as ``(a+)+$`` goes on for years. ``regex`` has a time limit, and
is loaded only where a template has an expression.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

__all__ = ("MAX_LENGTH", "problem_of", "search")

#: Characters of an expression.
MAX_LENGTH = 1_000
#: Seconds that one search may take.
_LIMIT = 0.25
#: Texts on which expressions that go back and forth are slow.
_HARD = (
    "a" * 60 + "!",
    " " * 60 + "!",
    "ab" * 40 + "!",
    "a=1, " * 30 + "!",
    "(" * 60,
    "x.y" * 30 + "\0",
    "0" * 60 + "!",
)


@lru_cache(maxsize=256)
def _compiled(pattern: str) -> Any:
    import regex

    return regex.compile(pattern, regex.MULTILINE)


def search(pattern: str, text: str) -> int | None:
    """Where ``pattern`` begins in ``text``; None: nowhere, -1: not found within the time limit."""
    try:
        found = _compiled(pattern).search(text, timeout=_LIMIT)
    except TimeoutError:
        return -1
    return None if found is None else int(found.start())


def problem_of(pattern: str) -> str | None:
    """What is wrong with ``pattern``: not readable, too long, so made that a search may take for ever."""
    if len(pattern) > MAX_LENGTH:
        return f"is {len(pattern):,} characters long, {MAX_LENGTH:,} are allowed"
    try:
        re.compile(pattern)
        compiled = _compiled(pattern)
    except Exception as error:  # noqa: BLE001 (re.error, regex.error, RecursionError, OverflowError)
        return f"{pattern!r} is no regular expression: {error}"
    if compiled.search("") is not None:
        return f"{pattern!r} matches everything, the empty text included"
    for text in _HARD:
        if search(pattern, text) == -1:
            return (
                f"{pattern!r} may search for ever: it repeats what is repeated itself, as in (a+)+, or "
                "repeats a choice whose ways overlap"
            )
    return None
