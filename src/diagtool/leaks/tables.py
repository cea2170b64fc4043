"""Templates of kind "table": leaks that show as rows of a table of the snapshot, not as stacks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from diagtool.leaks.condition import Resolve, all_hold
from diagtool.leaks.evidence import filled
from diagtool.leaks.facts import Facts
from diagtool.leaks.model import Finding, Trend, WaitingOn
from diagtool.leaks.places import recorded_at
from diagtool.leaks.series import LEAST_GROWTH, LEAST_RATIO, Course
from diagtool.leaks.template import Rule, TablePattern, Template
from diagtool.snapshot.model import Snapshot

Row = dict[str, Any]

#: Different values of ``group_by`` that are looked at, so that hostile tables stay harmless.
_MOST_GROUPS = 10_000


@dataclass(slots=True)
class RowGroup:
    """Rows of one finding-to-be, and their count in every snapshot, oldest first."""

    key: Any
    rows: list[Row]
    counts: list[int]
    first: set[Any] = field(default_factory=set)  # identities in the first snapshot
    last: set[Any] = field(default_factory=set)

    @property
    def stayed(self) -> float | None:
        """Which part of the rows of the first snapshot is still there; None where rows have no identity."""
        return len(self.first & self.last) / len(self.first) if self.first else None


def judge_table(
    template: Template, facts: Sequence[Facts], course: Course | None, min_count: int | None
) -> Iterator[Finding]:
    """Findings of a table template; ``facts`` are of all snapshots, oldest first."""
    assert isinstance(template.match, TablePattern)
    for group in row_groups(template.match, facts):
        for rule in template.rules:
            finding = _judge(template, rule, group, facts, course, min_count)
            if finding is not None:
                yield finding
                break


def row_groups(pattern: TablePattern, facts: Sequence[Facts]) -> Iterable[RowGroup]:
    """The rows that ``pattern`` picks, by group."""
    by_key: dict[Any, RowGroup] = {}
    for at, one in enumerate(facts):
        for row in one.table(pattern.table):
            if not isinstance(row, dict) or not all_hold(pattern.where, row.get):
                continue
            key = row.get(pattern.group_by) if pattern.group_by else None
            if not isinstance(key, (str, int, float, type(None))):
                continue
            if key not in by_key:
                if len(by_key) >= _MOST_GROUPS:
                    continue
                by_key[key] = RowGroup(key, [], [0] * len(facts))
            group = by_key[key]
            group.counts[at] += row_count(pattern, row)
            if pattern.identity:
                identity = tuple(str(row.get(column)) for column in pattern.identity)
                for wanted, known in ((0, group.first), (len(facts) - 1, group.last)):
                    if at == wanted:
                        known.add(identity)
            if at == len(facts) - 1:
                group.rows.append(row)
    return [g for g in by_key.values() if g.rows]


def row_count(pattern: TablePattern, row: Row) -> int:
    """How much a row counts."""
    if not pattern.count or pattern.count not in row:
        return 1
    value = row.get(pattern.count)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _judge(
    template: Template,
    rule: Rule,
    group: RowGroup,
    facts: Sequence[Facts],
    course: Course | None,
    min_count: int | None,
) -> Finding | None:
    assert isinstance(template.match, TablePattern)
    rows = [r for r in group.rows if all_hold(rule.stack, r.get)]
    count = sum(row_count(template.match, r) for r in rows)
    if not rows or count < (rule.min_count if min_count is None else min_count):
        return None
    if course is not None and min(group.counts) == 0 and template.match.table not in facts[-1].derived:
        return None  # of a series only what was there all along, or grew
    resolve = row_resolver(group, rows, count, course, facts[-1].snapshot)
    if rule.series and (course is None or not all_hold(rule.series, resolve)):
        return None
    if not all_hold(rule.group, resolve):
        return None
    snapshot = facts[-1].snapshot
    evidence = [filled(rule.evidence, resolve)] if rule.evidence else []
    if course is not None and resolve("grew"):
        evidence.append("their number grew: " + ", ".join(f"{c:,}" for c in group.counts))
    first = rows[0]
    created, said = recorded_at(first, row_count(template.match, first))
    if said is not None:
        evidence.append(said)
    address = first.get("address")
    held = first.get("held_by")
    thing = (
        WaitingOn(str(first["type"]), address if isinstance(address, int) else 0) if "type" in first else None
    )
    size = first.get("bytes")
    return Finding(
        id="",
        template=template.id,
        verdict=rule.level,
        severity=template.severity,
        kind=template.match.unit,
        count=count,
        title=template.title,
        state=template.match.state,
        waiting_on=thing,
        bytes=sum(r["bytes"] for r in rows if isinstance(r.get("bytes"), int)) if size is not None else None,
        age_seconds=course.seconds[-1] if course is not None and course.seconds[-1] >= 0 else None,
        created_by=created,
        held_by=tuple(held) if isinstance(held, list) else (),
        evidence=tuple(evidence),
        cause=template.cause,
        fix=template.fix,
        runbook=template.runbook,
        examples=(str(group.key),) if isinstance(group.key, str) and group.key else (),
        trend=Trend(tuple(group.counts), course.seconds) if course is not None and snapshot else None,
    )


def _users(snapshot: Snapshot) -> int:
    """Who may use a thing at the moment: threads, greenlets, coroutines, and tasks that are not done."""
    tasks = snapshot.count("task", "waiting", "ready", "running", "cancelling")
    return tasks + sum(snapshot.count(kind) for kind in ("thread", "greenlet", "coroutine", "asyncgen"))


def row_resolver(
    group: RowGroup, rows: list[Row], count: int, course: Course | None, snapshot: Snapshot
) -> Resolve:
    """Resolves facts of a group, of its course, and columns of its first row."""
    growth = group.counts[-1] - group.counts[0]
    steady = group.counts == sorted(group.counts)
    own: Row = {
        "count": count,
        "rows": len(rows),
        "growth": growth,
        "snapshots": len(group.counts),
        "process.tasks": snapshot.count("task", "waiting", "ready", "running", "cancelling"),
        "process.users": _users(snapshot),
        "grew": steady and growth >= max(LEAST_GROWTH, LEAST_RATIO * group.counts[0]),
        "persisted": min(group.counts),
        "stayed": group.stayed,
        "age_seconds": course.seconds[-1] if course is not None else None,
    }

    def resolve(path: str) -> Any:
        return own[path] if path in own else rows[0].get(path)

    return resolve
