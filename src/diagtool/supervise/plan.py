"""What is run and how, and what became of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from diagtool.supervise.analyst import Look
from diagtool.supervise.triggers import Trigger

if TYPE_CHECKING:
    from diagtool.capture.model import Capture

__all__ = ["Ended", "Orphan", "Plan"]


@dataclass(slots=True)
class Plan:
    """What is run and how. Times in seconds.

    ``core``: gives what writes the core of a pid. ``keep``: called with each snapshot when it is there.
    """

    command: Sequence[str]
    triggers: Sequence[Trigger]
    timeout: float | None = None
    grace: float = 5.0
    follow: bool = False
    core: Callable[[int], Callable[[Capture], str]] | None = None
    keep: Callable[[Look], None] | None = None


@dataclass(frozen=True, slots=True)
class Orphan:
    """A process that outlives the command it came of."""

    pid: int
    command: str
    daemon: bool  # it made itself a session of its own


@dataclass(slots=True)
class Ended:
    """What became of the command: its status as wait(2) has it, when, and all that was seen."""

    pid: int
    status: int = 0
    seconds: float = 0.0
    timed_out: bool = False
    looks: list[Look] = field(default_factory=list)
    orphans: list[Orphan] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
