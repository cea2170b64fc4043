"""Fixtures that live longer than the test: what the test left may be theirs."""

from __future__ import annotations

import inspect
import pathlib
import unittest
from dataclasses import dataclass, field
from typing import Any

import pytest

_SCOPES = ("function", "class", "module", "package", "session")

#: Fixtures of these modules own nothing that is looked for, or close it themselves.
_RUNNERS = ("_pytest.", "pytest_asyncio.", "anyio.", "pytest_trio.", "xdist.", "pytest_timeout")

#: Values that own nothing.
_PLAIN = (str, bytes, int, float, bool, type(None), tuple, frozenset, pathlib.PurePath)


@dataclass(frozen=True, order=True)
class Owner:
    """A fixture as it was set up once."""

    rank: int
    name: str
    fixture: Any = field(compare=False)
    result: int = field(compare=False)

    @property
    def scope(self) -> str:
        """class, module, package or session."""
        return _SCOPES[self.rank]

    def lives(self) -> bool:
        """Not torn down since, nor set up anew with another parameter."""
        result = self.fixture.cached_result
        return result is not None and id(result) == self.result


def wide_owners(item: pytest.Item) -> tuple[Owner, ...]:
    """Fixtures of this test that are wider than it, still set up, and may own something."""
    fixtures = getattr(getattr(item, "_request", None), "_fixture_defs", None) or {}
    out = []
    for name, fixture in fixtures.items():
        scope = str(fixture.scope)
        result = fixture.cached_result
        if scope != "function" and result is not None and _may_own(item, name, fixture.func, result[0]):
            rank = _SCOPES.index(scope) if scope in _SCOPES else len(_SCOPES) - 1
            out.append(Owner(rank, name, fixture, id(result)))
    return tuple(out)


def _may_own(item: pytest.Item, name: str, function: Any, value: Any) -> bool:
    if name.startswith("_xunit_setup_"):  # setup_module, setup_class: there only if the program has one
        return True
    if "_unittest_setUpClass_" in name:
        cls = getattr(item, "cls", None)
        return any(
            getattr(getattr(cls, part, None), "__func__", None)
            is not getattr(unittest.TestCase, part).__func__
            for part in ("setUpClass", "tearDownClass")
        )
    inner = inspect.unwrap(function)
    if (getattr(inner, "__module__", None) or "").startswith(_RUNNERS):
        return False
    if inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner):
        return True
    return not isinstance(value, _PLAIN)
