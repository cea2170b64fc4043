"""From snapshots to a report: templates judged, each stack told once, findings ranked.

Here is also where ``proven`` comes from: a template that asks for stuck stacks matched with all its
conditions, and the decoder saw every reference there is, in memory of one instant.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from diagtool.leaks import model
from diagtool.leaks.cluster import Clusters, examples, frames_of, kind_name, stable_id, state_name, things_of
from diagtool.leaks.evidence import sentences, waiting_on
from diagtool.leaks.facts import CALLBACK, Facts, Rows
from diagtool.leaks.growth import derive, missing
from diagtool.leaks.labelled import Labels, labelled, names_of
from diagtool.leaks.match import Match, Matcher, split
from diagtool.leaks.memorygrowth import derive_memory
from diagtool.leaks.model import NO_STACKS, Finding, Report
from diagtool.leaks.pattern import StackPattern
from diagtool.leaks.series import Course, in_order
from diagtool.leaks.tables import judge_table
from diagtool.leaks.template import Rule, Template, builtin
from diagtool.snapshot.model import STACK_COLUMNS, Snapshot, StackTable

if TYPE_CHECKING:
    from diagtool.leaks.source.files import Sources

#: Stacks that must wait at a place that no template knows for it to be a suspect.
UNKNOWN_COUNT = 100
#: Clusters that a report lists, besides those of findings; of more the largest.
MAX_CLUSTERS = 2_000
#: Clusters that are listed of each finding, where they are among the smaller ones.
MAX_OF_FINDING = 20
#: Retention paths that a finding shows.
MAX_HELD_BY = 5

_UNKNOWN = Template(
    id="unknown-place",
    title="many stacks wait at one place that no template knows",
    kind="task",
    match=StackPattern(),
    severity="low",
    cause="Unknown. A crowd at one place is often a lost wake-up, a resource that is never given back, or "
    "a missing limit; it can also be how this program idles.",
    fix="Look at the innermost frame of your own code. If this is normal, say so in a template of your own "
    "with idle = true (docs/templates.md).",
)


def judge(
    snapshots: Sequence[Snapshot],
    *,
    templates: Iterable[Template] | None = None,
    min_count: int | None = None,
    sources: Sources | None = None,
    labels: Labels = (),
) -> Report:
    """See :func:`diagtool.leaks.find_leaks`."""
    series = in_order(snapshots)
    known = tuple(builtin() if templates is None else templates)
    snapshot = series[-1]
    facts = Facts(snapshot)
    course = Course(series) if len(series) > 1 else None
    matcher = Matcher(facts, course, min_count)
    idle, idle_clusters = matcher.idle(known)
    matches = _assigned(_matches(matcher, known, idle, min_count), len(snapshot.stacks), min_count)
    some = labelled(snapshot, labels) if labels else None
    if some is not None:
        matches = [replace(m, rows=m.rows[some[m.rows]]) for m in matches]
    made = [(_finding(facts, m, course), m.rows) for m in matches if len(m.rows)]
    every = [*(Facts(s) for s in series[:-1]), facts]
    derive(every)
    derive_memory(every)
    for template in known:
        if template.kind == "table" and some is None:
            made += [(f, np.zeros(0, np.intp)) for f in judge_table(template, every, course, min_count)]
    made = _with_ids(facts, made)
    doubts: list[str] = []
    if sources is not None and made:
        from diagtool.leaks.source.look import look_at  # where nothing is found nobody needs it

        found, doubts = look_at([finding for finding, _ in made], known, sources, snapshot)
        made = [(finding, rows) for finding, (_, rows) in zip(found, made, strict=True)]
    clusters = facts.clusters
    if some is not None:
        snapshot, clusters, made, idle_clusters = _only(facts, some, made, idle_clusters)
        if not some.any():
            doubts.append(_no_label(series[-1]))
    shown = list(_clusters(clusters, snapshot, made, idle_clusters))
    left_out = len(clusters) - len(shown)
    warnings = [*missing(series), *(w for s in series for w in s.warnings), *doubts]
    if left_out:
        warnings.append(f"{left_out:,} smaller clusters are not listed")
    report = Report.of(
        snapshot.target,
        [finding for finding, _ in made],
        shown,
        stacks=len(snapshot.stacks),
        warnings=warnings,
        pause_ms=snapshot.pause_ms,
    )
    return replace(report, summary=replace(report.summary, clusters=len(clusters)))


def _only(
    facts: Facts, some: NDArray[np.bool_], made: list[tuple[Finding, Rows]], idle: dict[int, Template]
) -> tuple[Snapshot, Clusters, list[tuple[Finding, Rows]], dict[int, Template]]:
    """What is shown of a snapshot where only the stacks ``some`` are: it, and rows and clusters of these."""
    s = facts.snapshot.stacks
    rows = np.flatnonzero(some)
    table = StackTable(
        name=[s.name[row] for row in rows.tolist()],
        **{column: getattr(s, column)[rows] for column in STACK_COLUMNS},
    )
    part = replace(facts.snapshot, stacks=table)
    clusters = Clusters(part)
    place = np.cumsum(some) - 1
    was = facts.clusters.of[rows]
    known = {int(c): idle[int(w)] for c, w in zip(clusters.of, was, strict=True) if int(w) in idle}
    return part, clusters, [(finding, place[r]) for finding, r in made], known


def _no_label(snapshot: Snapshot) -> str:
    names = names_of(snapshot)
    there = f"there are labels {', '.join(names)}" if names else "no stack has labels"
    return f"no stack has the labels that were asked for: {there}"


def _matches(
    matcher: Matcher, templates: Sequence[Template], idle: NDArray[np.bool_], min_count: int | None
) -> Iterator[Match]:
    for template in templates:
        if not template.idle and isinstance(template.match, StackPattern):
            yield from matcher.judge(template, idle)
    least = UNKNOWN_COUNT if min_count is None else max(min_count, UNKNOWN_COUNT)
    for rows in matcher.unknown_places(templates, idle, least):
        yield Match(_UNKNOWN, Rule("suspect", least), rows, rows[:0])


def _assigned(matches: Iterable[Match], stacks: int, min_count: int | None) -> list[Match]:
    """Each stack to the match that asks for it first; what is left of the others must still be enough."""
    taken = np.zeros(stacks, np.bool_)
    kept = []
    for match in sorted(matches, key=lambda m: m.order):
        rows = match.rows[~taken[match.rows]]
        if len(rows) < (match.rule.min_count if min_count is None else min_count) or not len(rows):
            continue
        taken[rows] = True
        taken[match.explained] = True
        kept.append(Match(match.template, match.rule, rows, match.explained))
    return kept


def _finding(facts: Facts, match: Match, course: Course | None) -> Finding:
    snapshot, template, rows = facts.snapshot, match.template, match.rows
    s = snapshot.stacks
    first = _typical(facts, rows)
    created = s.created_by[rows]
    created = created[created > 0]
    ages = s.age_seconds[rows] if course is None else np.fmax(s.age_seconds[rows], course.ages(rows))
    return Finding(
        id="",
        template=None if template is _UNKNOWN else template.id,
        verdict="proven" if _proven(facts, match) else match.rule.level,
        severity=template.severity,
        kind=kind_name(int(s.kind[first])),
        count=len(rows),
        title=template.title,
        state=state_name(int(s.state[first])),
        wait=snapshot.waits[int(s.wait[first])] or None,
        waiting_on=waiting_on(snapshot, rows),
        wait_seconds=_largest(s.wait_seconds[rows]),
        age_seconds=_largest(ages),
        created_by=frames_of(snapshot, int(np.bincount(created).argmax())) if len(created) else None,
        frames=frames_of(snapshot, int(s.trace[first])),
        held_by=_held_by(snapshot, rows),
        evidence=sentences(facts, match, course),
        cause=template.cause,
        fix=template.fix,
        runbook=template.runbook,
        examples=examples(snapshot, rows.tolist()),
        trend=course.trend(rows) if course is not None else None,
    )


def _proven(facts: Facts, match: Match) -> bool:
    if match.rule.level != "likely" or not facts.snapshot.target.details.get("exact"):
        return False
    asked = (*match.rule.stack, *getattr(match.template.match, "stack", ()))
    told = {c.path for c in asked if c.operator == "==" and c.value is True}
    return "stuck" in told or ("deadlocked" in told and _is_certain(facts, match.rows))


def _is_certain(facts: Facts, rows: Rows) -> bool:
    """Whether every lock of a deadlock says itself who owns it, and nobody waits with a time limit."""
    circle = facts.circle(rows)
    things = [int(facts.snapshot.stacks.thing[row]) for row in circle]
    inferred = any(facts.snapshot.things[i].state.get("inferred") for i in things if i >= 0)
    return bool(circle) and not inferred and bool(np.isnan(facts.timeout_left[circle]).all())


def _held_by(snapshot: Snapshot, rows: Rows) -> tuple[str, ...]:
    """Who keeps the stacks, the one that keeps most of them first; then who keeps what they wait on."""
    holders, counts = np.unique(snapshot.stacks.holder[rows], return_counts=True)
    order = holders[np.argsort(-counts, kind="stable")].tolist()
    paths = [snapshot.holders[h] for h in order if h >= 0]
    paths += [path for i in things_of(snapshot, rows)[:100] for path in snapshot.things[int(i)].held_by]
    return tuple(p for p in dict.fromkeys(paths) if not p.endswith(CALLBACK))[:MAX_HELD_BY]


def _typical(facts: Facts, rows: Rows) -> int:
    """A stack of the largest cluster among ``rows``."""
    of = facts.clusters.of[rows]
    clusters, counts = np.unique(of, return_counts=True)
    return int(rows[of == clusters[counts.argmax()]][0])


def _largest(seconds: NDArray[np.float64]) -> float | None:
    known = seconds[~np.isnan(seconds)]
    return float(known.max()) if len(known) else None


def _with_ids(facts: Facts, made: list[tuple[Finding, Rows]]) -> list[tuple[Finding, Rows]]:
    """Stable ids; a second finding that differs only in line numbers gets one of its own."""
    seen: dict[str, int] = {}
    out = []
    for finding, rows in made:
        what = "\0".join((finding.template or "", *(finding.examples if finding.kind in NO_STACKS else ())))
        # Of stacks what all of them have in common: the next run may come there by another way.
        frames = facts.near.frames(_typical(facts, rows)) if len(rows) else finding.frames
        plain = stable_id(what, -1, -1, "", frames)
        number = seen[plain] = seen.get(plain, 0) + 1
        id_ = plain if number == 1 else stable_id(f"{what}#{number}", -1, -1, "", frames)
        out.append((replace(finding, id=id_), rows))
    return out


def _clusters(
    clusters: Clusters,
    snapshot: Snapshot,
    made: list[tuple[Finding, Rows]],
    idle: dict[int, Template],
) -> Iterator[model.Cluster]:
    number = np.full(len(clusters), -1, np.intp)  # of the finding that each cluster became
    for at in range(len(made) - 1, -1, -1):
        number[clusters.of[made[at][1]]] = at
    largest = clusters.largest_first()
    rest = largest[MAX_CLUSTERS:]
    rest = rest[number[rest] >= 0]
    listed = [largest[:MAX_CLUSTERS], *(g[:MAX_OF_FINDING] for g in split(rest, number[rest]))]
    for index in np.concatenate(listed).tolist():
        group = clusters.group(index)
        found = made[number[index]][0] if number[index] >= 0 else None
        idle_template = idle.get(index)
        wait = snapshot.waits[group.wait] or None
        frames = frames_of(snapshot, group.trace)
        template = found.template if found else idle_template.id if idle_template else None
        yield model.Cluster(
            id=stable_id("", group.kind, group.state, wait or "", frames),
            kind=kind_name(group.kind),
            count=group.count,
            state=state_name(group.state),
            wait=wait,
            template=template,
            idle=found is None and idle_template is not None,
            frames=frames,
            waiting_on=waiting_on(snapshot, group.rows),
            things=len(things_of(snapshot, group.rows)),
            wait_seconds=_largest(snapshot.stacks.wait_seconds[group.rows]),
            examples=examples(snapshot, group.rows.tolist()),
            finding=found.id if found else None,
        )
