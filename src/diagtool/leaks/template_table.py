"""Tables of TOML whose keys are known: types checked, every mistake told with its place."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from diagtool.leaks.condition import Condition, ConditionError, parse
from diagtool.leaks.pattern import FramePattern
from diagtool.leaks.template import Problem
from diagtool.leaks.tomllines import Path, line_of, lines_of

__all__ = ("Document", "Table", "nearest", "tomllib")

#: Characters of a condition or of a pattern of frames.
_MAX_TEXT = 2_000


def tomllib() -> Any:
    from importlib import import_module

    return import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")


class Document:
    """One file: what TOML has, on which line, and what is wrong with it."""

    def __init__(self, file: str, text: str) -> None:
        self.file = file
        self.problems: list[Problem] = []
        self.data: dict[str, Any] = {}
        self._text = text
        self._lines: dict[Path, int] | None = None
        toml = tomllib()
        try:
            self.data = toml.loads(text)
        except toml.TOMLDecodeError as error:
            told = re.search(r"at line (\d+)", str(error))
            self.problems.append(Problem(file, "file", f"not TOML: {error}", int(told[1]) if told else None))
        except RecursionError:
            self.problems.append(Problem(file, "file", "not TOML: nested too deeply"))

    def problem(self, where: str, what: str, path: Path, allowed: Iterable[str] = ()) -> None:
        self.problems.append(Problem(self.file, where, what, self._line(path), tuple(allowed)))

    def place(self, path: Path) -> str:
        """``file:line`` of a key."""
        return f"{self.file}:{self._line(path)}"

    def _line(self, path: Path) -> int | None:
        if self._lines is None:
            self._lines = lines_of(self._text)
        return line_of(self._lines, path)

    def raw_templates(self) -> list[Mapping[str, Any]]:
        """All that look like templates."""
        found = self.data.get("template")
        return [t for t in found if isinstance(t, Mapping)] if isinstance(found, list) else []

    def templates(self) -> Iterable[tuple[int, Mapping[str, Any], Path]]:
        """(number, table, path) of each template."""
        if self.problems:
            return []
        table = Table(self, self.data, "file", ("template",), ())
        found = table.tables("template")
        if not self.data.get("template"):
            self.problem("template", "no [[template]] in this file", ())
        return [(i, raw, path) for i, (raw, path) in enumerate(found)]


class Table:
    """One TOML table whose keys are known; reading a key checks its type."""

    def __init__(
        self, check: Document, raw: Mapping[str, Any], where: str, known: Iterable[str], path: Path
    ) -> None:
        self.check, self.raw, self.where, self.known = check, raw, where, tuple(known)
        self.path = path
        for key in raw:
            if key not in self.known:
                self.problem(key, f"no such key{nearest(key, self.known)}", self.known)

    def problem(self, key: str, what: str, allowed: Iterable[str] = ()) -> None:
        self.check.problem(f"{self.where}.{key}", what, (*self.path, key), allowed)

    def _typed(self, key: str, kind: type, what: str, default: Any) -> Any:
        value = self.raw.get(key, default)
        if value is default:
            return default
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            self.problem(key, f"must be {what}, is {type(value).__name__}")
            return default
        return value

    def text(self, key: str, default: str = "", *, needed: bool = False) -> str:
        value: str = self._typed(key, str, "a string", default)
        if needed and not value.strip():
            self.problem(key, "is missing")
        return " ".join(value.split()) if value else value

    def flag(self, key: str) -> bool:
        return bool(self._typed(key, bool, "true or false", False))

    def number(self, key: str, default: int | None, least: int | None = None) -> int | None:
        value: int | None = self._typed(key, int, "a whole number", default)
        if value is not None and least is not None and value < least:
            self.problem(key, f"must be {least} or more, is {value}")
            return default
        return value

    def choice(self, key: str, among: Iterable[str], default: str) -> str:
        value = self.text(key, default)
        return self._among(key, value, tuple(among), default)

    def _among(self, key: str, value: str, among: tuple[str, ...], default: str) -> str:
        if value in among:
            return value
        self.problem(key, f"{value!r} is not one of {', '.join(among)}")
        return default

    def texts(self, key: str) -> tuple[str, ...]:
        value = self.raw.get(key, ())
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, (list, tuple)) or not all(isinstance(i, str) for i in items):
            self.problem(key, "must be a string or a list of strings")
            return ()
        return tuple(items)

    def choices(self, key: str, among: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(v for v in self.texts(key) if self._among(key, v, among, "") == v)

    def frames(self, key: str) -> tuple[FramePattern, ...]:
        return tuple(self._parsed(key, FramePattern.parse))

    def conditions(self, key: str, facts: Iterable[str] | None) -> tuple[Condition, ...]:
        parsed = tuple(self._parsed(key, parse))
        for condition in parsed if facts is not None else ():
            known = tuple(facts or ())
            for path in condition.paths:
                if path not in known and not ("state" in known and path.startswith("state.")):
                    self.problem(key, f"{condition.text!r}: no fact {path!r}{nearest(path, known)}", known)
        return parsed

    def _parsed(self, key: str, read: Callable[[str], Any]) -> Iterable[Any]:
        for text in self.texts(key):
            if len(text) > _MAX_TEXT:
                self.problem(key, f"is {len(text):,} characters long, {_MAX_TEXT:,} are allowed")
                continue
            try:
                yield read(text)
            except (ConditionError, ValueError) as error:
                self.problem(key, str(error))

    def tables(self, key: str) -> list[tuple[Mapping[str, Any], Path]]:
        """The tables under ``key``, with their paths."""
        value = self.raw.get(key, [])
        if isinstance(value, Mapping):
            return [(value, (*self.path, key))]
        if not isinstance(value, list) or not all(isinstance(i, Mapping) for i in value):
            self.problem(key, "must be a table or a list of tables")
            return []
        return [(item, (*self.path, key, i)) for i, item in enumerate(value)]


def nearest(key: str, known: Iterable[str]) -> str:
    from difflib import get_close_matches

    close = get_close_matches(key, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""
