"""One source file as text and as a syntax tree: its functions, what it imports. Parsed, never run.

The text comes from somebody else's machine. What is no Python of ours (syntax of a newer version, a file cut
off, an encoding that is none) has lines but no tree, and ``problem`` says why.
"""

from __future__ import annotations

import ast
import re
import sys
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

__all__ = ("Function", "Module", "Scope")

#: Parsing takes a second for each few megabytes.
_MAX_PARSED = 1 << 20
#: The deepest tree that fits into a megabyte fits into this stack (Python 3.10 checks no depth: bpo-46219).
_STACK = 512 << 20
_CODING = re.compile(rb"^[ \t\f]*#.*?coding[:=][ \t]*([-\w.]+)", re.ASCII)
_PLAIN = {"utf-8", "utf8", "utf-8-sig", "ascii", "us-ascii", "latin-1", "iso-8859-1", "iso8859-1", "latin1"}

Scope: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.Module


@dataclass(frozen=True, eq=False)
class Function:
    """A function, a lambda, or the whole module (``<module>``), with its place in ``module``.

    ``first_line`` is what co_firstlineno says: that of the first decorator. ``owner``: the class it is a
    method of. ``outer``: the function that it is defined in.
    """

    module: Module
    node: Scope
    qualname: str
    first_line: int
    end_line: int
    owner: ast.ClassDef | None = None
    outer: Function | None = None

    @property
    def name(self) -> str:
        """The last part of the qualified name."""
        return self.qualname.rpartition(".")[2]

    @property
    def is_async(self) -> bool:
        return isinstance(self.node, ast.AsyncFunctionDef)

    @property
    def body(self) -> list[ast.AST]:
        """Its statements; of a lambda the expression."""
        body = self.node.body
        return [*body] if isinstance(body, list) else [body]

    @cached_property
    def nodes(self) -> list[ast.AST]:
        """All nodes of its own body in the order of the text; bodies of functions and classes in it left out.

        Comprehensions are part of it.
        """
        out: list[ast.AST] = []
        todo: list[ast.AST] = self.body[::-1]
        while todo:
            node = todo.pop()
            out.append(node)
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                inner: list[ast.AST] = [*node.decorator_list, *node.args.defaults]
                inner += [d for d in node.args.kw_defaults if d is not None]
            elif isinstance(node, ast.Lambda):
                inner = [*node.args.defaults, *(d for d in node.args.kw_defaults if d is not None)]
            elif isinstance(node, ast.ClassDef):
                inner = [*node.decorator_list, *node.bases, *(k.value for k in node.keywords)]
            else:
                inner = list(ast.iter_child_nodes(node))
            todo.extend(reversed(inner))
        return out

    @cached_property
    def parents(self) -> dict[ast.AST, ast.AST]:
        """The node around each of ``nodes``; statements of the body have none."""
        return {child: node for node in self.nodes for child in ast.iter_child_nodes(node)}

    def around(self, node: ast.AST) -> Iterator[ast.AST]:
        """The nodes around ``node``, the nearest first."""
        while (node := self.parents.get(node)) is not None:  # type: ignore[assignment]
            yield node

    def text(self) -> str:
        """Its source."""
        return "\n".join(self.module.lines[self.first_line - 1 : self.end_line])


class Module:
    """A source file. ``lines`` is all of its text; ``tree`` is None where it can't be parsed."""

    language = "python"

    def __init__(self, name: str, data: bytes) -> None:
        self.name = name
        self.problem: str | None = None
        self.size = len(data)
        self._data = data

    @cached_property
    def text(self) -> str:
        data = self._data.removeprefix(b"\xef\xbb\xbf")
        head = data.split(b"\n", 2)[:2]
        told = next(
            (m[1].decode().lower().replace("_", "-") for h in head if (m := _CODING.match(h))), "utf-8"
        )
        if told not in _PLAIN:
            self.problem = f"is written in {told[:30]}"
        encoding = "latin-1" if told in _PLAIN and "1" in told else "utf-8"
        text = data.decode(encoding, "replace")
        return text.replace("\r\n", "\n").replace("\r", "\n")

    @cached_property
    def lines(self) -> list[str]:
        return self.text.split("\n")

    @cached_property
    def tree(self) -> ast.Module | None:
        """The syntax tree, None where it is no Python that we can parse: ``problem`` says why."""
        text = self.text
        if self.problem is None and len(self._data) > _MAX_PARSED:
            self.problem = f"is longer than {_MAX_PARSED >> 20} MiB"
        if self.problem is not None:
            return None
        tree, self.problem = _parse_aside(text) if sys.version_info < (3, 11) else _parse(text)
        return tree

    @cached_property
    def functions(self) -> list[Function]:
        """All functions and lambdas in the order of the text, the module itself first."""
        if self.tree is None:
            return []
        whole = Function(self, self.tree, "<module>", 1, len(self.lines))
        out = [whole]
        todo: list[tuple[ast.AST, str, ast.ClassDef | None, Function | None]] = [(self.tree, "", None, None)]
        while todo:
            node, prefix, owner, outer = todo.pop()
            for child in ast.iter_child_nodes(node):
                if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                    name = prefix + ("<lambda>" if isinstance(child, ast.Lambda) else child.name)
                    first = child.lineno
                    if not isinstance(child, ast.Lambda):
                        first = min([first, *(d.lineno for d in child.decorator_list)])
                    made = Function(self, child, name, first, child.end_lineno or first, owner, outer)
                    out.append(made)
                    todo.append((child, name + ".<locals>.", None, made))
                elif isinstance(child, ast.ClassDef):
                    todo.append((child, f"{prefix}{child.name}.", child, outer))
                else:
                    todo.append((child, prefix, owner, outer))
        return [whole, *sorted(out[1:], key=lambda f: (f.first_line, -f.end_line))]

    def function_of(self, qualname: str, line: int, first_line: int | None = None) -> Function | None:
        """The function of that name (its last part counts) around ``line``, the innermost one.

        ``first_line``: it must begin there. For what is no function of its own in the text (a comprehension)
        the function around it.
        """
        name = qualname.rpartition(".")[2]
        around = [f for f in self.functions if f.first_line <= line <= f.end_line]
        if name in ("<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>"):
            parts = qualname.rsplit(".", 2)
            name = parts[0].rpartition(".")[2] if len(parts) == 3 else ""
            first_line = None
            around = around if name else around[-1:]
        fits = [f for f in around if not name or f.name == name]
        if first_line is not None:
            fits = [f for f in fits if f.first_line == first_line or f.name == "<module>"]
        return fits[-1] if fits else None

    @cached_property
    def imports(self) -> dict[str, str]:
        """What names of the file stand for: ``{"aio": "asyncio", "create_task": "asyncio.create_task"}``."""
        out: dict[str, str] = {}
        for node in ast.walk(self.tree) if self.tree is not None else ():
            if isinstance(node, ast.Import):
                for alias in node.names:
                    out[alias.asname or alias.name.partition(".")[0]] = (
                        alias.name if alias.asname else alias.name.partition(".")[0]
                    )
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                for alias in node.names:
                    out[alias.asname or alias.name] = f"{node.module}.{alias.name}"
        return out


def _parse(text: str) -> tuple[ast.Module | None, str | None]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # escapes that are none are not ours to tell
            return ast.parse(text), None
    except SyntaxError as error:
        version = "{}.{}".format(*sys.version_info[:2])
        return None, f"is no Python {version} at line {error.lineno or '?'}"
    except (RecursionError, MemoryError):
        return None, "is nested too deeply"
    except ValueError:  # null bytes, before 3.12
        return None, "is no text"


def _parse_aside(text: str) -> tuple[ast.Module | None, str | None]:
    # In a thread with room for a tree of any depth.
    result: list[tuple[ast.Module | None, str | None]] = []
    before = threading.stack_size(_STACK)
    try:
        thread = threading.Thread(target=lambda: result.append(_parse(text)))
        thread.start()
    except (RuntimeError, ValueError):
        return None, "can't be parsed: no memory for a stack"
    finally:
        threading.stack_size(before)
    thread.join()
    return result[0] if result else (None, "can't be parsed")
