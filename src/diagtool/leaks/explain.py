"""Everything known about one finding: what led to it, its stacks, what they wait on, who awaits them.

explanation = explain(report, "0ce6aacb", snapshots, templates)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diagtool.leaks.cluster import Clusters, frames_of, stable_id, things_of
from diagtool.leaks.model import Cluster, Finding, Report
from diagtool.leaks.template import Template
from diagtool.leaks.trial import Candidate, candidates
from diagtool.snapshot.model import Snapshot, Stack, Thing

__all__ = ["Explanation", "NoSuchFinding", "explain"]

MAX_STACKS = 20
MAX_THINGS = 10
MAX_WAYS = 10
_CONSIDERED = 5_000  # clusters among which those of the finding are looked for
_LONGEST_CHAIN = 30
_CHAINS = 3


class NoSuchFinding(ValueError):
    """No finding, or several, are called so. ``str()`` says what there is."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """One finding with its evidence.

    ``template``: None where none led to it. ``conditions``: how its stacks or rows stand to each condition of
    the template, nearest first. ``ways``: its clusters, largest first. ``stacks``: some of its stacks; those
    of ``stack_count`` that are looked at. ``things``: what they wait on, most waited-on first, of
    ``thing_count``. ``chains``: who awaits them, outwards.
    """

    finding: Finding
    template: Template | None
    conditions: tuple[Candidate, ...]
    ways: tuple[Cluster, ...]
    stacks: tuple[Stack, ...]
    stack_count: int
    things: tuple[Thing, ...]
    thing_count: int
    chains: tuple[tuple[Stack, ...], ...]


def explain(
    report: Report, wanted: str, snapshots: Sequence[Snapshot], templates: Iterable[Template]
) -> Explanation:
    """What is known about the finding whose id begins with ``wanted``, or whose template is called so.

    Findings that a baseline ignores are found, too. ``snapshots``: those that were judged, oldest first.
    Raises NoSuchFinding.
    """
    finding = _named(report, wanted)
    known = tuple(templates)
    snapshot = snapshots[-1]
    template = next((t for t in known if t.id == finding.template), None)
    ways = tuple(c for c in report.clusters if c.finding == finding.id)
    near: tuple[Candidate, ...] = ()
    if template is not None:
        ids = {c.id for c in ways}
        tried = candidates(template, snapshots, known, most=50)
        near = tuple(c for c in tried if (c.cluster in ids if c.cluster else c.verdict))[:MAX_WAYS]
    rows = _rows(snapshot, {c.id for c in ways})
    things = things_of(snapshot, rows)
    return Explanation(
        finding,
        template,
        near,
        ways[:MAX_WAYS],
        tuple(snapshot.stack(row) for row in rows[:MAX_STACKS].tolist()),
        len(rows),
        tuple(snapshot.things[i] for i in things[:MAX_THINGS].tolist()),
        len(things),
        tuple(_chains(snapshot, rows)),
    )


def _named(report: Report, wanted: str) -> Finding:
    every = [*report.findings, *(i.finding for i in report.ignored)]
    found = [f for f in every if f.id == wanted or f.template == wanted]
    found = found or [f for f in every if wanted and f.id.startswith(wanted)]
    if len(found) == 1:
        return found[0]
    what = f"{len(found)} findings are" if found else "no finding is"
    there = ", ".join(f"{f.id} ({f.template or 'no template'})" for f in (found or every)[:10])
    raise NoSuchFinding(f"{what} called {wanted!r}; there {'are ' + there if there else 'is none'}")


def _rows(snapshot: Snapshot, ids: set[str]) -> NDArray[np.intp]:
    """The stacks of the clusters with these ids."""
    clusters = Clusters(snapshot)
    out = []
    for index in clusters.largest_first()[:_CONSIDERED].tolist() if ids else []:
        group = clusters.group(index)
        wait = snapshot.waits[group.wait] or ""
        frames = frames_of(snapshot, group.trace)
        if stable_id("", group.kind, group.state, wait, frames) in ids:
            out.append(group.rows)
    return np.concatenate(out) if out else np.zeros(0, np.intp)


def _chains(snapshot: Snapshot, rows: NDArray[np.intp]) -> Iterable[tuple[Stack, ...]]:
    """Who awaits some of ``rows``, and who those: outwards, until nobody awaits."""
    edges = snapshot.awaits.reshape(-1, 2)
    awaiting = dict(zip(edges[::-1, 1].tolist(), edges[::-1, 0].tolist(), strict=True))
    size = len(snapshot.stacks)
    told = 0
    for row in rows[:MAX_STACKS].tolist():
        chain: list[int] = []
        here = awaiting.get(row)
        while here is not None and 0 <= here < size and here not in chain and len(chain) < _LONGEST_CHAIN:
            chain.append(here)
            here = awaiting.get(here)
        if chain and told < _CHAINS:
            told += 1
            yield (snapshot.stack(row), *(snapshot.stack(parent) for parent in chain))
