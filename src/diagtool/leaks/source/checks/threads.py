"""Checks about threads, timers and executors: started and out of reach."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from diagtool.leaks.source.check import (
    Ask,
    Check,
    Hit,
    attribute_of,
    calls,
    dotted,
    escapes,
    is_with_item,
    last_name,
    origin,
)
from diagtool.leaks.source.module import Function

__all__ = ("CHECKS",)

_EXECUTORS = ("ThreadPoolExecutor", "ProcessPoolExecutor")


def _started(function: Function, ask: Ask, kind: str) -> Iterator[tuple[int, bool]]:
    """(line, whether nobody has it at all) for each thread of that kind that is started and out of reach."""
    for call in calls(function, kind):
        if not ask.is_at(call) or origin(function, call.func) not in (f"threading.{kind}", kind):
            continue
        around = function.parents.get(call)
        if isinstance(around, ast.Attribute) and around.attr == "start":  # Thread(…).start()
            yield call.lineno, True
        elif (
            isinstance(around, ast.Assign)
            and len(around.targets) == 1
            and isinstance(around.targets[0], ast.Name)
        ):
            name = around.targets[0].id
            ends = ("join", "cancel") if kind == "Timer" else ("join",)
            if function.name == "<module>" or attribute_of(function, name, *ends) or escapes(function, name):
                continue
            if attribute_of(function, name, "start"):
                yield call.lineno, False


def _thread(function: Function, ask: Ask) -> Iterator[Hit]:
    for line, at_once in _started(function, ask, "Thread"):
        who = "nobody keeps the thread" if at_once else "only a local variable has the thread"
        yield Hit(line, f"{who}, and nothing joins it")


def _timer(function: Function, ask: Ask) -> Iterator[Hit]:
    for line, at_once in _started(function, ask, "Timer"):
        who = "nobody keeps the timer" if at_once else "only a local variable has the timer"
        yield Hit(line, f"{who}: nothing can cancel it")


def _executor(function: Function, ask: Ask) -> Iterator[Hit]:
    if function.name == "<module>":
        return  # one for the process
    for call in calls(function, *_EXECUTORS):
        if not ask.is_at(call) or is_with_item(function, call):
            continue
        around = function.parents.get(call)
        kind = last_name(call.func)
        if isinstance(around, ast.Attribute):  # ThreadPoolExecutor().submit(…)
            yield Hit(call.lineno, f"a {kind} is made for one call and never shut down")
        elif (
            isinstance(around, ast.Assign)
            and len(around.targets) == 1
            and isinstance(around.targets[0], ast.Name)
        ):
            name = around.targets[0].id
            if attribute_of(function, name, "shutdown", "__exit__") or _enters(function, name):
                continue
            if not escapes(function, name):
                yield Hit(
                    call.lineno, f"a {kind} is made for each call of {function.name}() and never shut down"
                )


def _enters(function: Function, name: str) -> bool:
    return any(
        isinstance(n, ast.withitem) and any(dotted(x) == name for x in ast.walk(n.context_expr))
        for n in function.nodes
    )


CHECKS = (
    Check(
        "thread-not-joined",
        "a thread is started, and nothing can join it",
        re.compile(r"\bThread\s*\("),
        _thread,
    ),
    Check(
        "timer-not-kept",
        "a threading.Timer is started, and nothing can cancel it",
        re.compile(r"\bTimer\s*\("),
        _timer,
    ),
    Check(
        "executor-not-shut-down",
        "an executor is made in a function, without `with` or shutdown()",
        re.compile(r"\b(Thread|Process)PoolExecutor\s*\("),
        _executor,
    ),
)
