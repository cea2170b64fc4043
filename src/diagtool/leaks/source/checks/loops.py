"""Checks about loops and the calls in which they wait: without exit, without time limit."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from diagtool.leaks.source.check import Ask, Check, Hit, calls, dotted, keyword, last_name, origin
from diagtool.leaks.source.module import Function

__all__ = ("CHECKS",)

_ENDS = ("exit", "_exit", "abort", "kill", "execv", "execve")


def _forever(function: Function, ask: Ask) -> Iterator[ast.While]:
    for node in function.nodes:
        if (
            isinstance(node, ast.While)
            and isinstance(node.test, ast.Constant)
            and node.test.value
            and ask.is_at(node)
        ):
            yield node


def _inside(loop: ast.While, *, inner_loops: bool) -> Iterator[ast.AST]:
    todo: list[ast.AST] = [*loop.body]
    while todo:
        node = todo.pop()
        yield node
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)):
            continue
        if isinstance(node, (ast.While, ast.For, ast.AsyncFor)) and not inner_loops:
            continue
        todo.extend(ast.iter_child_nodes(node))


def _has_exit(loop: ast.While) -> bool:
    if any(isinstance(n, ast.Break) for n in _inside(loop, inner_loops=False)):
        return True
    for node in _inside(loop, inner_loops=True):
        if isinstance(
            node, (ast.Return, ast.Raise, ast.Yield, ast.YieldFrom, ast.Await, ast.AsyncFor, ast.AsyncWith)
        ):
            return True
        if isinstance(node, ast.Call) and last_name(node.func) in _ENDS:
            return True
    return False


def _without_exit(function: Function, ask: Ask) -> Iterator[Hit]:
    for loop in _forever(function, ask):
        if not _has_exit(loop) and not any(
            isinstance(n, ast.Try) and n.handlers for n in function.around(loop)
        ):
            yield Hit(loop.lineno, "this loop has no break, return or raise: nobody can tell it to end")


def _weak_exit(function: Function, ask: Ask) -> Iterator[Hit]:
    """``obj = ref(); if obj is None: return``: the loop ends by itself when its object is gone."""
    for loop in function.nodes:
        if not isinstance(loop, ast.While) or not ask.is_at(loop):
            continue
        for test in [loop.test, *(n.test for n in _inside(loop, inner_loops=False) if isinstance(n, ast.If))]:
            if any(isinstance(n, ast.Call) and last_name(n.func) == "is_alive" for n in ast.walk(test)):
                yield Hit(
                    test.lineno, "the loop ends by itself when the thread that it looks after has ended"
                )
                return
        weak = {
            last_name(n.targets[0])
            for n in _inside(loop, inner_loops=False)
            if isinstance(n, ast.Assign)
            and isinstance(n.value, ast.Call)
            and not n.value.args
            and not n.value.keywords
            and "ref" in last_name(n.value.func).lower()
        } - {""}
        for node in _inside(loop, inner_loops=False):
            if not isinstance(node, ast.If) or not any(
                isinstance(s, (ast.Return, ast.Break)) for s in node.body
            ):
                continue
            test = node.test
            asks_none = (
                isinstance(test, ast.Compare)
                and isinstance(test.ops[0], ast.Is)
                and isinstance(test.comparators[0], ast.Constant)
                and test.comparators[0].value is None
            )
            subject = test.left if isinstance(test, ast.Compare) and asks_none else None
            if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
                subject = test.operand
            if subject is not None and last_name(subject) in weak:
                yield Hit(node.lineno, "the loop ends by itself when the object that it works for is gone")
                return


def _get(function: Function, ask: Ask) -> Iterator[Hit]:
    for loop in _forever(function, ask):
        for node in _inside(loop, inner_loops=False):
            if (
                not isinstance(node, ast.Call)
                or last_name(node.func) != "get"
                or not isinstance(node.func, ast.Attribute)
            ):
                continue
            if node.args or node.keywords or not ask.is_at(node) or _has_exit_besides_await(loop):
                continue
            yield Hit(
                node.lineno, f"{dotted(node.func) or 'get'}() has no time limit, and no item ends the loop"
            )


def _has_exit_besides_await(loop: ast.While) -> bool:
    if any(isinstance(n, ast.Break) for n in _inside(loop, inner_loops=False)):
        return True
    return any(
        isinstance(n, (ast.Return, ast.Raise))
        or (isinstance(n, ast.Call) and last_name(n.func) in (*_ENDS, "wait_for", "timeout"))
        for n in _inside(loop, inner_loops=True)
    )


def _select(function: Function, ask: Ask) -> Iterator[Hit]:
    for call in calls(function, "select", "poll"):
        if not ask.is_at(call) or not isinstance(call.func, (ast.Attribute, ast.Name)):
            continue
        name = origin(function, call.func)
        limit: ast.expr | None = keyword(call, "timeout")
        if name in ("select.select", "socket.select"):
            limit = limit or (call.args[3] if len(call.args) > 3 else None)
            if len(call.args) < 3:
                continue
        elif isinstance(call.func, ast.Attribute) and len(call.args) <= 1:
            owner = dotted(call.func.value).rpartition(".")[2].lower()
            if not any(word in owner for word in ("sel", "poll", "epoll")):
                continue  # somebody else's select(), of a database say
            limit = limit or (call.args[0] if call.args else None)
        else:
            continue
        if limit is None or (isinstance(limit, ast.Constant) and limit.value is None):
            yield Hit(
                call.lineno, f"{dotted(call.func)}() has no time limit: without a wake-up it waits for ever"
            )


CHECKS = (
    Check(
        "loop-without-exit",
        "`while True` without break, return, raise or await",
        re.compile(r"\bwhile[ \t(]*(True|1)\b"),
        _without_exit,
    ),
    Check(
        "loop-ends-by-itself",
        "a loop that ends when a weak reference is dead or another thread has ended",
        re.compile(r"ref\w{0,40}[ ]?\([ ]?\)|is_alive", re.IGNORECASE),
        _weak_exit,
    ),
    Check(
        "get-without-exit",
        "`while True` around a queue's get() without time limit, and no item ends the loop",
        re.compile(r"\.get\s*\(\s*\)"),
        _get,
    ),
    Check(
        "select-without-timeout",
        "select(), poll() without time limit",
        re.compile(r"\b(select|poll)\s*\("),
        _select,
    ),
)
