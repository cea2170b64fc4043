"""Names of Go functions: one spelling for all sources, and whose code a function is.

A linker symbol is ``import/path.Function``, ``import/path.(*Type).Method``, closures ``.func1``,
``.func1.2``, wrappers of go statements ``.gowrap1`` (1.22), method values ``-fm``. Dots in the last element
of a path are ``%2e``. Type arguments are ``[...]`` in text; profiles and memory have shapes
(``[go.shape.int]``) from 1.18 on.
"""

from __future__ import annotations

import re
from functools import lru_cache

__all__ = ["function_name", "is_machinery", "package_of"]

_ESCAPE = re.compile(r"%([0-9a-fA-F]{2})")

#: Longest name that is looked at; the rest of a longer one is cut.
MAX_NAME = 2048

_MACHINERY = ("runtime", "sync", "internal", "syscall", "reflect")


def function_name(symbol: str) -> str:
    """A function as programmers write it: unescaped, type arguments as ``[...]``."""
    name = symbol[:MAX_NAME]
    if "[" in name:
        name = _without_type_arguments(name)
    if "%" in name:
        name = _ESCAPE.sub(lambda m: chr(int(m[1], 16)), name)
    return "panic" if name == "runtime.gopanic" else name  # as tracebacks call it


def _without_type_arguments(name: str) -> str:
    out: list[str] = []
    depth = 0
    for part in re.split(r"([\[\]])", name):
        if part == "[":
            depth += 1
            if depth == 1:
                out.append("[...]")
        elif part == "]":
            depth = max(0, depth - 1)
        elif not depth:
            out.append(part)
    return "".join(out)


def package_of(function: str) -> str:
    """The import path of a function: ``net/http`` of ``net/http.(*conn).serve``; "" where it has none."""
    name = function.partition("[")[0]
    slash = name.rfind("/", 0, name.find("(") if "(" in name else None)
    dot = name.find(".", slash + 1)
    if dot < 0:
        return ""
    # A last element with dots in it (gopkg.in/yaml.v3.Marshal) was escaped in the symbol: yaml%2ev3.Marshal.
    version = re.match(r"\.v[0-9]+(?=\.)", name[dot:])
    return name[: dot + version.end()] if version and slash >= 0 else name[:dot]


@lru_cache(maxsize=65536)
def is_machinery(function: str) -> bool:
    """Whether a function belongs to the runtime or to what every wait goes through.

    Such frames at the inner end of a stack differ from version to version and source to source: they are
    left out of the trace that is compared: ``runtime.gopark``, ``sync.(*Mutex).Lock``.
    """
    package = package_of(function)
    return package.partition("/")[0] in _MACHINERY or function in ("time.Sleep", "panic")
