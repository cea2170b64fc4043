"""What a trial of a template is made of: a condition, what was wanted and found; and the words for facts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from diagtool.leaks.condition import Condition, Resolve

__all__ = ("Candidate", "Step", "step", "values", "without_series")


@dataclass(frozen=True, slots=True)
class Step:
    """One condition: which ``part`` of the template asks, what is ``wanted`` and what was ``found``."""

    part: str
    wanted: str
    found: str
    holds: bool


@dataclass(frozen=True, slots=True)
class Candidate:
    """Stacks or rows that come near, in words, and how they stand to each condition.

    ``verdict``: what they are by this template alone ("" nothing, "idle" for idle templates). ``cluster``:
    the id of that cluster in reports.
    """

    what: str
    count: int
    steps: tuple[Step, ...]
    verdict: str = ""
    cluster: str = ""


def step(part: str, condition: Condition, resolve: Resolve) -> Step:
    """A condition, and what ``resolve`` says of its facts."""
    return Step(part, " ".join(condition.text.split()), values(condition, resolve), condition.holds(resolve))


def without_series(part: str, condition: Condition) -> Step:
    """A condition on a series where there is none."""
    return Step(f"{part} series", " ".join(condition.text.split()), "there is one snapshot only", False)


def values(condition: Condition, resolve: Resolve) -> str:
    """The facts that a condition asks for: ``3``, or of two ``3, 5``."""
    return ", ".join(_value(resolve(path)) for path in condition.paths)


def _value(value: Any) -> str:
    if value is None:
        return "not known"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.3g}"
    return repr(value)[:80] if isinstance(value, str) else str(value)[:80]
