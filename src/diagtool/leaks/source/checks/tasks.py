"""Checks about tasks: dropped, overwritten, not to be cancelled; queues and generators left in the middle."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from diagtool.leaks.source.check import (
    Ask,
    Check,
    Hit,
    calls,
    covers,
    dotted,
    in_finally,
    last_name,
    origin,
)
from diagtool.leaks.source.module import Function

__all__ = ("CHECKS", "makes_task")

_STARTS = ("create_task", "ensure_future")
_LOOPS = ("loop", "get_event_loop()", "get_running_loop()", "new_event_loop()")
_LOGS = ("debug", "info", "warning", "warn", "error", "exception", "critical", "log", "print", "print_exc")
_HARMLESS = ("str", "repr", "format", "format_exc", "getLogger", "sleep", "type", "len")
_CANCELLED = ("CancelledError", "BaseException")


def makes_task(function: Function, call: ast.Call) -> bool:
    """Whether ``call`` is asyncio's create_task() or ensure_future(), not that of a TaskGroup."""
    name = origin(function, call.func)
    owner, _, method = name.rpartition(".")
    if method not in _STARTS:
        return False
    return owner == "asyncio" or owner.rpartition(".")[2].lstrip("_") in _LOOPS


def _dropped(function: Function, ask: Ask) -> Iterator[Hit]:
    for call in calls(function, *_STARTS):
        if not ask.is_at(call) or not makes_task(function, call):
            continue
        around = function.parents.get(call)
        if isinstance(around, (ast.ListComp, ast.SetComp, ast.GeneratorExp)) and around.elt is call:
            around = function.parents.get(around)
        if isinstance(around, ast.Expr):
            yield Hit(call.lineno, "the task is not kept: nothing but the loop's weak reference has it")


def _overwritten(function: Function, ask: Ask) -> Iterator[Hit]:
    # One attribute holds one task: the one before is out of reach once a second is made.
    if function.name in ("__init__", "__aenter__", "__enter__", "<module>"):
        return
    for call in calls(function, *_STARTS):
        around = function.parents.get(call)
        if not ask.is_at(call) or not isinstance(around, ast.Assign) or not makes_task(function, call):
            continue
        target = around.targets[0]
        name = dotted(target)
        if len(around.targets) != 1 or not isinstance(target, ast.Attribute) or not name:
            continue
        if any(dotted(n) == name for n in function.nodes if n is not target and isinstance(n, ast.Attribute)):
            continue  # looked at, cancelled, awaited or put away before or after
        outside = (ast.If, ast.For, ast.AsyncFor, ast.IfExp, ast.ExceptHandler)
        if any(isinstance(a, outside) for a in function.around(call)):
            continue
        yield Hit(call.lineno, f"{name} is overwritten, and the task that it held is not cancelled")


def _swallowed(function: Function, ask: Ask) -> Iterator[Hit]:
    if not function.is_async:
        return
    for loop in function.nodes:
        if not isinstance(loop, (ast.While, ast.For, ast.AsyncFor)):
            continue
        for block in _own(loop.body):
            if not isinstance(block, ast.Try) or not block.body:
                continue
            at = ask.line
            if at is not None and not any(covers(statement, at) for statement in block.body):
                continue
            if not any(_awaits(s) for s in block.body) or _is_reaping(function, block):
                continue
            handler = next((h for h in block.handlers if _catches_cancel(h)), None)
            if handler is None or not _goes_on(handler):
                continue
            yield Hit(
                handler.lineno, "swallows CancelledError, and the loop goes on: cancel() does not end it"
            )


def _own(body: list[ast.stmt]) -> Iterator[ast.AST]:
    """The nodes of a body, those of functions and of inner loops in it left out."""
    todo: list[ast.AST] = [*body]
    while todo:
        node = todo.pop()
        yield node
        if not isinstance(
            node,
            (
                ast.FunctionDef,
                ast.AsyncFunctionDef,
                ast.Lambda,
                ast.ClassDef,
                ast.While,
                ast.For,
                ast.AsyncFor,
            ),
        ):
            todo.extend(ast.iter_child_nodes(node))


def _awaits(statement: ast.stmt) -> bool:
    return any(isinstance(n, (ast.Await, ast.AsyncFor, ast.AsyncWith)) for n in _own([statement]))


def _is_reaping(function: Function, block: ast.Try) -> bool:
    """``task.cancel()`` and then ``await task``: that error is the task's, not ours."""
    if not any(True for _ in calls(function, "cancel")):
        return False
    awaited = [n.value for s in block.body for n in _own([s]) if isinstance(n, ast.Await)]
    return all(
        not isinstance(a, ast.Call) or last_name(a.func) in ("gather", "wait", "wait_for", "shield")
        for a in awaited
    )


def _catches_cancel(handler: ast.ExceptHandler) -> bool:
    kind = handler.type
    if kind is None:
        return True
    kinds = kind.elts if isinstance(kind, ast.Tuple) else [kind]
    return any(last_name(k) in _CANCELLED for k in kinds)


def _goes_on(handler: ast.ExceptHandler) -> bool:
    """Whether the handler forgets the error: nothing but `pass`, `continue` and log entries."""
    for statement in handler.body:
        if isinstance(statement, (ast.Pass, ast.Continue)):
            continue
        if not isinstance(statement, ast.Expr):
            return False  # a flag, a raise, a return
        for node in ast.walk(statement):
            if isinstance(node, ast.Call) and last_name(node.func) not in (*_LOGS, *_HARMLESS):
                return False
    return True


def _task_done(function: Function, ask: Ask) -> Iterator[Hit]:
    for call in calls(function, "get"):
        name = dotted(call.func)[: -len(".get")]
        if not name or not isinstance(function.parents.get(call), ast.Await) or not ask.is_at(call):
            continue
        done = [c for c in calls(function, "task_done") if dotted(c.func) == f"{name}.task_done"]
        if not done or any(in_finally(function, c) for c in done):
            continue
        first = min(done, key=lambda c: c.lineno)
        between = [
            n
            for n in function.nodes
            if isinstance(n, ast.Call)
            and n is not call
            and n not in done
            and call.lineno < n.lineno < first.lineno
        ]
        if between:
            yield Hit(
                first.lineno,
                "task_done() is in no finally: an exception or a cancellation before it skips it",
            )


def _left_early(function: Function, ask: Ask) -> Iterator[Hit]:
    wanted = ask.subject.rpartition(".")[2]
    for loop in function.nodes:
        if not isinstance(loop, ast.AsyncFor) or not isinstance(loop.iter, ast.Call):
            continue
        if wanted and last_name(loop.iter.func) != wanted:
            continue
        if any(isinstance(n, (ast.Break, ast.Return)) for n in _own(loop.body)):
            yield Hit(
                loop.lineno, "this loop can be left early, and nothing closes the generator then: aclosing()"
            )


CHECKS = (
    Check(
        "task-dropped",
        "create_task() or ensure_future() whose task is not kept",
        re.compile(r"\b(create_task|ensure_future)\b"),
        _dropped,
    ),
    Check(
        "task-overwritten",
        "a task is assigned to an attribute, and the one that was there is not cancelled",
        re.compile(r"\b(create_task|ensure_future)\b"),
        _overwritten,
    ),
    Check(
        "cancel-swallowed",
        "in a loop, CancelledError is caught and the loop goes on",
        re.compile(r"\bexcept[ \t]*:|BaseException|CancelledError"),
        _swallowed,
    ),
    Check(
        "task-done-skipped",
        "an asyncio queue's get() whose task_done() is in no finally",
        re.compile(r"\btask_done\b"),
        _task_done,
    ),
    Check(
        "generator-left-early",
        "`async for` over a generator is left by break or return, without aclosing()",
        re.compile(r"\basync\s+for\b"),
        _left_early,
    ),
)
