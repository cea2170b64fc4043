"""Reading templates from TOML: every key and fact checked, every mistake told with its place."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from diagtool.leaks.model import NO_STACKS, SEVERITIES, VERDICTS
from diagtool.leaks.pattern import StackPattern
from diagtool.leaks.template import Problem, Rule, SourceRule, TablePattern, Template
from diagtool.leaks.template_extends import Bases
from diagtool.leaks.template_table import Document, Table, nearest
from diagtool.leaks.tomllines import Path
from diagtool.leaks.traced import TRACE_FACTS
from diagtool.snapshot.model import KINDS, STATES

#: Facts of one stack, for ``stack`` conditions. What each means is in docs/templates.md.
STACK_FACTS = (
    "name wait age_seconds wait_seconds timeout_left awaited served stuck held holder owner daemon main "
    "running_loop deadlocked pooled holds_gil waits_for_gil python callback_of team_of attended"
).split()
#: Facts of all stacks of a would-be finding together, for ``group`` conditions.
GROUP_FACTS = (
    *"count things owners loops peers passers circle callback_of team_of team.threads executors".split(),
    *"workers.count workers.busy workers.stuck workers.io workers.here workers.queued".split(),
    *"process.loops process.executors process.free_threads process.awake loop.overdue".split(),
    *TRACE_FACTS,
)
#: Facts over several snapshots, for ``series`` conditions.
SERIES_FACTS = "snapshots persisted grew growth age_seconds".split()
#: Facts of an asked-for thing, besides ``state.*``.
THING_FACTS = "address type detail references from_waiters exclusive held_by waiters".split()

#: What became of what rows of tables count.
FATES = ("kept", "lost", "running", "open", "replaced", "ignored", "blocked", "deadly", "exposed")

GROUPINGS = ("place", "thing", "owner", "executor", "all")
SAME = ("process", "thing", "loop", "executor")

#: A fact in a sentence of evidence.
PLACEHOLDER = re.compile(r"\{([a-z_.]+)\}")

_ID = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")


def read_text(text: str, name: str) -> tuple[list[Template], list[Problem]]:
    """The templates of one file's text; ``name`` is what problems call the file."""
    return read_texts([(name, text)])


def read_texts(files: Iterable[tuple[str, str]]) -> tuple[list[Template], list[Problem]]:
    """The templates of several files (name, text), which may extend each other; and what is wrong."""
    documents = [Document(name, text) for name, text in files]
    bases = Bases(documents)
    templates: list[Template] = []
    seen: dict[str, str] = {}
    for document in documents:
        for index, raw, path in document.templates():
            whole = bases.extended(document, raw, path)
            template = _template(document, whole, index, path) if whole is not None else None
            if template is None:
                continue
            if template.id in seen:
                document.problem(template.id, f"is also in {seen[template.id]}", (*path, "id"))
                continue
            seen[template.id] = document.place((*path, "id"))
            templates.append(template)
    return templates, [p for d in documents for p in d.problems]


_TEMPLATE_KEYS = (
    "id extends catalogue title kind severity idle group priority max_count cause fix references runbook "
    "match verdict source"
).split()
_STACK_KEYS = (
    "kinds states wait not_wait names frames top bottom any_frames not_frames thing stack same"
).split()
_TABLE_KEYS = "table where count group_by identity unit state".split()
_RULE_KEYS = (
    "level min_count thing stack group series with without explains over_idle evidence where"
).split()
_SOURCE_KEYS = "check pattern at raises lowers says".split()

#: Where a source rule looks: at frames of the stack, where it was started, in all files of the program.
PLACES = ("leaf", "own", "root", "created_by", "files")


def _template(check: Document, raw: Mapping[str, Any], index: int, path: Path) -> Template | None:
    before = len(check.problems)
    name = raw.get("id")
    where = name if isinstance(name, str) and name else f"template[{index}]"
    table = Table(check, raw, where, _TEMPLATE_KEYS, path)
    id_ = table.text("id", needed=True)
    if id_ and not set(id_) <= _ID:
        table.problem("id", f"{id_!r} must be lower case letters, digits and hyphens")
    idle = table.flag("idle")
    kind = table.choice("kind", (*KINDS, "table"), "task")
    match = _match(check, table, kind)
    rules = tuple(
        _rule(check, r, f"{where}.verdict[{i}]", kind, at)
        for i, (r, at) in enumerate(table.tables("verdict"))
    )
    if idle and rules:
        table.problem("verdict", "an idle template has no verdicts: it says what is no leak")
    if not idle and not rules and "verdict" not in raw:
        table.problem("verdict", "is missing: say with [[template.verdict]] when it counts")
    if idle and "source" in raw:
        table.problem("source", "an idle template has no source rules: there is no verdict to raise or lower")
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
        max_count=table.number("max_count", None, 1),
        source=tuple(
            _source(check, r, f"{where}.source[{i}]", kind, at)
            for i, (r, at) in enumerate(table.tables("source"))
        ),
        file=check.file,
    )
    return template if len(check.problems) == before else None


def _source(check: Document, raw: Mapping[str, Any], where: str, kind: str, path: Path) -> SourceRule:
    from diagtool.leaks.source.expression import problem_of

    table = Table(check, raw, where, _SOURCE_KEYS, path)
    name, pattern = table.text("check"), raw.get("pattern", "")
    if not isinstance(pattern, str):
        table.problem("pattern", f"must be a string, is {type(pattern).__name__}")
        pattern = ""
    elif pattern and (wrong := problem_of(pattern)) is not None:
        table.problem("pattern", wrong)
    if bool(name) == ("pattern" in raw):
        table.problem("check", "say either a check or a pattern", _check_names())
    elif name:
        table.choice("check", _check_names(), "")
    at = table.choice("at", PLACES, "files" if kind == "table" else "own")
    if kind == "table" and at != "files":
        table.problem("at", f"rows of a table have no {at}: say files", ("files",))
    if "raises" in raw and "lowers" in raw:
        table.problem("lowers", "say either raises or lowers")
    return SourceRule(
        at=at,
        check=name,
        pattern=pattern,
        raises="raises" in raw and table.choice("raises", ("likely",), "") == "likely",
        lowers="lowers" in raw and table.choice("lowers", ("suspect",), "") == "suspect",
        says=table.text("says"),
    )


def _check_names() -> tuple[str, ...]:
    from diagtool.leaks.source.checks import CHECKS  # imports ast

    return tuple(CHECKS)


def _match(check: Document, table: Table, kind: str) -> StackPattern | TablePattern:
    found = table.tables("match")
    if len(found) != 1:
        table.problem("match", "needs exactly one [template.match]")
        return StackPattern()
    where = f"{table.where}.match"
    given, path = found[0]
    if kind != "table":
        pattern = _stacks(check, given, where, path, (kind,))
        if not (pattern.wait or pattern.frames or pattern.top or pattern.any_frames or pattern.states
                or pattern.bottom or pattern.names):  # fmt: skip
            table.problem("match", "matches every stack: say where it is by wait, frames, states or names")
        return pattern
    raw = Table(check, given, where, _TABLE_KEYS, path)
    return TablePattern(
        table=raw.text("table", needed=True),
        where=raw.conditions("where", None),
        count=raw.text("count"),
        group_by=raw.text("group_by"),
        identity=raw.texts("identity"),
        unit=raw.choice("unit", (*NO_STACKS, "thread"), "object"),
        state=raw.choice("state", FATES, "kept"),
    )


def _stacks(
    check: Document, raw: Mapping[str, Any], where: str, path: Path, kinds: tuple[str, ...] = ()
) -> StackPattern:
    table = Table(check, raw, where, _STACK_KEYS, path)
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


def _rule(check: Document, raw: Mapping[str, Any], where: str, kind: str, path: Path) -> Rule:
    table = Table(check, raw, where, _RULE_KEYS, path)
    level = table.choice("level", VERDICTS, "suspect")
    if level == "proven":
        table.problem("level", "proven is never a template's to give: use likely", ("likely", "suspect"))
    facts = None if kind == "table" else GROUP_FACTS
    return Rule(
        level="likely" if level == "likely" else "suspect",
        min_count=table.number("min_count", 1, 1) or 1,
        thing=table.conditions("thing", (*THING_FACTS, "state")),
        stack=table.conditions(
            "where" if kind == "table" else "stack", None if kind == "table" else STACK_FACTS
        ),
        group=table.conditions("group", facts),
        series=table.conditions("series", (*SERIES_FACTS, *(("stayed",) if kind == "table" else ()))),
        present=tuple(_stacks(check, r, f"{where}.with", at) for r, at in table.tables("with")),
        absent=tuple(_stacks(check, r, f"{where}.without", at) for r, at in table.tables("without")),
        explains=tuple(_stacks(check, r, f"{where}.explains", at) for r, at in table.tables("explains")),
        over_idle=table.flag("over_idle"),
        evidence=_evidence(table, kind),
    )


def _evidence(table: Table, kind: str) -> str:
    """A sentence with facts in it, which must be some; of rows any column will do."""
    text = table.text("evidence")
    known = (*GROUP_FACTS, *SERIES_FACTS, *THING_FACTS)
    for fact in PLACEHOLDER.findall(text) if kind != "table" else ():
        if fact not in known and not fact.startswith("state."):
            table.problem("evidence", f"no fact {fact!r}{nearest(fact, known)}", (*known, "state.…"))
    return text
