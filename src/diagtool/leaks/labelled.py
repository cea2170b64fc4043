"""Which stacks have certain labels: profiler labels of goroutines, context variables of tasks.

Judged are all stacks, because who waits for a request may be woken by somebody without its label; shown are
those with the labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray

from diagtool.snapshot.model import Snapshot

__all__ = ["Labels", "labelled", "names_of"]

#: (name, value) pairs; ``*`` and ``?`` in a value match anything.
Labels = Sequence[tuple[str, str]]


def labelled(snapshot: Snapshot, wanted: Labels) -> NDArray[np.bool_]:
    """The stacks that have all labels ``wanted``. Of several values for one name one is enough."""
    size = len(snapshot.stacks)
    values: dict[str, list[str]] = {}
    for name, value in wanted:
        values.setdefault(name, []).append(value)
    marks = {name: np.zeros(size, np.bool_) for name in values}
    fits: dict[tuple[str, str], bool] = {}
    for row, name, value in snapshot.labels:
        if name not in values or not 0 <= row < size:
            continue
        fit = fits.get((name, value))
        if fit is None:
            fit = fits[name, value] = any(fnmatchcase(value, pattern) for pattern in values[name])
        if fit:
            marks[name][row] = True
    found = np.ones(size, np.bool_)
    for mark in marks.values():
        found &= mark
    return found


def names_of(snapshot: Snapshot, most: int = 8) -> list[str]:
    """Names of labels that there are."""
    names: dict[str, None] = {}
    for _, name, _ in snapshot.labels:
        names.setdefault(name)
        if len(names) == most:
            break
    return list(names)
