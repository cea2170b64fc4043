"""Checks about what is made per call or kept too long: sessions, cached methods, closures."""

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
    keyword,
    last_name,
    origin,
)
from diagtool.leaks.source.module import Function

__all__ = ("CHECKS",)

#: What makes a client, and the types that it makes (as a finding names them).
_CLIENTS = {
    "aiohttp.ClientSession": ("ClientSession", "TCPConnector", "SSLContext"),
    "aiohttp.TCPConnector": ("TCPConnector", "SSLContext"),
    "httpx.Client": ("Client", "SSLContext"),
    "httpx.AsyncClient": ("AsyncClient", "SSLContext"),
    "requests.Session": ("Session", "PoolManager", "SSLContext"),
    "requests.session": ("Session", "PoolManager", "SSLContext"),
    "urllib3.PoolManager": ("PoolManager", "SSLContext"),
}
_CLOSES = ("close", "aclose", "__aexit__", "__exit__", "detach", "shutdown")
_CONNECTS = ("connect", "begin", "raw_connection")
_READS = (
    "close",
    "content",
    "text",
    "json",
    "iter_content",
    "iter_lines",
    "release_conn",
    "drain_conn",
    "read",
    "raw",
)
_CACHES = ("functools.lru_cache", "functools.cache")
_REQUESTS = frozenset(
    "request req response resp websocket ws message msg event payload scope environ".split()
)
_KEEPS = (
    "call_later",
    "call_at",
    "register",
    "finalize",
    "add_done_callback",
    "Timer",
    "on",
    "subscribe",
    "connect",
)


def _sessions(function: Function, ask: Ask) -> Iterator[Hit]:
    wanted = ask.subject.rpartition(".")[2]
    for call in calls(function, *(name.rpartition(".")[2] for name in _CLIENTS)):
        makes = _CLIENTS.get(origin(function, call.func))
        if makes is None or (wanted and wanted not in makes) or is_with_item(function, call):
            continue
        if function.name != "<module>" and _is_lost(function, call, _CLOSES):
            yield Hit(
                call.lineno,
                f"{dotted(call.func)}() is made for each call of {function.name}() and not closed",
            )
        else:
            yield Hit(call.lineno, "")


def _is_lost(function: Function, call: ast.Call, closes: tuple[str, ...]) -> bool:
    """Whether what ``call`` gives is used here alone and never closed."""
    around = function.parents.get(call)
    if isinstance(around, ast.Attribute):  # ClientSession().get(…)
        return around.attr not in closes
    if isinstance(around, ast.Expr):
        return True
    if (
        isinstance(around, ast.Assign)
        and len(around.targets) == 1
        and isinstance(around.targets[0], ast.Name)
    ):
        name = around.targets[0].id
        entered = any(
            isinstance(n, ast.withitem) and any(dotted(x) == name for x in ast.walk(n.context_expr))
            for n in function.nodes
        )
        return not entered and not attribute_of(function, name, *closes) and not escapes(function, name)
    return False


def _responses(function: Function, ask: Ask) -> Iterator[Hit]:
    for call in calls(
        function, "get", "post", "put", "delete", "head", "patch", "request", "urlopen", "send"
    ):
        stream, preload = keyword(call, "stream"), keyword(call, "preload_content")
        streams = isinstance(stream, ast.Constant) and stream.value is True
        streams = streams or (isinstance(preload, ast.Constant) and preload.value is False)
        if streams and not is_with_item(function, call) and _is_lost(function, call, _READS):
            yield Hit(
                call.lineno, "the response is neither read to its end nor closed: it keeps its connection"
            )


def _connections(function: Function, ask: Ask) -> Iterator[Hit]:
    if function.name == "<module>":
        return
    for call in calls(function, *_CONNECTS, "Session", "SessionLocal"):
        name = dotted(call.func)
        is_engine = last_name(call.func) in _CONNECTS and "engine" in name.rpartition(".")[0].lower()
        is_session = origin(function, call.func) in (
            "sqlalchemy.orm.Session",
            "sqlalchemy.orm.session.Session",
        )
        if not (is_engine or is_session or name == "SessionLocal") or is_with_item(function, call):
            continue
        if _is_lost(function, call, (*_CLOSES, "remove")):
            yield Hit(
                call.lineno, f"what {name}() gives is not closed: its connection does not go back to the pool"
            )


def _cached(function: Function, ask: Ask) -> Iterator[Hit]:
    node = function.node
    if function.owner is None or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return
    wanted = ask.subject.rsplit(".", 2)[1:] if ask.subject else []
    if wanted and wanted != [function.owner.name, function.name]:
        return
    names = [origin(function, d.func if isinstance(d, ast.Call) else d) for d in node.decorator_list]
    if not set(names) & set(_CACHES) or {"staticmethod", "classmethod"} & set(names):
        return
    decorator = node.decorator_list[next(i for i, name in enumerate(names) if name in _CACHES)]
    bound = None
    if isinstance(decorator, ast.Call):
        bound = keyword(decorator, "maxsize") or (decorator.args[0] if decorator.args else None)
        if bound is None or not (isinstance(bound, ast.Constant) and bound.value is None):
            return  # it has a bound
    elif origin(function, decorator) != "functools.cache":
        return  # lru_cache without arguments: 128
    arguments = [*node.args.posonlyargs, *node.args.args]
    if arguments:
        yield Hit(
            decorator.lineno,
            f"the cache has no bound, and {arguments[0].arg} is part of each key: it keeps every instance",
        )


def _closures(function: Function, ask: Ask) -> Iterator[Hit]:
    wanted = ask.subject.replace(".<locals>", "").split(".")
    arguments = _parameters(function)
    for call in calls(function, *_KEEPS):
        if not isinstance(call.func, (ast.Attribute, ast.Name)):
            continue
        for given in [*call.args, *(k.value for k in call.keywords)]:
            inner = given if isinstance(given, ast.Lambda) else _defined(function, last_name(given))
            if inner is None:
                continue
            name = "<lambda>" if isinstance(inner, ast.Lambda) else inner.name
            if ask.subject and (wanted[-1] != name or function.name not in wanted):
                continue
            own = {a.arg for a in [*inner.args.args, *inner.args.kwonlyargs]}
            kept = sorted(
                {n.id for n in ast.walk(inner) if isinstance(n, ast.Name)} & arguments & _REQUESTS - own
            )
            if kept:
                yield Hit(
                    call.lineno,
                    f"what {last_name(call.func)}() is given keeps {kept[0]} of {function.name}()",
                )


def _parameters(function: Function) -> set[str]:
    if isinstance(function.node, ast.Module):
        return set()
    spec = function.node.args
    return {a.arg for a in [*spec.posonlyargs, *spec.args, *spec.kwonlyargs]}


def _defined(function: Function, name: str) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
    for node in function.nodes:
        if name and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name == name:
            return node
    return None


CHECKS = (
    Check(
        "session-per-call",
        "a client or session (aiohttp, httpx, requests, urllib3) is made in a function and not closed",
        re.compile(r"\b(ClientSession|TCPConnector|AsyncClient|Client|Session|session|PoolManager)\s*\("),
        _sessions,
    ),
    Check(
        "response-not-closed",
        "a streamed response (requests, urllib3) that is neither read nor closed",
        re.compile(r"\b(stream\s*=\s*True|preload_content\s*=\s*False)"),
        _responses,
    ),
    Check(
        "connection-not-closed",
        "a connection or session of SQLAlchemy that is not closed",
        re.compile(r"\b(connect|begin|raw_connection|Session|SessionLocal)\s*\("),
        _connections,
    ),
    Check(
        "cache-on-method",
        "a method with functools.cache or lru_cache(maxsize=None)",
        re.compile(r"@[\w.]*cache\b"),
        _cached,
        exact=True,
    ),
    Check(
        "closure-keeps-request",
        "a function given to a timer or registry keeps an argument (request …) of the one around it",
        re.compile(
            r"\b(call_later|call_at|register|finalize|add_done_callback|Timer|on|subscribe|connect)\s*\("
        ),
        _closures,
        exact=True,
    ),
)
