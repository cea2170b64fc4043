"""Which stacks a template is about, and which of its verdicts holds for them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray

from diagtool.leaks.cluster import things_of
from diagtool.leaks.condition import Condition, Resolve, all_hold
from diagtool.leaks.facts import Facts, Rows
from diagtool.leaks.pattern import StackPattern
from diagtool.leaks.series import Course
from diagtool.leaks.template import Rule, Template
from diagtool.snapshot.model import KIND, STATE

#: Kinds that can wait, for the rule about places that no template knows.
_FLOWS = tuple(KIND[k] for k in ("thread", "task", "greenlet", "goroutine"))


@dataclass(slots=True)
class Match:
    """Stacks (``rows``) for which ``rule`` of ``template`` holds; those ``explained`` it accounts for."""

    template: Template
    rule: Rule
    rows: Rows
    explained: Rows

    @property
    def order(self) -> tuple[int, int, int]:
        """Which match gets a stack that several ask for: the surer, the more special, the larger."""
        return (0 if self.rule.level == "likely" else 1, -self.template.priority, -len(self.rows))


class Matcher:
    """Matches templates against the facts of one snapshot; ``course`` is what a series of them showed."""

    def __init__(self, facts: Facts, course: Course | None = None, min_count: int | None = None) -> None:
        self.facts = facts
        self.course = course
        self.min_count = min_count

    # --- which stacks ----------------------------------------------------------------------------------

    def clusters(self, pattern: StackPattern) -> NDArray[np.bool_]:
        """Which clusters ``pattern`` matches by kind, state, wait and frames."""
        c, index = self.facts.clusters, self.facts.frames
        ok = np.ones(len(c), np.bool_)
        if pattern.kinds:
            ok &= np.isin(c.kind, [KIND[k] for k in pattern.kinds])
        if pattern.states:
            ok &= np.isin(c.state, [STATE[s] for s in pattern.states])
        if pattern.wait:
            ok &= index.waits(pattern.wait)[c.wait]
        if pattern.not_wait:
            ok &= ~index.waits(pattern.not_wait)[c.wait]
        if ok.any():
            at = np.flatnonzero(ok)
            ok[at] = index.traces(pattern, c.trace[at])
        return ok

    def rows(self, pattern: StackPattern) -> Rows:
        """The stacks that match ``pattern``, its conditions on names, things and stacks included."""
        rows = np.flatnonzero(self.clusters(pattern)[self.facts.clusters.of])
        if pattern.names and len(rows):
            names = self.facts.snapshot.stacks.name
            rows = np.array(
                [r for r in rows.tolist() if any(fnmatchcase(names[r], p) for p in pattern.names)], np.intp
            )
        return self._filtered(rows, pattern.thing, pattern.stack)

    def _filtered(self, rows: Rows, thing: tuple[Condition, ...], stack: tuple[Condition, ...]) -> Rows:
        if thing and len(rows):
            things = self.facts.snapshot.stacks.thing[rows]
            distinct, inverse = np.unique(things, return_inverse=True)
            held = np.array([all_hold(thing, self.facts.thing(int(i))) for i in distinct], np.bool_)
            rows = rows[held[inverse.reshape(-1)]]
        for condition in stack:
            if len(rows):
                rows = rows[self.facts.stacks_that(condition, rows)]
        return rows

    # --- which verdict ---------------------------------------------------------------------------------

    def judge(self, template: Template, idle: NDArray[np.bool_]) -> Iterator[Match]:
        """What of ``template`` holds. ``idle`` marks the stacks that an idle template explains."""
        assert isinstance(template.match, StackPattern)
        rows = self.rows(template.match)
        taken = np.zeros(len(idle), np.bool_)
        for rule in template.rules:
            for group in self.split_groups(template, rows[~taken[rows]]):
                match = self._holds(template, rule, group if rule.over_idle else group[~idle[group]])
                if match is not None:
                    taken[match.rows] = True
                    yield match

    def _holds(self, template: Template, rule: Rule, rows: Rows) -> Match | None:
        needed = rule.min_count if self.min_count is None else self.min_count
        if not len(rows) or len(rows) < needed:
            return None
        rows = self._filtered(rows, rule.thing, rule.stack)
        if self.course is not None:
            rows = self.course.leaking(rows)
        if not len(rows) or len(rows) < needed:
            return None
        if rule.series and (self.course is None or not all_hold(rule.series, self.course.facts(rows))):
            return None
        if rule.series and self.course is not None and self.course.nameless[rows].any():
            # Their number is all that is known: what the template says of those from before, nobody can.
            level = rule.level if self.course.is_long(rows) else "suspect"
            rule = replace(rule, level=level, evidence="")
        if rule.group and not all_hold(rule.group, self.facts.group(rows)):
            return None
        if not all(len(self.related(p, rows)) for p in rule.present):
            return None
        if rule.absent and self.facts.incomplete:
            return None
        if any(len(self.related(p, rows)) for p in rule.absent):
            return None
        explained = [self.related(p, rows) for p in rule.explains]
        return Match(template, rule, rows, np.concatenate(explained) if explained else rows[:0])

    def related(self, pattern: StackPattern, rows: Rows) -> Rows:
        """Stacks besides ``rows`` that match ``pattern``, in its relation to them."""
        s = self.facts.snapshot.stacks
        others = np.setdiff1d(self.rows(pattern), rows, assume_unique=True)
        if pattern.same == "thing":
            return others[np.isin(s.thing[others], things_of(self.facts.snapshot, rows))]
        if pattern.same == "loop":
            return others[np.isin(s.loop[others], s.loop[rows])]
        if pattern.same == "executor":
            executors = {self.facts.executor_of.get(r) for r in rows.tolist()} - {None}
            return np.array(
                [r for r in others.tolist() if self.facts.executor_of.get(r) in executors], np.intp
            )
        return others

    def split_groups(self, template: Template, rows: Rows) -> list[Rows]:
        """``rows`` split into what would be one finding each, largest first."""
        if not len(rows) or template.group == "all":
            return [rows]
        s = self.facts.snapshot.stacks
        key: NDArray[np.int64] = self.facts.near.of[rows]
        if template.group == "thing":
            key = s.thing[rows].astype(np.int64)
        elif template.group == "executor":
            key = np.array([self.facts.executor_of.get(r, -1) for r in rows.tolist()], np.int64)
        elif template.group == "owner":
            owner = self.facts.owners(rows)
            numbers = {o: i for i, o in enumerate(dict.fromkeys(owner))}
            key = key << 32 | np.array([numbers[o] for o in owner], np.int64)
        return sorted(split(rows, key), key=len, reverse=True)

    # --- everything ------------------------------------------------------------------------------------

    def idle(self, templates: Iterable[Template]) -> tuple[NDArray[np.bool_], dict[int, Template]]:
        """Which stacks an idle template explains, and the idle template of every cluster that is all idle."""
        c = self.facts.clusters
        mask = np.zeros(len(c.of), np.bool_)
        by_cluster: dict[int, Template] = {}
        for template in sorted(templates, key=lambda t: -t.priority):  # the special before the general
            if not template.idle or not isinstance(template.match, StackPattern):
                continue
            rows = self.rows(template.match)
            if template.max_count is not None:
                of = c.of[rows]
                rows = rows[c.count[of] <= template.max_count]
            mask[rows] = True
            of, counts = np.unique(c.of[rows], return_counts=True)
            for index, count in zip(of.tolist(), counts.tolist(), strict=True):
                if count == c.count[index]:
                    by_cluster.setdefault(index, template)
        return mask, by_cluster

    def known(self, templates: Iterable[Template]) -> NDArray[np.bool_]:
        """Which clusters some template is about, whether or not one of its verdicts holds."""
        known = np.zeros(len(self.facts.clusters), np.bool_)
        for template in templates:
            if isinstance(template.match, StackPattern) and template.match.is_place:
                known |= self.clusters(template.match)
        return known

    def unknown_places(
        self, templates: Iterable[Template], idle: NDArray[np.bool_], least: int
    ) -> list[Rows]:
        """Groups of at least ``least`` waiting stacks that are nearly alike and that no template knows."""
        c = self.facts.clusters
        pick = (c.state == STATE["waiting"]) & np.isin(c.kind, _FLOWS)
        if int(c.count[pick].sum()) < least:
            return []
        rows = np.flatnonzero((pick & ~self.known(templates))[c.of] & ~idle)
        kept = iter(g for g in split(rows, self.facts.near.of[rows]) if len(g) >= least)
        if self.course is not None:
            kept = (self.course.leaking(rows) for rows in kept)
        return [rows for rows in kept if len(rows) >= least]


def split(rows: Rows, key: NDArray[np.int64]) -> list[Rows]:
    """``rows`` by their ``key``, each part in the order that it had."""
    if not len(rows):
        return []
    order = np.argsort(key, kind="stable")
    return np.split(rows[order], np.flatnonzero(np.diff(key[order])) + 1)


def resolver_of(facts: Facts, rows: Rows, course: Course | None) -> Resolve:
    """Resolves facts of a group, of its series, and of the thing that most of ``rows`` wait on."""
    group = facts.group(rows)
    series = course.facts(rows) if course is not None else None
    things = things_of(facts.snapshot, rows)
    thing = facts.thing(int(things[0]) if len(things) else -1)

    def resolve(path: str) -> object:
        value = series(path) if series is not None else None
        value = group(path) if value is None else value
        return thing(path) if value is None else value

    return resolve
