"""Whether a source file is what runs: its functions against what the running code says of itself.

A row of the table ``code_objects`` has the first line of a function, the lines with instructions, and the
names that it uses. All of these must be in the source, and what the source's function uses must be in the
code. Compilers differ in what they leave out, so whatever could be left out counts for nothing: what is
called another source here is another one.
"""

from __future__ import annotations

import ast
import re
from typing import Any

from diagtool.leaks.source.module import Function, Module

__all__ = ("differs",)

_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_MANGLED = re.compile(r"^_[^_]\w*?(__\w+)$")
#: Names that the compiler makes or folds away itself.
_MADE = frozenset(
    "__debug__ __class__ __classcell__ __build_class__ __annotations__ __annotate__ super".split()
)


def differs(module: Module, row: dict[str, Any]) -> bool:
    """True when ``row`` can't have been compiled from ``module``; of what is not known nothing is said."""
    if module.tree is None:
        return False
    name, first = row.get("name"), row.get("first_line")
    if not isinstance(name, str) or not isinstance(first, int):
        return False
    if name in ("<module>", "__annotate__"):
        return False  # a module is told by its functions; the other one the compiler makes (3.14)
    if name.startswith("<"):
        return not 0 < first <= len(module.lines)
    function = next((f for f in module.functions if f.name == name and f.first_line == first), None)
    return (
        function is None
        or _other_lines(function, row.get("lines"))
        or _other_names(function, row.get("names"))
    )


def _other_lines(function: Function, lines: Any) -> bool:
    if not isinstance(lines, list) or not all(isinstance(line, int) for line in lines):
        return False
    possible = {function.first_line}
    for node in ast.walk(function.node):
        line = getattr(node, "lineno", None)
        if line is not None:
            end = getattr(node, "end_lineno", None) or line
            # Where the parts of an f-string are, versions tell differently.
            possible |= set(range(line, end + 1)) if isinstance(node, ast.JoinedStr) else {line, end}
    return not possible.issuperset(lines)


def _other_names(function: Function, names: Any) -> bool:
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        return False
    code = {_plain(n) for n in names if n.isidentifier() and not n.startswith(".")} - _MADE
    return not _names(function) >= code or not _needed(function) <= code | _MADE


def _plain(name: str) -> str:
    mangled = _MANGLED.match(name)
    return mangled[1] if mangled else name


def _names(function: Function) -> set[str]:
    """Every name in the source of the function, whatever it is."""
    out: set[str] = set()
    for node in ast.walk(function.node):
        for field in ("id", "attr", "arg", "name", "asname", "module", "kwd_attrs", "rest"):
            value = getattr(node, field, None)
            for text in value if isinstance(value, list) else (value,):
                if isinstance(text, str):
                    out |= {_plain(part) for part in text.split(".")}
        if isinstance(node, (ast.Global, ast.Nonlocal)):
            out |= {_plain(n) for n in node.names}
    return out | _MADE


def _needed(function: Function) -> set[str]:
    """Names that any compiler must put into the code of the function."""
    out: set[str] = set()
    todo = function.body
    while todo:
        node = todo.pop()
        if isinstance(node, (ast.Name, ast.Attribute)):
            out.add(_plain(node.id if isinstance(node, ast.Name) else node.attr))
        if isinstance(node, ast.Assert):
            continue  # python -O
        if isinstance(
            node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda, *_COMPREHENSIONS)
        ):
            continue
        if isinstance(node, (ast.If, ast.IfExp, ast.While, ast.BoolOp)) and _may_be_folded(node):
            continue
        if isinstance(node, ast.AnnAssign):
            todo += [] if node.value is None else [node.target, node.value]  # a bare `x: T` makes no code
            continue
        if isinstance(node, (ast.Expr, ast.JoinedStr, ast.Constant)) and not _has_effect(node):
            continue
        todo.extend(ast.iter_child_nodes(node))
    return out - {"__debug__"}


def _may_be_folded(node: ast.If | ast.IfExp | ast.While | ast.BoolOp) -> bool:
    tests = node.values if isinstance(node, ast.BoolOp) else [node.test]
    for test in tests:
        for part in ast.walk(test):
            if isinstance(part, ast.Constant) and not isinstance(node, ast.While):
                return True
            if isinstance(part, ast.Name) and part.id == "__debug__":
                return True
    return isinstance(node, ast.While) and isinstance(node.test, ast.Constant) and not node.test.value


def _has_effect(node: ast.AST) -> bool:
    return not (isinstance(node, ast.Expr) and isinstance(node.value, (ast.Constant, ast.Name)))
