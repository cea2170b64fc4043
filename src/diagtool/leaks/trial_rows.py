"""Rows of tables against a template: each condition with what was found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from diagtool.leaks.facts import Facts
from diagtool.leaks.series import Course
from diagtool.leaks.tables import RowGroup, row_count, row_groups, row_resolver
from diagtool.leaks.template import TablePattern, Template
from diagtool.leaks.trial_steps import Candidate, Step, step, without_series

__all__ = ("nearest_rows",)


def nearest_rows(
    template: Template, pattern: TablePattern, facts: Sequence[Facts], course: Course | None, most: int
) -> Iterator[Candidate]:
    rows = [r for r in facts[-1].table(pattern.table) if isinstance(r, dict)]
    there = bool(rows) or pattern.table in facts[-1].snapshot.tables or pattern.table in facts[-1].derived
    if not rows:
        found = (
            "it has no rows" if there else "not in this snapshot: with --heap, or of another kind of target?"
        )
        yield Candidate(f"table {pattern.table}", 0, (Step("match.table", pattern.table, found, False),))
        return
    groups = list(row_groups(pattern, facts))
    for group in sorted(groups, key=lambda g: -g.counts[-1])[:most]:
        steps = [step("match.where", condition, group.rows[0].get) for condition in pattern.where]
        verdict = _judge_rows(template, pattern, group, facts, course, steps)
        yield Candidate(_named_row(pattern, group.rows[0]), group.counts[-1], tuple(steps), verdict)
    if groups:
        return
    rows.sort(key=lambda r: (-sum(c.holds(r.get) for c in pattern.where), -row_count(pattern, r)))
    for row in rows[:most]:
        steps = [step("match.where", condition, row.get) for condition in pattern.where]
        yield Candidate(_named_row(pattern, row), row_count(pattern, row), tuple(steps))


def _judge_rows(
    template: Template,
    pattern: TablePattern,
    group: RowGroup,
    facts: Sequence[Facts],
    course: Course | None,
    steps: list[Step],
) -> str:
    for number, rule in enumerate(template.rules):
        part, before = f"verdict[{number}] {rule.level}", len(steps)
        rows = group.rows
        for condition in rule.stack:
            held = [r for r in rows if condition.holds(r.get)]
            steps.append(
                Step(
                    f"{part} where",
                    " ".join(condition.text.split()),
                    f"{len(held):,} of {len(rows):,} rows",
                    bool(held),
                )
            )
            rows = held
        count = sum(row_count(pattern, r) for r in rows)
        steps.append(
            Step(part, f"at least {rule.min_count:,}", f"{count:,}", count >= rule.min_count and bool(rows))
        )
        if rows:
            resolve = row_resolver(group, rows, count, course, facts[-1].snapshot)
            for condition in rule.series:
                steps.append(
                    without_series(part, condition)
                    if course is None
                    else step(f"{part} series", condition, resolve)
                )
            steps += [step(f"{part} group", condition, resolve) for condition in rule.group]
        if all(step.holds for step in steps[before:]) and all(
            step.holds for step in steps if step.part == "match.where"
        ):
            return rule.level
    return ""


def _named_row(pattern: TablePattern, row: dict[str, Any]) -> str:
    named = pattern.group_by or next((k for k in ("type", "function", "name", "path") if k in row), "")
    return f"row of {pattern.table}" + (f": {named} {row.get(named)}" if named else "")
