"""Checks of Go about what must be stopped or closed: timers, bodies, clients, goroutines, services."""

from __future__ import annotations

import re
from collections.abc import Iterator

from diagtool.leaks.source.check import Ask, Check, Hit
from diagtool.leaks.source.golang.module import GoFunction
from diagtool.leaks.source.golang.tree import Node, is_call, last_name, loop_around, name_of, walk
from diagtool.leaks.source.golang.waits import ways_out

__all__ = ("CHECKS",)

_REQUESTS = ("http.Get", "http.Post", "http.PostForm", "http.Head", ".Do", "http.DefaultClient.Do")
_DIALS = ("sql.Open", "sqlx.Open", "sqlx.Connect", "grpc.Dial", "grpc.DialContext", "grpc.NewClient")
_STOPS = ("Stop", "Close", "Shutdown", "Cancel", "Terminate", "Quit")
_STARTS = ("Start", "Run", "Listen", "Watch", "Open", "Serve", "Begin")


def _escapes(function: GoFunction, name: str, after: Node, *own: str) -> bool:
    """Whether a local variable is given away: returned, stored, an argument, used in a function literal.

    ``own``: fields and methods that are no way out.
    """
    for node in function.all_nodes:
        if node.type != "identifier" or node.text != name or node.start < after.end:
            continue
        around = node.parent
        while around is not None and around.type in ("unary_expression", "parenthesized_expression"):
            around = around.parent
        if around is None:
            continue
        if around.type == "selector_expression":
            field = around.get("field")
            if field is not None and field.text in own:
                continue
            used = around.parent
            if used is not None and used.type == "call_expression" and around.field == "function":
                continue  # a method of it
            if (
                field is not None
                and field.text[:1].isupper()
                and used is not None
                and used.field != "arguments"
            ):
                continue  # a field of it that is read
            return True
        if around.type in ("binary_expression", "if_statement"):
            continue
        return True
    return False


def _target(node: Node, value: Node) -> Node | None:
    """The first variable that ``value`` is assigned to in ``node``."""
    left, right = node.get("left"), node.get("right")
    if left is None or right is None or not right.children or right.children[0] is not value:
        return None
    return left.children[0] if left.children else None


def _assigned(call: Node) -> tuple[Node, Node] | None:
    """(the assignment, its first variable) that a call's result goes to."""
    inner: Node = call
    for around in call.around():
        if around.type in ("short_var_declaration", "assignment_statement"):
            target = _target(around, inner)
            return (around, target) if target is not None else None
        if around.type not in ("expression_list", "unary_expression", "parenthesized_expression"):
            return None
        if around.type != "expression_list":
            inner = around
    return None


# --- timers --------------------------------------------------------------------------------------------


def _timers(function: GoFunction, ask: Ask) -> Iterator[Hit]:
    for node in function.nodes:
        if is_call(node, "time.After") and loop_around(node) is not None:
            yield Hit(
                node.line,
                "each round makes a timer with time.After; before Go 1.23 each stays until its time",
            )
        elif is_call(node, "time.Tick") and (
            loop_around(node) is not None or function.name not in ("main", "init")
        ):
            yield Hit(node.line, "nothing can stop what time.Tick makes; before Go 1.23 it stays for ever")
        elif is_call(node, "time.NewTicker", "time.NewTimer", "time.AfterFunc"):
            yield from _not_stopped(function, node)


def _not_stopped(function: GoFunction, node: Node) -> Iterator[Hit]:
    what = last_name(node.get("function"))
    around = node.parent
    if around is not None and around.type == "selector_expression" and last_name(around) == "C":
        yield Hit(node.line, f"nobody keeps what time.{what} makes: nothing can stop it")
        return
    assigned = _assigned(node)
    if assigned is None or assigned[1].type != "identifier" or what == "AfterFunc":
        return
    statement, target = assigned
    if any(is_call(n, f"{target.text}.Stop") for n in function.all_nodes):
        return
    if any(
        n.type == "selector_expression" and name_of(n) == f"{target.text}.Stop" for n in function.all_nodes
    ):
        return
    if not _escapes(function, target.text, statement, "C", "Reset"):
        yield Hit(node.line, f"nothing stops {target.text}, which time.{what} makes")


# --- answers and clients -------------------------------------------------------------------------------


def _body(function: GoFunction, ask: Ask) -> Iterator[Hit]:
    for node in function.nodes:
        if not is_call(node, *_REQUESTS) or not _is_request(function, node):
            continue
        assigned = _assigned(node)
        if assigned is None:
            continue
        statement, target = assigned
        left = statement.get("left")
        if left is None or len(left.children) != 2:
            continue
        if target.text == "_":
            yield Hit(node.line, "the answer is thrown away, its body is never closed")
            continue
        if target.type != "identifier":
            continue
        closes = [n for n in function.all_nodes if is_call(n, f"{target.text}.Body.Close")]
        if closes:
            if any(_is_deferred(c) or _is_within_literal(c, function) for c in closes):
                continue
            given = re.compile(rf"\b{re.escape(target.text)}\b")
            outs = (
                n
                for n in ways_out(function, statement, closes)
                if not _is_of_error(n) and given.search(n.text) is None
            )
            way_out = next(outs, None)
            if way_out is not None:
                yield Hit(way_out.line, f"this way out does not close the body of {target.text}")
        elif not _escapes(function, target.text, statement, "StatusCode", "Status", "Header", "Body") and (
            not _gives_body(function, target.text)
        ):
            yield Hit(node.line, f"nothing closes the body of {target.text}")


def _is_request(function: GoFunction, call: Node) -> bool:
    called = call.get("function")
    name = name_of(called)
    if name.startswith("http."):
        return function.module.imports.get("http") == "net/http"
    arguments = call.get("arguments")
    receiver = name.rpartition(".")[0].rpartition(".")[2].lower()
    return (
        "net/http" in function.module.imports.values()
        and arguments is not None
        and len(arguments.children) == 1
        and ("client" in receiver or receiver in ("c", "hc", "http"))
    )


def _gives_body(function: GoFunction, name: str) -> bool:
    """Whether the body goes to somebody who may close it; readers of the standard library do not."""
    for node in function.all_nodes:
        if node.type != "selector_expression" or name_of(node) != f"{name}.Body":
            continue
        around = node.parent
        if around is None or around.type == "selector_expression":
            continue
        if around.type == "argument_list" and around.parent is not None:
            called = name_of(around.parent.get("function"))
            if called.startswith(("io.", "ioutil.", "json.", "xml.", "bufio.", "csv.", "gzip.")):
                continue
        return True
    return False


def _is_of_error(way_out: Node) -> bool:
    around = next((a for a in way_out.around() if a.type == "if_statement"), None)
    condition = around.get("condition") if around is not None else None
    return condition is not None and re.search(r"\berr\w* != nil", condition.text) is not None


def _client(function: GoFunction, ask: Ask) -> Iterator[Hit]:
    if function.name in ("main", "init", "TestMain") or function.outermost.name in ("init",):
        return
    for node in function.nodes:
        made = ""
        if node.type == "composite_literal" and (kind := node.get("type")) is not None:
            made = kind.text if kind.text in ("http.Transport", "http2.Transport") else ""
        elif is_call(node, *_DIALS):
            made = name_of(node.get("function"))
        if not made:
            continue
        assigned = _assigned(node)
        if assigned is None:
            client = next((a for a in node.around() if a.type == "composite_literal"), None)
            assigned = _assigned(client) if client is not None else None
            if assigned is None:
                continue
        statement, target = assigned
        if target.type != "identifier":
            continue
        ends = (f"{target.text}.Close", f"{target.text}.CloseIdleConnections")
        if any(is_call(n, *ends) for n in function.all_nodes) or _is_stored(function, target.text, statement):
            continue
        yield Hit(
            node.line, f"{function.outermost.name}() makes a {made} for each call, and nothing closes it"
        )


def _is_stored(function: GoFunction, name: str, statement: Node) -> bool:
    """Whether what a variable holds is returned or kept, by itself or in another that is."""
    for node in function.all_nodes:
        if node.type != "identifier" or node.text != name or node.start < statement.end:
            continue
        around = node.parent
        while around is not None and around.type in ("unary_expression", "parenthesized_expression"):
            around = around.parent
        if around is None or (around.type == "selector_expression"):
            continue
        if around.type == "literal_element":
            literal = next((a for a in around.around() if a.type == "composite_literal"), None)
            inner = _assigned(literal) if literal is not None else None
            if inner is not None and inner[1].type == "identifier":
                if _is_stored(function, inner[1].text, inner[0]):
                    return True
                continue
        return True
    return False


# --- goroutines ----------------------------------------------------------------------------------------


def _unbounded(function: GoFunction, ask: Ask) -> Iterator[Hit]:
    for node in function.nodes:
        if node.type != "go_statement" or (ask.line is not None and not node.covers(ask.line)):
            continue
        loop = loop_around(node)
        if loop is None or _is_counted(loop):
            continue
        inside = list(walk(loop, literals=False))
        if any(is_call(n, ".Accept", ".AcceptTCP", ".Acquire", ".Wait", ".SetLimit") for n in inside):
            continue
        if any(map(_is_semaphore, inside)):
            continue
        yield Hit(node.line, "each round of the loop starts a goroutine, with nothing that limits how many")


def _is_semaphore(node: Node) -> bool:
    """A send, or a receive whose value nobody wants."""
    if node.type == "send_statement":
        return True
    alone = node.parent is not None and node.parent.type == "expression_statement"
    return alone and node.type == "unary_expression" and node.text.startswith("<-")


def _is_counted(loop: Node) -> bool:
    """A loop to a number that is written there."""
    clause = next((c for c in loop.children if c.type in ("for_clause", "range_clause")), None)
    if clause is None:
        return False
    if clause.type == "range_clause":
        right = clause.get("right")
        return right is not None and right.type == "int_literal"
    condition = clause.get("condition")
    return condition is not None and re.search(r"[<>]=?\s*\d+$", condition.text) is not None


def _contract(function: GoFunction, ask: Ask) -> Iterator[Hit]:
    """A type starts a goroutine and has a method that ends it, which nobody calls."""
    outer = function.outermost
    owner = outer.receiver or _made_type(outer)
    if not owner or not any(n.type == "go_statement" for n in outer.all_nodes):
        return
    if outer.receiver and not outer.name.startswith(_STARTS) and ask.line is None:
        return
    known = function.module.everything
    if not any(re.search(r"(?m)^package main\b", m.code) for m in known):
        return  # who uses the type is somewhere else
    stops = [
        f
        for module in function.module.package
        for f in module.functions
        if f.receiver == owner and f.name.startswith(_STOPS)
    ]
    for stop in stops:
        called = re.compile(rf"\.{re.escape(stop.name)}\b(?!\s*\()|(?<!\bfunc\s)\.{re.escape(stop.name)}\(")
        if not any(called.search(m.code) for m in known):
            yield Hit(stop.first_line, f"{owner}.{stop.name}() would end it, and nothing calls it")
            return


def _made_type(function: GoFunction) -> str:
    """The type that a constructor makes."""
    if not function.name.lower().startswith(("new", "start", "open", "make", "dial", "connect")):
        return ""
    result = function.node.get("result")
    names = [n.text for n in walk(result) if n.type == "type_identifier"] if result is not None else []
    return names[0] if names and names[0] != "error" else ""


def _is_deferred(node: Node) -> bool:
    return any(around.type == "defer_statement" for around in node.around())


def _is_within_literal(node: Node, function: GoFunction) -> bool:
    for around in node.around():
        if around is function.node:
            return False
        if around.type == "func_literal":
            return True
    return False


CHECKS = (
    Check(
        "go-timer-not-stopped",
        "timers and tickers that are made in a loop or that nothing stops",
        re.compile(r"\btime\.(After|Tick|New)"),
        _timers,
        language="go",
    ),
    Check(
        "go-body-not-closed",
        "the body of an HTTP answer is not closed on every way out",
        re.compile(r"net/http"),
        _body,
        language="go",
    ),
    Check(
        "go-client-per-call",
        "an http.Transport, sql.DB or gRPC connection is made for each call",
        re.compile(r"http2?\.Transport|sqlx?\.(Open|Connect)|grpc\.(Dial|New)"),
        _client,
        language="go",
    ),
    Check(
        "go-spawns-without-limit",
        "a loop starts a goroutine in each round, without a limit",
        re.compile(r"\bgo\s"),
        _unbounded,
        language="go",
    ),
    Check(
        "go-stop-not-called",
        "a type that starts a goroutine has Stop() or Close(), which nobody calls",
        re.compile(r"\bgo\s"),
        _contract,
        language="go",
    ),
)
