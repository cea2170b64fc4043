"""Reading the baseline from TOML: every key checked, every mistake told with its file, key and line."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from datetime import date, datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from diagtool.leaks.baseline import (
    PYPROJECT,
    VERSION,
    Baseline,
    BaselineError,
    Entry,
    Problem,
    Settings,
)
from diagtool.leaks.model import VERDICTS, Verdict

__all__ = ("read_text", "tomllib")

_KEYS = tuple("version fail-on min-count templates root paths runbooks own libraries ignore".split())
_ENTRY_KEYS = ("id", "template", "frame", "name", "max_count", "reason", "expires")

#: A pattern that is longer is a mistake.
_LONGEST = 1000


def tomllib() -> Any:
    """The standard library's reader of TOML, or the same from where it came."""
    from importlib import import_module

    return import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")


def read_text(text: str, file: Path) -> Baseline:
    """The baseline in ``text``, which is what ``file`` holds. Raises BaselineError."""
    try:
        data = tomllib().loads(text)
    except ValueError as error:
        raise BaselineError(str(file), [Problem("file", f"is not TOML: {error}")]) from error
    table = ("tool", "diagtool") if file.name == PYPROJECT else ()
    for key in table:
        data = data.get(key, {}) if isinstance(data, Mapping) else data
    where = ".".join(table)
    check = _Checker(text, where)
    if not isinstance(data, Mapping):
        raise BaselineError(str(file), [Problem(where, f"must be a table, is {_kind(data)}")])
    _check_version(check, data, file)
    check.keys(data, "", _KEYS)
    settings = _settings(check, data, file.parent)
    entries = tuple(_entry(check, raw, i) for i, raw in enumerate(check.tables(data, "ignore")))
    if check.problems:
        raise BaselineError(str(file), check.problems)
    return Baseline(file, entries, settings, table)


class _Checker:
    """Collects what is wrong, and finds the lines."""

    def __init__(self, text: str, table: str) -> None:
        self.problems: list[Problem] = []
        self._prefix = f"{table}." if table else ""
        self._lines = text.splitlines()
        # The parser keeps no lines. Good enough for saying where to look.
        name = r"\s*\.\s*".join([*(re.escape(part) for part in table.split(".") if part), "ignore"])
        head = re.compile(rf"\s*\[\[\s*{name}\s*\]\]")
        self._heads = [i for i, line in enumerate(self._lines) if head.match(line)]

    def problem(self, where: str, what: str, line: int | None = None) -> None:
        self.problems.append(Problem(self._prefix + where, what, line))

    def line(self, key: str, entry: int | None = None) -> int | None:
        """The number of the line that sets ``key``: of an ``[[ignore]]``, or of the file's own settings."""
        if entry is None:
            start, end = 0, len(self._lines)
        elif entry < len(self._heads):
            start = self._heads[entry]
            end = self._heads[entry + 1] if entry + 1 < len(self._heads) else len(self._lines)
        else:
            return None
        pattern = re.compile(rf"\s*[\"']?{re.escape(key)}[\"']?\s*[=.]")
        found = next((i for i in range(start, end) if pattern.match(self._lines[i])), None)
        if found is None:
            return start + 1 if entry is not None else None
        return found + 1

    def head(self, entry: int) -> int | None:
        """The line in which an ``[[ignore]]`` begins, None for tables that are written inline."""
        return self._heads[entry] + 1 if entry < len(self._heads) else None

    def keys(
        self, raw: Mapping[str, Any], where: str, known: tuple[str, ...], entry: int | None = None
    ) -> None:
        for key in raw:
            if key not in known:
                near = get_close_matches(key, known, 1)
                said = f"Did you mean {near[0]}?" if near else f"Known are {', '.join(known)}."
                self.problem(f"{where}{key}", f"there is no such key. {said}", self.line(key, entry))

    def tables(self, raw: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
        value = raw.get(key, [])
        if isinstance(value, list) and all(isinstance(item, Mapping) for item in value):
            return value
        self.problem(key, f"must be tables: write [[{self._prefix}{key}]]", self.line(key))
        return []

    def typed(
        self, raw: Mapping[str, Any], where: str, key: str, kind: type, what: str, entry: int | None = None
    ) -> Any:
        value = raw.get(key)
        if value is None or (isinstance(value, kind) and not (kind is int and isinstance(value, bool))):
            return value
        self.problem(f"{where}{key}", f"must be {what}, is {_kind(value)}", self.line(key, entry))
        return None

    def text(self, raw: Mapping[str, Any], where: str, key: str, entry: int | None = None) -> str | None:
        value: str | None = self.typed(raw, where, key, str, "a string", entry)
        if value is not None and (not value.strip() or len(value) > _LONGEST):
            said = "is empty" if not value.strip() else f"is longer than {_LONGEST:,} characters"
            self.problem(f"{where}{key}", said, self.line(key, entry))
            return None
        return value

    def texts(
        self, raw: Mapping[str, Any], where: str, key: str, entry: int | None = None
    ) -> tuple[str, ...]:
        value = raw.get(key, [])
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, list) or not all(isinstance(i, str) for i in items):
            self.problem(f"{where}{key}", "must be a string or a list of strings", self.line(key, entry))
            return ()
        if any(not i.strip() or len(i) > _LONGEST for i in items):
            said = f"has a pattern that is empty or longer than {_LONGEST:,} characters"
            self.problem(f"{where}{key}", said, self.line(key, entry))
            return ()
        return tuple(items)

    def number(self, raw: Mapping[str, Any], where: str, key: str, entry: int | None = None) -> int | None:
        value: int | None = self.typed(raw, where, key, int, "a whole number", entry)
        if value is not None and value < 1:
            self.problem(f"{where}{key}", f"must be at least 1, is {value}", self.line(key, entry))
            return None
        return value


def _check_version(check: _Checker, data: Mapping[str, Any], file: Path) -> None:
    """A newer one first: what it means by its keys is not known here."""
    version = check.number(data, "", "version")
    if check.problems:
        raise BaselineError(str(file), check.problems)
    if version is not None and version > VERSION:
        what = f"this is version {version} of the format, and this diagtool knows {VERSION}"
        problem = Problem("version", what, check.line("version"))
        raise BaselineError(
            str(file), [problem], "Use a newer diagtool, or write the file anew with this one."
        )


def _settings(check: _Checker, data: Mapping[str, Any], folder: Path) -> Settings:
    fail_on = check.text(data, "", "fail-on")
    among = (*VERDICTS, "never")
    if fail_on is not None and fail_on not in among:
        check.problem("fail-on", f"{fail_on!r} is not one of {', '.join(among)}", check.line("fail-on"))
    verdict: Verdict | None = next((v for v in VERDICTS if v == fail_on), None)
    paths = check.texts(data, "", "paths")
    for mapping in paths:
        if not mapping.partition("=")[0] or "=" not in mapping:
            check.problem("paths", f"{mapping!r} is not FROM=TO", check.line("paths"))
    runbooks = check.text(data, "", "runbooks")
    if runbooks is not None and not runbooks.startswith(("https://", "http://")):
        check.problem("runbooks", "must be an address: https://…", check.line("runbooks"))
    return Settings(
        fail_on=verdict,
        never=fail_on == "never",
        min_count=check.number(data, "", "min-count"),
        templates=_folder(check, data, "templates", folder),
        root=_folder(check, data, "root", folder),
        paths=paths,
        runbooks=runbooks,
        own=_code(check, data, "own"),
        libraries=_code(check, data, "libraries"),
    )


def _code(check: _Checker, data: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """Patterns for whole paths: what begins with neither a slash nor a star fits in any folder."""
    return tuple(p if p.startswith(("/", "*")) else f"*/{p}" for p in check.texts(data, "", key))


def _folder(check: _Checker, data: Mapping[str, Any], key: str, folder: Path) -> Path | None:
    value = check.text(data, "", key)
    if value is None:
        return None
    path = folder / value
    if not path.is_dir():
        check.problem(key, f"there is no folder {path}", check.line(key))
        return None
    return path


def _entry(check: _Checker, raw: Mapping[str, Any], index: int) -> Entry:
    where = f"ignore[{index + 1}]."
    check.keys(raw, where, _ENTRY_KEYS, index)
    head = check.head(index)
    asked = ("id", "template", "frame", "name")
    entry = Entry(
        where=f"ignore[{index + 1}]" + ("" if head is None else f" (line {head})"),
        reason=check.text(raw, where, "reason", index) or "",
        id=check.text(raw, where, "id", index),
        template=check.text(raw, where, "template", index),
        frames=check.texts(raw, where, "frame", index),
        name=check.text(raw, where, "name", index),
        max_count=check.number(raw, where, "max_count", index),
        expires=_date(check, raw, where, index),
    )
    if "reason" not in raw:
        check.problem(f"{where}reason", "is missing: say why this is no leak, or who repairs it", head)
    if not any(key in raw for key in asked):
        check.problem(where[:-1], f"says of what: give at least one of {', '.join(asked)}", head)
    return entry


def _date(check: _Checker, raw: Mapping[str, Any], where: str, index: int) -> date | None:
    value = raw.get("expires")
    if value is None or (isinstance(value, date) and not isinstance(value, datetime)):
        return value
    said = f"must be a date without quotes, like 2027-01-31, is {_kind(value)}"
    check.problem(f"{where}expires", said, check.line("expires", index))
    return None


def _kind(value: Any) -> str:
    names = {str: "a string", bool: "true or false", int: "a number", float: "a number", list: "a list"}
    if isinstance(value, datetime):
        return "a date with a time"
    return names.get(type(value), "a table" if isinstance(value, Mapping) else type(value).__name__)
