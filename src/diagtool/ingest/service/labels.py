"""Labels of goroutines, which profiles have and full dumps only from Go 1.27 on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from diagtool.golang.goroutines import own_part
from diagtool.ingest.pprof.frames import Frames

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diagtool.ingest.pprof.profile import Profile
    from diagtool.snapshot.model import Frame, Snapshot

__all__ = ["add_labels"]

_MOST = 1_000_000

Key = tuple[tuple[str, int | None], ...]


def add_labels(snapshot: Snapshot, profile: Profile) -> list[str]:
    """Give the goroutines of a dump the labels that a profile of the same moment has for their stacks.

    Of equal stacks nobody tells which has which: they get the labels by number, and a warning says so.
    """
    if snapshot.labels or not any(profile.labels):
        return []
    frames, rows = Frames(profile), _rows(snapshot)
    labelled: dict[Key, list[tuple[int, list[tuple[str, str]]]]] = {}
    whole: dict[Key, int] = {}
    for sample, (stack, count) in enumerate(zip(profile.stack.tolist(), profile.values[:, 0], strict=True)):
        key = _key(own_part(frames.of(stack)))
        whole[key] = whole.get(key, 0) + max(int(count), 0)
        labels = [(label.key, label.value) for label in profile.labels_of(sample) if label.text]
        if labels:
            labelled.setdefault(key, []).append((max(int(count), 0), labels))
    guessed = 0
    for key, groups in labelled.items():
        at = 0
        found = rows.get(key, [])
        sure = len(groups) == 1 and groups[0][0] >= whole[key]
        for count, labels in groups:
            for row in found[at : at + count]:
                if len(snapshot.labels) + len(labels) > _MOST:
                    return [f"only the first {len(snapshot.labels):,} labels of goroutines are kept"]
                snapshot.labels += [(row, name, value) for name, value in labels]
                guessed += not sure
            at += count
    if not guessed:
        return []
    return [
        f"which of the goroutines with equal stacks have which labels the service does not tell: {guessed:,} "
        "have theirs by number"
    ]


def _rows(snapshot: Snapshot) -> dict[Key, list[int]]:
    out: dict[Key, list[int]] = {}
    trace = snapshot.stacks.trace
    for one in np.unique(trace).tolist():
        out.setdefault(_key(snapshot.traces.of(one)), []).extend(np.flatnonzero(trace == one).tolist())
    return out


def _key(frames: Sequence[Frame]) -> Key:
    return tuple((f.function, f.line) for f in frames)
