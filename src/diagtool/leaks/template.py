"""Leak templates: what a leak looks like, when it counts, why it happens, how to fix it. Read from TOML.

A file holds any number of ``[[template]]`` tables. ``docs/templates.md`` describes every key and every fact
that a condition may ask for; :mod:`.template_toml` reads and checks them.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from diagtool.leaks.condition import Condition
from diagtool.leaks.model import Verdict
from diagtool.leaks.pattern import StackPattern

_MAX_FILE = 16 << 20

#: Where our own templates lie.
LIBRARY = Path(__file__).parent / "library"


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a template: in which ``file`` and ``line``, at which key, what; what is allowed."""

    file: str
    where: str
    what: str
    line: int | None = None
    allowed: tuple[str, ...] = ()

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{place}: {self.where}: {self.what}"


class TemplateError(Exception):
    """Templates that can't be used. ``problems`` has them all; ``hint`` says what to do."""

    hint = "run `diagtool templates check DIR`, and see docs/templates.md for the keys"

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = list(problems)
        more = f" (and {len(self.problems) - 1} more)" if len(self.problems) > 1 else ""
        super().__init__(f"{self.problems[0]}{more}" if self.problems else "no templates")


@dataclass(frozen=True, slots=True)
class TablePattern:
    """Which rows of a table of the snapshot count. ``things`` is the table of all things waited on.

    ``count``: the column that is summed; "" counts rows. ``group_by``: a finding for each value of that
    column; "" makes one for all rows. ``identity``: columns that tell whether a row is the same in
    another snapshot. ``unit``: what is counted. ``state``: what became of it.
    """

    table: str
    where: tuple[Condition, ...] = ()
    count: str = ""
    group_by: str = ""
    identity: tuple[str, ...] = ()
    unit: str = "object"
    state: str = "kept"


@dataclass(frozen=True, slots=True)
class Rule:
    """What must hold for a verdict. ``thing`` and ``stack`` say which of the matched stacks count; the others
    are about those stacks together. ``explains``: stacks that this finding accounts for, too."""

    level: Verdict
    min_count: int
    thing: tuple[Condition, ...] = ()
    stack: tuple[Condition, ...] = ()
    group: tuple[Condition, ...] = ()
    series: tuple[Condition, ...] = ()
    present: tuple[StackPattern, ...] = ()
    absent: tuple[StackPattern, ...] = ()
    explains: tuple[StackPattern, ...] = ()
    over_idle: bool = False
    evidence: str = ""


@dataclass(frozen=True, slots=True)
class SourceRule:
    """What the source of a finding's frames may say about it: see ``docs/templates.md``.

    ``check``: a source check by name, or ``pattern``: a regular expression. ``at``: where it is looked for.
    ``raises``: a suspect becomes likely, ``lowers``: a likely a suspect; neither: the line is only shown.
    """

    at: str
    check: str = ""
    pattern: str = ""
    raises: bool = False
    lowers: bool = False
    says: str = ""


@dataclass(frozen=True, slots=True)
class Template:
    """One leak pattern, or with ``idle`` one that is none. ``kind`` is a stack's kind, or "table"."""

    id: str
    title: str
    kind: str
    match: StackPattern | TablePattern
    rules: tuple[Rule, ...] = ()
    catalogue: str = ""
    severity: str = "medium"
    idle: bool = False
    group: str = "place"
    priority: int = 0
    cause: str = ""
    fix: str = ""
    references: tuple[str, ...] = ()
    runbook: str | None = None
    max_count: int | None = None
    source: tuple[SourceRule, ...] = ()
    file: str = ""


def builtin() -> tuple[Template, ...]:
    """Our own templates. Raises TemplateError when the installation is damaged."""
    return _builtin()


@lru_cache(maxsize=1)
def _builtin() -> tuple[Template, ...]:
    templates, problems = read_directory(LIBRARY)
    if problems:
        raise TemplateError(problems)
    return tuple(templates)


def library(user: Path | None = None) -> tuple[Template, ...]:
    """Our templates and those of the directory ``user``, which replace ours of the same id.

    Raises TemplateError when one of the user's can't be used.
    """
    if user is None:
        return builtin()
    templates, problems = read_directory(user)
    if problems:
        raise TemplateError(problems)
    own = {t.id for t in templates}
    return (*templates, *(t for t in builtin() if t.id not in own))


def read_directory(directory: Path) -> tuple[list[Template], list[Problem]]:
    """All templates of the ``*.toml`` files in ``directory`` (or of one file), and what is wrong there."""
    from diagtool.leaks.template_toml import read_texts

    files = [directory] if directory.is_file() else sorted(directory.glob("*.toml"))
    problems: list[Problem] = []
    if not files:
        problems.append(Problem(str(directory), "*.toml", "no template files here"))
    texts: list[tuple[str, str]] = []
    for file in files:
        try:
            info = file.stat()
            if not stat.S_ISREG(info.st_mode):
                raise OSError("it is no plain file")
            if info.st_size > _MAX_FILE:
                raise OSError(f"it is larger than {_MAX_FILE >> 20} MiB")
            texts.append((file.name, file.read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError) as error:
            problems.append(Problem(file.name, "file", f"can't be read: {error}"))
    found, wrong = read_texts(texts)
    order = {name: number for number, (name, _) in enumerate(texts)}
    return found, problems + sorted(wrong, key=lambda p: (order[p.file], p.line or 0))
