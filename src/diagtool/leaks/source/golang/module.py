"""A source file of Go: its text, its functions, what it imports, and the files of its package."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

from diagtool.leaks.source.golang.tree import Node, parse, walk

__all__ = ["GoFunction", "GoModule", "without_comments"]

#: As for Python's files (source/module.py).
_MAX_PARSED = 1 << 20

_DECLARED = ("function_declaration", "method_declaration")
_TOKENS = re.compile(
    r"""//[^\n]*|/\*.*?(?:\*/|\Z)|`[^`]*(?:`|\Z)|"(?:\\.|[^"\\\n])*(?:"|$)|'(?:\\.|[^'\\\n])+'""",
    re.DOTALL | re.MULTILINE,
)
_PART = re.compile(r"[^\W\d]\w*|\d+|-fm\b|-range\d+")
#: Files that are built by themselves alone.
_IGNORED = re.compile(r"^//(?:go:build| \+build) ignore\b", re.MULTILINE)
_LITERAL = re.compile(r"func\d+|\d+")


def without_comments(text: str) -> str:
    """``text`` with comments and what is in quotes blank, at the same lines."""

    def blank(found: re.Match[str]) -> str:
        lines = "\n" * found[0].count("\n")
        return f'""{lines}' if found[0][0] in "\"'`" else f" {lines}"

    return _TOKENS.sub(blank, text)


@dataclass(frozen=True, eq=False)
class GoFunction:
    """A function, a method, or a function literal. ``outer``: the function that it is in."""

    module: GoModule
    node: Node
    outer: GoFunction | None

    @property
    def name(self) -> str:
        """The name; of a literal ""."""
        named = self.node.get("name")
        return named.text if named is not None and self.is_declared else ""

    @property
    def is_declared(self) -> bool:
        return self.node.type in _DECLARED

    @property
    def first_line(self) -> int:
        return self.node.line

    @property
    def end_line(self) -> int:
        return self.node.end_line

    @property
    def body(self) -> Node | None:
        return self.node.get("body")

    @cached_property
    def receiver(self) -> str:
        """The type that it is a method of, "" of others."""
        receiver = self.node.get("receiver")
        names = (
            [n.text for n in walk(receiver) if n.type == "type_identifier"] if receiver is not None else []
        )
        return names[0] if names else ""

    @cached_property
    def nodes(self) -> list[Node]:
        """All nodes of its body in the order of the text, without those of functions in it."""
        return list(walk(self.body, literals=False)) if self.body is not None else []

    @cached_property
    def all_nodes(self) -> list[Node]:
        """All nodes of its body, functions in it included."""
        return list(walk(self.body)) if self.body is not None else []

    @property
    def outermost(self) -> GoFunction:
        """The declaration that it is in; itself if it is one."""
        here = self
        while here.outer is not None:
            here = here.outer
        return here

    def parameters(self) -> list[str]:
        """Names of its parameters in their order."""
        listed = self.node.get("parameters")
        out: list[str] = []
        for declared in listed.children if listed is not None else ():
            names = [c.text for c in declared.children if c.field == "name"]
            out += names or [""]
        return out

    def text(self) -> str:
        """Its source."""
        return "\n".join(self.module.lines[self.first_line - 1 : self.end_line])


def _starts(function: GoFunction, line: int) -> bool:
    """Whether a go or defer statement is in ``line``."""
    return any(n.line == line and n.type in ("go_statement", "defer_statement") for n in function.nodes)


class GoModule:
    """A source file. ``lines`` is all of its text; ``tree`` is None where it can't be parsed.

    ``package``: gives the files of its folder, itself among them; ``everything``: all that may be looked
    through.
    """

    language = "go"

    def __init__(
        self,
        name: str,
        data: bytes,
        package: Callable[[], Iterable[GoModule]] | None = None,
        everything: Callable[[], Iterable[GoModule]] | None = None,
    ) -> None:
        self.name = name
        self.problem: str | None = None
        self.size = len(data)
        self._data = data
        self._package = package
        self._everything = everything

    @cached_property
    def text(self) -> str:
        return self._data.decode("utf-8", "replace").replace("\r\n", "\n")

    @cached_property
    def lines(self) -> list[str]:
        return self.text.split("\n")

    @cached_property
    def code(self) -> str:
        """The text without comments and strings, at the same lines."""
        return without_comments(self.text)

    @cached_property
    def _code_lines(self) -> list[str]:
        return self.code.split("\n")

    @cached_property
    def tree(self) -> Node | None:
        """The syntax tree, None where there is none: ``problem`` says why."""
        if len(self._data) > _MAX_PARSED:
            self.problem = f"is longer than {_MAX_PARSED >> 20} MiB"
            return None
        root, whole = parse(self.text.encode())
        if root is None:
            self.problem = "has too many parts"
        elif not whole:
            self.problem = "is no Go that is understood"
            return None
        return root

    @cached_property
    def functions(self) -> list[GoFunction]:
        """All functions, methods and literals in the order of the text."""
        out: list[GoFunction] = []
        of: dict[int, GoFunction] = {}
        for node in walk(self.tree) if self.tree is not None else ():
            if node.type in (*_DECLARED, "func_literal"):
                outer = next((of[id(n)] for n in node.around() if id(n) in of), None)
                made = of[id(node)] = GoFunction(self, node, outer)
                out.append(made)
        return out

    @cached_property
    def package(self) -> list[GoModule]:
        """The files of its package, itself among them."""
        found = [m for m in self._package() if m.name != self.name] if self._package is not None else []
        return [self, *(m for m in found if _IGNORED.search(m.text[:4096]) is None)]

    @cached_property
    def everything(self) -> list[GoModule]:
        """All files of the program that may be looked at, its package's among them."""
        found = {m.name: m for m in self.package}
        for module in self._everything() if self._everything is not None else ():
            found.setdefault(module.name, module)
        return list(found.values())

    @cached_property
    def imports(self) -> dict[str, str]:
        """What package names stand for: ``{"h": "net/http", "context": "context"}``."""
        out: dict[str, str] = {}
        for node in walk(self.tree) if self.tree is not None else ():
            if node.type == "import_spec" and (path := node.get("path")) is not None:
                told = path.text.strip('"`')
                named = node.get("name")
                last = re.sub(r"/v\d+$", "", told).rpartition("/")[2]
                out[named.text if named is not None else last] = told
            elif node.type in _DECLARED:
                break
        return out

    def function_of(self, qualname: str, line: int, first_line: int | None = None) -> GoFunction | None:
        """The function that a frame of that name is in at ``line``; None where the text has another there.

        ``main.(*Server).run.func1.2``: the second literal in the first one of method run. What the compiler
        makes around go and defer statements (``gowrap1``) is in the function that they are in.
        """
        around = [f for f in self.functions if f.first_line <= line <= f.end_line]
        if not around or not self.is_code(line):
            return None
        parts = _PART.findall(qualname.rpartition("/")[2].replace("%2e", "."))
        parts = [p for p in parts if not p.startswith(("gowrap", "deferwrap", "-"))]
        depth = 0
        while parts and _LITERAL.fullmatch(parts[-1]):
            parts.pop()
            depth += 1
        declared = [f for f in around if f.is_declared]
        literals = [f for f in around if not f.is_declared]
        if depth and parts[-1:] == ["init"] and len(literals) < depth:
            depth = 0  # init.0 is a function
        if declared and declared[-1].name not in parts and not (depth and literals):
            return None  # before 1.21 literals are named after the function that they were inlined into
        if (
            depth == len(literals) + 1
            and declared
            and _starts(literals[-1] if literals else declared[-1], line)
        ):
            depth -= 1  # before 1.22 the wrapper of a go statement is named like a literal
        if depth > len(literals):
            return None
        return literals[depth - 1] if depth else declared[-1] if declared else None

    def is_code(self, line: int) -> bool:
        """Whether a stack can be in ``line``: neither blank nor a comment, nor nothing but brackets."""
        if not 0 < line <= len(self.lines):
            return False
        text = self._code_lines[line - 1].strip()
        return bool(text.strip("{}(), \t")) or text.startswith("}")
