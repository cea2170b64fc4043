"""Conditions of templates: comparisons as data; what is unknown proves nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from diagtool.leaks.condition import ConditionError, parse

FACTS: dict[str, Any] = {
    "exclusive": True,
    "state.value": 0,
    "state.size": 5,
    "state.maxsize": 5,
    "state.name": "q-1",
    "type": "asyncio.queues.Queue",
    "ratio": 0.5,
    "held_by": ["module app", "list"],
    "number": np.int64(7),
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("exclusive == true", True),
        ("exclusive == false", False),
        ("exclusive != false", True),
        ("state.value == 0", True),
        ("state.value <= 0", True),
        ("state.value > 0", False),
        ("state.size >= state.maxsize", True),
        ("state.size < state.maxsize", False),
        ("state.name == 'q-1'", True),
        ('type matches "asyncio.*Queue"', True),
        ('type matches "*Lock"', False),
        ('type not matches "*Lock"', True),
        ('type not  matches "asyncio.*"', False),
        ('missing not matches "x"', False),
        ('state.name in ["q-1", "q-2"]', True),
        ("state.value in [1, 2]", False),
        ("ratio < 0.75", True),
        ("ratio >= 1", False),
        ("held_by matches 'module *'", True),
        ("number >= 7", True),
        ("state.name > 3", False),
        ("state.value == 'q-1'", False),
    ],
)
def test_a_comparison_says_what_it_says(text: str, expected: bool) -> None:
    assert parse(text).holds(FACTS.get) is expected


@pytest.mark.parametrize("operator", ["==", "!=", "<", "<=", ">", ">="])
def test_what_is_unknown_fails_every_comparison_with_a_value(operator: str) -> None:
    assert not parse(f"missing {operator} 1").holds(FACTS.get)
    assert not parse(f"state.value {operator} missing").holds(FACTS.get)


def test_null_is_what_is_unknown() -> None:
    assert parse("missing == null").holds(FACTS.get)
    assert not parse("missing != null").holds(FACTS.get)
    assert parse("state.value != null").holds(FACTS.get)
    assert not parse("state.value == null").holds(FACTS.get)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "not a comparison"),
        ("exclusive", "not a comparison"),
        ("exclusive = true", "not a comparison"),
        ("a ~ b", "not a comparison"),
        ("a == __import__('os')", "not a value"),
        ("a in 1", "in needs a list"),
        ("a in [b]", "not a value in the list"),
        ("a matches 3", "matches needs a quoted pattern"),
        ("a < true", "< needs a number"),
        ("a >= 'x'", ">= needs a number"),
    ],
)
def test_what_can_not_be_read_is_refused_with_a_reason(text: str, what: str) -> None:
    with pytest.raises(ConditionError, match=what):
        parse(text)


def test_it_names_the_facts_it_asks_for() -> None:
    assert parse("state.size >= state.maxsize").paths == ("state.size", "state.maxsize")
    assert parse("count > 3").paths == ("count",)
