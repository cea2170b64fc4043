"""Where values of a package go: which names stand for one channel, lock or group, and what is done to it.

Names that a value passes through are one set: assignments, arguments and parameters, results, fields of
structs (by the field's name alone, whatever the type). What a value does that can't be followed (stored in a
slice, given to another package, received from a channel) makes its set unknown: then nothing is said of it.
Too large sets say less, never something wrong.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TypeAlias

from diagtool.leaks.source.golang.module import GoFunction, GoModule
from diagtool.leaks.source.golang.tree import Node, last_name, name_of, walk

__all__ = ["QUIET", "Flow", "flow_of"]

#: A name: of a local variable (its function's node), a field, a variable of the package, a result.
Key: TypeAlias = tuple[object, str]

#: Bytes of a package that are followed.
_MAX_BYTES = 1 << 20

QUIET = frozenset("len cap make new panic print println delete copy clear min max recover".split())
#: Methods that keep nothing of their receiver: what they do is a mark of it.
_METHODS = frozenset(
    "Add Done Wait Go Signal Broadcast Lock Unlock RLock RUnlock TryLock Stop Close Shutdown Reset Store "
    "Load Do Cancel Start Run".split()
)


def flow_of(module: GoModule) -> Flow | None:
    """The flow of the package of ``module``; None where it is too large."""
    known: Flow | None = module.__dict__.get("_flow")
    if known is None and "_flow" not in module.__dict__:
        package = [m for m in module.package if m.tree is not None]
        if sum(m.size for m in package) <= _MAX_BYTES:
            known = Flow(package)
        for each in package:
            each.__dict__["_flow"] = known
    return known


class Flow:
    """The names of a package in sets, with marks: ``close``, ``send``, ``receive``, and method names."""

    def __init__(self, modules: Sequence[GoModule]) -> None:
        self.modules = modules
        self._parent: dict[Key, Key] = {}
        self._marks: dict[Key, list[tuple[str, GoFunction, Node]]] = defaultdict(list)
        self._escaped: set[Key] = set()
        self._functions: dict[str, list[GoFunction]] = defaultdict(list)
        self._declared: dict[int, set[str]] = {}
        self._imports = {name for m in modules for name in m.imports}
        for f in self.functions():
            if f.is_declared:
                self._functions[f.name].append(f)
        self._is_library = not all(map(_is_main, modules))
        for f in self.functions():
            for node in f.nodes:
                self._node(f, node)
        for m in modules:
            for spec in _package_variables(m):
                self._bindings(None, spec.children, "name", "value")

    def functions(self) -> Iterator[GoFunction]:
        """All functions of the package."""
        for module in self.modules:
            yield from module.functions

    # --- questions -------------------------------------------------------------------------------------

    def key(self, function: GoFunction | None, node: Node | None) -> Key | None:
        """The name that an expression is; None where it is none."""
        while node is not None and node.type in ("parenthesized_expression", "unary_expression"):
            if node.type == "unary_expression" and node.text[:1] not in "*&":
                return None
            node = node.children[0] if node.children else None
        if node is None:
            return None
        if node.type == "selector_expression":
            head = name_of(node).partition(".")[0]
            if head in self._imports and not self._is_local(function, head):
                return None
            return ("field", last_name(node))
        if node.type != "identifier" or node.text in ("_", "nil", "true", "false"):
            return None
        here = function
        while here is not None:
            if node.text in self._names(here):
                return (here.node, node.text)
            here = here.outer
        return ("package", node.text)

    def is_known(self, key: Key) -> bool:
        """Whether all that is done with it is seen."""
        root = self._root(key)
        return all(self._root(e) != root for e in self._escaped) and not self._is_public(root)

    def marks(self, key: Key, *names: str) -> list[tuple[str, GoFunction, Node]]:
        """What is done to it, (mark, function, place) each; of these names, if any are given."""
        root = self._root(key)
        return [
            told
            for other, marks in self._marks.items()
            if self._root(other) == root
            for told in marks
            if not names or told[0] in names
        ]

    def is_local(self, key: Key) -> bool:
        """Whether it is kept in local variables alone, of functions that are not main: not for ever."""
        root = self._root(key)
        keys = {k for k in (*self._parent, root) if self._root(k) == root}
        makers = {f.outermost.name for _, f, _ in self.marks(key, "make")}
        return not makers & {"main", "init"} and not any(where in ("field", "package") for where, _ in keys)

    def made(self, key: Key) -> list[Node]:
        """The calls of make() that it may come from."""
        return [node for _, _, node in self.marks(key, "make")]

    def _is_public(self, root: Key) -> bool:
        """Whether other packages have the name: an exported field, variable, parameter or result."""
        if not self._is_library:
            return False
        for key in {*self._parent, root}:
            if self._root(key) != root:
                continue
            where, name = key
            if isinstance(where, str):
                if name.lstrip("*")[:1].isupper():
                    return True
            elif isinstance(where, Node) and name in self._public.get(id(where), ()):
                return True
        return False

    @cached_property
    def _public(self) -> dict[int, set[str]]:
        return {
            id(f.node): set(f.parameters())
            for f in self.functions()
            if f.is_declared and f.name[:1].isupper()
        }

    # --- building --------------------------------------------------------------------------------------

    def _root(self, key: Key) -> Key:
        path = []
        while (above := self._parent.get(key, key)) != key:
            path.append(key)
            key = above
        for each in path:
            self._parent[each] = key
        return key

    def _union(self, a: Key | None, b: Key | None) -> None:
        if a is None or b is None:
            return
        x, y = self._root(a), self._root(b)
        self._parent.setdefault(a, a)
        self._parent.setdefault(b, b)
        if x != y:
            self._parent[x] = y

    def _escape(self, key: Key | None) -> None:
        if key is not None:
            self._escaped.add(key)

    def _mark(self, key: Key | None, mark: str, function: GoFunction | None, node: Node) -> None:
        if key is not None and function is not None:
            self._marks[key].append((mark, function, node))

    def _is_local(self, function: GoFunction | None, name: str) -> bool:
        while function is not None:
            if name in self._names(function):
                return True
            function = function.outer
        return False

    def _names(self, function: GoFunction) -> set[str]:
        """What a function declares: parameters, receiver, results and variables."""
        known = self._declared.get(id(function.node))
        if known is None:
            known = self._declared[id(function.node)] = set()
            for field in ("receiver", "parameters", "result"):
                listed = function.node.get(field)
                for declared in listed.children if listed is not None else ():
                    known.update(c.text for c in declared.children if c.field == "name")
            for node in function.nodes:
                if node.type in ("short_var_declaration", "range_clause", "receive_statement"):
                    left = node.get("left")
                    if left is not None and (node.type == "short_var_declaration" or ":=" in node.text):
                        known.update(c.text for c in left.children if c.type == "identifier")
                elif node.type in ("var_spec", "const_spec"):
                    known.update(c.text for c in node.children if c.field == "name")
                elif node.type == "expression_list" and node.field == "alias":
                    known.update(c.text for c in node.children)
        return known

    def _node(self, f: GoFunction, node: Node) -> None:
        kind = node.type
        if kind in ("short_var_declaration", "assignment_statement"):
            self._bind_lists(f, _items(node.get("left")), _items(node.get("right")))
        elif kind == "var_spec":
            self._bindings(f, node.children, "name", "value")
        elif kind == "keyed_element":
            key, value = node.get("key"), node.get("value")
            name = key.text.strip() if key is not None else ""
            inner = value.children[0] if value is not None and value.children else None
            self._bind(f, ("field", name) if name.isidentifier() else None, inner)
            if not name.isidentifier():
                self._escape(self.key(f, inner))
        elif kind == "literal_element" and node.field not in ("key", "value") and node.children:
            self._escape(self.key(f, node.children[0]))
        elif kind == "call_expression":
            self._call(f, node)
        elif kind == "send_statement":
            self._mark(self.key(f, node.get("channel")), "send", f, node)
            self._escape(self.key(f, node.get("value")))
        elif kind == "unary_expression" and node.text.startswith("<-"):
            self._mark(self.key(f, node.get("operand")), "receive", f, node)
        elif kind == "range_clause":
            self._mark(self.key(f, node.get("right")), "receive", f, node)
            for left in _items(node.get("left")):
                self._escape(self.key(f, left))
        elif kind == "return_statement":
            values = [v for c in node.children for v in _items(c)]
            for i, value in enumerate(values):
                if f.is_declared:
                    self._bind(f, (f"result {i}", f.name), value)
                else:
                    self._escape(self.key(f, value))

    def _bindings(self, f: GoFunction | None, children: Sequence[Node], left: str, right: str) -> None:
        lefts = [c for c in children if c.field == left]
        rights = [v for c in children if c.field == right for v in _items(c)]
        self._bind_lists(f, lefts, rights)

    def _bind_lists(self, f: GoFunction | None, left: Sequence[Node], right: Sequence[Node]) -> None:
        if len(left) == len(right):
            for target, value in zip(left, right, strict=True):
                if target.type == "index_expression":
                    self._escape(self.key(f, value))
                else:
                    self._bind(f, self.key(f, target), value)
        elif len(right) == 1:
            for i, target in enumerate(left):
                self._bind(f, self.key(f, target), right[0], i)

    def _bind(self, f: GoFunction | None, key: Key | None, value: Node | None, index: int = 0) -> None:
        if key is None or value is None:
            if value is not None:
                self._escape(self.key(f, value))
            return
        source = self.key(f, value)
        if source is not None:
            self._union(key, source)
            return
        while value.type in ("parenthesized_expression", "unary_expression") and value.children:
            if value.text.startswith("<-"):
                self._escape(key)
                return
            value = value.children[0]
        if value.type == "call_expression":
            name = name_of(value.get("function"))
            if name == "make":
                self._parent.setdefault(key, key)
                # of a variable of the package nobody's function is the maker: any of the package will do
                maker = f or next(self.functions(), None)
                self._mark(key, "make", maker, value)
            elif name in ("new", "sync.NewCond"):
                self._parent.setdefault(key, key)
            elif name.rpartition(".")[2] in self._functions and name.partition(".")[0] not in self._imports:
                self._union(key, (f"result {index}", name.rpartition(".")[2]))
            else:
                self._escape(key)
        elif value.type in ("index_expression", "type_assertion_expression", "selector_expression"):
            self._escape(key)

    def _call(self, f: GoFunction, node: Node) -> None:
        called, listed = node.get("function"), node.get("arguments")
        arguments = listed.children if listed is not None else []
        name, last = name_of(called), last_name(called)
        if name == "close" and arguments:
            self._mark(self.key(f, arguments[0]), "close", f, node)
            return
        if name in QUIET:
            return
        if called is not None and called.type == "selector_expression":
            operand = called.get("operand")
            if last in _METHODS:
                self._mark(self.key(f, operand), last, f, node)
        known = self.called(f, called)
        for i, argument in enumerate(arguments):
            self._argument(f, argument, i, known)

    def called(self, function: GoFunction, called: Node | None) -> list[GoFunction]:
        """The functions of the package that an expression may call; methods by their names alone."""
        if called is None:
            return []
        if called.type == "func_literal":
            return [g for g in function.module.functions if g.node is called]
        name = name_of(called)
        if "." in name and name.partition(".")[0] in self._imports:
            return []
        return self._functions.get(last_name(called), [])

    def _argument(self, f: GoFunction, argument: Node, i: int, known: Sequence[GoFunction]) -> None:
        if argument.type == "selector_expression" and last_name(argument) in _METHODS:
            operand = argument.get("operand")  # wg.Done given to somebody who calls it
            self._mark(self.key(f, operand), last_name(argument), f, argument)
            return
        if argument.type == "call_expression":
            inner = name_of(argument.get("function")).rpartition(".")[2]
            for g in known:
                names = g.parameters()
                if i < len(names) and names[i]:
                    self._union((g.node, names[i]), (f"result {0}", inner))
            return
        key = self.key(f, argument)
        if key is None:
            return
        bound = False
        for g in known:
            names = g.parameters()
            if i < len(names) and names[i] and names[i] != "_":
                self._union((g.node, names[i]), key)
                bound = True
        if not bound:
            self._escape(key)


def _items(node: Node | None) -> list[Node]:
    if node is None:
        return []
    return node.children if node.type == "expression_list" else [node]


def _is_main(module: GoModule) -> bool:
    if module.tree is None:
        return False
    clause = next((c for c in module.tree.children if c.type == "package_clause"), None)
    return clause is not None and clause.text.split()[-1:] == ["main"]


def _package_variables(module: GoModule) -> Iterator[Node]:
    for child in module.tree.children if module.tree is not None else ():
        if child.type == "var_declaration":
            yield from (n for n in walk(child, literals=False) if n.type == "var_spec")
