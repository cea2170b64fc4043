"""Syntax trees of Go as plain objects, of tree-sitter's grammar; and what all checks ask of them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

__all__ = ["Node", "children_of", "is_call", "last_name", "loop_around", "name_of", "parse", "walk"]

#: Nodes of one file; what has more was made by a program.
MAX_NODES = 600_000


class Node:
    """A named node: ``type`` and ``field`` as in the grammar, lines counted from 1."""

    __slots__ = ("_data", "children", "end", "end_line", "field", "line", "parent", "start", "type")

    def __init__(self, data: bytes, made: Any, field: str | None, parent: Node | None) -> None:
        self._data = data
        self.type: str = made.type
        self.field = field
        self.start: int = made.start_byte
        self.end: int = made.end_byte
        self.line: int = made.start_point[0] + 1
        self.end_line: int = made.end_point[0] + 1
        self.parent = parent
        self.children: list[Node] = []

    @property
    def text(self) -> str:
        """Its source."""
        return self._data[self.start : self.end].decode("utf-8", "replace")

    def get(self, field: str) -> Node | None:
        """The child in ``field``."""
        return next((child for child in self.children if child.field == field), None)

    def covers(self, line: int) -> bool:
        """Whether ``line`` is one of its lines."""
        return self.line <= line <= self.end_line

    def around(self) -> Iterator[Node]:
        """The nodes around it, the nearest first."""
        node = self.parent
        while node is not None:
            yield node
            node = node.parent


@lru_cache(maxsize=1)
def _parser() -> Any:
    import tree_sitter
    import tree_sitter_go

    return tree_sitter.Parser(tree_sitter.Language(tree_sitter_go.language()))


def parse(data: bytes) -> tuple[Node | None, bool]:
    """(the tree, whether all of it was understood); no tree where it has too many nodes."""
    tree = _parser().parse(data)
    cursor = tree.walk()
    root = Node(data, cursor.node, None, None)
    if tree.root_node.descendant_count > 2 * MAX_NODES:
        return None, False
    around = [root]  # the node that is built, at each depth of the cursor
    down = cursor.goto_first_child()
    while down:
        made = cursor.node
        node = around[-1]
        if made.is_named:
            node = Node(data, made, cursor.field_name, around[-1])
            around[-1].children.append(node)
        if cursor.goto_first_child():
            around.append(node)
            continue
        while not cursor.goto_next_sibling():
            if not cursor.goto_parent() or len(around) == 1:
                down = False
                break
            around.pop()
    return root, not tree.root_node.has_error


def walk(node: Node, *, literals: bool = True) -> Iterator[Node]:
    """``node`` and all nodes in it as in the text; without ``literals`` not into functions in it."""
    todo = [node]
    while todo:
        here = todo.pop()
        yield here
        if literals or here is node or here.type != "func_literal":
            todo.extend(reversed(here.children))


def children_of(node: Node | None, *types: str) -> list[Node]:
    """The children of these types; all where none is named."""
    return [c for c in node.children if not types or c.type in types] if node is not None else []


def name_of(node: Node | None) -> str:
    """``s.jobs`` of such an expression, without ``*``, ``&`` and parentheses; "" of what has no name."""
    while node is not None and node.type in ("parenthesized_expression", "unary_expression"):
        if node.type == "unary_expression" and node.text[:1] not in "*&":
            return ""
        node = node.children[0] if node.children else None
    parts: list[str] = []
    while node is not None and node.type == "selector_expression":
        field = node.get("field")
        parts.append(field.text if field is not None else "")
        node = node.get("operand")
        while node is not None and node.type in ("parenthesized_expression", "index_expression"):
            node = node.children[0] if node.children else None
    if node is None or node.type not in ("identifier", "package_identifier", "field_identifier"):
        return ""
    return ".".join([node.text, *reversed(parts)])


def last_name(node: Node | None) -> str:
    """``jobs`` of ``s.jobs``, and of ``s.all[i].jobs``."""
    if node is not None and node.type == "selector_expression":
        field = node.get("field")
        return field.text if field is not None else ""
    return name_of(node).rpartition(".")[2]


def is_call(node: Node, *names: str) -> bool:
    """Whether it is a call of a function of one of these names: ``close``, ``time.After``, ``.Stop``."""
    if node.type != "call_expression":
        return False
    called = node.get("function")
    name, last = name_of(called), last_name(called)
    return any(name == n or (n.startswith(".") and last == n[1:] and name != last) or
               (n.startswith(".") and not name and last == n[1:]) for n in names)  # fmt: skip


def loop_around(node: Node) -> Node | None:
    """The loop that a node is in, within its own function."""
    for around in node.around():
        if around.type == "for_statement":
            return around
        if around.type in ("func_literal", "function_declaration", "method_declaration"):
            return None
    return None
