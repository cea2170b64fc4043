"""Checks of Go about channels: selects with timers, ranges without close, sends and receives left alone."""

from __future__ import annotations

import re
from collections.abc import Iterator

from diagtool.leaks.source.check import Ask, Check, Hit
from diagtool.leaks.source.golang.module import GoFunction
from diagtool.leaks.source.golang.tree import Node, is_call, last_name, loop_around, name_of, walk
from diagtool.leaks.source.golang.uses import uses_of

__all__ = ("CHECKS",)

_TIMERS = ("time.After", "time.Tick", ".After", ".Tick")
_TIMED = (
    "context.WithTimeout",
    "context.WithDeadline",
    "context.WithTimeoutCause",
    "context.WithDeadlineCause",
)


def _select_at(function: GoFunction, ask: Ask) -> Node | None:
    """The select in which the stack is: it waits at the first line."""
    found = [
        n for n in function.nodes if n.type == "select_statement" and (ask.line is None or n.covers(ask.line))
    ]
    exact = [n for n in found if n.line == ask.line]
    return (exact or found)[-1] if found else None


def _cases(select: Node) -> list[Node]:
    """What the cases wait for: statements that send or receive."""
    return [c for case in select.children if (c := case.get("communication")) is not None]


def _received(case: Node) -> Node | None:
    """The channel that a case receives from."""
    for node in walk(case, literals=False):
        if node.type == "unary_expression" and node.text.startswith("<-"):
            return node.get("operand")
    return None


def _bound(function: GoFunction, name: str) -> list[Node]:
    """What is assigned to a local variable, in the function and those around it."""
    out = []
    for node in function.outermost.all_nodes:
        if node.type in ("short_var_declaration", "assignment_statement"):
            left, right = node.get("left"), node.get("right")
            if left is not None and right is not None and any(name_of(c) == name for c in left.children):
                out += right.children
        elif node.type == "var_spec" and any(c.field == "name" and c.text == name for c in node.children):
            value = node.get("value")
            out += value.children if value is not None else []
    return out


def _is_timer(function: GoFunction, channel: Node) -> str:
    """What timer a channel is of, "" for none."""
    if is_call(channel, *_TIMERS):
        return name_of(channel.get("function")) or last_name(channel.get("function"))
    if channel.type == "selector_expression" and last_name(channel) == "C":
        return name_of(channel)
    name = name_of(channel)
    if name and any(is_call(value, *_TIMERS) for value in _bound(function, name)):
        return name
    if is_call(channel, ".Done"):
        called = channel.get("function")
        context = name_of(called.get("operand")) if called is not None else ""
        if context and any(is_call(value, *_TIMED) for value in _bound(function, context)):
            return f"{context}, which has a time limit"
    return ""


def _has_timer(function: GoFunction, ask: Ask) -> Iterator[Hit]:
    select = _select_at(function, ask) if ask.line is not None else None
    for case in _cases(select) if select is not None else ():
        channel = _received(case)
        timer = _is_timer(function, channel) if channel is not None else ""
        if timer:
            yield Hit(case.line, f"a case of the select waits for {timer}: it goes on by itself")


def _has_done(function: GoFunction, ask: Ask) -> Iterator[Hit]:
    select = _select_at(function, ask) if ask.line is not None else None
    for case in _cases(select) if select is not None else ():
        channel = _received(case)
        if channel is not None and is_call(channel, ".Done"):
            yield Hit(case.line, "the select ends when its context is cancelled: look for who should do that")


# --- ranges, sends, receives ---------------------------------------------------------------------------


def _range_never_closed(function: GoFunction, ask: Ask) -> Iterator[Hit]:
    for node in function.nodes:
        if node.type != "range_clause" or (ask.line is not None and node.line != ask.line):
            continue
        channel = node.get("right")
        known = uses_of(function, channel, ask)
        if known is None or channel is None:
            continue
        if not any(_is_channel(n) for n in known.made()) or known.marks("close"):
            continue
        if not known.local or any(_goes_on(n) for _, _, n in known.marks("send")):
            continue  # a pool of workers that lives as long as the program looks the same
        loop = next(node.around())
        if any(n.type in ("break_statement", "return_statement") for n in walk(loop, literals=False)):
            continue
        yield Hit(node.line, f"nothing in the package closes {channel.text[:60]}: this loop never ends")


def _goes_on(send: Node) -> bool:
    """Whether a send is in a loop that has no end of its own."""
    for around in send.around():
        if around.type == "for_statement":
            clause = next((c for c in around.children if c.type in ("for_clause", "range_clause")), None)
            if clause is None:
                if len(around.children) == 1:  # the body alone
                    return True
            elif clause.type == "for_clause":
                if clause.get("condition") is None:
                    return True
            elif (right := clause.get("right")) is not None and right.type != "int_literal":
                return True  # over a channel, perhaps
    return False


def _is_channel(made: Node) -> bool:
    arguments = made.get("arguments")
    return arguments is not None and bool(arguments.children) and arguments.children[0].type == "channel_type"


def _room(made: Node) -> int | None:
    """Values that a channel holds: 0 without a size, None where it is not a number."""
    arguments = made.get("arguments")
    if arguments is None or len(arguments.children) < 2:
        return 0
    size = arguments.children[1].text
    return int(size) if re.fullmatch(r"\d{1,9}", size) else None


def _never_sent(function: GoFunction, ask: Ask) -> Iterator[Hit]:
    """A receive from a channel to which nothing sends, and that nothing closes."""
    for node in function.nodes:
        if ask.line is None or node.type != "unary_expression" or node.line != ask.line:
            continue
        if not node.text.startswith("<-") or _in_select(node):
            continue
        channel = node.get("operand")
        known = uses_of(function, channel, ask)
        if known is None or channel is None:
            continue
        if any(_is_channel(n) for n in known.made()) and not known.marks("close", "send"):
            yield Hit(node.line, f"nothing in the package sends to {channel.text[:60]} or closes it")


def _never_received(function: GoFunction, ask: Ask) -> Iterator[Hit]:
    """A send to a channel from which nothing receives."""
    for node, channel in _sends(function, ask):
        known = uses_of(function, channel, ask)
        if known is None:
            continue
        if any(_is_channel(n) for n in known.made()) and not known.marks("receive"):
            yield Hit(node.line, f"nothing in the package receives from {channel.text[:60]}")


def _sends(function: GoFunction, ask: Ask) -> Iterator[tuple[Node, Node]]:
    for node in function.nodes:
        if (
            node.type == "send_statement"
            and (ask.line is None or node.line == ask.line)
            and not _in_select(node)
        ):
            channel = node.get("channel")
            if channel is not None:
                yield node, channel


def _in_select(node: Node) -> bool:
    """Whether it is what a case of a select waits for, and not what is done then."""
    inner = node
    for around in node.around():
        if around.type == "communication_case":
            return inner.field == "communication"
        if around.type in ("block", "func_literal", "statement_list"):
            return False
        inner = around
    return False


def _leaves(function: GoFunction, ask: Ask) -> Iterator[Hit]:
    """An unbuffered send whose only receiver may go without receiving."""
    for node, channel in _sends(function, ask):
        known = uses_of(function, channel, ask)
        if known is None:
            continue
        made = [n for n in known.made() if _is_channel(n)]
        if not made or any(_room(n) != 0 for n in made):
            continue
        receives = [(f, n) for _, f, n in known.marks("receive")]
        if len(receives) != 1:
            continue
        receiver, receive = receives[0]
        if not _comes_back(receive, made):
            yield from _left_by(receiver, receive, node, channel.text[:60])


def _comes_back(receive: Node, made: list[Node]) -> bool:
    """Whether a receive is in a loop that goes on with the same channel."""
    loop = loop_around(receive)
    return receive.type == "range_clause" or (
        loop is not None and not any(loop.start <= m.start < loop.end for m in made)
    )


def _left_by(receiver: GoFunction, receive: Node, send: Node, name: str) -> Iterator[Hit]:
    if _in_select(receive):
        select = next((n for n in receive.around() if n.type == "select_statement"), None)
        if select is not None and len(select.children) > 1:
            others = [c for c in select.children if not c.covers(receive.line) or c.type == "default_case"]
            other = others[0] if others else select  # all of it in one line
            yield Hit(
                other.line,
                f"the select may take this case: then nobody receives from {name}, which has no room",
            )
        return
    started = _start_of(receiver, send)
    if started is None:
        return
    for node in receiver.nodes:
        if node.type == "return_statement" and started.line < node.line < receive.line:
            yield Hit(node.line, f"it returns before it receives from {name}, which has no room")
            return
    loop = loop_around(started)
    if loop is not None and not loop.start <= receive.start < loop.end:
        yield Hit(receive.line, f"one value is received from {name}, to which many goroutines send")


def _start_of(receiver: GoFunction, send: Node) -> Node | None:
    """The go statement in ``receiver`` that starts who sends: around the send, or of a function by name."""
    for around in send.around():
        if around.type == "go_statement":
            return around
        if around.type in ("function_declaration", "method_declaration"):
            named = around.get("name")
            for node in receiver.nodes:
                if node.type == "go_statement" and named is not None:
                    call = node.children[0] if node.children else None
                    if call is not None and last_name(call.get("function")) == named.text:
                        return node
            return None
    return None


def _twice(function: GoFunction, ask: Ask) -> Iterator[Hit]:
    """Two sends one after the other, where a return between them was forgotten."""
    sends = [(n, c) for n, c in _sends(function, Ask())]
    for node, channel in sends:
        later = _next_send(function, ask, node, node, channel)
        known = uses_of(function, channel, ask) if later is not None else None
        if later is not None and known is not None:
            receives = known.marks("receive")
            if len(receives) == 1 and not _comes_back(receives[0][2], known.made()):
                yield Hit(
                    later.line, f"a second send to {channel.text[:60]}, from which one value is received"
                )
                return
        block = next((a for a in node.around() if a.type in ("block", "func_literal")), None)
        branch = next((a for a in block.around() if a.type != "block"), None) if block is not None else None
        if block is None or branch is None or branch.type != "if_statement":
            continue
        if any(map(_ends, walk(block, literals=False))) or branch.get("alternative") is not None:
            continue
        later = _next_send(function, ask, branch, node, channel)
        if later is not None:
            yield Hit(node.line, f"no return after this send: {channel.text[:60]} is sent to a second time")
            return


def _next_send(function: GoFunction, ask: Ask, behind: Node, node: Node, channel: Node) -> Node | None:
    """A send to the same channel behind ``behind`` in the same block, with no room for both."""
    for later, other in _sends(function, Ask()):
        if (
            later.start < behind.end
            or later.parent is not behind.parent
            or name_of(other) != name_of(channel)
        ):
            continue
        if ask.line is not None and ask.line not in (node.line, later.line):
            continue
        known = uses_of(function, channel, ask)
        if known is not None and any(_room(n) not in (0, 1) for n in known.made()):
            continue
        return later
    return None


def _ends(node: Node) -> bool:
    """Whether what stands behind it in its block is not reached."""
    leaves = ("return_statement", "continue_statement", "break_statement", "goto_statement")
    return node.type in leaves or is_call(node, "panic", "os.Exit", ".Fatal", ".Fatalf")


def _has_room(function: GoFunction, ask: Ask) -> Iterator[Hit]:
    """A send that can't block: the channel has room for all that is sent to it."""
    for _node, channel in _sends(function, ask):
        if ask.line is None:
            return
        known = uses_of(function, channel, ask)
        if known is None:
            continue
        rooms = [_room(n) for n in known.made() if _is_channel(n)]
        sends = [(f, n) for _, f, n in known.marks("send")]
        if len(rooms) != 1 or rooms[0] is None or rooms[0] < len(sends):
            continue
        maker, made = next((f, n) for mark, f, n in known.marks("make"))
        if any(_repeats(f, n, maker, made) for f, n in sends):
            continue
        yield Hit(made.line, f"{channel.text[:60]} has room for all that is sent to it")


def _repeats(function: GoFunction, node: Node, maker: GoFunction, made: Node) -> bool:
    """Whether a statement may run more than once for one channel: it, or who starts it, is in a loop."""
    here: GoFunction | None = function
    place = node
    for _ in range(20):
        loop = loop_around(place)
        if loop is not None and not loop.start <= made.start < loop.end:
            return True
        if here is maker or here is None:
            return here is None
        if here.is_declared:
            calls = [
                (f, n)
                for f in here.module.functions
                for n in f.nodes
                if n.type == "call_expression" and last_name(n.get("function")) == here.name
            ]
            if len(calls) != 1:
                return True
            here, place = calls[0]
        else:
            place, here = here.node, here.outer
    return True


CHECKS = (
    Check(
        "go-select-has-timer",
        "the select that is waited in has a case of a ticker, timer or time limit",
        re.compile(r"\bselect\b"),
        _has_timer,
        language="go",
    ),
    Check(
        "go-select-has-done",
        "the select that is waited in has a case <-ctx.Done()",
        re.compile(r"\.Done\(\)"),
        _has_done,
        language="go",
    ),
    Check(
        "go-range-never-closed",
        "`for … range channel`, and nothing in the package closes the channel",
        re.compile(r"\brange\b"),
        _range_never_closed,
        language="go",
    ),
    Check(
        "go-nobody-sends",
        "a receive from a channel to which nothing in the package sends",
        re.compile(r"<-"),
        _never_sent,
        language="go",
    ),
    Check(
        "go-nobody-receives",
        "a send to a channel from which nothing in the package receives",
        re.compile(r"<-"),
        _never_received,
        language="go",
    ),
    Check(
        "go-receiver-may-leave",
        "a send without room; its receiver may take another case or return first",
        re.compile(r"<-"),
        _leaves,
        language="go",
    ),
    Check(
        "go-sends-twice",
        "a send in an `if` without return, and one more after it",
        re.compile(r"<-"),
        _twice,
        language="go",
    ),
    Check(
        "go-send-has-room",
        "a send to a channel that has room for all that is sent to it",
        re.compile(r"<-"),
        _has_room,
        language="go",
    ),
)
