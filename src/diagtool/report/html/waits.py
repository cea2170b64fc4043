"""Who waits on what, and who has it: the boxes and arrows of a picture.

A box is a cluster of stacks, or a thing that they wait on; an arrow says "waits on", "awaits", or "is held
by". Stacks that are alike are one box, and where they wait on many things of one type, these are one box,
too; but a few stacks that hold what others wait on are a box each, because who has what is the question.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from diagtool.leaks.cluster import Clusters, frames_of, kind_name, state_name, things_of
from diagtool.leaks.model import Cluster, Report
from diagtool.leaks.own import is_own
from diagtool.leaks.owners import owners
from diagtool.report.html.frames import short_name
from diagtool.report.terminal import doing, place
from diagtool.report.text import clean, count, cut
from diagtool.snapshot.model import Snapshot, Thing

__all__ = ["waits"]

#: A cluster whose stacks wait on more different things than this has one box for all of a type.
_MOST_THINGS = 3
#: So many alike stacks that own what others wait on are told one by one.
_MOST_SINGLE = 12
#: Stacks and things of one cluster that are looked at.
_LOOKED_AT = 200
#: Clusters that are looked at to choose those that are shown, largest first.
_MOST_CLUSTERS = 800
_WIDTH = 34  # of a line in a box, in characters

_Key = tuple[Any, ...]


def waits(snapshot: Snapshot, report: Report, most: int) -> dict[str, Any] | None:
    """``boxes`` (id, kind, title, lines, verdict, text), ``arrows`` (from, to, text, count), ``left_out``.

    Clusters of findings come first, then the largest; idle ones last. None where nobody waits on anything.
    """
    if not len(snapshot.stacks):
        return None
    return _Picture(snapshot, report).drawn(most)


class _Picture:
    def __init__(self, snapshot: Snapshot, report: Report) -> None:
        self.snapshot = snapshot
        self.clusters = Clusters(snapshot)
        self.owner_of: Mapping[int, int] = owners(snapshot)
        self.verdicts = {f.id: f.verdict for f in report.findings}
        self.looked_at = self.clusters.largest_first()[:_MOST_CLUSTERS]
        self.told = self._told(report)
        self.boxes: dict[_Key, dict[str, Any]] = {}
        self.arrows: Counter[tuple[_Key, _Key, str]] = Counter()
        held = np.array(sorted(set(self.owner_of.values())), np.intp)
        self._owning = set(np.unique(self.clusters.of[held]).tolist()) if len(held) else set()

    def drawn(self, most: int) -> dict[str, Any] | None:
        chosen = sorted(self.looked_at, key=self._rank)[:most]
        for index in chosen:
            self._add(index)
        self._add_awaits(set(chosen))
        joined = {key for source, target, _ in self.arrows for key in (source, target)}
        numbers = {key: i for i, key in enumerate(k for k in self.boxes if k in joined)}
        if not numbers:
            return None
        return {
            "boxes": [{"id": i, **self.boxes[key]} for key, i in numbers.items()],
            "arrows": [
                {"from": numbers[source], "to": numbers[target], "text": text, "count": number}
                for (source, target, text), number in self.arrows.items()
            ],
            "left_out": len(self.clusters) - len(chosen),
        }

    def _told(self, report: Report) -> dict[int, Cluster]:
        """What the report says of the clusters, found by what they are made of."""
        said = {(c.kind, c.state, c.wait or "", c.count, c.frames): c for c in report.clusters}
        found = {}
        for index in self.looked_at:
            frames = frames_of(self.snapshot, int(self.clusters.trace[index]))
            cluster = said.get((*self._names(index), int(self.clusters.count[index]), frames))
            if cluster is not None:
                found[index] = cluster
        return found

    def _names(self, index: int) -> tuple[str, str, str]:
        known, wait = self.snapshot.waits, int(self.clusters.wait[index])
        name = known[wait] if 0 <= wait < len(known) else ""
        return kind_name(int(self.clusters.kind[index])), state_name(int(self.clusters.state[index])), name

    def _rank(self, index: int) -> tuple[int, int]:
        cluster = self.told.get(index)
        if cluster is None:
            return 1, -int(self.clusters.count[index])
        return (0 if cluster.finding in self.verdicts else 2 if cluster.idle else 1), -cluster.count

    def _add(self, index: int) -> None:
        """The box of a cluster, or of each of its stacks, the things they wait on, and who has these."""
        rows = self.clusters.rows(index)
        numbers = self.snapshot.stacks.thing[rows]
        things = things_of(self.snapshot, rows)[:_LOOKED_AT].tolist()
        one_by_one = self._apart(index) or len(things) <= _MOST_THINGS
        keys = {i: ("thing", i) if one_by_one else ("things", index, self._thing(i).type) for i in things}
        alike = Counter(keys.values())
        for number, key in keys.items():
            if key not in self.boxes:
                thing = self._thing(number)
                self.boxes[key] = _of_thing(thing) if one_by_one else _of_things(thing, alike[key])
            if not self._apart(index):
                self.arrows[self._box(int(rows[0])), key, "waits on"] += int((numbers == number).sum())
        for row, number in zip(rows[:_LOOKED_AT].tolist(), numbers[:_LOOKED_AT].tolist(), strict=True):
            box = self._box(row)
            if number not in keys:
                continue
            if self._apart(index):
                self.arrows[box, keys[number], "waits on"] = 1
            if row in self.owner_of:
                self.arrows[keys[number], self._box(self.owner_of[row]), "is held by"] = 1

    def _thing(self, number: int) -> Thing:
        return self.snapshot.things[number]

    def _apart(self, index: int) -> bool:
        return index in self._owning and int(self.clusters.count[index]) <= _MOST_SINGLE

    def _box(self, row: int) -> _Key:
        """The key of the box that a stack is in, which is made if need be."""
        index = int(self.clusters.of[row])
        key = ("stack", row) if self._apart(index) else ("cluster", index)
        if key not in self.boxes:
            self.boxes[key] = self._of_stacks(index, row)
        return key

    def _of_stacks(self, index: int, row: int) -> dict[str, Any]:
        kind, state, wait = self._names(index)
        single = self._apart(index) or int(self.clusters.count[index]) == 1
        title = count(int(self.clusters.count[index]), kind)
        if single:
            s = self.snapshot.stacks
            known = f"{int(s.address[row])}" if kind == "thread" else ""
            title = f"{kind} {clean(s.name[row]) or known}".strip()
        frames = frames_of(self.snapshot, int(self.clusters.trace[index]))
        own = next((f for f in frames if is_own(f)), frames[0] if frames else None)
        lines = [f"{short_name(own)} · {place(own)}"] if own is not None else []
        lines.append(doing(state, wait or None))
        cluster = self.told.get(index)
        verdict = "" if cluster is None else self.verdicts.get(cluster.finding or "", "")
        return {
            "kind": "stack",
            "title": cut(title, _WIDTH),
            "lines": [cut(clean(line), _WIDTH) for line in lines],
            "verdict": verdict or ("idle" if cluster is not None and cluster.idle else ""),
            "text": clean(", ".join((title, *lines))),
        }

    def _add_awaits(self, chosen: set[int]) -> None:
        awaits = self.snapshot.awaits.reshape(-1, 2)
        awaits = awaits[((awaits >= 0) & (awaits < len(self.clusters.of))).all(axis=1)]
        pairs, numbers = np.unique(self.clusters.of[awaits], axis=0, return_counts=True)
        for (source, target), number in zip(pairs.tolist(), numbers.tolist(), strict=True):
            if source in chosen and target in chosen and not (self._apart(source) or self._apart(target)):
                self.arrows[("cluster", source), ("cluster", target), "awaits"] += number


def _of_thing(thing: Thing) -> dict[str, Any]:
    name = clean(thing.type)
    address = f"{thing.address:#x}" if thing.address else ""
    holders = [f"in {clean(h, 200)}" for h in thing.held_by[:1]]
    return {
        "kind": "thing",
        "title": cut(name, _WIDTH),
        "lines": [cut(line, _WIDTH) for line in (clean(thing.detail) or address, *holders) if line],
        "verdict": "",
        "text": ", ".join(filter(None, (f"{name} {address}".strip(), clean(thing.detail), *holders))),
    }


def _of_things(thing: Thing, alike: int) -> dict[str, Any]:
    more = "+" if alike == _LOOKED_AT else ""
    title = f"{alike:,}{more} × {clean(thing.type)}"
    return {"kind": "thing", "title": cut(title, _WIDTH), "lines": [], "verdict": "", "text": title}
