"""Checks of Go about who else has what is waited on: channels that the whole package has."""

from __future__ import annotations

import re
from collections.abc import Iterator

from diagtool.leaks.source.check import Ask, Check, Hit
from diagtool.leaks.source.golang.flow import flow_of
from diagtool.leaks.source.golang.module import GoFunction
from diagtool.leaks.source.golang.tree import Node

__all__ = ("CHECKS",)


def _waited_on(function: GoFunction, ask: Ask) -> Iterator[Node]:
    """Channels that are sent to, received from or ranged over in the line where the stack is."""
    for node in function.nodes:
        if node.line != ask.line:
            continue
        channel: Node | None = None
        if node.type == "unary_expression" and node.text.startswith("<-"):
            channel = node.get("operand")
        elif node.type == "send_statement":
            channel = node.get("channel")
        elif node.type == "range_clause":
            channel = node.get("right")
        if channel is not None:
            yield channel


def _of_package(function: GoFunction, ask: Ask) -> Iterator[Hit]:
    flow = flow_of(function.module) if ask.line is not None else None
    if flow is None or ask.line is None:
        return
    for channel in _waited_on(function, ask):
        key = flow.key(function, channel)
        if key is not None and key[0] == "package":
            yield Hit(ask.line, f"{channel.text[:60]} is a variable of the package: anybody may use it later")
            return


CHECKS = (
    Check(
        "go-channel-of-package",
        "the channel that is waited on is a variable of the package",
        re.compile(r"<-|\brange\b"),
        _of_package,
        language="go",
    ),
)
