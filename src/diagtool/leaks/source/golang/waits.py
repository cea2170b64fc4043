"""Checks of Go about locks, groups, conditions and contexts: what must be done on every way out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from diagtool.leaks.source.check import Ask, Check, Hit
from diagtool.leaks.source.golang.module import GoFunction
from diagtool.leaks.source.golang.tree import Node, is_call, last_name, name_of
from diagtool.leaks.source.golang.uses import uses_of

__all__ = ("CHECKS", "first_way_out", "ways_out")

_WITH_CANCEL = tuple(
    f"context.With{what}{cause}" for what in ("Cancel", "Timeout", "Deadline") for cause in ("", "Cause")
)
#: Names of what gives a lock back later.
_GIVES_BACK = re.compile(r"unlock|release|cleanup|\bclose\b|\bfunc\b", re.IGNORECASE)
_UNLOCKS = {"Lock": "Unlock", "RLock": "RUnlock"}


def first_way_out(function: GoFunction, begin: Node, ends: Sequence[Node]) -> Node | None:
    """The first return after ``begin`` that none of ``ends`` comes before for certain; None: no such."""
    return next(ways_out(function, begin, ends), None)


def ways_out(function: GoFunction, begin: Node, ends: Sequence[Node]) -> Iterator[Node]:
    """Returns after ``begin`` that none of ``ends`` comes before for certain.

    Certain is what stands earlier in the same block, or in one around it.
    """
    for node in function.nodes:
        if node.type != "return_statement" or node.start < begin.end:
            continue
        blocks = {id(a) for a in node.around()}
        if not any(begin.end <= e.start < node.start and id(_block(e)) in blocks for e in ends):
            yield node


def _block(node: Node) -> Node | None:
    """The list of statements that a statement stands in."""
    return next(
        (
            a
            for a in node.around()
            if a.type in ("statement_list", "block", "communication_case", "expression_case", "default_case")
        ),
        None,
    )


def _is_deferred(node: Node) -> bool:
    """Whether a call is that of a defer statement, or in a function that one calls."""
    return any(around.type == "defer_statement" for around in node.around())


# --- contexts ------------------------------------------------------------------------------------------


def _cancel_dropped(function: GoFunction, ask: Ask) -> Iterator[Hit]:
    for node in function.nodes:
        if node.type not in ("short_var_declaration", "assignment_statement"):
            continue
        left, right = node.get("left"), node.get("right")
        if left is None or right is None or len(left.children) != 2 or len(right.children) != 1:
            continue
        if not is_call(right.children[0], *_WITH_CANCEL):
            continue
        target = left.children[1]
        made = name_of(right.children[0].get("function"))
        if target.type == "identifier" and target.text == "_":
            yield Hit(node.line, f"what cancels the context of {made} is thrown away")
        elif target.type == "identifier":
            yield from _uncalled(function, node, target, made)


def _uncalled(function: GoFunction, node: Node, target: Node, made: str) -> Iterator[Hit]:
    name = target.text
    uses = [n for n in function.all_nodes if n.type == "identifier" and n.text == name and n.start > node.end]
    calls = []
    for use in uses:
        around = use.parent
        if around is None:
            continue
        if around.type == "call_expression" and use.field == "function":
            if _is_deferred(use) or _is_in_literal(use, function):
                return
            calls.append(around)
        elif around.type == "expression_list" and _is_blank(around):
            continue  # _ = cancel
        else:
            return  # given to somebody who may call it
    way_out = first_way_out(function, node, calls)
    if not calls:
        yield Hit(node.line, f"nothing calls {name}, which ends the context of {made}")
    elif way_out is not None:
        yield Hit(way_out.line, f"this way out does not call {name} of {made} in line {node.line}")


def _is_blank(values: Node) -> bool:
    left = values.parent.get("left") if values.parent is not None else None
    return left is not None and all(c.text == "_" for c in left.children) and values.field == "right"


def _is_in_literal(node: Node, function: GoFunction) -> bool:
    for around in node.around():
        if around is function.node:
            return False
        if around.type == "func_literal":
            return True
    return False


# --- groups and conditions -----------------------------------------------------------------------------


def _done_missing(function: GoFunction, ask: Ask) -> Iterator[Hit]:
    """Of the group that is waited for at the stack's line: Done is nowhere, or a way out skips it."""
    for node in function.nodes:
        if not is_call(node, ".Wait") or (ask.line is not None and not node.covers(ask.line)):
            continue
        called = node.get("function")
        operand = called.get("operand") if called is not None else None
        known = uses_of(function, operand, ask)
        if known is None or not known.marks("Add") or known.marks("Go"):
            continue
        dones = known.marks("Done")
        if not dones:
            place = known.marks("Add")[0][2]
            yield Hit(place.line, f"nothing in the package calls {name_of(operand)}.Done()")
        for _, f, add in known.marks("Add"):
            missing = _too_many(dones, f, add)
            if missing:
                yield Hit(add.line, missing)
        by_function: dict[int, tuple[GoFunction, list[Node]]] = {}
        for _, f, done in dones:
            by_function.setdefault(id(f.node), (f, []))[1].append(done)
        for f, places in by_function.values():
            if any(map(_is_deferred, places)) or f.module is not function.module or f.body is None:
                continue
            if not _is_started(f):
                continue
            way_out = first_way_out(f, _begin(f.body), places)
            if way_out is not None:
                yield Hit(way_out.line, f"this way out skips {name_of(operand)}.Done()")


def _is_started(function: GoFunction) -> bool:
    """Whether a go statement runs it."""
    around = function.node.parent
    outer = around.parent if around is not None and around.type == "call_expression" else None
    if outer is not None and outer.type == "go_statement":
        return True
    if not function.is_declared:
        return False
    started = re.compile(rf"\bgo\s+(?:[\w.]+\.)?{re.escape(function.name)}\(")
    return any(started.search(module.code) for module in function.module.package)


def _too_many(done: Sequence[tuple[str, GoFunction, Node]], function: GoFunction, add: Node) -> str:
    """What is wrong with an Add(2) for which less than two calls of Done are there."""
    arguments = add.get("arguments")
    number = arguments.children[0].text if arguments is not None and len(arguments.children) == 1 else ""
    if not re.fullmatch(r"[2-9]|\d\d", number):
        return ""
    outer = function.outermost
    dones = [(f, n) for _, f, n in done]
    here = [n for f, n in dones if f.outermost is outer]
    others = {f.outermost.name for f, _ in dones if f.outermost is not outer}
    calls = [
        n for n in outer.all_nodes if n.type == "call_expression" and last_name(n.get("function")) in others
    ]
    # One in a loop may stand for any number, unless the Add is in the loop, too.
    loops = [a for n in (*here, *calls) for a in n.around() if a.type == "for_statement"]
    if any(not loop.start <= add.start < loop.end for loop in loops):
        return ""
    count = len(here) + len(calls)
    if not 0 < count < int(number):
        return ""
    return f"Add({number}), and {count} {'call' if count == 1 else 'calls'} of Done()"


def _begin(body: Node) -> Node:
    """A place before everything in a body."""
    place = object.__new__(Node)
    place._data, place.type, place.field, place.parent, place.children = b"", "begin", None, body, []
    place.start = place.end = body.start
    place.line = place.end_line = body.line
    return place


def _never_signalled(function: GoFunction, ask: Ask) -> Iterator[Hit]:
    for node in function.nodes:
        if not is_call(node, ".Wait") or ask.line is None or not node.covers(ask.line):
            continue
        called = node.get("function")
        operand = called.get("operand") if called is not None else None
        if not any("sync.Cond" in m.code or "sync.NewCond" in m.code for m in function.module.package):
            continue
        known = uses_of(function, operand, ask)
        if known is None or known.marks("Add", "Done", "Go"):
            continue
        if not known.marks("Signal", "Broadcast"):
            yield Hit(node.line, f"nothing in the package calls {name_of(operand)}.Signal() or Broadcast()")


# --- locks ---------------------------------------------------------------------------------------------


def _not_unlocked(function: GoFunction, ask: Ask) -> Iterator[Hit]:
    """A return between Lock and Unlock."""
    if function.name in ("Lock", "RLock", "TryLock", "lock", "rlock"):
        return  # its other half is another method
    for node in function.nodes:
        for lock, unlock in _UNLOCKS.items():
            if not is_call(node, f".{lock}") or _is_deferred(node):
                continue
            called = node.get("function")
            name = name_of(called.get("operand")) if called is not None else ""
            if not name or not _may_be(function, name, ask):
                continue
            ends = [n for n in function.all_nodes if is_call(n, f"{name}.{unlock}")]
            given = any(
                n.type == "selector_expression" and name_of(n) == f"{name}.{unlock}" and n.field != "function"
                for n in function.all_nodes
            )
            if not ends or given or any(_is_deferred(e) or _is_in_literal(e, function) for e in ends):
                continue  # another function gives it back, or all ways out do
            outs = (n for n in ways_out(function, node, ends) if not _is_handed_on(node, n))
            way_out = next(outs, None)
            if way_out is not None:
                yield Hit(
                    way_out.line, f"this way out skips {name}.{unlock}() of the lock in line {node.line}"
                )


def _may_be(function: GoFunction, name: str, ask: Ask) -> bool:
    """Whether a lock may be the one that the stack waits for: the same field of the same type."""
    if ask.leaf is None:
        return True
    waiting, line = ask.leaf
    waited = {
        _typed(waiting, name_of(called.get("operand")))
        for node in waiting.nodes
        if node.covers(line)
        and is_call(node, ".Lock", ".RLock")
        and (called := node.get("function")) is not None
    }
    kind, field = _typed(function, name)
    return not waited or any(f == field and (not k or not kind or k == kind) for k, f in waited)


def _typed(function: GoFunction, name: str) -> tuple[str, str]:
    """(type, field) of ``s.mu`` in a method of ``s``; without a type where that is not told there."""
    head, _, field = name.rpartition(".")
    receiver = function.outermost.node.get("receiver")
    own = [c.text for d in receiver.children for c in d.children if c.field == "name"] if receiver else []
    return (function.outermost.receiver if head in own else "", field)


def _is_handed_on(begin: Node, way_out: Node) -> bool:
    """Whether a return may leave the lock in somebody's hands, or does not come after ``begin`` at all.

    In another branch it can't come; in the same block what was done before depends on conditions; what gives
    back may be returned.
    """
    block, other = _block(begin), _block(way_out)
    if block is None or block is other or not block.start <= way_out.start < block.end:
        return True
    return _GIVES_BACK.search(way_out.text) is not None


def _taken_again(function: GoFunction, ask: Ask) -> Iterator[Hit]:
    """A method that takes a lock calls another of its type that takes it, too."""
    for node in function.nodes:
        if not is_call(node, ".Lock", ".RLock") or _is_deferred(node):
            continue
        called = node.get("function")
        name = name_of(called.get("operand")) if called is not None else ""
        owner, _, field = name.rpartition(".")
        if not _typed(function, name)[0] or "." in owner:
            continue
        ends = [
            n
            for n in function.nodes
            if is_call(n, f"{name}.Unlock", f"{name}.RUnlock") and n.start > node.end
        ]
        until = min((e.start for e in ends if not _is_deferred(e)), default=1 << 62)
        for call in function.nodes:
            if call.type != "call_expression" or not node.end < call.start < until:
                continue
            method = call.get("function")
            if method is None or name_of(method.get("operand")) != owner or _in_go(call):
                continue
            if ask.line is not None and not call.covers(ask.line):
                continue
            other = _method(function, last_name(method))
            if other is None or other is function:
                continue
            taken = next((n for n in other.nodes if _takes_own(other, n, field)), None)
            if taken is not None and any(
                is_call(n, ".Unlock", ".RUnlock")
                and _locks(n, field)
                and n.start < taken.start
                and not _is_deferred(n)
                for n in other.nodes
            ):
                continue  # it gives it back first
            if taken is not None and not (_is_read(node) and _is_read(taken) and ask.line is None):
                yield Hit(
                    call.line, f"{other.name}() takes {field} in line {taken.line}: it is taken already"
                )


def _takes_own(method: GoFunction, node: Node, field: str) -> bool:
    """Whether a method takes the lock ``field`` of its own receiver there."""
    called = node.get("function") if is_call(node, ".Lock", ".RLock") else None
    name = name_of(called.get("operand")) if called is not None else ""
    return name.count(".") == 1 and _typed(method, name) == (method.receiver, field)


def _is_read(node: Node) -> bool:
    return last_name(node.get("function")) == "RLock"


def _in_go(call: Node) -> bool:
    return call.parent is not None and call.parent.type == "go_statement"


def _locks(call: Node, field: str) -> bool:
    called = call.get("function")
    return called is not None and last_name(called.get("operand")) == field


def _method(function: GoFunction, name: str) -> GoFunction | None:
    for module in function.module.package:
        for f in module.functions:
            if f.name == name and f.receiver == function.receiver:
                return f
    return None


CHECKS = (
    Check(
        "go-cancel-dropped",
        "a context's cancel function is thrown away, or not called on a way out",
        re.compile(r"context\.With"),
        _cancel_dropped,
        language="go",
    ),
    Check(
        "go-done-missing",
        "Done() of the WaitGroup that is waited for is nowhere, or a way out skips it",
        re.compile(r"\.Wait\("),
        _done_missing,
        language="go",
    ),
    Check(
        "go-cond-not-signalled",
        "nothing signals the sync.Cond that is waited on",
        re.compile(r"\.Wait\("),
        _never_signalled,
        language="go",
    ),
    Check(
        "go-lock-not-released",
        "a return between Lock() and an Unlock() that is not deferred",
        re.compile(r"\.R?Lock\("),
        _not_unlocked,
        language="go",
    ),
    Check(
        "go-lock-taken-again",
        "a method that has a lock calls one that takes the same lock",
        re.compile(r"\.R?Lock\("),
        _taken_again,
        language="go",
    ),
)
