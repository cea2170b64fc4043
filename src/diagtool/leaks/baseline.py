"""The baseline: what a team knows about and has accepted, each with its reason; and its settings.

``.diagtool.toml``, or the table ``tool.diagtool`` of ``pyproject.toml``, is looked for from a folder upwards
(:func:`find`), read and checked (:func:`read`), and laid over a report (:func:`apply`): findings that an
``[[ignore]]`` table is about move to ``Report.ignored``, are counted there, and what is wrong with the
tables (unused, expired, more than ``max_count``) is told. docs/baseline.md describes the keys.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import date
from fnmatch import translate
from functools import lru_cache
from pathlib import Path
from stat import S_IWOTH

from diagtool.leaks.model import (
    VERDICTS,
    BaselineUse,
    Finding,
    Ignored,
    Report,
    Summary,
    Verdict,
)
from diagtool.snapshot.model import Frame

__all__ = ("NAME", "Baseline", "BaselineError", "Entry", "Problem", "Settings", "apply", "find", "read")

#: The file that is looked for. ``pyproject.toml`` beside it is read where this one is not there.
NAME = ".diagtool.toml"
PYPROJECT = "pyproject.toml"

#: The version of the format that this diagtool writes and reads.
VERSION = 1

#: Names come from the memory of a process: longer ones are matched by their beginning.
_LONGEST = 1000
_MOST_NAMED = 5
#: Longer files were not written for this.
_MAX_FILE = 4 << 20


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a baseline file: at which key, in which line (where that is known), and what."""

    where: str
    what: str
    line: int | None = None

    def __str__(self) -> str:
        line = "" if self.line is None else f" (line {self.line})"
        return f"{self.where}{line}: {self.what}"


class BaselineError(Exception):
    """A baseline file that can't be used. ``problems`` has all that is wrong; ``hint`` says what to do."""

    hint = "docs/baseline.md says which keys there are and what they mean."

    def __init__(self, file: str, problems: Iterable[Problem], hint: str | None = None) -> None:
        self.problems = list(problems)
        self.hint = hint or self.hint
        more = f" (and {len(self.problems) - 1} more)" if len(self.problems) > 1 else ""
        super().__init__(f"{file}: {self.problems[0]}{more}")


@dataclass(frozen=True, slots=True)
class Entry:
    """One ``[[ignore]]``: a finding that fits everything it says is ignored. None and (): nothing said.

    ``id``: of the finding. ``template``: its id, a glob. ``frames``: globs, each of which must fit a frame of
    the stack or of where it was created (:func:`fits`). ``name``: a glob that all names of stacks that the
    report shows must fit. ``max_count``: the most stacks. ``where``: ``ignore[2] (line 14)``.
    """

    where: str
    reason: str
    id: str | None = None
    template: str | None = None
    frames: tuple[str, ...] = ()
    name: str | None = None
    max_count: int | None = None
    expires: date | None = None

    def expired(self, today: date) -> bool:
        """Whether ``expires`` is over: it is the last day on which the entry counts."""
        return self.expires is not None and today > self.expires

    def matches(self, finding: Finding) -> bool:
        """Whether it is about ``finding``, however many stacks that has."""
        if self.id is not None and self.id != finding.id:
            return False
        if self.template is not None and not _fits(self.template, finding.template or ""):
            return False
        if self.name is not None and not (
            finding.examples and all(_fits(self.name, name) for name in finding.examples)
        ):
            return False
        stacks = (*finding.frames, *(finding.created_by or ()))
        return all(any(fits(pattern, frame) for frame in stacks) for pattern in self.frames)


@dataclass(frozen=True, slots=True)
class Settings:
    """What the file says besides: each is used where the command line does not say otherwise.

    ``templates`` and ``root`` are paths, made absolute from the folder of the file; ``paths`` are the
    mappings of ``--map``; ``runbooks`` is the address under which a team keeps its copy of docs/runbooks.
    ``own`` and ``libraries`` are patterns for paths of code (``leaks.own.use``).
    """

    fail_on: Verdict | None = None  # "never" is never=True
    never: bool = False
    min_count: int | None = None
    templates: Path | None = None
    root: Path | None = None
    paths: tuple[str, ...] = ()
    runbooks: str | None = None
    own: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Baseline:
    """A file that was read and checked. ``table``: the path of keys to its table (``tool.diagtool``)."""

    file: Path
    entries: tuple[Entry, ...] = ()
    settings: Settings = Settings()
    table: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What reports call the file."""
        return self.file.name


def find(start: Path) -> Path | None:
    """The baseline file for ``start``: there or in the nearest folder above it that has one, else None.

    ``.diagtool.toml``, else ``pyproject.toml`` if it has a table ``tool.diagtool``. Nothing is looked for
    above the root of a repository, nor in folders above ``start`` that everybody may write to (/tmp).
    """
    try:
        start = start.resolve()
    except OSError:
        return None
    for folder in (start, *start.parents):
        try:
            if folder != start and folder.stat().st_mode & S_IWOTH:
                return None
            if (folder / NAME).is_file():
                return folder / NAME
            if _has_table(folder / PYPROJECT):
                return folder / PYPROJECT
            if (folder / ".git").exists():
                return None
        except OSError:
            return None
    return None


def _has_table(file: Path) -> bool:
    if not file.is_file() or file.stat().st_size > _MAX_FILE:
        return False
    data = file.read_bytes()
    if b"diagtool" not in data:  # most have none, and parsing takes longer
        return False
    from diagtool.leaks.baseline_toml import tomllib

    try:
        tool = tomllib().loads(data.decode("utf-8")).get("tool")
    except ValueError:  # reading it will say what is wrong, if it is for us
        return re.search(rb"^\s*\[+\s*tool\s*\.\s*diagtool\b", data, re.MULTILINE) is not None
    return isinstance(tool, dict) and "diagtool" in tool


def read(file: Path) -> Baseline:
    """The baseline of a file. Raises BaselineError for what is wrong with it, OSError if it can't be read."""
    from diagtool.leaks.baseline_toml import read_text

    if not file.is_file() and file.exists():
        raise BaselineError(str(file), [Problem("file", "is not a plain file")])
    if file.stat().st_size > _MAX_FILE:
        raise BaselineError(str(file), [Problem("file", f"is larger than {_MAX_FILE:,} bytes")])
    try:
        text = file.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise BaselineError(str(file), [Problem("file", f"is no UTF-8: {error}")]) from error
    return read_text(text, file)


def apply(report: Report, baseline: Baseline, today: date | None = None) -> Report:
    """``report`` with the findings that ``baseline`` is about in ``ignored``, and told what became of it.

    ``today`` decides which entries have expired (default: the local date). A finding goes to the first entry
    that is about it; an entry that has expired, or allows fewer stacks, is told only if no other takes it.
    """
    today = today or date.today()
    kept: list[Finding] = []
    ignored: list[Ignored] = []
    used: set[int] = set()
    told: dict[str, list[str]] = {"expired": [], "exceeded": []}
    by_id: dict[str | None, list[int]] = {}  # thousands of both are held against each other quickly
    for i, entry in enumerate(baseline.entries):
        by_id.setdefault(entry.id, []).append(i)
    for finding in report.findings:
        asked = sorted((*by_id.get(finding.id, ()), *by_id.get(None, ())))
        about = [i for i in asked if baseline.entries[i].matches(finding)]
        used.update(about)
        counts = (i for i in about if _counts(baseline.entries[i], finding, today))
        first = next(counts, None)
        if first is None:
            kept.append(finding)
            for i in about:
                kind, text = _why_not(baseline.entries[i], finding, today)
                told[kind].append(text)
        else:
            entry = baseline.entries[first]
            ignored.append(Ignored(finding, f"{baseline.name}: {entry.where}", entry.reason, entry.expires))
    over = [e for e in baseline.entries if e.expired(today)]
    use = BaselineUse(
        str(baseline.file),
        len(baseline.entries),
        tuple(e.where for i, e in enumerate(baseline.entries) if i not in used and not e.expired(today)),
        tuple(e.where for e in over),
        tuple(told["exceeded"]),
    )
    warnings = [
        *report.warnings,
        *(f"{baseline.name}: {text}" for text in (*told["expired"], *told["exceeded"])),
        *_warnings(baseline, used, today),
    ]
    return replace(
        report,
        findings=tuple(_with_runbook(f, baseline.settings.runbooks) for f in kept),
        ignored=tuple(
            replace(i, finding=_with_runbook(i.finding, baseline.settings.runbooks)) for i in ignored
        ),
        summary=_counted(report.summary, kept, len(ignored)),
        warnings=tuple(dict.fromkeys(warnings)),
        baseline=use,
    )


def _counts(entry: Entry, finding: Finding, today: date) -> bool:
    return not entry.expired(today) and (entry.max_count is None or finding.count <= entry.max_count)


def _why_not(entry: Entry, finding: Finding, today: date) -> tuple[str, str]:
    if entry.expired(today):
        what = f"expired on {entry.expires}, so {finding.id} counts again. Fix it, or give it a new date."
        return "expired", f"{entry.where} {what}"
    what = f"allows {entry.max_count:,}, and {finding.id} has {finding.count:,}: it counts."
    return "exceeded", f"{entry.where} {what}"


def _warnings(baseline: Baseline, used: set[int], today: date) -> Iterator[str]:
    unused = [entry for i, entry in enumerate(baseline.entries) if i not in used]
    for entry in unused:
        if entry.expired(today):
            yield f"{baseline.name}: {entry.where} expired on {entry.expires} and fits nothing. Remove it."
    # One sentence: what is known of other programs fits nothing of this one.
    names = [entry.where for entry in unused if not entry.expired(today)]
    if names:
        more = f" and {len(names) - _MOST_NAMED:,} more" if len(names) > _MOST_NAMED else ""
        said = f"{', '.join(names[:_MOST_NAMED])}{more} {'is' if len(names) == 1 else 'are'} unused"
        yield f"{baseline.name}: {said}: nothing fits. Remove what is needed nowhere else."


def _counted(summary: Summary, kept: list[Finding], ignored: int) -> Summary:
    by_verdict = dict.fromkeys(VERDICTS, 0)
    for finding in kept:
        by_verdict[finding.verdict] += 1
    return replace(summary, findings=len(kept), by_verdict=by_verdict, ignored=summary.ignored + ignored)


def _with_runbook(finding: Finding, address: str | None) -> Finding:
    runbook = finding.runbook
    if address is None or runbook is None or "://" in runbook:
        return finding
    return replace(finding, runbook=f"{address.rstrip('/')}/{runbook.rpartition('/')[2]}")


@lru_cache(maxsize=100_000)
def fits(pattern: str, frame: Frame) -> bool:
    """Whether a glob fits a frame: ``function``, ``module.function`` or ``file:function``.

    The function is its qualified name or the last part of that (older interpreters have no more); the file
    is its path or the end of it, from a slash on (``worker.py:leaf``, ``app/worker.py:*``).
    """
    qualified = frame.function[:_LONGEST]
    names = dict.fromkeys((qualified, qualified.rpartition(".")[2]))
    if any(_fits(pattern, name) for name in names):
        return True
    if frame.module and any(_fits(pattern, f"{frame.module[:_LONGEST]}.{name}") for name in names):
        return True
    file, function = _split(pattern)
    if not file or not any(_fits(function, name) for name in names):
        return False
    path = (frame.file or frame.library or "")[-_LONGEST:].replace("\\", "/")
    return _fits(file, path) or _fits(f"*/{file}", path)


def _split(pattern: str) -> tuple[str, str]:
    """``file:function`` in two; C++ has names with two colons."""
    found = re.search("(?<!:):(?!:)", pattern)
    return ("", "") if found is None else (pattern[: found.start()], pattern[found.end() :])


def _fits(pattern: str, text: str) -> bool:
    return _compiled(pattern).match(text[: 2 * _LONGEST]) is not None


@lru_cache(maxsize=1000)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(translate(pattern))
