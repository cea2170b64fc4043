"""Reading templates from TOML: every key and fact checked, every mistake told with its place."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from diagtool.leaks.condition import Condition, ConditionError, parse
from diagtool.leaks.model import NO_STACKS, SEVERITIES, VERDICTS
from diagtool.leaks.pattern import FramePattern, StackPattern
from diagtool.leaks.template import Problem, Rule, TablePattern, Template
from diagtool.snapshot.model import KINDS, STATES

#: Facts of one stack, for ``stack`` conditions. What each means is in docs/templates.md.
STACK_FACTS = (
    "name wait age_seconds wait_seconds timeout_left awaited served stuck held holder owner daemon main "
    "running_loop deadlocked pooled holds_gil waits_for_gil python callback_of"
).split()
#: Facts of all stacks of a would-be finding together, for ``group`` conditions.
GROUP_FACTS = (
    "count things owners loops peers circle executors workers.count workers.busy workers.stuck workers.io "
    "workers.here workers.queued process.loops process.executors process.free_threads loop.overdue"
).split()
#: Facts over several snapshots, for ``series`` conditions.
SERIES_FACTS = "snapshots persisted grew growth age_seconds".split()
#: Facts of an asked-for thing, besides ``state.*``.
THING_FACTS = "address type detail references from_waiters exclusive held_by waiters".split()

#: What became of what rows of tables count.
FATES = ("kept", "lost", "running", "open", "replaced", "ignored", "blocked", "deadly", "exposed")

GROUPINGS = ("place", "thing", "owner", "executor", "all")
SAME = ("process", "thing", "loop", "executor")

_ID = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")


def read_text(text: str, name: str) -> tuple[list[Template], list[Problem]]:
    """The templates of one file's text; ``name`` is what problems call the file."""
    tomllib = _tomllib()
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        return [], [Problem(name, "file", f"not TOML: {error}")]
    check = _Checker(name)
    table = _Table(check, data, "file", ("template",))
    templates = [t for i, raw in enumerate(table.tables("template")) if (t := _template(check, raw, i, name))]
    if not data.get("template"):
        check.problem("template", "no [[template]] in this file")
    return templates, check.problems


def _tomllib() -> Any:
    from importlib import import_module

    return import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")


class _Checker:
    """Collects the problems of one file."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.problems: list[Problem] = []

    def problem(self, where: str, what: str) -> None:
        self.problems.append(Problem(self.file, where, what))


class _Table:
    """One TOML table whose keys are known; reading a key checks its type."""

    def __init__(self, check: _Checker, raw: Mapping[str, Any], where: str, known: Iterable[str]) -> None:
        self.check, self.raw, self.where, self.known = check, raw, where, tuple(known)
        for key in raw:
            if key not in self.known:
                check.problem(f"{where}.{key}", f"no such key{_nearest(key, self.known)}")

    def _typed(self, key: str, kind: type, what: str, default: Any) -> Any:
        value = self.raw.get(key, default)
        if value is default:
            return default
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            self.check.problem(f"{self.where}.{key}", f"must be {what}, is {type(value).__name__}")
            return default
        return value

    def text(self, key: str, default: str = "", *, needed: bool = False) -> str:
        value: str = self._typed(key, str, "a string", default)
        if needed and not value.strip():
            self.check.problem(f"{self.where}.{key}", "is missing")
        return " ".join(value.split()) if value else value

    def flag(self, key: str) -> bool:
        return bool(self._typed(key, bool, "true or false", False))

    def number(self, key: str, default: int | None) -> int | None:
        value: int | None = self._typed(key, int, "a whole number", default)
        return value

    def choice(self, key: str, among: Iterable[str], default: str) -> str:
        value = self.text(key, default)
        return self._among(key, value, tuple(among), default)

    def _among(self, key: str, value: str, among: tuple[str, ...], default: str) -> str:
        if value in among:
            return value
        self.check.problem(f"{self.where}.{key}", f"{value!r} is not one of {', '.join(among)}")
        return default

    def texts(self, key: str) -> tuple[str, ...]:
        value = self.raw.get(key, ())
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, (list, tuple)) or not all(isinstance(i, str) for i in items):
            self.check.problem(f"{self.where}.{key}", "must be a string or a list of strings")
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
                    self.check.problem(
                        f"{self.where}.{key}", f"{condition.text!r}: no fact {path!r}{_nearest(path, known)}"
                    )
        return parsed

    def _parsed(self, key: str, read: Callable[[str], Any]) -> Iterable[Any]:
        for text in self.texts(key):
            try:
                yield read(text)
            except (ConditionError, ValueError) as error:
                self.check.problem(f"{self.where}.{key}", str(error))

    def tables(self, key: str) -> list[Mapping[str, Any]]:
        value = self.raw.get(key, [])
        items = [value] if isinstance(value, Mapping) else value
        if not isinstance(items, list) or not all(isinstance(i, Mapping) for i in items):
            self.check.problem(f"{self.where}.{key}", "must be a table or a list of tables")
            return []
        return items


_TEMPLATE_KEYS = (
    "id catalogue title kind severity idle group priority max_count cause fix references runbook "
    "match verdict"
).split()
_STACK_KEYS = (
    "kinds states wait not_wait names frames top bottom any_frames not_frames thing stack same"
).split()
_TABLE_KEYS = "table where count group_by identity unit state".split()
_RULE_KEYS = (
    "level min_count thing stack group series with without explains over_idle evidence where"
).split()
_TOP_LEVEL_ONLY = ("same",)


def _template(check: _Checker, raw: Mapping[str, Any], index: int, file: str) -> Template | None:
    before = len(check.problems)
    name = raw.get("id")
    where = name if isinstance(name, str) and name else f"template[{index}]"
    table = _Table(check, raw, where, _TEMPLATE_KEYS)
    id_ = table.text("id", needed=True)
    if id_ and not set(id_) <= _ID:
        check.problem(f"{where}.id", f"{id_!r} must be lower case letters, digits and hyphens")
    idle = table.flag("idle")
    kind = table.choice("kind", (*KINDS, "table"), "task")
    match = _match(check, table, kind)
    rules = tuple(
        _rule(check, r, f"{where}.verdict[{i}]", kind) for i, r in enumerate(table.tables("verdict"))
    )
    if idle and rules:
        check.problem(f"{where}.verdict", "an idle template has no verdicts: it says what is no leak")
    if not idle and not rules and "verdict" not in raw:
        check.problem(f"{where}.verdict", "is missing: say with [[template.verdict]] when it counts")
    template = Template(
        id=id_,
        title=table.text("title", needed=True),
        kind=kind,
        match=match,
        rules=rules,
        catalogue=table.text("catalogue"),
        severity=table.choice("severity", SEVERITIES, "medium"),
        idle=idle,
        group=table.choice("group", GROUPINGS, "place"),
        priority=table.number("priority", 0) or 0,
        cause=table.text("cause", needed=not idle),
        fix=table.text("fix", needed=not idle),
        references=table.texts("references"),
        runbook=table.text("runbook", "" if idle else f"docs/runbooks/{id_}.md") or None,
        max_count=table.number("max_count", None),
        file=file,
    )
    return template if len(check.problems) == before else None


def _match(check: _Checker, table: _Table, kind: str) -> StackPattern | TablePattern:
    found = table.tables("match")
    where = f"{table.where}.match"
    if len(found) != 1:
        check.problem(where, "needs exactly one [template.match]")
        return StackPattern()
    if kind != "table":
        pattern = _stacks(check, found[0], where, (kind,))
        if not (pattern.wait or pattern.frames or pattern.top or pattern.any_frames or pattern.states
                or pattern.bottom or pattern.names):  # fmt: skip
            check.problem(where, "matches every stack: say where it is by wait, frames, states or names")
        return pattern
    raw = _Table(check, found[0], where, _TABLE_KEYS)
    return TablePattern(
        table=raw.text("table", needed=True),
        where=raw.conditions("where", None),
        count=raw.text("count"),
        group_by=raw.text("group_by"),
        identity=raw.texts("identity"),
        unit=raw.choice("unit", (*NO_STACKS, "thread"), "object"),
        state=raw.choice("state", FATES, "kept"),
    )


def _stacks(check: _Checker, raw: Mapping[str, Any], where: str, kinds: tuple[str, ...] = ()) -> StackPattern:
    table = _Table(check, raw, where, _STACK_KEYS)
    wait = table.texts("wait")
    states = table.choices("states", STATES)
    return StackPattern(
        kinds=table.choices("kinds", KINDS) or kinds,
        states=states or (("waiting", "cancelling") if wait else ()),
        wait=wait,
        not_wait=table.texts("not_wait"),
        names=table.texts("names"),
        frames=table.frames("frames"),
        top=table.frames("top"),
        bottom=table.frames("bottom"),
        any_frames=table.frames("any_frames"),
        not_frames=table.frames("not_frames"),
        thing=table.conditions("thing", (*THING_FACTS, "state")),
        stack=table.conditions("stack", STACK_FACTS),
        same=table.choice("same", SAME, "process"),
    )


def _rule(check: _Checker, raw: Mapping[str, Any], where: str, kind: str) -> Rule:
    table = _Table(check, raw, where, _RULE_KEYS)
    level = table.choice("level", VERDICTS, "suspect")
    if level == "proven":
        check.problem(f"{where}.level", "proven is never a template's to give: use likely")
    facts = None if kind == "table" else GROUP_FACTS
    return Rule(
        level="likely" if level == "likely" else "suspect",
        min_count=table.number("min_count", 1) or 1,
        thing=table.conditions("thing", (*THING_FACTS, "state")),
        stack=table.conditions(
            "where" if kind == "table" else "stack", None if kind == "table" else STACK_FACTS
        ),
        group=table.conditions("group", facts),
        series=table.conditions("series", (*SERIES_FACTS, *(("stayed",) if kind == "table" else ()))),
        present=tuple(_stacks(check, r, f"{where}.with") for r in table.tables("with")),
        absent=tuple(_stacks(check, r, f"{where}.without") for r in table.tables("without")),
        explains=tuple(_stacks(check, r, f"{where}.explains") for r in table.tables("explains")),
        over_idle=table.flag("over_idle"),
        evidence=table.text("evidence"),
    )


def _nearest(key: str, known: Iterable[str]) -> str:
    from difflib import get_close_matches

    close = get_close_matches(key, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""
