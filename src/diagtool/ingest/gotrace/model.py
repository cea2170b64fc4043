"""What both wires of execution traces become: batches of events, tables of stacks and strings, steps.

A trace is parts (generations; in the old wire one), a part is batches, each the events of one stream in
order: of a thread (M) in the new wire, of a processor (P) in the old one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from diagtool.ingest.gotrace.varints import Numbers, Places

__all__ = [
    "ENDED",
    "NONE",
    "READY",
    "RUNNING",
    "SYSCALL",
    "WAITING",
    "Batch",
    "Births",
    "Decoded",
    "Part",
    "Stacks",
    "Steps",
    "Trace",
    "Wire",
    "reference",
]

#: States of goroutines, after a step.
READY, RUNNING, WAITING, SYSCALL, ENDED, NONE = 0, 1, 2, 3, 4, 255

#: Batches of a file, strings and stacks of a part that are read.
MAX_BATCHES = 1 << 20
MAX_STRINGS = 1 << 20
MAX_STACKS = 1 << 20

#: Longest stack that is read; writers have 128 at most.
MAX_FRAMES = 1024


@dataclass(frozen=True, slots=True)
class Batch:
    """Events of one stream: ``length`` bytes of the file at ``offset``. None is before ``base`` (ticks)."""

    offset: int
    length: int
    stream: int
    base: int


class Stacks:
    """The stacks of a part by number: rows of (function string, file string, line), innermost first."""

    def __init__(self) -> None:
        self._values: list[NDArray[np.uint64]] = []
        self._at: dict[int, tuple[int, int, int]] = {}

    def __len__(self) -> int:
        return len(self._at)

    def read(self, values: NDArray[np.uint64], ids: Sequence[tuple[int, int, int]]) -> None:
        """``ids``: (number of the stack, where its frames begin in ``values``, how many). A frame is a pc,
        two strings and a line. The first stack of a number stays."""
        for id_, first, count in ids[: max(0, MAX_STACKS - len(self._at))]:
            self._at.setdefault(id_, (len(self._values), first, count))
        self._values.append(values)

    def clear(self) -> None:
        """Forget them, to be read again where they are needed."""
        self._values.clear()
        self._at.clear()

    def frames(self, id_: int) -> list[tuple[int, int, int]]:
        """(function, file, line), innermost first; empty where there is no such stack."""
        found = self._at.get(id_)
        if found is None:
            return []
        table, first, count = found
        rows = self._values[table][first : first + 4 * min(count, MAX_FRAMES)].reshape(-1, 4)
        return [(f, n, line) for _, f, n, line in rows.tolist()]


@dataclass(slots=True)
class Part:
    """A generation. ``per_second``: ticks; 0 where not told. ``clock``: (ticks, seconds since the epoch)."""

    number: int
    batches: list[Batch] = field(default_factory=list)
    stacks: Stacks = field(default_factory=Stacks)
    strings: dict[int, str] = field(default_factory=dict)
    per_second: int = 0
    clock: tuple[int, float] | None = None
    structural: list[tuple[int, int, int]] = field(default_factory=list)  # (first byte, offset, length)
    has_stacks: bool = False
    complete: bool = True


@dataclass(slots=True)
class Trace:
    """A file: ``data`` its bytes (mapped), ``version`` the minor one in its head."""

    version: int
    data: NDArray[np.uint8]
    parts: list[Part] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    tries: int = 0  # places that were looked at for a batch behind a damage


#: The columns of Steps and of Births. None is -1 in those that are signed.
STEPS = {
    "goid": "u8",
    "order": "i8",
    "at": "i8",
    "state": "u1",
    "known": "u1",
    "reason": "i4",
    "stack": "i4",
    "birth": "i4",
}
BIRTHS = {"created": "u1", "made": "i4", "begin": "i4", "parent": "u8"}


@dataclass(slots=True)
class Births:
    """How goroutines began, as columns. ``created``: 1 in the trace, 0 before it. ``made``: the stack of the
    creator, ``begin``: of the first function (numbers, -1 for none). ``parent``: the creator."""

    created: NDArray[np.uint8]
    made: NDArray[np.int32]
    begin: NDArray[np.int32]
    parent: NDArray[np.uint64]

    @classmethod
    def blank(cls, length: int) -> Births:
        return cls(**{c: np.full(length, -1 if t[0] == "i" else 0, t) for c, t in BIRTHS.items()})

    def __len__(self) -> int:
        return len(self.created)


@dataclass(slots=True)
class Steps:
    """What happened to goroutines, as columns of equal length.

    ``goid``. ``order``: ascending over the steps of one goroutine in a part. ``at``: ticks. ``state`` after
    it. ``known``: 1 where it only says what was so already. ``reason`` and ``stack``: of the wait (numbers).
    ``birth``: which of ``births`` it tells; -1 for none.
    """

    goid: NDArray[np.uint64]
    order: NDArray[np.int64]
    at: NDArray[np.int64]
    state: NDArray[np.uint8]
    known: NDArray[np.uint8]
    reason: NDArray[np.int32]
    stack: NDArray[np.int32]
    birth: NDArray[np.int32]
    births: Births

    @classmethod
    def blank(cls, length: int) -> Steps:
        """Of nothing: no reason, no stack, nobody."""
        columns = {c: np.full(length, -1 if t[0] == "i" else 0, t) for c, t in STEPS.items()}
        return cls(**columns, births=Births.blank(0))

    @classmethod
    def joined(cls, parts: Sequence[Steps]) -> Steps:
        columns = {c: np.concatenate([getattr(p, c) for p in parts]) for c in STEPS if c != "birth"}
        before = np.cumsum([0, *(len(p.births) for p in parts[:-1])]).tolist()
        birth = [np.where(p.birth < 0, -1, p.birth + n) for p, n in zip(parts, before, strict=True)]
        births = {c: np.concatenate([getattr(p.births, c) for p in parts]) for c in BIRTHS}
        return cls(**columns, birth=np.concatenate(birth).astype(np.int32), births=Births(**births))

    def take(self, rows: NDArray[Any]) -> Steps:
        """Some of them: by number, or by a mask."""
        return Steps(**{c: getattr(self, c)[rows] for c in STEPS}, births=self.births)

    def __len__(self) -> int:
        return len(self.goid)


def reference(values: NDArray[np.uint64]) -> NDArray[np.int32]:
    """Numbers of strings and stacks as columns hold them; -1 for 0, which is none, and for absurd ones."""
    out: NDArray[np.int32] = np.minimum(values, np.uint64((1 << 31) - 1)).astype(np.int32)
    out[(out == 0) | (out == (1 << 31) - 1)] = -1
    return out


@dataclass(slots=True)
class Decoded:
    """Events of some batches, by stream, in order: type, place in ``numbers.data``, where the first argument
    that is not the time begins, time in ticks, stream."""

    numbers: Numbers
    type: NDArray[np.uint8]
    arguments: Places
    at: NDArray[np.int64]
    stream: NDArray[np.int64]

    def argument(self, rows: NDArray[Any], which: int) -> NDArray[np.uint64]:
        """The argument ``which`` (behind the time, from 0) of some events."""
        return self.numbers.value(self.arguments[rows], which)


class Wire(Protocol):
    """What the two wires differ in."""

    def following(self, numbers: Numbers) -> Places:
        """For every byte, the place behind the event that begins there; ``len + 1``: behind the end."""

    def known(self, types: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Which bytes begin an event of a type that there is."""

    def timed(self, types: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Which events have the time as their first argument."""

    def first(self, numbers: Numbers, places: Places) -> Places:
        """Where the first argument of events begins."""

    def kinds(self, types: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The types without what else is in the byte."""
