"""Whose code a frame is: the user's own, a library's, the interpreter's.

Decided by the path alone, because the files may be on another machine. A team says where the defaults are
wrong: :func:`use` (``own`` and ``libraries`` in the baseline file).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import pairwise

from diagtool.snapshot.model import Frame
from diagtool.snapshot.names import without_arguments

__all__ = ["Rules", "is_internal", "is_own", "use"]


@dataclass(frozen=True, slots=True)
class Rules:
    """Patterns (``*`` as in file names, across folders, too) for paths: of the user's ``own`` code and of
    ``libraries``, which wins where both match. What neither matches is decided by the defaults."""

    own: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()


_rules: ContextVar[Rules | None] = ContextVar("rules", default=None)


@contextmanager
def use(own: Sequence[str] = (), libraries: Sequence[str] = ()) -> Iterator[None]:
    """Within the block frames are told apart by these rules first."""
    token = _rules.set(Rules(tuple(own), tuple(libraries)) if own or libraries else None)
    try:
        yield
    finally:
        _rules.reset(token)


def is_own(frame: Frame) -> bool:
    """True for a frame of the user's own code: neither standard library, site-packages nor interpreter.

    By default a folder ``site-packages`` or ``dist-packages`` anywhere is a library's, and so is anything
    under ``lib/pythonX.Y`` (installed), ``pythonXY.zip`` (embedded), or a module of the standard library
    under ``Lib`` (run from CPython's source tree). Of Go the standard library, modules in the module cache
    and what is in a folder ``vendor`` are libraries'.
    """
    rules = _rules.get()
    if rules is not None:
        path = (frame.library or frame.file).replace("\\", "/")
        if any(fnmatchcase(path, pattern) for pattern in rules.libraries):
            return False
        if path and any(fnmatchcase(path, pattern) for pattern in rules.own):
            return not is_internal(frame)
    return _is_own(frame)


#: File names of the interpreter's own frozen modules. ``<stdin>`` and ``<string>`` are the user's code.
_FROZEN = "<frozen "


def _is_own(frame: Frame) -> bool:
    if frame.library is not None:
        return not is_internal(frame) and not _is_installed(frame.library)
    if frame.language == "go":
        return _is_own_go(frame)
    if frame.language != "python":
        return False
    path = frame.file.replace("\\", "/")
    if not path or path.startswith(_FROZEN):
        return False
    parts = path.split("/")
    if "site-packages" in parts or "dist-packages" in parts:
        return False
    for folder, part in pairwise(parts):
        if folder in ("lib", "lib64") and part.startswith("python"):
            return False
        if folder == "Lib" and part.removesuffix(".py") in sys.stdlib_module_names:
            return False
        if part.startswith("python3") and part.endswith(".zip"):
            return False
    return True


#: The first elements of the import paths of Go's standard library.
_GO_LIBRARY = frozenset(
    """archive bufio builtin bytes cmp compress container context crypto database debug embed encoding errors
    expvar flag fmt go hash html image index internal io iter log maps math mime net os path plugin reflect
    regexp runtime slices sort strconv strings structs sync syscall testing text time unicode unique unsafe
    vendor weak""".split()
)


def _is_own_go(frame: Frame) -> bool:
    # Modules are in a cache with their versions, or copied to vendor/; -trimpath leaves module@version.
    if (frame.module or "runtime").partition("/")[0] in _GO_LIBRARY:
        return False
    path = frame.file.replace("\\", "/")
    return not ("/pkg/mod/" in path or "/vendor/" in path or "@v" in path)


#: Libraries, by how their names begin, whose frames say how a program runs and not what it does.
_INTERNAL = (
    *("libc.so", "libc-2", "libpthread", "ld-linux", "ld-musl", "[vdso]", "libpython", "python"),
    *("libstdc++", "libgcc_s", "libc++"),
)
#: What C++ puts between a program's own functions.
_PLUMBING = ("std::", "__gnu_cxx::", "void std::", "__invoke", "_M_")
#: Bindings, which are all templates and whose frames are many.
_BINDINGS = ("pybind11::", "nanobind::", "boost::python::")
_HEADERS = ("/usr/include/", "/include/c++/", "/pybind11/", "/nanobind/", "/boost/python/")
_SYSTEM = ("/lib/", "/lib64/", "/usr/lib/", "/usr/lib64/", "/usr/local/lib/")


def is_internal(frame: Frame) -> bool:
    """True for a native frame of the C library, of the C++ runtime or of the interpreter."""
    if frame.library is None:
        return False
    name = frame.library.rpartition("/")[2]
    function = without_arguments(frame.function)
    plumbing = function.startswith(_PLUMBING) or any(part in function for part in _BINDINGS)
    plumbing = plumbing or any(part in frame.file for part in _HEADERS)
    return plumbing or name.startswith(_INTERNAL)


def _is_installed(library: str) -> bool:
    parts = library.split("/")
    if library.startswith(_SYSTEM) or "site-packages" in parts or "dist-packages" in parts:
        return True
    return any(folder in ("lib", "lib64") and part.startswith("python") for folder, part in pairwise(parts))
