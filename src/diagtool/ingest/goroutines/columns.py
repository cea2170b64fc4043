"""Goroutines as columns while a dump is read: some bytes for each, whatever its stack is."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

from diagtool.snapshot.model import Frame

__all__ = ["MAX_KINDS", "Columns", "Kind"]

#: Different stacks that are kept. Programs have hundreds; more is noise, or forged.
MAX_KINDS = 100_000


@dataclass(frozen=True, slots=True)
class Kind:
    """What equal goroutines have in common. ``frames``: innermost first."""

    reason: str
    frames: tuple[Frame, ...]
    created_by: Frame | None = None
    leaked: bool = False
    available: bool = True


@dataclass(slots=True)
class Columns:
    """Rows in the order of the file. ``starts``: rows with which another dump begins for sure."""

    goid: array[int] = field(default_factory=lambda: array("q"))
    parent: array[int] = field(default_factory=lambda: array("q"))
    kind: array[int] = field(default_factory=lambda: array("i"))
    minutes: array[float] = field(default_factory=lambda: array("f"))
    kinds: list[Kind] = field(default_factory=list)
    labelled: array[int] = field(default_factory=lambda: array("i"))  # rows with labels
    label_set: array[int] = field(default_factory=lambda: array("i"))  # of each of these
    label_sets: list[tuple[tuple[str, str], ...]] = field(default_factory=list)
    locked: int = 0
    idle_threads: int = 0  # goroutine 0 of a thread: no goroutine
    too_many: int = 0
    _numbers: dict[Kind, int] = field(default_factory=dict)
    _label_numbers: dict[tuple[tuple[str, str], ...], int] = field(default_factory=dict)

    def number(self, kind: Kind) -> int:
        """The number of a kind; of too many different ones their frames are dropped."""
        known = self._numbers.get(kind)
        if known is None:
            if len(self.kinds) >= MAX_KINDS and kind.frames:
                self.too_many += 1
                return self.number(Kind(kind.reason[:40], (), None, kind.leaked))
            known = self._numbers[kind] = len(self.kinds)
            self.kinds.append(kind)
        return known

    def add(self, goid: int, kind: int, parent: int, minutes: float) -> int:
        """A goroutine; its row."""
        self.goid.append(goid)
        self.parent.append(parent)
        self.kind.append(kind)
        self.minutes.append(minutes)
        return len(self.goid) - 1

    def label(self, row: int, labels: tuple[tuple[str, str], ...]) -> None:
        """The profiler labels of a row."""
        number = self._label_numbers.setdefault(labels, len(self.label_sets))
        if number == len(self.label_sets):
            self.label_sets.append(labels)
        self.labelled.append(row)
        self.label_set.append(number)
