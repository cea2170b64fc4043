"""The runbook of a template, to be shown inside a page: Markdown as plain nested lists, no markup.

The pages are docs/runbooks/*.md; the package has them through a link, which becomes files in a wheel.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from markdown_it.token import Token

__all__ = ["nodes", "text"]

#: A node is text, or a list of an element's name, its link ("" for none) and the nodes in it.
Node = str | list[Any]

#: What is written by hand; above it is what the page says of the template anyway.
_HAND_WRITTEN = "<!-- and up to here -->"
_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
_FOLDER = Path(__file__).parent / "runbooks"
_ELEMENTS = ("p", "ul", "ol", "li", "strong", "em", "code", "pre", "a", "blockquote")


def text(template: str) -> str:
    """The hand-written part of a runbook as Markdown; "" where there is none."""
    if not _NAME.fullmatch(template):
        return ""
    try:
        whole = (_FOLDER / f"{template}.md").read_text("utf-8")
    except OSError:
        return ""
    return whole.partition(_HAND_WRITTEN)[2].strip()


@cache
def nodes(template: str) -> list[Node]:
    """The same as nodes for the page."""
    from markdown_it import MarkdownIt

    return _tree(MarkdownIt("commonmark").enable("table").parse(text(template)))


def _tree(tokens: Sequence[Token]) -> list[Node]:
    top: list[Node] = []
    stack = [top]
    for token in tokens:
        if token.type == "inline":
            stack[-1].extend(_tree(token.children or ()))
        elif token.nesting == 1:
            node: list[Any] = [_element(token), _link(token)]
            stack[-1].append(node)
            stack.append(node)
        elif token.nesting == -1:
            stack.pop()
        else:
            stack[-1].extend(_leaf(token))
    return top


def _leaf(token: Token) -> Iterable[Node]:
    if token.type in ("fence", "code_block"):
        return [["pre", "", token.content]]
    if token.type == "code_inline":
        return [["code", "", token.content]]
    if token.type in ("softbreak", "hardbreak"):
        return [" "]
    return [token.content] if token.content else []


def _element(token: Token) -> str:
    if token.tag.startswith("h") and token.tag[1:].isdigit():
        return "h5"  # under the finding's own headings
    if token.tag in ("table", "thead", "tbody", "tr", "th", "td"):
        return token.tag
    return token.tag if token.tag in _ELEMENTS else "p"


def _link(token: Token) -> str:
    target = str(token.attrGet("href") or "")
    return target if target.startswith(("https://", "http://")) else ""
