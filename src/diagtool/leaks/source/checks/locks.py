"""Checks about locks and semaphores: taken where an exception keeps them from being given back."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from diagtool.leaks.source.check import Ask, Check, Hit, calls, dotted, in_finally
from diagtool.leaks.source.module import Function

__all__ = ("CHECKS",)

_ENTERS = ("__enter__", "__aenter__", "acquire", "__init__", "lock", "acquire_lock")


def _acquired(function: Function, ask: Ask) -> Iterator[Hit]:
    if function.name in _ENTERS:
        return  # its other half is another method
    for call in calls(function, "acquire"):
        name = dotted(call.func)[: -len(".acquire")]
        if not name or not ask.is_at(call):
            continue
        here = [n for n in function.nodes if _is_release(n, name)]
        if any(in_finally(function, n) for n in here):
            continue
        if _is_handed_over(function, name) or _is_given_away(function, name):
            continue
        if not here:
            continue  # a semaphore that others release, to tell something
        release = min(here, key=lambda n: getattr(n, "lineno", 0))
        if not _may_fail(function, call, release):
            continue
        yield Hit(
            release.lineno,  # type: ignore[attr-defined]
            f"{name}.release() is in no finally: an exception or a cancellation after acquire() skips it",
        )


def _is_release(node: ast.AST, name: str) -> bool:
    """``x.release``, called or given to somebody. Of the same attribute of another object, too."""
    if not isinstance(node, ast.Attribute) or node.attr != "release":
        return False
    return dotted(node.value).rpartition(".")[2] == name.rpartition(".")[2]


def _is_handed_over(function: Function, name: str) -> bool:
    """Whether another function of the file gives back what it has not taken itself."""
    attribute = name.rpartition(".")[2]
    for other in function.module.functions:
        if other is function or not any(_is_release(n, name) for n in other.nodes):
            continue
        taken = (dotted(c.func).rpartition(".acquire")[0] for c in calls(other, "acquire"))
        if not any(t.rpartition(".")[2] == attribute for t in taken):
            return True
    return False


def _is_given_away(function: Function, name: str) -> bool:
    """Whether the lock itself goes to somebody who may release it: ``stack.push(lock)``, ``return lock``."""
    for node in function.nodes:
        if dotted(node) == name and isinstance(node, (ast.Name, ast.Attribute)):
            around = function.parents.get(node)
            if isinstance(
                around, (ast.Call, ast.keyword, ast.Return, ast.Tuple, ast.List, ast.Dict, ast.Yield)
            ):
                if isinstance(around, ast.Call) and around.func is node:
                    continue
                return True
    return False


def _may_fail(function: Function, acquire: ast.Call, release: ast.AST) -> bool:
    """Whether anything that can raise stands between the two."""
    last = getattr(release, "lineno", 0)
    for node in function.nodes:
        line = getattr(node, "lineno", 0)
        if isinstance(node, (ast.Call, ast.Await, ast.AsyncWith, ast.AsyncFor, ast.Raise)) and (
            (acquire.end_lineno or acquire.lineno) < line < last
        ):
            return True
    return False


CHECKS = (
    Check(
        "acquire-without-release",
        "acquire() whose release() in the same function an exception skips",
        re.compile(r"\bacquire\b"),
        _acquired,
    ),
)
