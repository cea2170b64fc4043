"""Why a finding is one, in plain sentences: what is waited on, who else waits for it, how it went."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from diagtool.leaks.cluster import kind_name, things_of
from diagtool.leaks.condition import Resolve
from diagtool.leaks.facts import Facts, Rows
from diagtool.leaks.match import Match, resolver_of
from diagtool.leaks.model import WaitingOn
from diagtool.leaks.own import is_own
from diagtool.leaks.series import Course
from diagtool.snapshot.model import Snapshot, Thing

#: Kinds of parents that are named in one sentence.
_MOST_PARENTS = 3
_PLACEHOLDER = re.compile(r"\{([a-z_.]+)\}")


def plural(count: int, word: str) -> str:
    """``1 task``, ``1,000 tasks``, ``2 classes``."""
    ending = "" if count == 1 else "es" if word.endswith("s") else "s"
    return f"{count:,} {word}{ending}"


def short_type(name: str) -> str:
    """``asyncio.Queue`` of ``asyncio.queues.Queue``: modules of asyncio that nobody imports from left out."""
    parts = name.split(".")
    if parts[0] == "asyncio" and len(parts) == 3:
        return f"asyncio.{parts[2]}"
    return f"asyncio.{parts[1]}" if parts[0] == "_asyncio" and len(parts) == 2 else name


def waiting_on(snapshot: Snapshot, rows: Rows) -> WaitingOn | None:
    """The thing that all of ``rows`` wait on; of several the type they have in common, address 0."""
    things = things_of(snapshot, rows)
    if not len(things):
        return None
    first = snapshot.things[int(things[0])]
    everywhere = int((snapshot.stacks.thing[rows] == things[0]).sum()) == len(rows)
    if everywhere:
        return WaitingOn(short_type(first.type), first.address, first.detail)
    others = [snapshot.things[int(i)] for i in things]
    same = all(t.detail == first.detail for t in others)
    detail = f"{plural(len(others), 'object')}" + (f", each {first.detail}" if same and first.detail else "")
    return WaitingOn(short_type(first.type), 0, detail)


def sentences(facts: Facts, match: Match, course: Course | None) -> tuple[str, ...]:
    """Everything that speaks for the verdict of ``match``, the strongest first."""
    out = [
        *_of_template(facts, match, course),
        *_of_things(facts, match.rows),
        *_of_ways(facts, match.rows),
        *_of_parents(facts, match.rows),
        *_of_series(match.rows, course),
    ]
    return tuple(dict.fromkeys(s for s in out if s))


def filled(text: str, resolve: Resolve) -> str:
    """``text`` with facts in the place of ``{names}``."""
    return _PLACEHOLDER.sub(lambda found: _shown(resolve(found[1])), text)


def _shown(value: object) -> str:
    if value is None:
        return "an unknown number of"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.1f}" if isinstance(value, float) else str(value)


def _of_template(facts: Facts, match: Match, course: Course | None) -> Iterator[str]:
    if match.rule.evidence:
        yield filled(match.rule.evidence, resolver_of(facts, match.rows, course))


def _of_things(facts: Facts, rows: Rows) -> Iterator[str]:
    snapshot = facts.snapshot
    kind = kind_name(int(snapshot.stacks.kind[rows[0]]))
    things = [snapshot.things[int(i)] for i in things_of(snapshot, rows)]
    if not things:
        return
    first = things[0]
    if len(things) == 1:
        if first.exclusive:
            yield _references(first, f"the {short_type(first.type)}", kind)
        return
    types = sorted({short_type(t.type) for t in things})
    text = f"wait on {len(things):,} different {' and '.join(types[:3])} objects"
    if all(t.exclusive for t in things):
        counts = [t.references for t in things if t.references is not None]
        together = replace(first, references=sum(counts) if len(counts) == len(things) else None)
        text += ": " + _references(together, "them", kind)
    yield text


def _references(thing: Thing, what: str, kind: str) -> str:
    if thing.references is None:
        return f"only the waiting {kind}s refer to {what}"
    return f"all {thing.references:,} references to {what} come from the waiting {kind}s themselves"


def _of_ways(facts: Facts, rows: Rows) -> Iterator[str]:
    """That the frames of a finding are those of some of its stacks only."""
    _, counts = np.unique(facts.clusters.of[rows], return_counts=True)
    if len(counts) > 1:
        most = f"those of {counts.max():,} of them" if counts.max() > 1 else "those of one of them"
        yield f"they came to this place by {len(counts):,} different ways; the frames are {most}"


def _of_parents(facts: Facts, rows: Rows) -> Iterator[str]:
    """Who awaits these stacks, so that the same leak is not told twice."""
    edges = facts.snapshot.awaits.reshape(-1, 2)
    edges = edges[((edges >= 0) & (edges < len(facts.snapshot.stacks))).all(axis=1)]
    if not len(edges):
        return
    parents = np.unique(edges[np.isin(edges[:, 1], rows), 0]).astype(np.intp)
    parents = np.setdiff1d(parents, rows)
    if not len(parents):
        return
    clusters = facts.clusters
    of, counts = np.unique(clusters.of[parents], return_counts=True)
    order = np.argsort(-counts, kind="stable")[:_MOST_PARENTS]
    for i in order.tolist():
        wait = facts.snapshot.waits[int(clusters.wait[of[i]])]
        kind = kind_name(int(clusters.kind[of[i]]))
        frames = facts.snapshot.traces.of(int(clusters.trace[of[i]]))
        place = next((f.function for f in frames if is_own(f)), frames[0].function if frames else "")
        waits = "waits" if counts[i] == 1 else "wait"
        yield (
            f"{plural(int(counts[i]), kind)} {waits} for them"
            + (f" in {wait}" if wait else "")
            + (f", called by {place}" if place else "")
        )


def _of_series(rows: Rows, course: Course | None) -> Iterator[str]:
    if course is None:
        return
    ages = course.ages(rows)
    stayed = int((course.since[rows] < len(course.snapshots) - 1).sum())
    if stayed:
        age = float(np.nanmax(ages)) if not np.isnan(ages).all() else math.nan
        ago = f" for {age:,.0f} s and more" if age == age else ""
        yield f"{stayed:,} of {len(rows):,} have been at this very place{ago}"
    counts = course.counts(rows)
    if course.grew(rows):
        yield "their number grew: " + ", ".join(f"{c:,}" for c in counts)
    if course.nameless[rows].any():
        yield "a profile does not tell whether those from before are still among them"
