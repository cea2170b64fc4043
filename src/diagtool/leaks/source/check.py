"""What a source check is, and what the checks have in common: names, calls, what becomes of a value."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from diagtool.leaks.source.module import Function

__all__ = (
    "Ask",
    "Check",
    "Hit",
    "attribute_of",
    "calls",
    "covers",
    "dotted",
    "escapes",
    "in_finally",
    "is_with_item",
    "keyword",
    "last_name",
    "loads",
    "origin",
    "statement_of",
)


@dataclass(frozen=True, slots=True)
class Hit:
    """A line of a function that a check is about. ``says`` is a half sentence: what is wrong there.

    Where it says nothing, all is well there: the finding may as well be about this place, and no other line
    proves it then.
    """

    line: int
    says: str


@dataclass(frozen=True, slots=True)
class Ask:
    """What is looked for. ``line``: where the stack is in the function; None where nobody is in it.

    ``subject``: what the finding is about: a type, a function; "" where nothing is named. ``origin``: of a
    goroutine the function (a ``golang.module.GoFunction``) with the go statement that made it, and its line.
    ``leaf``: the same of where it waits.
    """

    line: int | None = None
    subject: str = ""
    origin: tuple[Any, int] | None = None
    leaf: tuple[Any, int] | None = None

    def is_at(self, node: ast.AST) -> bool:
        """Whether the stack is in ``node``, or nobody asks."""
        return self.line is None or covers(node, self.line)


@dataclass(frozen=True, slots=True)
class Check:
    """A check by its ``name`` in templates. ``words``: a cheap expression; without it in a source there is
    nothing to find, and the source is not parsed. ``find`` looks at one function."""

    name: str
    about: str
    words: re.Pattern[str]
    #: Of a function of ``language``: a ``Function``, or a ``golang.module.GoFunction``.
    find: Callable[[Any, Ask], Iterator[Hit]]
    #: What the finding is about names the very function: a file is enough to know, not the whole program.
    exact: bool = False
    language: str = "python"  # | "go"


_Call: TypeAlias = tuple[ast.Call, str]


def dotted(node: ast.AST | None) -> str:
    """``self._lock`` of such an expression, "" of any other. Calls in between are ``()``."""
    parts: list[str] = []
    while True:
        if isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        elif isinstance(node, ast.Call) and parts:
            parts.append("()")
            node = node.func
        elif isinstance(node, ast.Name):
            parts.append(node.id)
            return ".".join(reversed(parts)).replace(".()", "()")
        else:
            return ""


def origin(function: Function, node: ast.AST) -> str:
    """The dotted name of ``node``, its first part as imported: ``asyncio.create_task``."""
    name = dotted(node)
    head, dot, rest = name.partition(".")
    return function.module.imports.get(head, head) + dot + rest


def last_name(node: ast.AST) -> str:
    """``create_task`` of ``asyncio.create_task``, ``f`` of ``f``; "" of what has no name."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def calls(function: Function, *names: str) -> Iterator[ast.Call]:
    """Calls in the function of something whose last name is one of ``names``."""
    for node in function.nodes:
        if isinstance(node, ast.Call) and last_name(node.func) in names:
            yield node


def covers(node: ast.AST, line: int) -> bool:
    """Whether ``line`` is one of those of ``node``."""
    first: int = node.lineno  # type: ignore[attr-defined]
    last: int | None = getattr(node, "end_lineno", None)
    return first <= line <= (last or first)


def keyword(call: ast.Call, name: str) -> ast.expr | None:
    """The value of a keyword argument."""
    return next((k.value for k in call.keywords if k.arg == name), None)


def statement_of(function: Function, node: ast.AST) -> ast.AST:
    """The statement that ``node`` is part of."""
    if isinstance(node, ast.stmt):
        return node
    return next((n for n in function.around(node) if isinstance(n, ast.stmt)), node)


def is_with_item(function: Function, node: ast.AST) -> bool:
    """Whether ``node`` is what a ``with`` enters, itself or wrapped (closing(…))."""
    for around in function.around(node):
        if isinstance(around, ast.withitem):
            return True
        if not isinstance(around, (ast.Call, ast.Await, ast.expr)) or isinstance(around, ast.stmt):
            return False
    return False


def in_finally(function: Function, node: ast.AST) -> bool:
    """Whether ``node`` runs in a ``finally``, or in a handler that catches everything that may come.

    That is BaseException where the function is async: a cancellation is no Exception.
    """
    everything = ("BaseException",) if function.is_async else ("BaseException", "Exception")
    inner = node
    for around in function.around(node):
        if type(around).__name__ in ("Try", "TryStar"):
            if any(inner is s for s in around.finalbody):  # type: ignore[attr-defined]
                return True
        elif isinstance(around, ast.ExceptHandler) and (
            around.type is None or last_name(around.type) in everything
        ):
            return True
        inner = around
    return False


def attribute_of(function: Function, name: str, *attributes: str) -> bool:
    """Whether ``name.attribute`` stands anywhere in the function, called or not."""
    return any(
        isinstance(n, ast.Attribute) and n.attr in attributes and dotted(n.value) == name
        for n in function.nodes
    )


def loads(function: Function, name: str) -> list[ast.Name]:
    """Where a local variable is read in the function."""
    return [
        n for n in function.nodes if isinstance(n, ast.Name) and n.id == name and isinstance(n.ctx, ast.Load)
    ]


def escapes(function: Function, name: str) -> bool:
    """Whether somebody else may get what the local variable ``name`` holds.

    It is returned, yielded, passed on, stored, captured by a function in this one, or is no local at all.
    Attributes of it that are read or called, tests of it and `with name` are no way out.
    """
    for node in function.nodes:
        if isinstance(node, (ast.Global, ast.Nonlocal)) and name in node.names:
            return True
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)) and any(
            isinstance(n, ast.Name) and n.id == name for n in ast.walk(node)
        ):
            return True
    for load in loads(function, name):
        around = function.parents.get(load)
        if isinstance(around, ast.Attribute):
            if _is_bound_method(function, around):
                return True
        elif not isinstance(around, (ast.withitem, ast.Compare, ast.If, ast.While, ast.UnaryOp, ast.Expr)):
            return True
    return False


def _is_bound_method(function: Function, attribute: ast.Attribute) -> bool:
    """``x.close`` that is not called but given away: it holds x."""
    around = function.parents.get(attribute)
    if not isinstance(attribute.ctx, ast.Load) or (isinstance(around, ast.Call) and around.func is attribute):
        return False
    return isinstance(around, (ast.Call, ast.keyword, ast.Assign, ast.Return, ast.List, ast.Tuple, ast.Dict))


def first(hits: Iterable[Hit]) -> Hit | None:
    """The first of ``hits``."""
    return next(iter(hits), None)
