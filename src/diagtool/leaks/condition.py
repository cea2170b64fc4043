"""Conditions of templates: one comparison a string, over named facts. Data, never evaluated as code.

    exclusive == true
    state.size >= state.maxsize
    type matches "*.ClientSession"
    holder not matches "local *"
    wait in ["socket.recv", "time.sleep"]

Grammar: ``PATH OP VALUE`` with OP one of ``== != < <= > >= in matches``, ``not matches`` and VALUE a number,
``true``, ``false``, ``null``, a quoted string, a list of these (after ``in``), or another PATH.

A fact that is not known is null. Null equals only null; every other comparison with it is false, ``!=``
included: what is not known proves nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from numbers import Real
from typing import Any

#: Gives the value of a fact by its path, None when it is not known.
Resolve = Callable[[str], Any]

_PATH = r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z0-9_]+)*"
_COMPARISON = re.compile(
    rf"\s*({_PATH})\s*(==|!=|<=|>=|<|>|\bin\b|\bnot\s+matches\b|\bmatches\b)\s*(.+?)\s*", re.DOTALL
)
_NUMBER = re.compile(r"[+-]?\d[\d_]*(?:\.\d+)?")
_STRING = re.compile(r"\"([^\"]*)\"|'([^']*)'")
_WORDS = {"true": True, "false": False, "null": None}


class ConditionError(ValueError):
    """A condition that can't be read; ``str()`` says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One comparison. ``other`` is the path on the right side, "" when it is the constant ``value``."""

    text: str
    path: str
    operator: str
    value: Any = None
    other: str = ""

    def holds(self, resolve: Resolve) -> bool:
        """True when the comparison holds for the facts that ``resolve`` gives."""
        left = resolve(self.path)
        right = resolve(self.other) if self.other else self.value
        if self.operator == "==" and not self.other and right is None:
            return left is None
        if self.operator == "!=" and not self.other and right is None:
            return left is not None
        if left is None or right is None:
            return False
        return _compare(left, self.operator, right)

    @property
    def paths(self) -> tuple[str, ...]:
        """The facts it asks for."""
        return (self.path, self.other) if self.other else (self.path,)


def parse(text: str) -> Condition:
    """The condition that ``text`` writes down. Raises ConditionError."""
    found = _COMPARISON.fullmatch(text)
    if not found:
        raise ConditionError(f"not a comparison: {text!r} (expected: fact, operator, value)")
    path, operator, right = found.groups()
    operator = " ".join(operator.split())
    if operator == "in":
        return Condition(text.strip(), path, operator, _list(right))
    known, value = _constant(right)
    if not known:
        if not re.fullmatch(_PATH, right):
            raise ConditionError(f"not a value: {right!r} (a number, true, false, null, 'text' or a fact)")
        return Condition(text.strip(), path, operator, other=right)
    if operator.endswith("matches") and not isinstance(value, str):
        raise ConditionError(f"{operator} needs a quoted pattern, not {right}")
    if operator in ("<", "<=", ">", ">=") and (value is None or isinstance(value, (bool, str))):
        raise ConditionError(f"{operator} needs a number, not {right}")
    return Condition(text.strip(), path, operator, value)


def all_hold(conditions: Iterable[Condition], resolve: Resolve) -> bool:
    """True when every one of ``conditions`` holds."""
    return all(condition.holds(resolve) for condition in conditions)


def _constant(text: str) -> tuple[bool, Any]:
    if text in _WORDS:
        return True, _WORDS[text]
    if _NUMBER.fullmatch(text):
        digits = text.replace("_", "")
        return True, float(digits) if "." in digits else int(digits)
    quoted = _STRING.fullmatch(text)
    if quoted:
        return True, quoted[1] if quoted[1] is not None else quoted[2]
    return False, None


def _list(text: str) -> tuple[Any, ...]:
    if not (text.startswith("[") and text.endswith("]")):
        raise ConditionError(f"in needs a list, not {text}")
    items = []
    for item in filter(None, (part.strip() for part in text[1:-1].split(","))):
        known, value = _constant(item)
        if not known:
            raise ConditionError(f"not a value in the list: {item!r}")
        items.append(value)
    return tuple(items)


def _compare(left: Any, operator: str, right: Any) -> bool:
    if operator == "not matches":
        return not _compare(left, "matches", right)
    if operator == "matches":
        return isinstance(right, str) and any(fnmatchcase(item, right) for item in _texts(left))
    if operator == "in":
        return left in right
    if operator in ("==", "!="):
        same = type(left) is type(right) or _numeric(left, right)
        return (same and left == right) == (operator == "==")
    if not _numeric(left, right):
        return False
    if operator == "<":
        return bool(left < right)
    if operator == "<=":
        return bool(left <= right)
    if operator == ">":
        return bool(left > right)
    return bool(left >= right)


def _numeric(left: Any, right: Any) -> bool:
    return isinstance(left, Real) and isinstance(right, Real)


def _texts(value: Any) -> list[str]:
    """``matches`` on a list holds when it does for one item."""
    if isinstance(value, str):
        return [value]
    return [item for item in value if isinstance(item, str)] if isinstance(value, (list, tuple)) else []
