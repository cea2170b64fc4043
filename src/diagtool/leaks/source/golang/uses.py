"""What is done to one local variable from its creation on, for the goroutine that a stack is of.

The flow of a package puts all callers of a function together. Where the go statement is known that started a
goroutine, the variable that it gave away is followed from there alone: through function literals and the
functions that it is passed to, and to no other caller of these.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from diagtool.leaks.source.check import Ask
from diagtool.leaks.source.golang.flow import QUIET, Flow, flow_of
from diagtool.leaks.source.golang.module import GoFunction
from diagtool.leaks.source.golang.tree import Node, last_name, name_of

__all__ = ("Uses", "uses_of")

_DEPTH = 6
_MOST = 2_000


@dataclass(frozen=True)
class Uses:
    """``told``: (what is done, function, place) each. ``local``: it is kept in local variables alone."""

    told: list[tuple[str, GoFunction, Node]]
    local: bool

    def marks(self, *names: str) -> list[tuple[str, GoFunction, Node]]:
        """Those of these names: close, send, receive, make, or a method."""
        return [each for each in self.told if each[0] in names]

    def made(self) -> list[Node]:
        """Calls of make() that it comes from."""
        return [node for _, _, node in self.marks("make")]


def uses_of(function: GoFunction, node: Node | None, ask: Ask) -> Uses | None:
    """What is done to the value of an expression; None where something else may be done, too."""
    flow = flow_of(function.module)
    key = flow.key(function, node) if flow is not None else None
    if flow is None or key is None:
        return None
    owner = _owner(function, key[0])
    if owner is not None:
        maker, name = owner, key[1]
        if name in owner.parameters():
            given = _given(owner, name, ask)
            maker, name = given if given is not None else (owner, "")
        told = list(_follow(flow, maker, name, 0, set())) if name else []
        if (
            told
            and None not in told
            and any(each is not None and each[0] in ("make", "zero") for each in told)
        ):
            return Uses(
                [t for t in told if t is not None], local=maker.outermost.name not in ("main", "init")
            )
    if not flow.is_known(key):
        return None
    return Uses(flow.marks(key), flow.is_local(key))


def _owner(function: GoFunction | None, scope: object) -> GoFunction | None:
    while function is not None and function.node is not scope:
        function = function.outer
    return function


def _given(function: GoFunction, name: str, ask: Ask) -> tuple[GoFunction, str] | None:
    """The variable of who started the goroutine that is parameter ``name`` of the function it runs."""
    if ask.origin is None:
        return None
    starter, line = ask.origin
    for node in starter.nodes:
        if node.type != "go_statement" or not node.covers(line) or not node.children:
            continue
        call = node.children[0]
        called, listed = call.get("function"), call.get("arguments")
        if called is None or listed is None:
            continue
        if called is not function.node and last_name(called) != function.name:
            continue
        at = function.parameters().index(name)
        argument = name_of(listed.children[at]) if at < len(listed.children) else ""
        return (starter, argument) if argument and "." not in argument else None
    return None


def _follow(
    flow: Flow, function: GoFunction, name: str, depth: int, seen: set[tuple[int, str]]
) -> Iterator[tuple[str, GoFunction, Node] | None]:
    """What is done to a local variable; None for what can't be followed."""
    if (id(function.node), name) in seen:
        return
    seen.add((id(function.node), name))
    if depth > _DEPTH or len(seen) > _MOST:
        yield None
        return
    for f in [function, *_within(function)]:
        for node in f.nodes:
            if node.type == "identifier" and node.text == name and flow.key(f, node) == (function.node, name):
                yield from _use(flow, f, node, depth, seen)


def _within(function: GoFunction) -> list[GoFunction]:
    inside = []
    for f in function.module.functions:
        outer = f.outer
        while outer is not None and outer is not function:
            outer = outer.outer
        if outer is function:
            inside.append(f)
    return inside


def _use(
    flow: Flow, f: GoFunction, node: Node, depth: int, seen: set[tuple[int, str]]
) -> Iterator[tuple[str, GoFunction, Node] | None]:
    around = node.parent
    while around is not None and (
        around.type == "parenthesized_expression"
        or (around.type == "unary_expression" and around.text[:1] in "*&")
    ):
        node, around = around, around.parent
    if around is None:
        return
    kind = around.type
    if kind == "send_statement" and node.field == "channel":
        yield ("send", f, around)
    elif (kind == "unary_expression" and around.text.startswith("<-")) or (
        kind == "range_clause" and node.field == "right"
    ):
        yield ("receive", f, around)
    elif kind == "argument_list" and around.parent is not None:
        yield from _argument(flow, f, node, around, depth, seen)
    elif kind == "selector_expression":
        used = around.parent
        called = used is not None and used.type == "call_expression" and around.field == "function"
        yield (last_name(around), f, used) if called and used is not None else (last_name(around), f, around)
    elif kind == "expression_list" and around.parent is not None:
        yield from _assigned(f, node, around, around.parent)
    elif kind == "var_spec" and node.field == "name":
        value = around.get("value")
        for each in value.children if value is not None else ():
            yield _made(f, each)
        if value is None:
            yield ("zero", f, around)
    elif kind not in ("binary_expression", "parameter_declaration"):
        yield None


def _assigned(
    f: GoFunction, node: Node, values: Node, statement: Node
) -> Iterator[tuple[str, GoFunction, Node] | None]:
    right = statement.get("right")
    if statement.type not in ("short_var_declaration", "assignment_statement") or right is None:
        yield None
    elif values.field == "left":
        at = next((i for i, child in enumerate(values.children) if child is node), 0)
        yield _made(f, right.children[at]) if at < len(right.children) else None
    elif not all(c.text == "_" for c in (statement.get("left") or statement).children):
        yield None


def _made(f: GoFunction, value: Node) -> tuple[str, GoFunction, Node] | None:
    if value.type == "call_expression" and name_of(value.get("function")) == "make":
        return ("make", f, value)
    return ("zero", f, value) if value.type == "composite_literal" else None


def _argument(
    flow: Flow, f: GoFunction, node: Node, arguments: Node, depth: int, seen: set[tuple[int, str]]
) -> Iterator[tuple[str, GoFunction, Node] | None]:
    call = arguments.parent
    called = call.get("function") if call is not None else None
    if call is None or called is None:
        return
    name = name_of(called)
    if name == "close":
        yield ("close", f, call)
        return
    if name in QUIET:
        return
    at = next(i for i, child in enumerate(arguments.children) if child is node)
    known = flow.called(f, called)
    if not known:
        yield None
    for g in known:
        names = g.parameters()
        if at < len(names) and names[at]:
            yield from _follow(flow, g, names[at], depth + 1, seen)
        else:
            yield None
