"""The marks of the pytest plugin: read, and refused where they say something unknown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pytest

from diagtool.probes.left import KINDS
from diagtool.probes.watch import Wanted

if TYPE_CHECKING:
    from diagtool.probes.heapgrowth import Limits

_LIMITS = {
    "repeat": (2, 1_000_000),
    "warmup": (0, 1_000_000),
    "max_objects": (0, 1 << 40),
    "max_bytes": (0, 1 << 50),
}


def validate(item: pytest.Item) -> bool:
    """Whether its heap is to be measured. Raises pytest.UsageError for an unknown word in a mark."""
    found = False
    marks = [mark for mark in item.iter_markers() if mark.name in ("diagtool", "leaks")]
    if not marks:
        return False
    for mark in (mark for mark in marks if mark.name == "diagtool"):
        _only(item, mark, ("allow", "ignore", "off"))
        for kind in _words(item, mark, "allow"):
            if kind not in KINDS:
                _refuse(item, f"there is no kind {kind!r} to allow; there are {', '.join(KINDS)}")
        _words(item, mark, "ignore")
        if not isinstance(mark.kwargs.get("off", False), bool):
            _refuse(item, "off is True or False")
    for mark in (mark for mark in marks if mark.name == "leaks"):
        found = True
        _only(item, mark, tuple(_LIMITS))
        for name, value in mark.kwargs.items():
            low, high = _LIMITS[name]
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                _refuse(item, f"{name} of mark leaks is a whole number from {low}, not {value!r}")
    return found


def wanted_of(item: pytest.Item, general: Wanted) -> Wanted:
    """What is looked for after this test: its own marks, its class's and its module's count together."""
    marks = list(item.iter_markers("diagtool"))
    if not marks:
        return general
    if any(mark.kwargs.get("off") for mark in marks):
        return Wanted(())
    allowed = {kind for mark in marks for kind in _words(item, mark, "allow")}
    ignored = [glob for mark in marks for glob in _words(item, mark, "ignore")]
    return Wanted([k for k in general.kinds if k not in allowed], (*general.ignore, *ignored))


def leak_limits(item: pytest.Item) -> Limits | None:
    """What the mark ``leaks`` asks for; the nearest one counts."""
    mark = item.get_closest_marker("leaks")
    if mark is None:
        return None
    from diagtool.probes.heapgrowth import Limits

    return Limits(**mark.kwargs)


def _words(item: pytest.Item, mark: pytest.Mark, name: str) -> tuple[str, ...]:
    value: Any = mark.kwargs.get(name, ())
    words = (value,) if isinstance(value, str) else value
    if not isinstance(words, Iterable) or not all(isinstance(word, str) for word in words):
        _refuse(item, f"{name} of mark diagtool is a word or a list of words, not {value!r}")
    return tuple(words)


def _only(item: pytest.Item, mark: pytest.Mark, known: tuple[str, ...]) -> None:
    unknown = [str(name) for name in mark.kwargs if name not in known]
    if mark.args or unknown:
        what = f"{unknown[0]!r}" if unknown else "a value without a name"
        _refuse(item, f"mark {mark.name} does not know {what}; it knows {', '.join(known)}")


def _refuse(item: pytest.Item, text: str) -> None:
    raise pytest.UsageError(f"{item.nodeid}: {text}")
