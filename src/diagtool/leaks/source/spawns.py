"""Where tasks and threads are started: the places in the source that start a function as one."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass

from diagtool.leaks.source.check import last_name
from diagtool.leaks.source.module import Function, Module

__all__ = ("Site", "sites")

#: What starts the coroutine that it is given.
_STARTERS = frozenset(
    "create_task ensure_future run_coroutine_threadsafe Task start_soon spawn gather run "
    "run_until_complete".split()
)
#: What starts the function that it is given.
_RUNNERS = frozenset("Thread Timer submit run_in_executor to_thread start_new_thread apply_async".split())


@dataclass(frozen=True, slots=True)
class Site:
    """The call that starts it, in its function."""

    function: Function
    call: ast.Call


def sites(modules: Iterable[Module], started: Function) -> list[Site] | None:
    """All places in ``modules`` that start ``started``; None where something else is done with it.

    A name that is given to an unknown function, stored or returned may be started by anybody.
    """
    name = started.name
    if name.startswith("<"):
        return None
    found = []
    for module in modules:
        if name not in module.text:
            continue
        for function in module.functions:
            for node in function.nodes:
                if last_name(node) != name or not isinstance(getattr(node, "ctx", None), ast.Load):
                    continue
                site = _site(function, node)
                if site is None:
                    return None
                if isinstance(site, Site):
                    found.append(site)
    return found


def _site(function: Function, node: ast.AST) -> Site | bool | None:
    """The call that starts ``node``; True where it starts nothing (an await), None where nobody knows."""
    around = function.parents.get(node)
    if isinstance(around, ast.keyword):
        around = function.parents.get(around)
    if not isinstance(around, ast.Call):
        return None
    if around.func is not node:
        return Site(function, around) if last_name(around.func) in _RUNNERS else None
    outer = function.parents.get(around)
    if isinstance(outer, (ast.Await, ast.YieldFrom)):
        return True
    if isinstance(outer, ast.Call) and outer.func is not around and last_name(outer.func) in _STARTERS:
        return Site(function, outer)
    return None
