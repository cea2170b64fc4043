"""Who waits on what, and who has it: the boxes and arrows of a picture.

A box is a cluster of stacks, or a thing that they wait on; an arrow says "waits on", "awaits", or "has".
Stacks that are alike are one box, and where they wait on many things of one type, these are one box, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diagtool.leaks.cluster import Clusters, frames_of, kind_name, state_name, things_of
from diagtool.leaks.model import Cluster, Finding, Report, is_own
from diagtool.leaks.owners import owners
from diagtool.report.html.frames import short_name
from diagtool.report.terminal import doing, place
from diagtool.report.text import clean, count, cut
from diagtool.snapshot.model import Snapshot, Thing

__all__ = ["waits"]

#: A cluster whose stacks wait on more different things than this has one box for all of a type.
_MOST_THINGS = 3
#: Things of one cluster that are looked at to find who has them.
_LOOKED_AT = 200
_WIDTH = 34  # of a line in a box, in characters


@dataclass(slots=True)
class _Picture:
    boxes: dict[tuple[Any, ...], dict[str, Any]] = field(default_factory=dict)
    arrows: Counter[tuple[tuple[Any, ...], tuple[Any, ...], str]] = field(default_factory=Counter)


def waits(snapshot: Snapshot, report: Report, most: int) -> dict[str, Any] | None:
    """``boxes`` (id, kind, title, lines, verdict, text) and ``arrows`` (from, to, text, count).

    Clusters of findings come first, then the largest; idle ones last. None where nobody waits on anything.
    """
    clusters = Clusters(snapshot)
    if not len(clusters):
        return None
    picture = _Picture()
    owner_of = owners(snapshot)
    verdicts = {f.id: f for f in report.findings}
    told = _told(clusters, report)
    chosen = _chosen(clusters, told, verdicts, most)
    for index in chosen:
        _add_cluster(picture, clusters, index, told.get(index), verdicts)
        _add_things(picture, clusters, index, owner_of, told, verdicts)
    _add_awaits(picture, clusters, set(chosen))
    joined = {key for source, target, _ in picture.arrows for key in (source, target)}
    numbers = {key: i for i, key in enumerate(k for k in picture.boxes if k in joined)}
    if not numbers:
        return None
    return {
        "boxes": [{"id": i, **picture.boxes[key]} for key, i in numbers.items()],
        "arrows": [
            {"from": numbers[source], "to": numbers[target], "text": text, "count": number}
            for (source, target, text), number in picture.arrows.items()
            if source in numbers and target in numbers
        ],
        "left_out": len(clusters) - len(chosen),
    }


def _told(clusters: Clusters, report: Report) -> dict[int, Cluster]:
    """What the report says of each cluster of the snapshot, found by what it is made of."""
    said = {(c.kind, c.state, c.wait or "", c.count, c.frames): c for c in report.clusters}
    snapshot = clusters.snapshot
    found = {}
    for index in clusters.largest_first()[: 4 * _LOOKED_AT]:
        frames = frames_of(snapshot, int(clusters.trace[index]))
        cluster = said.get((*_names(clusters, index), int(clusters.count[index]), frames))
        if cluster is not None:
            found[index] = cluster
    return found


def _names(clusters: Clusters, index: int) -> tuple[str, str, str]:
    waits_of, wait = clusters.snapshot.waits, int(clusters.wait[index])
    name = waits_of[wait] if 0 <= wait < len(waits_of) else ""
    return kind_name(int(clusters.kind[index])), state_name(int(clusters.state[index])), name


def _chosen(
    clusters: Clusters, told: dict[int, Cluster], verdicts: dict[str, Finding], most: int
) -> list[int]:
    def rank(index: int) -> tuple[int, int]:
        cluster = told.get(index)
        if cluster is None:
            return 1, -int(clusters.count[index])
        of_finding = cluster.finding in verdicts
        return (0 if of_finding else 2 if cluster.idle else 1), -cluster.count

    return sorted(clusters.largest_first()[: 4 * _LOOKED_AT], key=rank)[:most]


def _add_cluster(
    picture: _Picture,
    clusters: Clusters,
    index: int,
    cluster: Cluster | None,
    verdicts: dict[str, Finding],
) -> tuple[Any, ...]:
    key = ("cluster", index)
    if key in picture.boxes:
        return key
    kind, state, wait = _names(clusters, index)
    number = int(clusters.count[index])
    rows = clusters.rows(index)
    frames = frames_of(clusters.snapshot, int(clusters.trace[index]))
    own = next((f for f in frames if is_own(f)), frames[0] if frames else None)
    name = clusters.snapshot.stacks.name[int(rows[0])] if number == 1 else ""
    lines = [f"{short_name(own)} · {place(own)}"] if own is not None else []
    finding = verdicts.get(cluster.finding or "") if cluster is not None else None
    does = doing(state, wait or None)
    picture.boxes[key] = {
        "kind": "stack",
        "title": cut(count(number, kind) + (f" {clean(name)}" if name else ""), _WIDTH),
        "lines": [cut(clean(line), _WIDTH) for line in (*lines, does)],
        "verdict": finding.verdict if finding else "idle" if cluster and cluster.idle else "",
        "text": clean(", ".join((count(number, kind), *filter(None, (name, *lines, does))))),
    }
    return key


def _add_things(
    picture: _Picture,
    clusters: Clusters,
    index: int,
    owner_of: Mapping[int, int],
    told: dict[int, Cluster],
    verdicts: dict[str, Finding],
) -> None:
    snapshot = clusters.snapshot
    rows = clusters.rows(index)
    things = things_of(snapshot, rows)
    if not len(things):
        return
    waiters = np.bincount(snapshot.stacks.thing[rows].clip(min=0), minlength=len(snapshot.things))
    single = len(things) <= _MOST_THINGS
    for number in things[:_LOOKED_AT].tolist():
        thing = snapshot.things[number]
        key = ("thing", number) if single else ("things", index, thing.type)
        if key not in picture.boxes:
            picture.boxes[key] = _thing_box(thing, snapshot, things, single)
        picture.arrows[("cluster", index), key, "waits on"] += int(waiters[number])
    for row in rows[:_LOOKED_AT].tolist():
        if row in owner_of:
            number = int(snapshot.stacks.thing[row])
            key = ("thing", number) if single else ("things", index, snapshot.things[number].type)
            owner = int(clusters.of[owner_of[row]])
            has = _add_cluster(picture, clusters, owner, told.get(owner), verdicts)
            picture.arrows[key, has, "is held by"] = 1


def _thing_box(thing: Thing, snapshot: Snapshot, things: NDArray[np.intp], single: bool) -> dict[str, Any]:
    name = clean(thing.type)
    if not single:
        alike = sum(snapshot.things[i].type == thing.type for i in things[:_LOOKED_AT].tolist())
        more = "+" if len(things) > _LOOKED_AT else ""
        title = f"{alike:,}{more} × {name}"
        return {"kind": "thing", "title": cut(title, _WIDTH), "lines": [], "verdict": "", "text": title}
    address = f"{thing.address:#x}" if thing.address else ""
    holders = [f"in {clean(h, 200)}" for h in thing.held_by[:1]]
    return {
        "kind": "thing",
        "title": cut(name, _WIDTH),
        "lines": [cut(line, _WIDTH) for line in (clean(thing.detail) or address, *holders) if line],
        "verdict": "",
        "text": ", ".join(filter(None, (f"{name} {address}".strip(), clean(thing.detail), *holders))),
    }


def _add_awaits(picture: _Picture, clusters: Clusters, chosen: set[int]) -> None:
    awaits = clusters.snapshot.awaits
    inside = ((awaits >= 0) & (awaits < len(clusters.of))).all(axis=1) if len(awaits) else np.zeros(0, bool)
    pairs = clusters.of[awaits[inside]] if len(awaits) else np.zeros((0, 2), np.intp)
    distinct, numbers = np.unique(pairs.reshape(-1, 2), axis=0, return_counts=True)
    for (source, target), number in zip(distinct.tolist(), numbers.tolist(), strict=True):
        if source in chosen and target in chosen:
            picture.arrows[("cluster", source), ("cluster", target), "awaits"] += number


def as_rows(picture: dict[str, Any]) -> list[Sequence[Any]]:
    """The arrows as rows of a table: who, what it does, whom."""
    text = [box["text"] for box in picture["boxes"]]
    return [[text[a["from"]], a["text"], text[a["to"]], a["count"]] for a in picture["arrows"]]
