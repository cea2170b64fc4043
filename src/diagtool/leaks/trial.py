"""Why a template matches a snapshot or not: condition by condition, for what comes nearest to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diagtool.leaks.cluster import frames_of, kind_name, stable_id, state_name
from diagtool.leaks.condition import Condition, Resolve
from diagtool.leaks.facts import Facts, Rows
from diagtool.leaks.growth import derive
from diagtool.leaks.match import Matcher
from diagtool.leaks.memorygrowth import derive_memory
from diagtool.leaks.model import Cluster, Finding, Report
from diagtool.leaks.own import is_own
from diagtool.leaks.pattern import FrameIndex, StackPattern
from diagtool.leaks.series import Course, in_order
from diagtool.leaks.template import Rule, TablePattern, Template
from diagtool.leaks.trial_rows import nearest_rows
from diagtool.leaks.trial_steps import Candidate, Step, step, values, without_series
from diagtool.snapshot.model import KIND, Frame, Snapshot

__all__ = ("Candidate", "Step", "Trial", "candidates")

#: Clusters and rows whose every condition is looked at.
_MOST = 50
_EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class Trial:
    """A template against snapshots: the nearest candidates, and its findings in the whole report."""

    template: Template
    candidates: tuple[Candidate, ...]
    report: Report

    @property
    def findings(self) -> list[Finding]:
        """What it led to."""
        return [f for f in self.report.findings if f.template == self.template.id]

    @property
    def idle(self) -> list[Cluster]:
        """The clusters of which it says that they are no leak."""
        return [c for c in self.report.clusters if c.idle and c.template == self.template.id]

    @property
    def matches(self) -> bool:
        return bool(self.findings or self.idle)

    @property
    def others(self) -> list[str]:
        """Templates that got stacks which this one asks for."""
        wanted = {c.cluster for c in self.candidates if c.verdict and c.cluster}
        got = [c for c in self.report.clusters if c.id in wanted and c.template != self.template.id]
        return sorted({c.template for c in got if c.template})


def candidates(
    template: Template, snapshots: Sequence[Snapshot], known: Sequence[Template], most: int = 3
) -> tuple[Candidate, ...]:
    """What comes nearest to ``template``, the nearest first. Raises SeriesError."""
    series = in_order(snapshots)
    course = Course(series) if len(series) > 1 else None
    if isinstance(template.match, TablePattern):
        facts = [Facts(s) for s in series]
        derive(facts)
        derive_memory(facts)
        return tuple(nearest_rows(template, template.match, facts, course, most))
    return tuple(_Stacks(template, Facts(series[-1]), course, known).nearest(most))


class _Stacks:
    """Clusters of stacks against a template."""

    def __init__(
        self, template: Template, facts: Facts, course: Course | None, known: Sequence[Template]
    ) -> None:
        assert isinstance(template.match, StackPattern)
        self.template, self.pattern = template, template.match
        self.facts, self.course = facts, course
        self.matcher = Matcher(facts, course)
        self.idle, self.idle_clusters = self.matcher.idle([t for t in known if t.id != template.id])

    def nearest(self, most: int) -> Iterator[Candidate]:
        c = self.facts.clusters
        if not len(c):
            return
        asked = list(self._asked())
        score = np.zeros(len(c), np.intp)
        for _, _, mask, _ in asked:
            score += mask
        kinds = [KIND[k] for k in self.pattern.kinds]
        same = np.isin(c.kind, kinds) if kinds else np.ones(len(c), np.bool_)
        order = np.lexsort((-c.count, -score))
        # What is of another kind is near only where nothing is of the right one.
        order = order[same[order]] if same.any() else order
        order = order[:_MOST].tolist()
        made = [self._candidate(i, asked) for i in order]
        made.sort(key=lambda m: (not m.verdict, -sum(s.holds for s in m.steps)))  # stable: nearest first
        yield from made[:most]

    def _candidate(self, index: int, asked: list[_Asked]) -> Candidate:
        c = self.facts.clusters
        steps = [Step(part, wanted, found(index), bool(mask[index])) for part, wanted, mask, found in asked]
        rows = c.rows(index)
        for part, conditions in (("match.thing", self.pattern.thing), ("match.stack", self.pattern.stack)):
            for condition in conditions:
                steps.append(self._of_stacks(part, condition, rows))
        verdict = ""
        if all(step.holds for step in steps):
            if self.template.idle:
                verdict = "idle"
            else:
                verdict = self._judge(rows, steps)
        return Candidate(self._what(index), int(c.count[index]), tuple(steps), verdict, self._id(index))

    def _id(self, index: int) -> str:
        group, s = self.facts.clusters.group(index), self.facts.snapshot
        wait = s.waits[group.wait] or None
        return stable_id("", group.kind, group.state, wait or "", frames_of(s, group.trace))

    def _what(self, index: int) -> str:
        c, s = self.facts.clusters, self.facts.snapshot
        frames = frames_of(s, int(c.trace[index]))
        own = next((f for f in frames if is_own(f)), frames[0] if frames else None)
        wait = s.waits[int(c.wait[index])]
        text = f"{kind_name(int(c.kind[index]))}, {state_name(int(c.state[index]))}"
        text += f" in {wait}" if wait else ""
        return text + (f", at {_place(own)}" if own is not None else "")

    # --- match -----------------------------------------------------------------------------------------

    def _asked(self) -> Iterator[_Asked]:
        c, p, s = self.facts.clusters, self.pattern, self.facts.snapshot
        index = self.facts.frames

        def one(**part: Any) -> NDArray[np.bool_]:
            return self.matcher.clusters(StackPattern(**part))

        def frames(i: int) -> tuple[Frame, ...]:
            return tuple(f for f in frames_of(s, int(c.trace[i])) if f.library is None)

        def wait(i: int) -> str:
            return s.waits[int(c.wait[i])] or "waits for nothing"

        if p.kinds:
            yield "match.kind", " or ".join(p.kinds), one(kinds=p.kinds), lambda i: kind_name(int(c.kind[i]))
        if p.states:
            yield (
                "match.states",
                " or ".join(p.states),
                one(states=p.states),
                lambda i: state_name(int(c.state[i])),
            )
        if p.wait:
            yield "match.wait", " or ".join(p.wait), one(wait=p.wait), wait
        if p.not_wait:
            yield "match.not_wait", "none of " + ", ".join(p.not_wait), one(not_wait=p.not_wait), wait
        if p.names:
            yield "match.names", " or ".join(p.names), self._named(), lambda i: self._names(i)
        for part in ("frames", "top", "bottom", "any_frames", "not_frames"):
            wanted = getattr(p, part)
            if wanted:
                says = {"any_frames": " or ", "not_frames": ", "}.get(part, " ← ").join(map(str, wanted))
                says = f"none of {says}" if part == "not_frames" else says
                yield (
                    f"match.{part}",
                    says,
                    one(**{part: wanted}),
                    lambda i, part=part, wanted=wanted: _frames_found(
                        part, wanted, frames(i), index, int(c.trace[i])
                    ),
                )

    def _named(self) -> NDArray[np.bool_]:
        c, names = self.facts.clusters, self.facts.snapshot.stacks.name
        good = np.array([any(fnmatchcase(n, p) for p in self.pattern.names) for n in names], np.bool_)
        out = np.zeros(len(c), np.bool_)
        out[c.of[good]] = True
        return out

    def _names(self, index: int) -> str:
        names = self.facts.snapshot.stacks.name
        few = dict.fromkeys(names[r] or '""' for r in self.facts.clusters.rows(index)[:100].tolist())
        return ", ".join(list(few)[:_EXAMPLES])

    def _of_stacks(self, part: str, condition: Condition, rows: Rows) -> Step:
        """How many of ``rows`` a condition on a thing or a stack holds for."""
        held = int(self._held(part, condition, rows).sum())
        found = values(condition, self._resolver(part, int(rows[0]))) if len(rows) else "no stacks"
        if held not in (0, len(rows)):
            found += f" (holds for {held:,} of {len(rows):,})"
        return Step(part, " ".join(condition.text.split()), found, held > 0)

    def _held(self, part: str, condition: Condition, rows: Rows) -> NDArray[np.bool_]:
        if not part.endswith("thing"):
            return self.facts.stacks_that(condition, rows)
        distinct, inverse = np.unique(self.facts.snapshot.stacks.thing[rows], return_inverse=True)
        held = np.array([condition.holds(self.facts.thing(int(t))) for t in distinct], np.bool_)
        return held[inverse.reshape(-1)]

    def _resolver(self, part: str, row: int) -> Resolve:
        if part.endswith("thing"):
            return self.facts.thing(int(self.facts.snapshot.stacks.thing[row]))
        return self.facts.stack(row)

    # --- verdicts --------------------------------------------------------------------------------------

    def _judge(self, rows: Rows, steps: list[Step]) -> str:
        """Adds the steps of the verdict rules; the first level that holds."""
        matched = self.matcher.rows(self.pattern)
        groups = self.matcher.split_groups(self.template, matched)
        group = max(groups, key=lambda g: len(np.intersect1d(g, rows)), default=rows[:0])
        for number, rule in enumerate(self.template.rules):
            before = len(steps)
            self._rule(f"verdict[{number}] {rule.level}", rule, group, steps)
            if all(step.holds for step in steps[before:]):
                return rule.level
        return ""

    def _rule(self, part: str, rule: Rule, rows: Rows, steps: list[Step]) -> None:
        if not rule.over_idle:
            idle = int(self.idle[rows].sum())
            names = {
                t.id
                for r in rows[:100].tolist()
                if (t := self.idle_clusters.get(int(self.facts.clusters.of[r])))
            }
            found = f"{idle:,} of {len(rows):,} are" + (f" ({', '.join(sorted(names))})" if names else "")
            steps.append(Step(part, "not idle", found if idle else "none is", idle < len(rows)))
            rows = rows[~self.idle[rows]]
        for name, conditions in (("thing", rule.thing), ("stack", rule.stack)):
            for condition in conditions:
                steps.append(self._of_stacks(f"{part} {name}", condition, rows))
                rows = rows[self._held(name, condition, rows)]
        if self.course is not None:
            stayed = self.course.leaking(rows)
            steps.append(Step(part, "stayed or grew", f"{len(stayed):,} of {len(rows):,}", len(stayed) > 0))
            rows = stayed
        steps.append(
            Step(part, f"at least {rule.min_count:,}", f"{len(rows):,}", len(rows) >= rule.min_count)
        )
        if not len(rows):
            return
        for condition in rule.series:
            if self.course is None:
                steps.append(without_series(part, condition))
            else:
                steps.append(step(f"{part} series", condition, self.course.facts(rows)))
        for condition in rule.group:
            steps.append(step(f"{part} group", condition, self.facts.group(rows)))
        for pattern in rule.present:
            there = len(self.matcher.related(pattern, rows))
            steps.append(Step(f"{part} with", _pattern(pattern), f"{there:,} such stacks", there > 0))
        for pattern in rule.absent:
            there = len(self.matcher.related(pattern, rows))
            known = not self.facts.incomplete
            found = f"{there:,} such stacks" if known else "not known: memory is missing"
            steps.append(Step(f"{part} without", _pattern(pattern), found, known and not there))


_Asked = tuple[str, str, NDArray[np.bool_], Any]


# --- in words ---------------------------------------------------------------------------------------------


def _place(frame: Frame) -> str:
    return f"{frame.file.rpartition('/')[2]}:{frame.line or '?'} in {frame.function}"


def _frames_found(
    part: str, wanted: Sequence[Any], frames: Sequence[Frame], index: FrameIndex, trace: int
) -> str:
    there = [str(p) for p in wanted if index.containing(p)[trace]]
    if part == "not_frames":
        return f"has {there[0]}" if there else "none"
    if part == "any_frames":
        return f"has {there[0]}" if there else "none of them: " + _few(frames)
    if part in ("top", "bottom"):
        return _few(frames if part == "top" else frames[-_EXAMPLES:])
    lacking = [str(p) for p in wanted if str(p) not in there]
    if not lacking:
        return "all of them"
    return f"no {lacking[0]}: " + _few(frames)


def _few(frames: Sequence[Frame]) -> str:
    shown = [f"{f.file.rpartition('/')[2]}:{f.function}" for f in frames[:_EXAMPLES]]
    return " ← ".join(shown) + (" ← …" if len(frames) > _EXAMPLES else "") if shown else "no frames"


def _pattern(pattern: StackPattern) -> str:
    """A pattern of other stacks in few words."""
    parts = ["/".join(pattern.kinds) or "stack"]
    parts += [f"in {' or '.join(pattern.wait)}"] if pattern.wait else []
    parts += [f"not in {', '.join(pattern.not_wait)}"] if pattern.not_wait else []
    frames = [*pattern.frames, *pattern.top, *pattern.any_frames]
    parts += [f"under {' or '.join(map(str, frames))}"] if frames else []
    parts += [" ".join(c.text.split()) for c in (*pattern.thing, *pattern.stack)]
    return " ".join(parts) + (f", same {pattern.same}" if pattern.same != "process" else "")
